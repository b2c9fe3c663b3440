"""Make a sparse delta: from two models, from changes that are known, or from a delta to another base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from graftwork.adapt.deltas.arrangement import index_dtype, no_support
from graftwork.adapt.deltas.pairs import Patterns, pairs_of, tunable
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.targets import match_tensors
from graftwork.adapt.deltas.tuned_tensor import TunedTensor
from graftwork.checkpoint.dtypes import torch_dtype
from graftwork.delta.pipeline import default_threads
from graftwork.delta.source import describe
from graftwork.delta.weights import Stateful, Weights, open_weights
from graftwork.errors import BaseMismatch, DeltaError
from graftwork.ops.sparse_update import Support, topk_absdiff

_PIECE = 1 << 22  # elements whose differences are looked at together


class Selection(NamedTuple):
    """Which differences are kept: the ``k`` largest, that share of the weights, or all above ``eps``."""

    k: int | None
    density: float | None
    eps: float

    @classmethod
    def of(cls, k: int | None, density: float | None, eps: float | None) -> Self:
        """Checked: at most one is given."""
        if sum(given is not None for given in (k, density, eps)) > 1:
            raise ValueError(f"give one of k, density and eps, got k={k}, density={density}, eps={eps}")
        if density is not None and not 0 <= density <= 1:
            raise ValueError(f"density must be in [0, 1], got {density}")
        if eps is not None and not 0 <= eps < math.inf:
            raise ValueError(f"eps must be in [0, infinity), got {eps}")
        return cls(k, density, 0.0 if eps is None else eps)

    def number(self, weights: int) -> int | None:
        """How many of that many weights are kept; None if ``eps`` decides."""
        return self.k if self.density is None else int(self.density * weights)


class _Pair(NamedTuple):
    """A tensor of the two models, flat."""

    name: str
    base: Tensor
    tuned: Tensor


def from_models(
    base: Stateful,
    tuned: Stateful,
    selection: Selection,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    keep_full: Sequence[str],
    threads: int | None,
) -> SparseDelta:
    """See `SparseDelta.from_models`."""
    patterns = Patterns(include, exclude, keep_full)
    with open_weights(base, "base") as old, open_weights(tuned, "tuned") as new:
        both_models = pairs_of(old, new)
        patterns.check(both_models)
        full: dict[str, Tensor] = {}
        tied: dict[str, str] = {}
        tensors: list[TunedTensor] = []
        pairs: list[_Pair] = []
        description = describe(old.source, threads=threads or default_threads())
        for pair in both_models:
            name, *aliases = pair.names
            if patterns.is_full(name):
                if pair.tuned is None:
                    raise DeltaError("the tuned model lacks a tensor that is kept in full", tensor=name)
                full[name] = pair.tuned.detach().cpu().contiguous().clone()
            elif patterns.is_chosen(name) and (both := tunable(pair, old, new)):
                digest = description.tensors[both.base_name].digest
                tensors.append(TunedTensor(name, tuple(both.base.shape), both.base.dtype, digest))
                pairs.append(_Pair(name, _flat(both.base), _flat(both.tuned)))
            else:
                continue
            tied |= dict.fromkeys(aliases, name)
        support, values = _select(_on_one_device(pairs), selection)
    return SparseDelta(tensors, support, values, full=full, tied=tied, base_digest=description.digest)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1)


def _on_one_device(pairs: list[_Pair]) -> list[_Pair]:
    devices = {tensor.device for pair in pairs for tensor in (pair.base, pair.tuned)}
    return pairs if len(devices) < 2 else [_Pair(name, a.cpu(), b.cpu()) for name, a, b in pairs]


def _select(pairs: list[_Pair], selection: Selection) -> tuple[Support, Tensor]:
    """The differences that are kept, where they are and how large: those that are zero never."""
    if not pairs:
        return no_support(), torch.empty(0)
    number = selection.number(sum(pair.base.numel() for pair in pairs))
    if number is None:
        found = [_above(pair, selection.eps) for pair in pairs]
    else:
        largest = _largest(pairs, number)
        found = [_changed(pair, indices) for pair, indices in zip(pairs, largest, strict=True)]
    numels = [pair.base.numel() for pair in pairs]
    support = Support([indices.to(index_dtype(numels)) for indices, _ in found], numels)
    return support, torch.cat([values for _, values in found])


def _largest(pairs: list[_Pair], number: int) -> list[Tensor]:
    try:
        return topk_absdiff([pair.tuned for pair in pairs], [pair.base for pair in pairs], number)[1]
    except ValueError:
        for pair in pairs:
            _above(pair, math.inf)  # which names the tensor where a difference is NaN
        raise


def _changed(pair: _Pair, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The changes at some indices, without those of 0."""
    values = _difference(pair.base[indices.long()], pair.tuned[indices.long()])
    kept = values != 0
    return indices[kept], values[kept]


def _above(pair: _Pair, eps: float) -> tuple[Tensor, Tensor]:
    """The changes above ``eps``."""
    places, changes = [], []
    for start in range(0, pair.base.numel(), _PIECE):
        piece = slice(start, start + _PIECE)
        values = _difference(pair.base[piece], pair.tuned[piece])
        if bool(values.isnan().any()):
            place = start + int(values.isnan().nonzero()[0])
            raise DeltaError(
                "a difference is not a number",
                tensor=pair.name,
                got=f"{pair.tuned[place].item()} − {pair.base[place].item()} at index {place}",
                remedy="exclude the tensor, or keep it in full",
            )
        found = (values.abs() > eps).nonzero().view(-1)
        places.append(found + start)
        changes.append(values[found])
    if not places:
        empty = pair.base.new_empty(0, dtype=torch.float32)
        return empty.long(), empty
    return torch.cat(places), torch.cat(changes)


def _difference(base: Tensor, tuned: Tensor) -> Tensor:
    return tuned.float() - base.float()


def from_changes(
    changes: Mapping[str, tuple[Tensor, Tensor]], base: Stateful, *, threads: int | None
) -> SparseDelta:
    """See `SparseDelta.from_changes`."""
    numels, indices, values, tensors = [], [], [], []
    tied: dict[str, str] = {}
    with open_weights(base, "base") as weights:
        description = describe(weights.source, threads=threads or default_threads())
        for name, (mine, change) in changes.items():
            held = weights.first_name(name)
            if held is None:
                raise BaseMismatch("the base lacks a tensor of the changes", file=weights.what, tensor=name)
            if name in tied:
                raise DeltaError(
                    "two of the changes are of one tensor", tensor=name, got=f"it is tied to {tied[name]}"
                )
            tensors.append(_tuned_tensor(name, weights, held, description.tensors[held].digest))
            tied |= {other: name for other in weights.tied_to(held) if other != name}
            numels.append(tensors[-1].numel)
            indices.append(mine.to(torch.int64))
            values.append(change.detach().float())
    support = Support(indices, numels) if tensors else no_support()
    for name, mine, change in zip(changes, indices, values, strict=True):
        if mine.shape != change.shape:
            raise ValueError(
                f"{name}: wanted a value for each of {len(mine)} indices, got {list(change.shape)}"
            )
    return SparseDelta(
        tensors,
        support,
        torch.cat(values) if values else torch.empty(0),
        tied=tied,
        base_digest=description.digest,
    )


def _tuned_tensor(name: str, weights: Weights, held: str, digest: str) -> TunedTensor:
    meta = weights.source.metas[held]
    dtype = torch_dtype(meta.dtype)
    if dtype is None:
        raise DeltaError("torch has no such dtype", tensor=name, got=meta.dtype)
    return TunedTensor(name, tuple(meta.shape), dtype, digest)


def for_base(delta: SparseDelta, base: Stateful, *, threads: int | None) -> SparseDelta:
    """See `SparseDelta.for_base`."""
    with open_weights(base, "base") as weights:
        targets = match_tensors(delta, weights)
        description = describe(weights.source, threads=threads or default_threads())
        held = dict(targets)
        for number, name in targets:
            digests = description.tensors[name].digest, description.tensors[held[number]].digest
            if digests[0] != digests[1]:
                raise BaseMismatch(
                    "tensors that are tied in the delta differ in the base",
                    file=weights.what,
                    tensor=name,
                    got=f"{held[number]} differs from it",
                    remedy="tie them in the base",
                )
        tensors = []
        for number, tensor in enumerate(delta.tensors):
            if number in held:
                digest = description.tensors[held[number]].digest
                tensors.append(_tuned_tensor(tensor.name, weights, held[number], digest))
            else:
                tensors.append(replace(tensor, digest=None))
    return SparseDelta(
        tensors,
        delta.support,
        delta.values,
        full=delta.full,
        tied=delta.tied,
        base_digest=description.digest,
    )
