"""Reading and writing the tuned weights, in plain torch; see :mod:`graftwork.ops.sparse_update.values`.

A support comes as its `indices` and `offsets`. Tensors are contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def spans(tensors: Sequence[Tensor], offsets: Tensor, *arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """For each tensor: the tensor, flat, and its part of every array that has one entry for each tuned weight."""
    sizes = offsets.diff().tolist()
    parts = zip(*(array.split_with_sizes(sizes) for array in arrays), strict=True)
    for tensor, part in zip(tensors, parts, strict=True):
        yield (tensor.view(-1), *part)


def gather_values(tensors: Sequence[Tensor], indices: Tensor, offsets: Tensor, out: Tensor) -> None:
    """Fill `out` with the weights at the indices."""
    for tensor, index, part in spans(tensors, offsets, indices, out):
        part.copy_(tensor[index.long()])


def gather_gradients(
    grads: Sequence[Tensor], indices: Tensor, offsets: Tensor, out: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Fill `out` with scaled gradients; the sum of their squares, and how many are not finite."""
    for grad, index, part in spans(grads, offsets, indices, out):
        part.copy_(grad[index.long()].float() * scale)
    return out.double().square().sum(), (~out.isfinite()).sum()


def write_values(
    weights: Sequence[Tensor], indices: Tensor, offsets: Tensor, base: Tensor, values: Tensor, scale: float
) -> None:
    """weight[index] = round(base + scale * value)."""
    for weight, index, part in spans(weights, offsets, indices, base.float() + values * scale):
        weight[index.long()] = part.to(weight.dtype)


def restore_values(weights: Sequence[Tensor], indices: Tensor, offsets: Tensor, saved: Tensor) -> None:
    """weight[index] = saved."""
    for weight, index, part in spans(weights, offsets, indices, saved):
        weight[index.long()] = part


def swap_values(
    weights: Sequence[Tensor],
    before_indices: Tensor,
    before_offsets: Tensor,
    before_base: Tensor,
    after_indices: Tensor,
    after_offsets: Tensor,
    after_values: Tensor,
    scale: float,
) -> Tensor:
    """Take one delta off and put another on; the words under the other."""
    restore_values(weights, before_indices, before_offsets, before_base)
    base = torch.empty_like(after_values, dtype=before_base.dtype)
    gather_values(weights, after_indices, after_offsets, base)
    write_values(weights, after_indices, after_offsets, base, after_values, scale)
    return base
