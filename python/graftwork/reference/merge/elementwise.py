"""Merges without a choice among weights, in plain torch; see :mod:`graftwork.ops.merge.elementwise`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.reference.merge.merge_many import Options, count_nonfinite, finish, start_values
from graftwork.reference.merge.rounding import nearest, same_words


def add_diff(minuend: Tensor, subtrahend: Tensor, onto: Tensor, scale: float, out: Tensor) -> None:
    """out = round(onto + scale · (minuend − subtrahend)); the minuend where nothing but it remains."""
    minuend, subtrahend, start = minuend.float(), subtrahend.float(), onto.float()
    moved = (minuend - subtrahend) * torch.tensor(scale, dtype=torch.float32)
    value = torch.where(moved == 0, start, start + moved)
    if scale == 1:
        value = torch.where(same_words(subtrahend.contiguous(), start.contiguous()), minuend, value)
    out.copy_(nearest(value, out.dtype))


def nearswap(
    donor: Tensor, base: Tensor, t: float, options: Sequence[int], out: Tensor, residual: Tensor | None
) -> Tensor:
    """out = round(w·donor + (1 − w)·base), w = min(1, t / |donor − base|); counts as those of merge_many."""
    told = Options(*options)
    start, other = start_values(base, told), donor.float().reshape(-1)
    if told.zero_nonfinite:
        other = torch.where(other.isfinite() & base.reshape(-1).isfinite(), other, start)
    limit = torch.tensor(t, dtype=torch.float32, device=donor.device)
    apart = (other - start).abs()
    weight = limit / apart
    value = torch.where(apart <= limit, other, weight * other + (1 - weight) * start)
    counts = count_nonfinite([donor, base])
    return torch.cat([counts, finish(value, start, value != start, told, out, residual)])
