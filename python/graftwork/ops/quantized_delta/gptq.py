"""GPTQ: codes that are chosen with the inputs of the layer in view."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _checks
from graftwork.ops.quantized_delta.dequantize import dequantize
from graftwork.ops.quantized_delta.formats import PackedDelta, PackFormat
from graftwork.ops.quantized_delta.gptq_columns import Columns
from graftwork.ops.quantized_delta.gptq_factor import GptqFactor
from graftwork.ops.quantized_delta.quantize import delta_quantize
from graftwork.reference.quantized_delta.quantize import refuse_nonfinite

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_STEP = 256  # columns of a product of errors with the factor


class GptqResult(NamedTuple):
    """A pack, the groups of its columns where they are not in their order, and Σ_o e_o·H·e_oᵀ (float64)."""

    pack: PackedDelta
    g_idx: Tensor | None
    error: Tensor


def gptq_quantize(
    weights: Tensor,
    hessian: Tensor | GptqFactor,
    format: PackFormat,
    *,
    act_order: bool | None = None,
    static_groups: bool = False,
    damp: float | None = None,
    mse_iters: int | None = None,
) -> GptqResult:
    """Quantise a matrix so that its product with the layer's inputs changes little: min Σ_o e_o·H·e_oᵀ, e = W − Ŵ.

    Columns are quantised one by one, each passing its error on to those behind it. A block of columns takes its scales
    when it is reached, from the weights with the errors so far. Each row that rounding to nearest does better is taken
    from there, so that the error is at most that of :func:`delta_quantize`.

    Parameters
    ----------
    weights : Tensor
        float16, bfloat16 or float32 ``[O, I]``: a weight or a delta.
    hessian : Tensor or GptqFactor
        Of the layer's inputs, ``[I, I]``, as for :meth:`GptqFactor.of`, or the factor, to be used again.
    format : PackFormat
        Any. Where its block is 0 or −1, and with `static_groups`, scales are those of :func:`delta_quantize`.
    act_order : bool, optional
        Quantise the columns with the largest H_jj first; None is False. A factor has its own.
    static_groups : bool
        With `act_order`: blocks are of neighbouring columns, as without. Else of columns quantised one after another.
    damp : float, optional
        As for :meth:`GptqFactor.of`; None is 0.01. A factor has its own.
    mse_iters : int, optional
        As for :func:`delta_quantize`.

    Returns
    -------
    GptqResult
        ``(pack, g_idx, error)``. `g_idx` is None but with `act_order` without `static_groups`: then it is int32 ``[I]``,
        the block of each column, and the pack's columns are sorted by it: see :func:`grouped_order`. `error` is the sum
        above with the H given, without damping and dead columns.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; a weight is not finite; H is not positive definite with 1000 times the damping.

    Notes
    -----
    Weights of dead columns, H_jj = 0, are taken as zero. Where H is diagonal the result is that of
    :func:`delta_quantize`, bit for bit. The codes of a block do not depend on ISA level or threads; the products between
    blocks and the factor are torch's.

    Paper: Frantar et al., "GPTQ", arXiv 2210.17323. Differs from the paper: the factor is of H itself, not of its
    inverse; the damping is relative to the columns that are not dead; rows are kept rounded to nearest where that is
    better.

    Examples
    --------
    >>> hessian = torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    >>> format = PackFormat(2, "sym", 0, torch.float32)
    >>> pack, _, error = gptq_quantize(torch.tensor([[1.0, 0.45]]), hessian, format)
    >>> dequantize(pack).tolist(), round(float(error), 3)
    ([[1.0, 0.0]], 0.405)
    """
    factor = _factor(hessian, act_order, damp)
    _check_weights(weights, factor)
    with torch.no_grad():
        values = weights.float()
        bad = (~values.isfinite()).view(-1)
        if bool(bad.any()):
            refuse_nonfinite("gptq_quantize", int(bad.nonzero()[0]), weights, None)
        if bool(factor.dead.any()):
            values = values.masked_fill(factor.dead, 0)
        g_idx = None
        if factor.order is not None and format.block > 0 and not static_groups and not factor.decoupled:
            g_idx = _groups_by_order(factor.order, format)
        stored = values if g_idx is None else values[:, grouped_order(g_idx)]
        nearest, _ = delta_quantize(stored, None, format, mse_iters=mse_iters)
        if values.numel() == 0:
            return GptqResult(nearest, g_idx, torch.zeros((), dtype=torch.float64, device=weights.device))
        return _better_rows(values, factor, nearest, g_idx, static_groups, mse_iters)


def grouped_order(g_idx: Tensor) -> Tensor:
    """The column of the matrix that each column of a pack with `g_idx` is: int64 ``[I]``, by block, then in order.

    Parameters
    ----------
    g_idx : Tensor
        int32 ``[I]``: the block of each column of the matrix.

    Examples
    --------
    >>> grouped_order(torch.tensor([1, 0, 1, 0], dtype=torch.int32)).tolist()
    [1, 3, 0, 2]
    """
    return g_idx.argsort(stable=True)


def dequantize_grouped(pack: PackedDelta, g_idx: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix that a pack with `g_idx` stands for, columns in their order.

    Parameters
    ----------
    pack : PackedDelta
        What :func:`gptq_quantize` returned.
    g_idx : Tensor or None
        What it returned beside.
    dtype : torch.dtype
        float16, bfloat16 or float32.

    Returns
    -------
    Tensor
        ``[O, I]``.

    Raises
    ------
    ValueError
        `g_idx` has not one number for each column.
    """
    packed = dequantize(pack, dtype)
    if g_idx is None:
        return packed
    if g_idx.shape != packed.shape[1:]:
        raise ValueError(
            f"dequantize_grouped: g_idx must have one block for each of {packed.shape[1]} columns, got shape "
            f"{tuple(g_idx.shape)}"
        )
    restored = torch.empty_like(packed)
    restored[:, grouped_order(g_idx)] = packed
    return restored


def _factor(hessian: Tensor | GptqFactor, act_order: bool | None, damp: float | None) -> GptqFactor:
    if not isinstance(hessian, GptqFactor):
        return GptqFactor.of(hessian, damp=0.01 if damp is None else damp, act_order=bool(act_order))
    if act_order is not None or damp is not None:
        raise ValueError(
            "gptq_quantize: act_order and damp are the factor's own; give them to GptqFactor.of, or pass the Hessian"
        )
    return hessian


def _check_weights(weights: Tensor, factor: GptqFactor) -> None:
    _checks.check_tensor("gptq_quantize", "weights", weights)
    _checks.check_dtype("gptq_quantize", "weights", weights, DTYPES, "cast it first")
    columns = factor.dead.numel()
    if weights.dim() != 2 or weights.shape[1] != columns:
        raise ValueError(
            f"gptq_quantize: weights must be [O, {columns}] for a Hessian of {columns} inputs, got shape "
            f"{tuple(weights.shape)}"
        )
    _checks.check_device("gptq_quantize", "weights", weights, "hessian", factor.dead)


def _groups_by_order(order: Tensor, format: PackFormat) -> Tensor:
    """The block of each column where blocks are of columns quantised one after another."""
    places = torch.arange(order.numel(), device=order.device)
    g_idx = torch.empty(places.shape, dtype=torch.int32, device=places.device)
    g_idx[order] = (places // format.block).int()
    return g_idx


def _better_rows(
    values: Tensor,
    factor: GptqFactor,
    nearest: PackedDelta,
    g_idx: Tensor | None,
    static_groups: bool,
    mse_iters: int | None,
) -> GptqResult:
    """Both ways, and of each row the better."""
    errors = values - dequantize_grouped(nearest, g_idx)
    if factor.decoupled:
        return GptqResult(nearest, g_idx, _hessian_errors(errors, factor, None).sum())
    run = Columns(values, factor, nearest, g_idx, static_groups, mse_iters)
    run.quantise()
    mine = run.losses.clamp_(min=0)
    of_nearest = _hessian_errors(errors, factor, mine)
    error = torch.minimum(mine, of_nearest).sum()
    return GptqResult(run.merged(mine < of_nearest), g_idx, error)


def _hessian_errors(errors: Tensor, factor: GptqFactor, enough: Tensor | None) -> Tensor:
    """e·H·eᵀ of each row, float64 [O], by the factor; less where all rows are above what is `enough` to know."""
    ordered = errors if factor.order is None else errors[:, factor.order]
    dead = factor.dead if factor.order is None else factor.dead[factor.order]
    ordered = ordered.masked_fill(dead, 0) if bool(dead.any()) else ordered
    total = -factor.damping * ordered.double().square().sum(1)
    for begin in range(0, ordered.shape[1], _STEP):
        end = min(begin + _STEP, ordered.shape[1])
        part = ordered[:, :end] @ factor.feedback[:end, begin:end]
        total += (part * factor.diagonal[begin:end]).double().square().sum(1)
        if enough is not None and bool((total > enough).all()):
            break
    return total.clamp_(min=0)
