"""Optimizer steps on the tuned weights alone: gradient, optimizer state, value and weight in one pass over the entries.

A tuned weight is its base's word plus a float32 value; the optimizer moves the value, and the weight becomes
round(base + value). Gradients are dense and read at the indices, or compact. Nothing outside of the support is touched.

Arithmetic is float32, one rounding for each operation in the order of :mod:`graftwork.reference.sparse_update.step`: the
bits depend neither on ISA level nor on threads, and are the reference's.

GPU: AdamW and SGD are CUDA, one launch for all tensors, with the bits of the CPU; SM3 runs on copies on the host. None
is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.sparse_update import _arena, _step_native  # noqa: F401 (registers the operations)
from graftwork.ops.sparse_update._arena import FORMATS, check_number
from graftwork.ops.sparse_update.support import Support

DecayMode = Literal["weight", "delta", "none"]
EpsMode = Literal["corrected", "uncorrected"]
_DECAY_MODES = ("weight", "delta", "none")
_EPS_MODES = ("corrected", "uncorrected")


def sparse_adamw_(
    support: Support,
    grads: Sequence[Tensor] | Tensor,
    values: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int | Tensor,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    eps_mode: EpsMode = "corrected",
    decay_mode: DecayMode = "weight",
    decay_first: bool = True,
    l1: float = 0.0,
    soft_threshold: float = 0.0,
    grad_scale: float = 1.0,
    weights: Sequence[Tensor] | None = None,
    base: Tensor | None = None,
) -> None:
    """One AdamW step, in place: value ← value - lr/(1-β₁ᵗ) · m / denominator.

    With g = grad_scale · grad + l1 · sign(value), m ← β₁m + (1-β₁)g and v ← β₂v + (1-β₂)g².

    Parameters
    ----------
    support : Support
        Where the tuned weights are.
    grads : sequence of Tensor, or Tensor
        Dense gradients of the support's tensors (float16, bfloat16 or float32, all the same; contiguous), or float32
        ``[entries]``.
    values, exp_avg, exp_avg_sq : Tensor
        float32, contiguous, ``[entries]``; written in place.
    step : int or Tensor
        The number of this update, from 1. Or int32 ``[entries]``, on the support's device: how many updates each entry
        has had, not negative; counted up in place. Their bias corrections come from a table of float64 powers, rounded
        to float32.
    lr, eps, weight_decay, l1, soft_threshold : float
        Finite, not negative.
    betas : (float, float)
        β₁ and β₂, in [0, 1).
    eps_mode : {"corrected", "uncorrected"}
        Denominator √v/√(1-β₂ᵗ) + eps, as torch has it, or (√v + eps)/√(1-β₂ᵗ), as older Adams and SpIEL's.
    decay_mode : {"weight", "delta", "none"}
        What weight decay draws to zero: base + value (needs `base`), the value, or nothing. It subtracts lr ·
        weight_decay of that.
    decay_first : bool
        Decay before the update, as torch does, or after it.
    soft_threshold : float
        In the end value ← sign(value) · max(|value| - soft_threshold, 0): the proximal step of an L1 penalty.
    grad_scale : float
        Finite.
    weights : sequence of Tensor, optional
        The support's tensors (float16, bfloat16 or float32, all the same; contiguous): round(base + value) is written
        at the indices. Needs `base`.
    base : Tensor, optional
        The words at the indices before any update: the weights' dtype, ``[entries]``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or what is written overlaps in memory.

    Notes
    -----
    Loshchilov & Hutter, Decoupled Weight Decay Regularization, algorithm 2; ages as in Ansell et al., Scaling Sparse
    Fine-Tuning to Large Language Models. Differs from the latter: an age is the number of updates so far.

    Examples
    --------
    >>> support, weight = Support([torch.tensor([1, 3])], [4]), torch.ones(4)
    >>> base, (value, m, v) = weight[[1, 3]], torch.zeros(3, 2)
    >>> gradient = torch.tensor([1.0, 2.0, 3.0, -4.0])
    >>> sparse_adamw_(support, [gradient], value, m, v, step=1, lr=0.5, weights=[weight], base=base)
    >>> weight.tolist()
    [1.0, 0.5, 1.0, 1.5]
    """
    name = "sparse_adamw_"
    gradients, compact = _check_gradients(name, support, grads)
    _check_entries(name, support, values=values, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    _check_numbers(name, lr=lr, eps=eps, weight_decay=weight_decay, l1=l1, soft_threshold=soft_threshold)
    for number, beta in enumerate(betas):
        check_number(name, f"betas[{number}]", beta, 0, 1)
    _check_choice(name, "eps_mode", eps_mode, _EPS_MODES)
    written = _check_written(name, support, weights, base, decay_mode, weight_decay)
    check_number(name, "grad_scale", grad_scale)
    ages = step.detach() if isinstance(step, Tensor) else None
    if ages is not None:
        support.check_entries(name, "step", ages, torch.int32)
    elif step < 1:
        raise ValueError(f"{name}: step must be at least 1, the number of this update, got {step}")
    _native.invoke(
        "sparse_adamw",
        *(values.detach(), exp_avg.detach(), exp_avg_sq.detach(), ages),
        *(*written, support.indices, support.offsets, gradients, compact),
        *(0 if ages is not None else step, lr, *betas, eps, weight_decay),
        *(eps_mode, decay_mode, decay_first, l1, soft_threshold, grad_scale),
    )


def sparse_sgd_(
    support: Support,
    grads: Sequence[Tensor] | Tensor,
    values: Tensor,
    momentum_buffer: Tensor | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    first: bool = False,
    weight_decay: float = 0.0,
    decay_mode: DecayMode = "weight",
    l1: float = 0.0,
    soft_threshold: float = 0.0,
    grad_scale: float = 1.0,
    weights: Sequence[Tensor] | None = None,
    base: Tensor | None = None,
) -> None:
    """One step of stochastic gradient descent, in place: value ← value - lr · b, as :class:`torch.optim.SGD`.

    With g = grad_scale · grad + l1 · sign(value) + weight_decay · (base + value, or value) and
    b ← momentum · b + (1 - dampening) · g. Nesterov: g + momentum · b stands for b; without momentum, g does.

    Parameters
    ----------
    support, grads, values, l1, soft_threshold, grad_scale, weights, base
        As in :func:`sparse_adamw_`.
    momentum_buffer : Tensor, optional
        float32, contiguous, ``[entries]``; written in place. Needed if momentum is not zero, and else untouched.
    lr, momentum, weight_decay : float
        Finite, not negative.
    dampening : float
        Finite.
    nesterov : bool
        Needs momentum, and no dampening.
    first : bool
        This is the first step: b ← g, whatever the buffer holds.
    decay_mode : {"weight", "delta", "none"}
        What weight decay adds to the gradient: of base + value (needs `base`), of the value, or nothing.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or what is written overlaps in memory.

    Examples
    --------
    >>> support, weight = Support([torch.tensor([1, 3])], [4]), torch.ones(4)
    >>> base, value = weight[[1, 3]], torch.zeros(2)
    >>> sparse_sgd_(support, torch.tensor([1.0, -2.0]), value, lr=0.5, weights=[weight], base=base)
    >>> weight.tolist()
    [1.0, 0.5, 1.0, 2.0]
    """
    name = "sparse_sgd_"
    gradients, compact = _check_gradients(name, support, grads)
    _check_entries(name, support, values=values)
    _check_numbers(
        name, lr=lr, momentum=momentum, weight_decay=weight_decay, l1=l1, soft_threshold=soft_threshold
    )
    check_number(name, "dampening", dampening)
    check_number(name, "grad_scale", grad_scale)
    if nesterov and (not momentum or dampening):
        raise ValueError(
            f"{name}: nesterov needs momentum > 0 and dampening = 0, got {momentum} and {dampening}"
        )
    buffer = _check_momentum(name, support, momentum_buffer, momentum)
    written = _check_written(name, support, weights, base, decay_mode, weight_decay)
    _native.invoke(
        "sparse_sgd",
        *(values.detach(), buffer, *written, support.indices, support.offsets, gradients, compact),
        *(lr, momentum, dampening, nesterov, first, weight_decay, decay_mode),
        *(l1, soft_threshold, grad_scale),
    )


def sparse_sm3_(
    support: Support,
    grads: Sequence[Tensor] | Tensor,
    values: Tensor,
    row_max: Tensor,
    column_max: Tensor,
    columns: Sequence[int],
    momentum_buffer: Tensor | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_mode: DecayMode = "delta",
    grad_scale: float = 1.0,
    weights: Sequence[Tensor] | None = None,
    base: Tensor | None = None,
) -> None:
    """One SM3 step, in place: value ← value - lr · g / √(u + eps), u = min(R[row], C[column]) + g².

    All u come from the accumulators before the step; then R[row] ← max(R[row], u) and C[column] ← max(C[column], u).
    Momentum: b ← momentum · b + (1 - momentum) · g/√(u + eps) stands for g/√(u + eps). Decay follows the update.

    Parameters
    ----------
    support, grads, values, weight_decay, decay_mode, grad_scale, weights, base
        As in :func:`sparse_adamw_`.
    row_max, column_max : Tensor
        float32, contiguous, not negative: the rows, and the columns, of all tensors one after another; written in
        place.
    columns : sequence of int
        Columns of each tensor as a matrix; it has numel / columns rows.
    momentum_buffer : Tensor, optional
        float32, contiguous, ``[entries]``; written in place. Needed if momentum is not zero, and else untouched.
    lr, eps : float
        Finite, not negative.
    momentum : float
        In [0, 1).

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or what is written overlaps in memory.

    Notes
    -----
    Exact whatever the number of threads. Anil et al., Memory-Efficient Adaptive Optimization, SM3-II with rows and
    columns as covers, as SpIEL-MA uses it (eps is inside of the root). Differs from the paper: all entries read the
    accumulators of the step before.

    Examples
    --------
    >>> support, value = Support([torch.tensor([0, 3])], [4]), torch.zeros(2)
    >>> row_max, column_max = torch.zeros(2), torch.zeros(2)
    >>> sparse_sm3_(support, torch.tensor([1.0, 2.0]), value, row_max, column_max, [2], lr=0.5)
    >>> value.tolist(), row_max.tolist()
    ([-0.5, -0.5], [1.0, 4.0])
    """
    name = "sparse_sm3_"
    gradients, compact = _check_gradients(name, support, grads)
    _check_entries(name, support, values=values)
    _check_numbers(name, lr=lr, eps=eps, weight_decay=weight_decay)
    check_number(name, "momentum", momentum, 0, 1)
    check_number(name, "grad_scale", grad_scale)
    shapes = _check_accumulators(name, support, row_max, column_max, columns)
    buffer = _check_momentum(name, support, momentum_buffer, momentum)
    written = _check_written(name, support, weights, base, decay_mode, weight_decay)
    _native.invoke(
        "sparse_sm3",
        *(values.detach(), row_max.detach(), column_max.detach(), buffer, shapes),
        *(*written, support.indices, support.offsets, gradients, compact),
        *(lr, momentum, eps, weight_decay, decay_mode, grad_scale),
    )


def _check_gradients(
    operation: str, support: Support, grads: Sequence[Tensor] | Tensor
) -> tuple[list[Tensor], bool]:
    """The gradients as a list, and whether they are compact."""
    if isinstance(grads, Tensor):
        support.check_entries(operation, "grads", grads, torch.float32)
        return [grads.detach()], True
    support.check_tensors(operation, "grads", grads, FORMATS)
    return _arena.detached(grads), False


def _check_entries(operation: str, support: Support, **arrays: Tensor) -> None:
    for name, array in arrays.items():
        support.check_entries(operation, name, array, torch.float32)


def _check_numbers(operation: str, **numbers: float) -> None:
    for name, number in numbers.items():
        check_number(operation, name, number, 0)


def _check_choice(operation: str, name: str, got: str, wanted: tuple[str, ...]) -> None:
    if got not in wanted:
        raise ValueError(f"{operation}: {name} must be one of {', '.join(map(repr, wanted))}, got {got!r}")


def _check_momentum(
    operation: str, support: Support, buffer: Tensor | None, momentum: float
) -> Tensor | None:
    if not momentum:
        return None
    if buffer is None:
        raise ValueError(f"{operation}: momentum_buffer is missing; momentum needs it, zeros to begin with")
    support.check_entries(operation, "momentum_buffer", buffer, torch.float32)
    return buffer.detach()


def _check_written(
    operation: str,
    support: Support,
    weights: Sequence[Tensor] | None,
    base: Tensor | None,
    decay_mode: str,
    weight_decay: float,
) -> tuple[list[Tensor], Tensor | None]:
    """The tensors that are written, and the words under the values."""
    _check_choice(operation, "decay_mode", decay_mode, _DECAY_MODES)
    if base is None:
        if weights is not None:
            raise ValueError(f"{operation}: base is missing; weights are written as round(base + value)")
        if weight_decay and decay_mode == "weight":
            raise ValueError(
                f"{operation}: base is missing; decay_mode 'weight' draws base + value to zero. Pass it, or decay_mode "
                f"'delta'"
            )
        return [], None
    if weights is not None:
        support.check_tensors(operation, "weights", weights, FORMATS)
        support.check_entries(operation, "base", base, weights[0].dtype)
        return _arena.detached(weights), base.detach()
    _checks.check_tensor(operation, "base", base)
    _checks.check_dtype(operation, "base", base, FORMATS, "it has the dtype of the weights")
    support.check_entries(operation, "base", base, base.dtype)
    return [], base.detach()


def _check_accumulators(
    operation: str, support: Support, row_max: Tensor, column_max: Tensor, columns: Sequence[int]
) -> Tensor:
    """int64 ``[tensors, 3]``: a tensor's columns, its first row and its first column among those of all."""
    if len(columns) != support.tensors:
        raise ValueError(f"{operation}: columns must be {support.tensors} numbers, got {len(columns)}")
    shapes, rows, width = [], 0, 0
    for number, (numel, mine) in enumerate(zip(support.numels, columns, strict=True)):
        if mine < 1 or numel % mine:
            raise ValueError(f"{operation}: columns[{number}] must divide {numel} elements, got {mine}")
        shapes.append((mine, rows, width))
        rows, width = rows + numel // mine, width + mine
    for name, value, length in (("row_max", row_max, rows), ("column_max", column_max, width)):
        _checks.check_tensor(operation, name, value)
        _checks.check_dtype(operation, name, value, (torch.float32,), "make it with torch.zeros")
        if value.shape != (length,) or not value.is_contiguous():
            raise ValueError(
                f"{operation}: {name} must be contiguous with {length} elements, those of all tensors, got shape "
                f"{tuple(value.shape)}"
            )
        _checks.check_device(operation, name, value, "the support's indices", support.indices)
    return torch.tensor(shapes)
