"""Take one delta off a model and put another on, in one pass over what the two change.

GPU: CUDA, since it merges two sorted lists. Not differentiable; deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.sparse_update import _arena
from graftwork.ops.sparse_update._arena import FORMATS
from graftwork.ops.sparse_update.support import Support
from graftwork.reference.sparse_update import values as reference


def swap_values_(
    weights: Sequence[Tensor],
    before: Support | None,
    before_base: Tensor | None,
    after: Support | None,
    after_values: Tensor | None,
    scale: float = 1.0,
) -> Tensor:
    """Take one delta off and put another on, in one pass over both supports.

    Weights at `before` get their words back; then those at `after` get round(base + scale · value), where the base is
    the word that is there.

    Parameters
    ----------
    weights : sequence of Tensor
        float16, bfloat16 or float32, all the same; contiguous; written in place.
    before, after : Support or None
        Supports of these tensors with indices of one dtype. None: nothing to take off, or nothing to put on.
    before_base : Tensor or None
        The words under the delta that is on: the weights' dtype, contiguous, one for each entry of `before`.
    after_values : Tensor or None
        float32, contiguous, one for each entry of `after`.
    scale : float
        Finite.

    Returns
    -------
    Tensor
        The words under the new delta, the weights' dtype, one for each entry of `after`: `before_base` of the next
        swap.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Examples
    --------
    >>> weight, one, other = torch.zeros(4), Support([torch.tensor([0, 1])], [4]), Support([torch.tensor([1, 2])], [4])
    >>> base = swap_values_([weight], None, None, one, torch.tensor([1.0, 1.0]))
    >>> base = swap_values_([weight], one, base, other, torch.tensor([5.0, 5.0]))
    >>> weight.tolist(), base.tolist()
    ([0.0, 5.0, 5.0, 0.0], [0.0, 0.0])
    """
    given = [support for support in (before, after) if support is not None]
    for support in given:
        support.check_tensors("swap_values_", "weights", weights, FORMATS)
    if not given:
        raise ValueError("swap_values_: before and after must not both be None")
    if given[0].indices.dtype != given[-1].indices.dtype:
        raise TypeError(
            f"swap_values_: the indices of after must have the dtype of those of before, {given[0].indices.dtype}, "
            f"got {given[-1].indices.dtype}; build one of them anew with Support"
        )
    _arena.check_number("swap_values_", "scale", scale)
    off = _side("before_base", before, before_base, given[0], weights[0].dtype)
    on = _side("after_values", after, after_values, given[0], torch.float32)
    under: Tensor = _native.invoke("swap_values", _arena.detached(weights), *off, *on, float(scale))
    return under


def _side(
    name: str, support: Support | None, array: Tensor | None, other: Support, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, offsets and array of one of the two deltas of a swap; nothing where there is none."""
    if support is None:
        if array is not None:
            raise ValueError(f"swap_values_: {name} must be None where its support is")
        return other.indices[:0], torch.zeros_like(other.offsets), other.indices.new_empty(0, dtype=dtype)
    if array is None:
        raise ValueError(f"swap_values_: {name} is missing; it goes with its support")
    support.check_entries("swap_values_", name, array, dtype)
    return support.indices, support.offsets, _arena.without_grad(array)


def _swap_values(
    weights: Sequence[Tensor],
    before_indices: Tensor,
    before_offsets: Tensor,
    before_base: Tensor,
    after_indices: Tensor,
    after_offsets: Tensor,
    after_values: Tensor,
    scale: float,
) -> Tensor:
    arrays = {"before_base": before_base, "after_values": after_values}
    _arena.check_apart("swap_values_", weights=weights, **arrays)
    pointers, like, entries = (
        _native.pointers(weights),
        weights[0],
        before_indices.numel() + after_indices.numel(),
    )
    table, *starts = _native.where_read(like, pointers, before_offsets, after_offsets)
    after_base = torch.empty_like(after_values, dtype=before_base.dtype)
    form = len(weights), FORMATS.index(before_base.dtype), before_indices.itemsize
    before, after = (before_indices, starts[0], before_base), (after_indices, starts[1], after_values)
    last = (
        (entries, _native.cuda_workspace("swap_values", entries, like=like))
        if like.is_cuda
        else (before_offsets + after_offsets,)
    )
    threads = _native.threads_for(entries, _arena.GRAIN)
    arguments = table, *form, *before, *after, scale, after_base, *last
    _native.call("swap_values", *arguments, like=like, threads=threads)
    _arena.mark_written(weights)
    return after_base


_native.register(
    "swap_values",
    "(Tensor(a!)[] weights, Tensor before_indices, Tensor before_offsets, Tensor before_base, Tensor after_indices, "
    "Tensor after_offsets, Tensor after_values, float scale) -> Tensor",
    reference=reference.swap_values,
    fake=lambda weights, bi, bo, before_base, ai, ao, after_values, scale: torch.empty_like(
        after_values, dtype=before_base.dtype
    ),
    cpu=_native.Route("_core", FORMATS, _swap_values),
    cuda=_native.Route("_cuda", FORMATS, _swap_values),
)
