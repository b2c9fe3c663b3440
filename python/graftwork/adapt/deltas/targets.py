"""Which tensors of a model or checkpoint the tensors of a delta are for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

import torch

from graftwork.adapt.deltas.tuned_tensor import DTYPES, TunedTensor
from graftwork.checkpoint.dtypes import code_of, torch_dtype
from graftwork.delta.source import TensorMeta
from graftwork.delta.weights import Weights
from graftwork.errors import BaseMismatch

if TYPE_CHECKING:
    from graftwork.adapt.deltas.sparse_delta import SparseDelta

ANOTHER_BASE = (
    "apply the delta to the base that it was made against; for_base() makes it another base's, "
    "check_base=False adds it to any weights"
)
_RESIZE = "resize the model first (resize_token_embeddings, where a vocabulary grew), or leave the tensor out of the delta"


class Target(NamedTuple):
    """A tensor of a delta by its number, and the name by which the weights hold the one that it is for."""

    number: int
    held: str


def match_tensors(delta: SparseDelta, weights: Weights, known: Collection[str] = ()) -> list[Target]:
    """For every tensor of the delta with a change, those of the weights that it is for: one, or several that are tied
    in the delta and apart here.

    ``known`` are other names that errors may propose.

    Raises
    ------
    BaseMismatch
        One is missing, has another shape or is not of a dtype that can be tuned; or two of the delta are for one of the
        weights and differ.
    """
    found: dict[str, Target] = {}
    counts = delta.support.offsets.diff().tolist()
    for number, (tensor, count) in enumerate(zip(delta.tensors, counts, strict=True)):
        if not count:
            continue
        for held in _held(delta.names_of(tensor.name), weights, known=known):
            _check_pair(tensor, weights.source.metas[held], weights.what)
            first = found.setdefault(held, Target(number, held))
            if first.number != number:
                _check_equal(delta, delta.tensors[first.number].name, tensor.name, weights)
    return list(found.values())


def match_full(delta: SparseDelta, weights: Weights) -> dict[str, str]:
    """For every tensor tuned in full, the name by which the weights hold the one whose place it takes."""
    found: dict[str, str] = {}
    for name, tensor in delta.full.items():
        for held in _held(delta.names_of(name), weights, "pass with_full=False, or give a model that has it"):
            meta = weights.source.metas[held]
            if (tuple(meta.shape), meta.dtype) != (tuple(tensor.shape), code_of(tensor.dtype)):
                raise BaseMismatch(
                    "a tensor tuned in full does not fit into the model",
                    file=weights.what,
                    tensor=held,
                    got=f"{meta.dtype} {list(meta.shape)}",
                    wanted=f"{code_of(tensor.dtype)} {list(tensor.shape)}",
                    remedy="give a model with that head, or pass with_full=False",
                )
            found[held] = name
    return found


def check_dtypes(
    delta: SparseDelta, targets: Iterable[Target], dtypes: Mapping[str, torch.dtype], what: str
) -> None:
    """Refuse weights of another dtype than the delta's base."""
    for number, held in targets:
        if dtypes[held] != delta.tensors[number].dtype:
            raise BaseMismatch(
                "a tensor has another dtype than in the delta's base",
                file=what,
                tensor=held,
                got=dtypes[held],
                wanted=delta.tensors[number].dtype,
                remedy=f"convert the model; or {ANOTHER_BASE}",
            )


def check_digest(tensor: TunedTensor, digest: str, held: str, what: str) -> None:
    """Refuse a tensor with another digest than the delta's base."""
    if tensor.digest not in (None, digest):
        raise BaseMismatch(
            "a tensor is not what the delta was made against",
            file=what,
            tensor=held,
            got=f"digest {digest[:16]}…",
            wanted=f"digest {tensor.digest[:16]}…",
            remedy=ANOTHER_BASE,
        )


def _held(
    names: list[str], weights: Weights, remedy: str | None = None, known: Collection[str] = ()
) -> list[str]:
    """The names under which the weights hold a tensor of these names."""
    firsts = [first for name in names if (first := weights.first_name(name)) is not None]
    if not firsts:
        candidates = [*weights.names, *known]
        near = [name for name in candidates if f".{name}".endswith(f".{names[0]}")]
        near += [name for name in candidates if f".{names[0]}".endswith(f".{name}")]
        near += get_close_matches(names[0], candidates, n=1)
        raise BaseMismatch(
            "the weights lack a tensor of the delta",
            file=weights.what,
            tensor=names[0],
            got=f"the nearest name is {near[0]}" if near else "no such name",
            remedy=remedy or "apply it to the model that it is for; renamed() changes the delta's names",
        )
    return list(dict.fromkeys(firsts))


def _check_pair(tensor: TunedTensor, meta: TensorMeta, what: str) -> None:
    if tuple(meta.shape) != tensor.shape:
        raise BaseMismatch(
            "a tensor has another shape than in the delta's base",
            file=what,
            tensor=meta.name,
            got=list(meta.shape),
            wanted=list(tensor.shape),
            remedy=_RESIZE,
        )
    if torch_dtype(meta.dtype) not in DTYPES:
        raise BaseMismatch(
            "a tensor's weights cannot be tuned",
            file=what,
            tensor=meta.name,
            got=meta.dtype,
            wanted=", ".join(map(str, DTYPES)),
            remedy="dequantise it first, or apply the delta to the unquantised model and quantise the result",
        )


def _check_equal(delta: SparseDelta, first: str, second: str, weights: Weights) -> None:
    pairs = zip(delta.changes(first), delta.changes(second), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        raise BaseMismatch(
            "two tensors of the delta are one in the weights, and their changes differ",
            file=weights.what,
            tensor=first,
            got=f"{second} is tied to it",
            remedy="untie them in the model, or leave one out of the delta",
        )
