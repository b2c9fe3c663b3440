"""Optimizer steps on the tuned weights alone, in plain torch; see :mod:`graftwork.ops.sparse_update.step`.

All arithmetic is in float32, one rounding for each operation as it is written here, so that native code can give the
same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graftwork.reference.sparse_update.values import gather_gradients, spans, write_values

#: Updates up to which corrections are kept in a table without a look at how many there have been.
_ANY_AGE = 1 << 16


def corrections(beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """The bias corrections after `step` updates: 1 / (1 - beta1^step) and 1 / sqrt(1 - beta2^step)."""
    return 1 / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)


@functools.lru_cache(maxsize=16)
def _correction_table(beta1: float, beta2: float, length: int, device: torch.device) -> Tensor:
    rows = [(math.inf, math.inf), *(corrections(beta1, beta2, step) for step in range(1, length))]
    return torch.tensor(rows, dtype=torch.float32).T.contiguous().to(device)


def correction_table(beta1: float, beta2: float, ages: Tensor) -> Tensor:
    """Both :func:`corrections` after t updates, float32 ``[2, length]`` where the ages are; column 0 is not used.

    It reaches to the largest age plus one, or to where both are 1: more updates than that have the last column.
    """
    beta = max(beta1, beta2)
    # 1 - beta^t rounds to 1 in float32 once beta^t < 2^-26.
    length = 2 if beta == 0 else 2 + math.ceil(26 * math.log(2) / -math.log(beta))
    if length > _ANY_AGE:
        oldest = int(ages.max()) if ages.numel() else 0
        length = min(length, max(_ANY_AGE, 1 << (oldest + 1).bit_length()))
    return _correction_table(beta1, beta2, length, ages.device)


def _sqrt(x: Tensor) -> Tensor:
    """The nearest float32; torch's own square root of float32 is not always."""
    return x.double().sqrt().float()


class StepInputs(NamedTuple):
    """What every step is given beside its state and options: the last tensors of the operations' schemas.

    `base` is None where there are no `weights` to write and no decay of them; `grads` is one compact gradient, or as
    many dense ones as there are tensors.
    """

    weights: Sequence[Tensor]
    base: Tensor | None
    indices: Tensor
    offsets: Tensor
    grads: Sequence[Tensor]
    compact: bool


class AdamWOptions(NamedTuple):
    """The options of ``sparse_adamw``, in the order of its schema; `step` does not count where there are ages."""

    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    eps_mode: str
    decay_mode: str
    decay_first: bool
    l1: float
    soft_threshold: float
    grad_scale: float


class SGDOptions(NamedTuple):
    """The options of ``sparse_sgd``, in the order of its schema."""

    lr: float
    momentum: float
    dampening: float
    nesterov: bool
    first: bool
    weight_decay: float
    decay_mode: str
    l1: float
    soft_threshold: float
    grad_scale: float


class SM3Options(NamedTuple):
    """The options of ``sparse_sm3``, in the order of its schema."""

    lr: float
    momentum: float
    eps: float
    weight_decay: float
    decay_mode: str
    grad_scale: float


def _gradient(values: Tensor, inputs: StepInputs, l1: float, grad_scale: float) -> Tensor:
    gradient = torch.empty_like(values)
    if inputs.compact:
        torch.mul(inputs.grads[0], grad_scale, out=gradient)
    else:
        gather_gradients(inputs.grads, inputs.indices, inputs.offsets, gradient, grad_scale)
    return gradient.add_(values.sign() * l1)


def _decayed(decay_mode: str, values: Tensor, base: Tensor | None) -> Tensor:
    """What is drawn to zero: the weight or the delta."""
    return base.float() + values if decay_mode == "weight" and base is not None else values


def _decay(decay_mode: str, values: Tensor, base: Tensor | None, share: float) -> None:
    if share and decay_mode != "none":
        values.sub_(_decayed(decay_mode, values, base) * share)


def _shrink(values: Tensor, threshold: float) -> None:
    values.copy_((values.abs() - threshold).clamp_(min=0).copysign(values))


def _write(inputs: StepInputs, values: Tensor) -> None:
    if inputs.base is not None and inputs.weights:
        write_values(inputs.weights, inputs.indices, inputs.offsets, inputs.base, values, 1.0)


def sparse_adamw(
    values: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ages: Tensor | None,
    *rest: Any,
) -> None:
    """One AdamW step; `rest` is StepInputs and AdamWOptions."""
    inputs, given = StepInputs(*rest[:6]), AdamWOptions(*rest[6:])
    beta1, beta2, eps = given.beta1, given.beta2, given.eps
    decay = given.decay_mode, values, inputs.base, given.lr * given.weight_decay
    gradient = _gradient(values, inputs, given.l1, given.grad_scale)
    if ages is None:
        first, second = torch.tensor(
            corrections(beta1, beta2, given.step), dtype=torch.float32, device=values.device
        )
    else:
        table = correction_table(beta1, beta2, ages)
        ages.add_(1)
        first, second = table[:, ages.long().clamp(1, table.shape[1] - 1)]
    if given.decay_first:
        _decay(*decay)
    exp_avg.copy_(exp_avg * beta1 + gradient * (1 - beta1))
    exp_avg_sq.copy_(exp_avg_sq * beta2 + gradient * gradient * (1 - beta2))
    root = _sqrt(exp_avg_sq)
    denominator = root * second + eps if given.eps_mode == "corrected" else (root + eps) * second
    values.sub_(exp_avg / denominator * (first * given.lr))
    if not given.decay_first:
        _decay(*decay)
    _shrink(values, given.soft_threshold)
    _write(inputs, values)


def sparse_sgd(
    values: Tensor,
    momentum_buffer: Tensor | None,
    *rest: Any,
) -> None:
    """One step of stochastic gradient descent; `rest` is StepInputs and SGDOptions."""
    inputs, given = StepInputs(*rest[:6]), SGDOptions(*rest[6:])
    momentum = given.momentum
    gradient = _gradient(values, inputs, given.l1, given.grad_scale)
    if given.weight_decay and given.decay_mode != "none":
        gradient.add_(_decayed(given.decay_mode, values, inputs.base) * given.weight_decay)
    if momentum_buffer is not None:
        if given.first:
            momentum_buffer.copy_(gradient)
        else:
            momentum_buffer.copy_(momentum_buffer * momentum + gradient * (1 - given.dampening))
        gradient = gradient + momentum_buffer * momentum if given.nesterov else momentum_buffer
    values.sub_(gradient * given.lr)
    _shrink(values, given.soft_threshold)
    _write(inputs, values)


def sparse_sm3(
    values: Tensor,
    row_max: Tensor,
    column_max: Tensor,
    momentum_buffer: Tensor | None,
    shapes: Tensor,
    *rest: Any,
) -> None:
    """One SM3 step; `shapes` is int64 ``[tensors, 3]`` on the host: columns, first row and first column accumulator.

    `rest` is StepInputs and SM3Options.
    """
    inputs, given = StepInputs(*rest[:6]), SM3Options(*rest[6:])
    gradient = _gradient(values, inputs, 0.0, given.grad_scale)
    places = [
        (index.long().div(columns, rounding_mode="floor") + row, index.long() % columns + column)
        for (_, index), (columns, row, column) in zip(
            spans([values] * len(shapes), inputs.offsets, inputs.indices), shapes.tolist(), strict=True
        )
    ]
    rows, columns = (torch.cat(place) for place in zip(*places, strict=True))
    second = torch.minimum(row_max[rows], column_max[columns]) + gradient * gradient
    update = gradient / _sqrt(second + given.eps)
    row_max.scatter_reduce_(0, rows, second, "amax")
    column_max.scatter_reduce_(0, columns, second, "amax")
    if momentum_buffer is not None:
        momentum_buffer.copy_(momentum_buffer * given.momentum + update * (1 - given.momentum))
        update = momentum_buffer
    values.sub_(update * given.lr)
    _decay(given.decay_mode, values, inputs.base, given.lr * given.weight_decay)
    _write(inputs, values)
