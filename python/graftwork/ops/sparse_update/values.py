"""Read and write the tuned weights of many tensors in one pass: gather, write, restore.

A weight is always written as round(base + scale · value) from the base's own word, never by adding to what is there:
taking a delta off again is exact, and small updates add up in float32 whatever the weights' dtype.

GPU: CUDA, for the irregular gathers and scatters over many tensors. None is differentiable; all are deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.sparse_update import _arena
from graftwork.ops.sparse_update._arena import FORMATS
from graftwork.ops.sparse_update.support import Support
from graftwork.reference.sparse_update import values as reference


class Gathered(NamedTuple):
    """Gradients of the tuned weights, and what clipping and a check for overflow need."""

    #: float32 ``[entries]``.
    compact: Tensor
    #: float64, no dimensions: of the scaled gradients; not finite where one of them is not.
    sum_of_squares: Tensor
    #: int64, no dimensions: scaled gradients that are infinite or NaN.
    nonfinite: Tensor


def gather_values(support: Support, tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Copy the words at the indices: out[j] = tensor.flat[index_j].

    Parameters
    ----------
    support : Support
        Where.
    tensors : sequence of Tensor
        Those that the support is for: float16, bfloat16 or float32, all the same; contiguous.
    out : Tensor, optional
        Of their dtype, contiguous, ``[entries]``; overwritten. None: a new tensor.

    Returns
    -------
    Tensor
        `out`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Examples
    --------
    >>> support = Support([torch.tensor([1, 3])], [4])
    >>> gather_values(support, [torch.tensor([[5.0, 6.0], [7.0, 8.0]])])
    tensor([6., 8.])
    """
    support.check_tensors("gather_values", "tensors", tensors, FORMATS)
    out = _output("gather_values", support, out, tensors[0].dtype)
    _native.invoke(
        "gather_values", _arena.detached(tensors), support.indices, support.offsets, _arena.without_grad(out)
    )
    return out


def gather_gradients(
    support: Support, grads: Sequence[Tensor], out: Tensor | None = None, scale: float = 1.0
) -> Gathered:
    """Copy the gradients of the tuned weights, g_j = scale · grad.flat[index_j], with Σ g_j² in the same pass.

    Parameters
    ----------
    support : Support
        Where.
    grads : sequence of Tensor
        Dense gradients of the tensors that the support is for: float16, bfloat16 or float32, all the same; contiguous.
    out : Tensor, optional
        float32, contiguous, ``[entries]``; overwritten. None: a new tensor.
    scale : float
        Finite; one over the loss scale, for example.

    Returns
    -------
    Gathered
        What the steps of this module take as `grads`, the sum of squares and the number of gradients that are not
        finite.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    The sum is in float64 in an order that does not depend on ISA level or threads; the reference's order differs.

    Examples
    --------
    >>> support = Support([torch.tensor([1, 3])], [4])
    >>> gathered = gather_gradients(support, [torch.tensor([1.0, 2.0, 4.0, 8.0])], scale=0.5)
    >>> gathered.compact.tolist(), gathered.sum_of_squares.item(), gathered.nonfinite.item()
    ([1.0, 4.0], 17.0, 0)
    """
    support.check_tensors("gather_gradients", "grads", grads, FORMATS)
    _arena.check_number("gather_gradients", "scale", scale)
    out = _output("gather_gradients", support, out, torch.float32)
    return Gathered(
        out,
        *_native.invoke(
            "gather_gradients",
            _arena.detached(grads),
            support.indices,
            support.offsets,
            _arena.without_grad(out),
            float(scale),
        ),
    )


def write_values_(
    support: Support, weights: Sequence[Tensor], base: Tensor, values: Tensor, scale: float = 1.0
) -> None:
    """Put a delta on: weight.flat[index_j] = round(base_j + scale · value_j).

    The sum is in float32, rounded to the weights' dtype to the nearest, ties to even.

    Parameters
    ----------
    support : Support
        Where.
    weights : sequence of Tensor
        Those that the support is for: float16, bfloat16 or float32, all the same; contiguous; written in place.
    base : Tensor
        The words at the indices before any update, from :func:`gather_values`: the weights' dtype, ``[entries]``.
    values : Tensor
        float32, contiguous, ``[entries]``.
    scale : float
        Finite.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Examples
    --------
    >>> support, weight = Support([torch.tensor([1, 3])], [4]), torch.ones(4)
    >>> base = gather_values(support, [weight])
    >>> write_values_(support, [weight], base, torch.tensor([2.0, -1.0]), scale=0.5)
    >>> weight.tolist()
    [1.0, 2.0, 1.0, 0.5]
    """
    support.check_tensors("write_values_", "weights", weights, FORMATS)
    support.check_entries("write_values_", "base", base, weights[0].dtype)
    support.check_entries("write_values_", "values", values, torch.float32)
    _arena.check_number("write_values_", "scale", scale)
    arrays = support.indices, support.offsets, _arena.without_grad(base), _arena.without_grad(values)
    _native.invoke("write_values", _arena.detached(weights), *arrays, float(scale))


def restore_values_(support: Support, weights: Sequence[Tensor], saved: Tensor) -> None:
    """Put words back, bit for bit: weight.flat[index_j] = saved_j.

    Parameters
    ----------
    support : Support
        Where.
    weights : sequence of Tensor
        Those that the support is for: float16, bfloat16 or float32, all the same; contiguous; written in place.
    saved : Tensor
        From :func:`gather_values`: the weights' dtype, contiguous, ``[entries]``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Examples
    --------
    >>> support, weight = Support([torch.tensor([1, 3])], [4]), torch.zeros(4)
    >>> restore_values_(support, [weight], torch.tensor([5.0, 7.0]))
    >>> weight.tolist()
    [0.0, 5.0, 0.0, 7.0]
    """
    support.check_tensors("restore_values_", "weights", weights, FORMATS)
    support.check_entries("restore_values_", "saved", saved, weights[0].dtype)
    _native.invoke(
        "restore_values",
        _arena.detached(weights),
        support.indices,
        support.offsets,
        _arena.without_grad(saved),
    )


def _output(operation: str, support: Support, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    if out is None:
        return support.indices.new_empty(support.entries, dtype=dtype)
    support.check_entries(operation, "out", out, dtype)
    return out


def _gather_values(tensors: Sequence[Tensor], indices: Tensor, offsets: Tensor, out: Tensor) -> None:
    _arena.check_output("gather_values", out, "tensors", tensors)
    support = _arena.support_arguments(tensors, indices, offsets)
    what = out.itemsize, out, *_arena.size_of(out)
    _native.call("gather_values", *support, *what, like=out, threads=_arena.threads_for(out))
    _arena.mark_written(out)


def _gather_gradients(
    grads: Sequence[Tensor], indices: Tensor, offsets: Tensor, out: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    _arena.check_output("gather_gradients", out, "grads", grads)
    support = _arena.support_arguments(grads, indices, offsets)
    squares, nonfinite = out.new_zeros((), dtype=torch.float64), out.new_zeros((), dtype=torch.int64)
    scratch = (_native.cuda_workspace("gather_gradients", out.numel(), like=out),) if out.is_cuda else ()
    options = FORMATS.index(grads[0].dtype), scale, out, squares, nonfinite, *_arena.size_of(out), *scratch
    _native.call("gather_gradients", *support, *options, like=out, threads=_arena.threads_for(out))
    _arena.mark_written(out)
    return squares, nonfinite


def _write_values(
    weights: Sequence[Tensor], indices: Tensor, offsets: Tensor, base: Tensor, values: Tensor, scale: float
) -> None:
    _arena.check_apart("write_values_", weights=weights, base=base, values=values)
    support = _arena.support_arguments(weights, indices, offsets)
    options = FORMATS.index(base.dtype), base, values, scale, *_arena.size_of(values)
    _native.call("write_values", *support, *options, like=values, threads=_arena.threads_for(values))
    _arena.mark_written(weights)


def _restore_values(weights: Sequence[Tensor], indices: Tensor, offsets: Tensor, saved: Tensor) -> None:
    _arena.check_apart("restore_values_", weights=weights, saved=saved)
    support = _arena.support_arguments(weights, indices, offsets)
    what = saved.itemsize, saved, *_arena.size_of(saved)
    _native.call("restore_values", *support, *what, like=saved, threads=_arena.threads_for(saved))
    _arena.mark_written(weights)


_native.register(
    "gather_values",
    "(Tensor[] tensors, Tensor indices, Tensor offsets, Tensor(a!) out) -> ()",
    reference=reference.gather_values,
    fake=lambda tensors, indices, offsets, out: None,
    cpu=_native.Route("_core", FORMATS, _gather_values),
    cuda=_native.Route("_cuda", FORMATS, _gather_values),
)
_native.register(
    "gather_gradients",
    "(Tensor[] grads, Tensor indices, Tensor offsets, Tensor(a!) out, float scale) -> (Tensor, Tensor)",
    reference=reference.gather_gradients,
    fake=lambda grads, indices, offsets, out, scale: (
        out.new_empty((), dtype=torch.float64),
        out.new_empty((), dtype=torch.int64),
    ),
    cpu=_native.Route("_core", FORMATS, _gather_gradients),
    cuda=_native.Route("_cuda", FORMATS, _gather_gradients),
)
_native.register(
    "write_values",
    "(Tensor(a!)[] weights, Tensor indices, Tensor offsets, Tensor base, Tensor values, float scale) -> ()",
    reference=reference.write_values,
    fake=lambda weights, indices, offsets, base, values, scale: None,
    cpu=_native.Route("_core", FORMATS, _write_values),
    cuda=_native.Route("_cuda", FORMATS, _write_values),
)
_native.register(
    "restore_values",
    "(Tensor(a!)[] weights, Tensor indices, Tensor offsets, Tensor saved) -> ()",
    reference=reference.restore_values,
    fake=lambda weights, indices, offsets, saved: None,
    cpu=_native.Route("_core", FORMATS, _restore_values),
    cuda=_native.Route("_cuda", FORMATS, _restore_values),
)
