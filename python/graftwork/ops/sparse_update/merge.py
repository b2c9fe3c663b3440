"""Weighted sums and comparisons of sparse deltas, by streaming over their sorted indices.

GPU: sums are CUDA (merge path is irregular), two deltas at a time, with a look at how long the union is in between.
Comparisons run on copies on the host, which is faster than the reference there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.sparse_update.support import INDEX_DTYPES, Support
from graftwork.reference.sparse_update import merge as reference

_GRAIN = 1 << 15  # entries a thread


class Comparison(NamedTuple):
    """What two deltas have in common, for each tensor; see :func:`compare_deltas`."""

    #: int64: weights that both change.
    shared: Tensor
    #: int64: weights that at least one changes.
    union: Tensor
    #: int64: weights that both change in the same direction; a change of 0 has none.
    agreeing: Tensor
    #: float64: Σ of the products over the shared weights.
    dot: Tensor
    #: float64: Σ of the first delta's squares.
    a_squared: Tensor
    #: float64: Σ of the second delta's squares.
    b_squared: Tensor


def merge_deltas(
    supports: Sequence[Support], values: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Support, Tensor]:
    """Add sparse deltas of the same tensors: Σ_k w_k·v_k on the union of their supports.

    Parameters
    ----------
    supports : sequence of Support
        At least one; over the same tensors, with indices of one dtype, on one device.
    values : sequence of Tensor
        float32 ``[entries]`` of each support.
    weights : sequence of float
        One for each delta, finite; rounded to float32.

    Returns
    -------
    tuple of (Support, Tensor)
        The union, and float32 ``[entries]``: the products, rounded, added in the order of the deltas in float32.
        Entries whose sum is 0 are kept.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the bits do not depend on ISA level or threads. The sum of two deltas does not depend on their
    order, and one delta of weight 1 comes back as it is, -0 included (the payload of a NaN may change).

    Examples
    --------
    >>> a, b = Support([torch.tensor([0, 5])], [6]), Support([torch.tensor([2, 5])], [6])
    >>> support, merged = merge_deltas([a, b], [torch.ones(2), torch.ones(2)], [1.0, 0.5])
    >>> support.indices.tolist(), merged.tolist()
    ([0, 2, 5], [1.0, 0.5, 1.5])
    """
    _check_deltas(supports, values)
    if len(weights) != len(supports):
        raise ValueError(
            f"merge_deltas: weights must be {len(supports)}, one for each delta, got {len(weights)}"
        )
    for number, weight in enumerate(weights):
        if not abs(weight) <= torch.finfo(torch.float32).max:
            raise ValueError(f"merge_deltas: weights[{number}] must be finite in float32, got {weight}")
    indices, offsets, merged = torch.ops.graftwork.merge_deltas(
        [support.indices for support in supports],
        [support.offsets for support in supports],
        [value.detach() for value in values],
        [float(weight) for weight in weights],
    )
    return Support.trusted(indices, offsets, supports[0].numels), merged


def compare_deltas(a: Support, a_values: Tensor, b: Support, b_values: Tensor) -> Comparison:
    """Count and measure what two sparse deltas of the same tensors have in common, tensor by tensor.

    The share of a support is ``shared / union`` (Jaccard), the agreement ``agreeing / shared``, the cosine
    ``dot / sqrt(a_squared · b_squared)``, where the sums over the tensors give those of the whole deltas.

    Parameters
    ----------
    a, b : Support
        Over the same tensors, with indices of one dtype, on one device.
    a_values, b_values : Tensor
        float32 ``[entries]`` of each.

    Returns
    -------
    Comparison
        Six arrays ``[tensors]`` on the device of the indices. NaN values agree with nothing and make the sums NaN.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the bits do not depend on ISA level or threads.

    Examples
    --------
    >>> a, b = Support([torch.tensor([0, 5])], [6]), Support([torch.tensor([2, 5])], [6])
    >>> found = compare_deltas(a, torch.ones(2), b, -torch.ones(2))
    >>> found.shared.item(), found.union.item(), found.agreeing.item(), found.dot.item()
    (1, 3, 0, -1.0)
    """
    if not isinstance(a, Support) or not isinstance(b, Support):
        raise TypeError(
            f"compare_deltas: a and b must be Support, got {type(a).__name__} and {type(b).__name__}"
        )
    _check_same_tensors("compare_deltas", "b", b, "a", a)
    a.check_entries("compare_deltas", "a_values", a_values, torch.float32)
    b.check_entries("compare_deltas", "b_values", b_values, torch.float32)
    counts, sums = torch.ops.graftwork.compare_deltas(
        [a.indices, b.indices], [a.offsets, b.offsets], [a_values.detach(), b_values.detach()]
    )
    return Comparison(*counts.unbind(), *sums.unbind())


def _check_deltas(supports: Sequence[Support], values: Sequence[Tensor]) -> None:
    if not supports or len(supports) != len(values):
        raise ValueError(
            f"merge_deltas: wanted at least one support and as many values, got {len(supports)} and {len(values)}"
        )
    for number, (support, value) in enumerate(zip(supports, values, strict=True)):
        mine = f"supports[{number}]"
        if not isinstance(support, Support):
            raise TypeError(f"merge_deltas: {mine} must be a Support, got {type(support).__name__}")
        _check_same_tensors("merge_deltas", mine, support, "supports[0]", supports[0])
        support.check_entries("merge_deltas", f"values[{number}]", value, torch.float32)


def _check_same_tensors(operation: str, name: str, support: Support, other_name: str, other: Support) -> None:
    if support.numels != other.numels:
        raise ValueError(
            f"{operation}: {name} must be over the tensors of {other_name}, got other numbers of elements: "
            f"{_shortened(support.numels)} instead of {_shortened(other.numels)}; give a tensor that a delta leaves "
            f"alone empty indices"
        )
    if support.indices.dtype != other.indices.dtype:
        raise TypeError(
            f"{operation}: {name} must have the index dtype of {other_name}, {other.indices.dtype}, "
            f"got {support.indices.dtype}; convert one of them"
        )
    _checks.check_device(
        operation, f"{name}.indices", support.indices, f"{other_name}.indices", other.indices
    )


def _shortened(numels: tuple[int, ...]) -> str:
    return str(numels) if len(numels) <= 8 else f"({', '.join(map(str, numels[:8]))}, …)"


def _merge(
    indices: list[Tensor], offsets: list[Tensor], values: list[Tensor], weights: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    indices, values = [_native.packed(index) for index in indices], [_native.packed(v) for v in values]
    core, deltas, tensors = _native.load("_core"), len(indices), offsets[0].numel() - 1
    threads = _native.threads_for(sum(index.numel() for index in indices), _GRAIN)
    workspace = _native.buffer("workspace", 8 * core.merge_workspace_words(deltas, tensors))
    bounds = torch.empty_like(offsets[0])
    places = _native.pointers(indices), _native.pointers(offsets)
    sizes = deltas, tensors, indices[0].itemsize
    _native.call("count_union", *places, bounds, workspace, *sizes, like=indices[0], threads=threads)
    merged = indices[0].new_empty(int(bounds[-1]))
    sums = values[0].new_empty(merged.shape)
    scales = torch.tensor(weights, dtype=torch.float32)
    arguments = *places, _native.pointers(values), scales, merged, sums, workspace, *sizes
    _native.call("merge_deltas", *arguments, like=indices[0], threads=threads)
    return merged, bounds, sums


def _merge_fake(
    indices: list[Tensor], offsets: list[Tensor], values: list[Tensor], weights: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    entries = torch.library.get_ctx().new_dynamic_size()
    return indices[0].new_empty(entries), torch.empty_like(offsets[0]), values[0].new_empty(entries)


def _compare(indices: list[Tensor], offsets: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    indices, values = [_native.packed(index) for index in indices], [_native.packed(v) for v in values]
    tensors = offsets[0].numel() - 1
    threads = _native.threads_for(sum(index.numel() for index in indices), _GRAIN)
    workspace = _native.buffer("workspace", 8 * _native.load("_core").compare_workspace_words(tensors))
    counts, sums = torch.empty(3, tensors, dtype=torch.int64), torch.empty(3, tensors, dtype=torch.float64)
    places = [_native.pointers(arrays) for arrays in (indices, offsets, values)]
    arguments = *places, counts, sums, workspace, tensors, indices[0].itemsize
    _native.call("compare_deltas", *arguments, like=indices[0], threads=threads)
    return counts, sums


def _compare_fake(
    indices: list[Tensor], offsets: list[Tensor], values: list[Tensor]
) -> tuple[Tensor, Tensor]:
    shape = 3, offsets[0].numel() - 1
    return indices[0].new_empty(shape, dtype=torch.int64), values[0].new_empty(shape, dtype=torch.float64)


def _merge_cuda(
    indices: list[Tensor], offsets: list[Tensor], values: list[Tensor], weights: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Two at a time; the weight of the sum so far is 1, which changes no value."""
    nothing = indices[0][:0], torch.zeros_like(offsets[0]), values[0][:0]
    first, *others = zip(indices, offsets, values, strict=True)
    weight, *other_weights = weights
    for other, scale in zip(others or [nothing], other_weights or [1.0], strict=True):
        first, weight = _merge_two(first, weight, other, scale), 1.0
    return first


def _merge_two(
    a: tuple[Tensor, Tensor, Tensor], a_weight: float, b: tuple[Tensor, Tensor, Tensor], b_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    (a_indices, a_values), (b_indices, b_values) = (
        map(_native.packed, (delta[0], delta[2])) for delta in (a, b)
    )
    entries, tensors = a_indices.numel() + b_indices.numel(), a[1].numel() - 1
    a_offsets, b_offsets = _native.where_read(a_indices, a[1], b[1])
    shared = a_indices.new_empty(tensors, dtype=torch.int64)
    workspace = _native.cuda_workspace("merge_deltas", entries, like=a_indices)
    sizes = tensors, entries, a_indices.itemsize
    places = a_indices, a_offsets, b_indices, b_offsets
    _native.call("count_shared", *places, *sizes, shared, workspace, like=a_indices)
    bounds = a[1] + b[1]
    bounds[1:] -= shared.cpu().cumsum(0)
    merged = a_indices.new_empty(int(bounds[-1]))
    sums = a_values.new_empty(merged.shape)
    addends = a_indices, a_offsets, a_values, a_weight, b_indices, b_offsets, b_values, b_weight
    _native.call("merge_deltas", *addends, *sizes, merged, sums, workspace, like=a_indices)
    return merged, bounds, sums


def _compare_cuda(
    indices: list[Tensor], offsets: list[Tensor], values: list[Tensor]
) -> tuple[Tensor, Tensor]:
    counts, sums = _compare([i.cpu() for i in indices], offsets, [v.cpu() for v in values])
    return counts.to(indices[0].device), sums.to(indices[0].device)


_native.register(
    "merge_deltas",
    "(Tensor[] indices, Tensor[] offsets, Tensor[] values, float[] weights) -> (Tensor, Tensor, Tensor)",
    reference=reference.merge_deltas,
    fake=_merge_fake,
    cpu=_native.Route("_core", INDEX_DTYPES, _merge),
    cuda=_native.Route("_cuda", INDEX_DTYPES, _merge_cuda),
)
_native.register(
    "compare_deltas",
    "(Tensor[] indices, Tensor[] offsets, Tensor[] values) -> (Tensor, Tensor)",
    reference=reference.compare_deltas,
    fake=_compare_fake,
    cpu=_native.Route("_core", INDEX_DTYPES, _compare),
    cuda=_native.Route("_core", INDEX_DTYPES, _compare_cuda),
)
