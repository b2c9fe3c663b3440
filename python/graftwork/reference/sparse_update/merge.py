"""Sums and comparisons of sparse deltas; see :mod:`graftwork.ops.sparse_update`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def merge_deltas(
    indices: list[Tensor], offsets: list[Tensor], values: list[Tensor], weights: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """``(indices, offsets, values)`` of the weighted sum."""
    scales = torch.tensor(weights, dtype=torch.float32, device=values[0].device)
    lengths, merged, sums = [0], [], []
    for spans in _tensors(offsets):
        mine = [index[span] for index, span in zip(indices, spans, strict=True)]
        union = torch.unique(torch.cat(mine))
        total = values[0].new_full(union.shape, -0.0)  # the one number that changes none when it is added
        for index, span, value, scale in zip(mine, spans, values, scales, strict=True):
            total[torch.searchsorted(union, index)] += value[span] * scale
        lengths.append(union.numel())
        merged.append(union)
        sums.append(total)
    return torch.cat(merged), torch.tensor(lengths).cumsum(0), torch.cat(sums)


def compare_deltas(
    indices: list[Tensor], offsets: list[Tensor], values: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """``(counts, sums)`` of two deltas, a row each of :class:`graftwork.ops.sparse_update.Comparison`."""
    counts, sums = [], []
    for a, b in _tensors(offsets):
        mine, other = indices[0][a], indices[1][b]
        x, y = values[0][a].double(), values[1][b].double()
        in_other, in_mine = torch.isin(mine, other), torch.isin(other, mine)
        shared = int(in_other.sum())
        p, q = x[in_other], y[in_mine]
        agreeing = int(((p > 0) & (q > 0) | (p < 0) & (q < 0)).sum())
        counts.append([shared, mine.numel() + other.numel() - shared, agreeing])
        sums.append(torch.stack([(p * q).sum(), (x * x).sum(), (y * y).sum()]))
    return torch.tensor(counts, device=indices[0].device).T.contiguous(), torch.stack(sums, 1)


def _tensors(offsets: list[Tensor]) -> Iterator[list[slice]]:
    """For each tensor, the entries of every delta."""
    for bounds in pairwise(zip(*(offset.tolist() for offset in offsets), strict=True)):
        yield [slice(begin, end) for begin, end in zip(*bounds, strict=True)]
