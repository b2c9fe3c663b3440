"""The largest entries of an outer product, without the product."""

from __future__ import annotations

import torch
from torch import Tensor


def _counts(rows: Tensor, ascending: Tensor, bound: Tensor) -> Tensor:
    """For each row, how many columns have row · column ≥ bound: the product rounds the same for all who compute it."""
    low = torch.zeros_like(rows, dtype=torch.int64)
    high = torch.full_like(low, len(ascending))
    for _ in range(len(ascending).bit_length()):  # the first column at which the product reaches the bound
        middle = (low + high) // 2
        reached = rows * ascending[middle.clamp(max=len(ascending) - 1)] >= bound
        open_ = low < high
        high = torch.where(open_ & reached, middle, high)
        low = torch.where(open_ & ~reached, middle + 1, low)
    return len(ascending) - low


def largest_products(rows: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest rows[i] · columns[j] above zero.

    Parameters
    ----------
    rows, columns : Tensor
        float32, finite, not negative.
    count : int
        How many; fewer if no more are above zero. Of equal products those of lowest index come first.

    Returns
    -------
    tuple of Tensor
        Sorted indices i · len(columns) + j, int64, and their products, float32.

    Notes
    -----
    A threshold is searched bit by bit: for each the columns of each row are counted in the sorted columns. Memory goes
    with rows, columns and `count`.

    Examples
    --------
    >>> largest_products(torch.tensor([2.0, 5.0]), torch.tensor([2.0, 5.0]), 2)
    (tensor([1, 3]), tensor([10., 25.]))
    """
    ascending, order = columns.sort(stable=True)
    tiny = torch.tensor(1, dtype=torch.int32).view(torch.float32).to(rows)  # the least float above zero
    total = 0 if not len(rows) or not len(columns) else int(_counts(rows, ascending, tiny).sum())
    count = min(count, total)
    if not count:
        return torch.empty(0, dtype=torch.int64, device=rows.device), rows[:0]
    # The bits of floats that are not negative are in their order: find the largest bound that enough products reach.
    bits = 0
    for bit in reversed(range(31)):
        bound = torch.tensor(bits | 1 << bit, dtype=torch.int32).view(torch.float32).to(rows)
        if not bound.isnan() and int(_counts(rows, ascending, bound).sum()) >= count:
            bits |= 1 << bit
    bound, above = (
        torch.tensor(word, dtype=torch.int32).view(torch.float32).to(rows) for word in (bits, bits + 1)
    )
    sure, reached = _counts(rows, ascending, above), _counts(rows, ascending, bound)
    # Ties by row, then by column: whole rows of them, and of the last row its first columns.
    ties = reached - sure
    missing = count - int(sure.sum())
    before = ties.cumsum(0) - ties
    keep = (missing - before).clamp(min=0).minimum(ties)
    found = [_places(rows, order, sure, torch.zeros_like(sure))]
    for row in keep.nonzero().view(-1).tolist() if missing else []:
        tied = order[len(order) - int(reached[row]) : len(order) - int(sure[row])].sort().values
        found.append(row * len(columns) + tied[: int(keep[row])])
    indices = torch.cat(found).sort().values
    return indices, rows[indices // len(columns)] * columns[indices % len(columns)]


def _places(rows: Tensor, order: Tensor, counts: Tensor, skipped: Tensor) -> Tensor:
    """Flat indices of the last `counts` columns of each row in `order`, after `skipped` from the end."""
    row = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    nth = torch.arange(len(row), device=rows.device) - starts.repeat_interleave(counts)
    return row * len(order) + order[len(order) - 1 - nth - skipped.repeat_interleave(counts)]
