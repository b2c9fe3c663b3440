"""Merging of donors in plain torch; the bits are those of the native code, but for sums in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.reference.merge.philox import philox_words
from graftwork.reference.merge.rounding import nearest, same_words, stochastic
from graftwork.reference.merge.sparsify import NONE, sparsified

NO_CONSENSUS, SUM, COUNT, UNWEIGHTED_SUM = range(4)
#: Below this a sum of weights counts as 0, and is not divided by.
LEAST_DIVISOR = 1e-8


class Options(NamedTuple):
    """What :func:`merge_many` does, as numbers; the native code takes them in this order."""

    kind: int = NONE
    columns: int = 1
    by_probability: int = 0
    consensus: int = NO_CONSENSUS
    normalize: int = 0
    zero_nonfinite: int = 0
    stochastic: int = 0
    key0: int = 0
    key1: int = 0


def merge_many(
    donors: Sequence[Tensor],
    base: Tensor | None,
    coefficients: Tensor,
    weights: Tensor,
    limits: Tensor,
    scale: float,
    options: Sequence[int],
    out: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """Fill `out` and `residual`; the counts of :class:`graftwork.ops.merge.MergeCounts`.

    `coefficients`, float32 ``[1 or rows, donors]``, multiply the differences; `weights`, float32 ``[donors]``, are what
    :attr:`Options.normalize` divides by. Both are on the host.
    """
    told = Options(*options)
    zero = bool(told.zero_nonfinite)
    kept = sparsified(donors, base, told.kind, limits, told.columns, bool(told.by_probability), zero)
    each = torch.repeat_interleave(
        coefficients.to(out.device), out.numel() // max(len(coefficients), 1), dim=0
    ).unbind(1)
    products = [mine * by for mine, by in zip(kept, each, strict=True)]
    mixed, divisor = _mix(told.consensus, kept, products, weights.to(out.device))
    if told.normalize:
        mixed = mixed / torch.where(divisor.abs() < LEAST_DIVISOR, 1.0, divisor)
    mixed = mixed * torch.tensor(scale, dtype=torch.float32)
    counts = count_nonfinite([*donors, base])
    return torch.cat([counts, write(mixed, base, told, out, residual)])


def _mix(
    consensus: int, kept: Sequence[Tensor], products: Sequence[Tensor], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of the products that agree on a sign, and that of their weights."""
    if consensus == NO_CONSENSUS:
        return _total(products), _total(weights.unbind())
    if consensus == COUNT:
        votes = [(mine > 0).float() - (mine < 0).float() for mine in products]
    else:
        votes = list(products if consensus == SUM else kept)
    positive = _total(votes) >= 0
    agree = [~torch.where(positive, mine <= 0, mine >= 0) for mine in products]  # a NaN does
    mixed = _total([torch.where(mine, product, 0.0) for mine, product in zip(agree, products, strict=True)])
    divisor = _total([torch.where(mine, weight, 0.0) for mine, weight in zip(agree, weights, strict=True)])
    return mixed, divisor


def _total(addends: Sequence[Tensor]) -> Tensor:
    total = addends[0]
    for addend in addends[1:]:
        total = total + addend
    return total


def write(mixed: Tensor, base: Tensor | None, told: Options, out: Tensor, residual: Tensor | None) -> Tensor:
    """Round base + mixed into `out`; see :func:`finish`."""
    if base is None:
        return finish(mixed, None, mixed != 0, told, out, residual)
    start = start_values(base, told)
    value = torch.where(mixed == 0, start, start + mixed)  # adding +0 would make a base of -0 positive
    return finish(value, start, mixed != 0, told, out, residual)


def start_values(base: Tensor, told: Options) -> Tensor:
    start = base.float().reshape(-1)
    return torch.where(start.isfinite(), start, 0.0) if told.zero_nonfinite else start


def finish(
    value: Tensor, start: Tensor | None, moved: Tensor, told: Options, out: Tensor, residual: Tensor | None
) -> Tensor:
    """Round into `out`, what that loses into `residual`; int64 ``[3]``: changed, lost, overflowed."""
    if told.stochastic:
        words = philox_words((told.key0, told.key1), 0, out.numel(), out.device)
        rounded = stochastic(value, out.dtype, words)
    else:
        rounded = nearest(value, out.dtype)
    counts = [torch.zeros((), dtype=torch.int64, device=out.device)] * 2
    if start is not None:
        same = same_words(rounded, nearest(start, out.dtype))
        counts = [(~same).sum(), (same & moved & value.isfinite()).sum()]
    overflowed = (value.isfinite() & ~rounded.isfinite()).sum()
    out.copy_(rounded.view(out.shape))
    if residual is not None:
        kept = rounded.float()
        residual.copy_(torch.where(kept.isfinite(), value - kept, 0.0).view(out.shape))
    return torch.stack([*counts, overflowed]).cpu()


def count_nonfinite(tensors: Sequence[Tensor | None]) -> Tensor:
    """int64: for each tensor how many elements are not finite, and the first one's flat index, −1 for none."""
    counts: list[int] = []
    for tensor in tensors:
        where = [] if tensor is None else (~tensor.reshape(-1).isfinite()).nonzero().view(-1).tolist()
        counts += [len(where), where[0] if where else -1]
    return torch.tensor(counts)
