"""Which of a donor's differences are kept, in plain torch; see :mod:`graftwork.ops.merge.sparsify`.

A row of `limits` (int64 ``[donors, 4]``) says it for one donor:

- BAND: bits and cut of the lower threshold, bits and cut of the upper one: kept is what is above the lower but not
  above the upper. A difference is above a threshold if its magnitude's bits are greater, or equal and its flat index
  is below the cut.
- RANDOM: kept if its Philox word is below the first number; the key's two words.
- RANKED: as RANDOM, with a number between the first and the second, by the magnitude's rank in its row; the key.
- VARIANCE: bits and cut of a threshold for the variance over the donors, the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.reference.merge.philox import philox_words

NONE, BAND, RANDOM, RANKED, VARIANCE = range(5)
#: The bits of a threshold that nothing is above.
NOTHING = 0xFFFFFFFF
_NAN_BITS = 0x7FC00000


def difference(donor: Tensor, base: Tensor | None, zero_nonfinite: bool) -> Tensor:
    """The flat float32 difference; with `zero_nonfinite` 0 where the donor or the base is not finite."""
    values = donor.float().reshape(-1)
    finite = values.isfinite()
    if base is not None:
        from_values = base.float().reshape(-1)
        finite = finite & from_values.isfinite()
        values = values - from_values
    return torch.where(finite, values, 0.0) if zero_nonfinite else values


def scores(values: Tensor) -> Tensor:
    """The magnitudes' bits, as int64: in the order of the magnitudes, every NaN alike and above infinity."""
    bits = values.view(torch.int32).long() & 0x7FFFFFFF
    return torch.where(values.isnan(), _NAN_BITS, bits)


def threshold(mine: Tensor, keep: int) -> list[int]:
    """``[bits, ties, cut]`` of the `keep` largest scores, of equal ones those that come first."""
    if keep == 0:
        return [NOTHING, 0, 0]
    kept = mine.sort(descending=True, stable=True).indices[:keep]
    bits = int(mine[kept].min())
    ties = kept[mine[kept] == bits]
    return [bits, ties.numel(), int(ties.max()) + 1]


def magnitude_thresholds(
    donors: Sequence[Tensor], base: Tensor | None, keeps: Sequence[int], zero_nonfinite: bool
) -> Tensor:
    """int64 ``[donors, 3]`` on the host: bits, ties and cut of each donor's threshold."""
    return torch.tensor(
        [
            threshold(scores(difference(donor, base, zero_nonfinite)), keep)
            for donor, keep in zip(donors, keeps, strict=True)
        ]
    )


def variance(differences: Sequence[Tensor]) -> Tensor:
    """The population variance over the donors, float32, added in their order."""
    count = len(differences)
    mean = differences[0]
    for mine in differences[1:]:
        mean = mean + mine
    mean = mean / count
    total = torch.zeros_like(mean)
    for mine in differences:
        total = total + (mine - mean) * (mine - mean)
    return total / count


def above(mine: Tensor, bits: int, cut: int) -> Tensor:
    position = torch.arange(mine.numel(), device=mine.device)
    return (mine > bits) | (mine == bits) & (position < cut)


def rank_limits(mine: Tensor, columns: int, low: int, high: int) -> Tensor:
    """For RANKED: below which word each difference is kept: `low` for a row's smallest, `high` for its largest."""
    rows = mine.view(-1, columns)
    if columns == 1:
        return torch.full_like(mine, (low + high) // 2)
    order = rows.sort(dim=1, stable=True).indices
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(columns, device=mine.device).expand_as(rows)
    )
    return (low + (high - low) * ranks // (columns - 1)).view(-1)


def factors(
    kind: int, limits: list[int], columns: int, by_probability: bool, mine: Tensor, shared: Tensor
) -> Tensor:
    """By what each difference is multiplied, float32, 0 for what is dropped.

    `mine` are the donor's scores, `shared` those that all donors have in common for VARIANCE.
    """
    if kind == NONE:
        return torch.ones_like(mine, dtype=torch.float32)
    if kind == BAND:
        return (above(mine, *limits[:2]) & ~above(mine, *limits[2:])).float()
    if kind == VARIANCE:
        return above(shared, *limits[:2]).float()
    if kind == RANDOM:
        below, key = torch.full_like(mine, limits[0]), (limits[1], limits[2])
    else:
        below, key = rank_limits(mine, columns, limits[0], limits[1]), (limits[2], limits[3])
    kept = philox_words(key, 0, mine.numel(), mine.device) < below
    return (
        torch.where(kept, 2.0**32 / below.float(), 0.0) if by_probability and kind == RANKED else kept.float()
    )


def sparsified(
    donors: Sequence[Tensor],
    base: Tensor | None,
    kind: int,
    limits: Tensor,
    columns: int,
    by_probability: bool,
    zero_nonfinite: bool,
) -> list[Tensor]:
    """The differences that are kept, times their factors; 0 for the others, NaN among them too."""
    differences = [difference(donor, base, zero_nonfinite) for donor in donors]
    shared = scores(variance(differences)) if kind == VARIANCE else torch.empty(0)
    result = []
    for mine, row in zip(differences, limits.tolist(), strict=True):
        by = factors(kind, row, columns, by_probability, scores(mine), shared)
        result.append(torch.where(by > 0, mine * by, 0.0))
    return result


def sparsify_norms(
    donors: Sequence[Tensor],
    base: Tensor | None,
    kind: int,
    limits: Tensor,
    columns: int,
    zero_nonfinite: bool,
) -> Tensor:
    """float64 ``[donors, 3]`` on the host: Σ|d|, and Σ|d| and Σd² of what is kept."""
    kept = sparsified(donors, base, kind, limits, columns, False, zero_nonfinite)
    rows = []
    for donor, mine in zip(donors, kept, strict=True):
        whole, left = difference(donor, base, zero_nonfinite).double().abs(), mine.double().abs()
        rows.append(torch.stack([whole.sum(), left.sum(), left.square().sum()]))
    return torch.stack(rows).cpu()
