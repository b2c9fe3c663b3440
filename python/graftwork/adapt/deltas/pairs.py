"""Two models side by side: which tensor of the one is which of the other, and what a delta makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.adapt.deltas.tuned_tensor import DTYPES
from graftwork.delta.weights import Weights
from graftwork.errors import DeltaError

_APART = "name it in keep_full to keep it as it is in the tuned model, or in exclude to leave it out"


class Pair(NamedTuple):
    """A tensor of the tuned model and that of the base, of the same name or tied to it; None where one lacks it.

    ``names`` are all its names, first that under which the base or else the tuned model holds it; ``base_name`` is that of
    the base.
    """

    names: list[str]
    base_name: str | None
    base: Tensor | None
    tuned: Tensor | None


class Patterns(NamedTuple):
    """Which tensors are looked at, and which of them are kept in full."""

    include: Sequence[str]
    exclude: Sequence[str]
    keep_full: Sequence[str]

    def check(self, pairs: Sequence[Pair]) -> None:
        """Require that every pattern matches a tensor."""
        for role, patterns in zip(self._fields, self, strict=True):
            for pattern in patterns:
                if not any(fnmatchcase(pair.names[0], pattern) for pair in pairs):
                    raise ValueError(
                        f"{role}: {pattern!r} matches no tensor of the two models; tied ones go by their first name"
                    )

    def is_full(self, name: str) -> bool:
        """Whether a tensor is kept in full."""
        return _matches(name, self.keep_full)

    def is_chosen(self, name: str) -> bool:
        """Whether its changes are looked at."""
        return _matches(name, self.include) and not _matches(name, self.exclude)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def pairs_of(base: Weights, tuned: Weights) -> list[Pair]:
    """Every tensor of the two models, tied ones once, by name."""
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    for name in sorted({*base.names, *tuned.names}):
        held = _first_name(base, name, tuned), _first_name(tuned, name, base)
        groups.setdefault(held, []).append(name)
    return sorted(_pairs(base, tuned, groups), key=lambda pair: pair.names[0])


def _pairs(
    base: Weights, tuned: Weights, groups: dict[tuple[str | None, str | None], list[str]]
) -> Iterator[Pair]:
    for (in_base, in_tuned), names in groups.items():
        first = next(name for name in (in_base, in_tuned, names[0]) if name in names)
        yield Pair(
            [first, *(name for name in names if name != first)],
            in_base,
            None if in_base is None else base.tensor(in_base),
            None if in_tuned is None else tuned.tensor(in_tuned),
        )


def _first_name(side: Weights, name: str, other: Weights) -> str | None:
    """Under which name ``side`` holds ``name``, or holds what ``other`` ties it to."""
    first = side.first_name(name)
    there = other.first_name(name)
    if first is None and there is not None:
        found = (side.first_name(alias) for alias in other.tied_to(there))
        first = next((alias for alias in found if alias is not None), None)
    return first


class Tunable(NamedTuple):
    """A tensor of both models whose weights can be tuned."""

    names: list[str]
    base_name: str
    base: Tensor
    tuned: Tensor


def tunable(pair: Pair, base: Weights, tuned: Weights) -> Tunable | None:
    """The pair, if its weights can be tuned; None if it is of another dtype and did not change.

    Raises
    ------
    DeltaError
        The two are not of one shape and dtype, or of a dtype that cannot be tuned and differ.
    """
    names, held, old, new = pair
    name = names[0]
    if old is None or new is None or held is None:
        where = base.what if new is None else tuned.what
        raise DeltaError(
            "only one of the two models has a tensor", tensor=name, got=f"it is in {where}", remedy=_APART
        )
    if old.shape != new.shape:
        raise DeltaError(
            "a tensor has another shape in the tuned model",
            tensor=name,
            got=list(new.shape),
            wanted=list(old.shape),
            remedy=f"resize the base first (resize_token_embeddings, where a vocabulary grew), or {_APART}",
        )
    if old.dtype != new.dtype:
        raise DeltaError(
            "a tensor has another dtype in the tuned model",
            tensor=name,
            got=new.dtype,
            wanted=old.dtype,
            remedy="convert one of the models; nothing is cast silently",
        )
    if old.dtype in DTYPES:
        return Tunable(names, held, old, new)
    if not torch.equal(_bytes(old), _bytes(new)):
        raise DeltaError(
            "a tensor changed whose weights cannot be tuned",
            tensor=name,
            got=old.dtype,
            wanted=", ".join(map(str, DTYPES)),
            remedy=_APART,
        )
    return None


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
