"""A support and its values, said of another list of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from graftwork.ops.sparse_update import Support

_WIDE = 1 << 31  # elements from which indices are int64


def index_dtype(numels: Iterable[int]) -> torch.dtype:
    """The dtype of the indices of a delta of tensors with so many elements."""
    return torch.int64 if any(numel >= _WIDE for numel in numels) else torch.int32


def arranged(
    support: Support, values: Tensor, order: Sequence[int | None], numels: Sequence[int]
) -> tuple[Support, Tensor]:
    """The entries of other tensors: the i-th is number ``order[i]`` of the support, or new and without entries.

    ``numels`` are their elements. Tensors of the support that ``order`` leaves out are left out; nothing is copied
    where the entries stay in their order.
    """
    counts = support.offsets.diff().tolist()
    there = [number for number, count in enumerate(counts) if count]
    taken = [number for number in order if number is not None and counts[number]]
    indices = support.indices
    if taken != there:
        pieces = list(zip(support.split(indices), support.split(values), strict=True))
        indices = torch.cat([indices[:0], *(pieces[number][0] for number in taken)])
        values = torch.cat([values[:0], *(pieces[number][1] for number in taken)])
    sizes = [0 if number is None else counts[number] for number in order]
    return Support.trusted(indices, torch.tensor([0, *accumulate(sizes)]), numels), values


def extended(support: Support, numels: Sequence[int]) -> Support:
    """The same support, said of more tensors: ``numels`` are its own and those of the ones that follow."""
    more = len(numels) - support.tensors
    offsets = torch.cat([support.offsets, support.offsets[-1:].expand(more)]) if more else support.offsets
    return Support.trusted(support.indices, offsets, numels)


def with_index_dtype(support: Support, dtype: torch.dtype) -> Support:
    """The same support with indices of another dtype, which is wide enough."""
    return Support.trusted(support.indices.to(dtype), support.offsets, support.numels)


def no_support() -> Support:
    """A support of no tensors."""
    return Support.trusted(torch.empty(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), ())
