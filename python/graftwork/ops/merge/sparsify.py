"""Which differences of a donor take part in a merge: a row of one table for each published rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.merge import arguments as args
from graftwork.ops.merge.arguments import FORMATS, Key, held_weights, table_on_host
from graftwork.ops.merge.thresholds import check_keep
from graftwork.reference.merge import sparsify as reference
from graftwork.reference.merge.sparsify import BAND, NONE, NOTHING, RANDOM, RANKED

Rescale = Literal["probability", "l1"]
_L1_LEAST = 1e-7  # below this a norm says nothing


@dataclass(frozen=True)
class Sparsify:
    """A rule that keeps some of each donor's differences; made by the class methods.

    Attributes
    ----------
    kind : str
        "none", "magnitude", "band", "random" or "ranked".
    numbers : tuple of tuple of float
        For each donor what the class method's arguments say.
    keys : tuple of (int, int)
        For each donor the Philox key of "random" and "ranked".
    rescale : {"probability", "l1"}, optional
        What is kept is divided by the probability to keep it, or multiplied by Σ|d| / Σ|kept d|.
    """

    kind: str = "none"
    numbers: tuple[tuple[float, ...], ...] = ()
    keys: tuple[Key, ...] = ()
    rescale: Rescale | None = None

    @classmethod
    def none(cls) -> Sparsify:
        """Keep all."""
        return cls()

    @classmethod
    def magnitude(cls, keep: Sequence[int], *, rescale: Literal["l1"] | None = None) -> Sparsify:
        """Keep the `keep[k]` differences of donor k that are largest (TIES); of equal ones those that come first.

        :func:`graftwork.ops.merge.keep_count` makes the number from a density.
        """
        _check_rescale("magnitude", rescale, ("l1",))
        for number, count in enumerate(keep):
            if count < 0:
                raise ValueError(f"Sparsify.magnitude: keep[{number}] must be at least 0, got {count}")
        return cls("magnitude", tuple((count,) for count in keep), (), rescale)

    @classmethod
    def band(
        cls, density: Sequence[float], gamma: Sequence[float], *, rescale: Literal["l1"] | None = None
    ) -> Sparsify:
        """Leave out the share `gamma` that is largest, then keep the share `density` (breadcrumbs).

        Of n differences ⌊density·n⌋ are kept; fewer than ⌊gamma·n⌋ are left out at the top where there are not enough.
        """
        _check_rescale("band", rescale, ("l1",))
        _check_lengths("band", density, gamma=gamma)
        for number, pair in enumerate(zip(density, gamma, strict=True)):
            args.check_share("Sparsify.band", f"density[{number}]", pair[0])
            args.check_share("Sparsify.band", f"gamma[{number}]", pair[1])
        return cls("band", tuple(zip(density, gamma, strict=True)), (), rescale)

    @classmethod
    def random(
        cls, density: Sequence[float], keys: Sequence[Key], *, rescale: Rescale | None = "probability"
    ) -> Sparsify:
        """Keep each difference with probability `density` (DARE; its drop rate p is 1 − density).

        Difference i is kept if word i of the Philox stream of `keys[k]` is below density·2^32: any part of a tensor
        gives the same choice, in any order.
        """
        _check_rescale("random", rescale, ("probability", "l1"))
        _check_lengths("random", density, keys=keys)
        for number, (share, key) in enumerate(zip(density, keys, strict=True)):
            args.check_share("Sparsify.random", f"density[{number}]", share)
            args.check_key("Sparsify.random", f"keys[{number}]", key)
        return cls("random", tuple((share,) for share in density), tuple(keys), rescale)

    @classmethod
    def ranked(
        cls,
        density: Sequence[float],
        epsilon: Sequence[float],
        keys: Sequence[Key],
        *,
        rescale: Rescale | None = "probability",
    ) -> Sparsify:
        """Keep each difference with a probability that grows with its rank in its row (DELLA's MagPrune).

        The smallest of a row (the last dimension) is kept with density − epsilon, the largest with density + epsilon,
        the others in equal steps between; equal magnitudes rank in their order.
        """
        _check_rescale("ranked", rescale, ("probability", "l1"))
        _check_lengths("ranked", density, epsilon=epsilon, keys=keys)
        for number, (share, spread, key) in enumerate(zip(density, epsilon, keys, strict=True)):
            args.check_share("Sparsify.ranked", f"density[{number}]", share)
            if not 0 <= spread <= min(share, 1 - share) + 1e-12:
                raise ValueError(
                    f"Sparsify.ranked: epsilon[{number}] must keep density ± epsilon in [0, 1], got density {share} and "
                    f"epsilon {spread}"
                )
            args.check_key("Sparsify.ranked", f"keys[{number}]", key)
        return cls("ranked", tuple(zip(density, epsilon, strict=True)), tuple(keys), rescale)


class Prepared(NamedTuple):
    """A rule for the tensors at hand, as the operations take it."""

    kind: int
    limits: Tensor
    by_probability: bool
    #: What each donor's weight is multiplied by.
    scales: list[float]


def prepare(
    operation: str, sparsify: Sparsify, donors: Sequence[Tensor], base: Tensor | None, zero_nonfinite: bool
) -> Prepared:
    """Find the thresholds, and the norms where they are needed."""
    count, numel = len(donors), donors[0].numel()
    if not isinstance(sparsify, Sparsify):
        raise TypeError(f"{operation}: sparsify must be a Sparsify, got {type(sparsify).__name__}")
    if sparsify.kind != "none" and len(sparsify.numbers) != count:
        raise ValueError(
            f"{operation}: sparsify must have one row for each of the {count} donors, got {len(sparsify.numbers)}"
        )
    scales, by_probability = [1.0] * count, False
    if sparsify.kind == "none":
        kind, limits = NONE, torch.zeros(count, 4, dtype=torch.int64)
    elif sparsify.kind in ("magnitude", "band"):
        kind, limits = BAND, _band_limits(operation, sparsify, donors, base, numel, zero_nonfinite)
    elif sparsify.kind == "random":
        kind = RANDOM
        rows = [
            (_word(share), *key, 0) for (share,), key in zip(sparsify.numbers, sparsify.keys, strict=True)
        ]
        limits = torch.tensor(rows)
        if sparsify.rescale == "probability":
            scales = [2**32 / row[0] if row[0] else 1.0 for row in rows]
    else:
        kind, by_probability = RANKED, sparsify.rescale == "probability"
        limits = torch.tensor(
            [
                (_word(share - spread), _word(share + spread), *key)
                for (share, spread), key in zip(sparsify.numbers, sparsify.keys, strict=True)
            ]
        )
    if sparsify.rescale == "l1":
        norms = torch.ops.graftwork.sparsify_norms(
            list(donors), base, kind, limits, row_length(donors[0]), zero_nonfinite
        )
        scales = [a / b if min(a, b) >= _L1_LEAST else 1.0 for a, b, _ in norms.tolist()]
    return Prepared(kind, limits, by_probability, scales)


def row_length(tensor: Tensor) -> int:
    return tensor.shape[-1] if tensor.dim() else 1


def _check_rescale(kind: str, rescale: str | None, choices: tuple[str, ...]) -> None:
    if rescale is not None and rescale not in choices:
        raise ValueError(f"Sparsify.{kind}: rescale must be None or {' or '.join(choices)}, got {rescale!r}")


def _check_lengths(kind: str, density: Sequence[float], **others: Sequence[object]) -> None:
    for name, other in others.items():
        if len(other) != len(density):
            raise ValueError(
                f"Sparsify.{kind}: {name} must have one entry for each density, {len(density)}, got {len(other)}"
            )


def _word(probability: float) -> int:
    """Below which number a 32-bit word is with this probability."""
    return round(min(max(probability, 0.0), 1.0) * 2**32)


def _band_limits(
    operation: str,
    sparsify: Sparsify,
    donors: Sequence[Tensor],
    base: Tensor | None,
    numel: int,
    zero_nonfinite: bool,
) -> Tensor:
    """Bits and cut of the lower and of the upper threshold of each donor."""
    if sparsify.kind == "magnitude":
        low, high = [int(row[0]) for row in sparsify.numbers], [0] * len(donors)
        check_keep(operation, "sparsify.keep", low, numel)
    else:
        kept = [min(numel, int(density * numel)) for density, _ in sparsify.numbers]
        high = [
            min(int(gamma * numel), numel - k) for (_, gamma), k in zip(sparsify.numbers, kept, strict=True)
        ]
        low = [a + b for a, b in zip(kept, high, strict=True)]
    limits = torch.tensor([NOTHING, 0]).repeat(len(donors), 2, 1)
    sought: list[tuple[int, int, int]] = []  # donor, side, count: all in the same readings
    for number, counts in enumerate(zip(low, high, strict=True)):
        for side, kept_count in enumerate(counts):
            if kept_count == numel:
                limits[number, side] = torch.tensor([0, numel])  # every score is 0 before the end, or more
            elif kept_count:
                sought.append((number, side, kept_count))
    if sought:
        mine, keeps = [donors[number] for number, _, _ in sought], [count for _, _, count in sought]
        found = torch.ops.graftwork.magnitude_thresholds(mine, base, keeps, zero_nonfinite)
        for (number, side, _), (bits, _, cut) in zip(sought, found.tolist(), strict=True):
            limits[number, side] = torch.tensor([bits, cut])
    return limits.view(len(donors), 4)


def _norms(
    donors: list[Tensor], base: Tensor | None, kind: int, limits: Tensor, columns: int, zero_nonfinite: bool
) -> Tensor:
    held, told = held_weights(donors, base)
    count, numel = len(donors), donors[0].numel()
    sums = torch.empty(count, 3, dtype=torch.float64)
    threads = _native.threads_for(numel)
    nbytes = _native.load("_core").merge_workspace_bytes(count, kind, columns, threads)
    what = kind, limits, columns, int(zero_nonfinite), sums, _native.buffer("workspace", nbytes)
    _native.call("sparsify_norms", *told, count, numel, *what, like=held[0], threads=threads)
    return sums


def _norms_fake(
    donors: list[Tensor], base: Tensor | None, kind: int, limits: Tensor, columns: int, zero_nonfinite: bool
) -> Tensor:
    return torch.empty(len(donors), 3, dtype=torch.float64)


_native.register(
    "sparsify_norms",
    "(Tensor[] donors, Tensor? base, int kind, Tensor limits, int columns, bool zero_nonfinite) -> Tensor",
    reference=reference.sparsify_norms,
    fake=_norms_fake,
    cpu=_native.Route("_core", FORMATS, _norms),
    cuda=_native.Route("_core", FORMATS, table_on_host(_norms)),
)
