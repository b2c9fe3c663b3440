"""The steps of :mod:`graftwork.ops.sparse_update.step` as the native code takes them, and their registration."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.sparse_update import _arena
from graftwork.ops.sparse_update._arena import FORMATS
from graftwork.reference.sparse_update import step as reference
from graftwork.reference.sparse_update.step import AdamWOptions, SGDOptions, SM3Options, StepInputs

_VALUES = (torch.float32,)
_DECAY = ("none", "delta", "weight")
_NULL = torch.tensor([])


def _tensors(values: Tensor, inputs: StepInputs) -> tuple[Tensor, list[Tensor]]:
    """StepTensors of step.h, and the tables that it points to: they must live as long."""
    weights, base, indices, offsets, grads, compact = inputs
    pointers = _native.pointers([] if compact else grads), _native.pointers(weights)
    tables = _native.where_read(values, *pointers, offsets)
    compact_grads = grads[0] if compact else _NULL
    arrays = indices, tables[2], tables[0], compact_grads, values, _NULL if base is None else base, tables[1]
    at = _native.addresses(arrays)
    base_format = FORMATS.index(torch.float32 if base is None else base.dtype)
    fields = [at[0], indices.itemsize, at[1], len(offsets) - 1, *at[2:4], FORMATS.index(grads[0].dtype)]
    return torch.frombuffer(array("q", [*fields, *at[4:], base_format]), dtype=torch.int64), tables


def _settings(*numbers: float) -> Tensor:
    return torch.frombuffer(array("f", numbers), dtype=torch.float32)


def _decay(mode: str, factor: float) -> int:
    return _DECAY.index(mode) if factor else 0


def _adamw(
    values: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ages: Tensor | None,
    *rest: Any,
) -> None:
    inputs, given = StepInputs(*rest[:6]), AdamWOptions(*rest[6:])
    beta1, beta2 = given.beta1, given.beta2
    written = {"values": values, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "step": ages}
    _arena.check_apart("sparse_adamw_", **written, weights=inputs.weights, base=inputs.base)
    tensors, _tables = _tensors(values, inputs)
    table, first, second = _NULL, 0.0, 0.0
    if ages is None:
        first, second = reference.corrections(beta1, beta2, given.step)
    else:
        table = reference.correction_table(beta1, beta2, ages)
    factor = given.lr * given.weight_decay
    settings = _settings(
        *(given.grad_scale, given.l1, given.soft_threshold, factor),
        *(given.lr, beta1, 1 - beta1, beta2, 1 - beta2, given.eps, first, second),
    )
    modes = _decay(given.decay_mode, factor), given.decay_first, given.eps_mode == "corrected"
    state = exp_avg, exp_avg_sq, 0 if ages is None else ages, table, table.shape[-1], *_arena.size_of(values)
    threads = _arena.threads_for(values)
    _native.call("sparse_adamw", tensors, settings, *modes, *state, like=values, threads=threads)
    _arena.mark_written(*written.values(), inputs.weights)


def _sgd(
    values: Tensor,
    momentum_buffer: Tensor | None,
    *rest: Any,
) -> None:
    inputs, given = StepInputs(*rest[:6]), SGDOptions(*rest[6:])
    written = {"values": values, "momentum_buffer": momentum_buffer}
    _arena.check_apart("sparse_sgd_", **written, weights=inputs.weights, base=inputs.base)
    tensors, _tables = _tensors(values, inputs)
    settings = _settings(
        *(given.grad_scale, given.l1, given.soft_threshold, given.weight_decay),
        *(given.lr, given.momentum, 1 - given.dampening),
    )
    modes = _decay(given.decay_mode, given.weight_decay), given.nesterov, given.first
    buffer = 0 if momentum_buffer is None else momentum_buffer
    threads = _arena.threads_for(values)
    state = buffer, *_arena.size_of(values)
    _native.call("sparse_sgd", tensors, settings, *modes, *state, like=values, threads=threads)
    _arena.mark_written(*written.values(), inputs.weights)


def _sm3(
    values: Tensor,
    row_max: Tensor,
    column_max: Tensor,
    momentum_buffer: Tensor | None,
    shapes: Tensor,
    *rest: Any,
) -> None:
    inputs, given = StepInputs(*rest[:6]), SM3Options(*rest[6:])
    written = {
        "values": values,
        "row_max": row_max,
        "column_max": column_max,
        "momentum_buffer": momentum_buffer,
    }
    _arena.check_apart("sparse_sm3_", **written, weights=inputs.weights, base=inputs.base)
    tensors, _tables = _tensors(values, inputs)
    factor, momentum = given.lr * given.weight_decay, given.momentum
    settings = _settings(given.grad_scale, 0.0, 0.0, factor, given.lr, momentum, 1 - momentum, given.eps)
    rows, columns = row_max.numel(), column_max.numel()
    state = row_max, column_max, rows, columns, 0 if momentum_buffer is None else momentum_buffer
    workspace, threads = (
        _native.buffer("workspace", 4 * (rows + columns)),
        _arena.threads_for(values),
    )
    decay = _decay(given.decay_mode, factor)
    _native.call(
        "sparse_sm3", tensors, settings, decay, shapes, *state, workspace, like=values, threads=threads
    )
    _arena.mark_written(*written.values(), inputs.weights)


def _nothing(*arguments: object) -> None:
    """What a step returns for fake tensors."""


_STATE = "Tensor(e!)[] weights, Tensor? base, Tensor indices, Tensor offsets"
_GRADIENTS = "Tensor[] grads, bool compact"

_native.register(
    "sparse_adamw",
    f"(Tensor(a!) values, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? ages, {_STATE}, {_GRADIENTS}, int step, "
    "float lr, float beta1, float beta2, float eps, float weight_decay, str eps_mode, str decay_mode, bool decay_first, "
    "float l1, float soft_threshold, float grad_scale) -> ()",
    reference=reference.sparse_adamw,
    fake=_nothing,
    cpu=_native.Route("_core", _VALUES, _adamw),
    cuda=_native.Route("_cuda", _VALUES, _adamw),
)
_native.register(
    "sparse_sgd",
    f"(Tensor(a!) values, Tensor(b!)? momentum_buffer, {_STATE}, {_GRADIENTS}, float lr, float momentum, "
    "float dampening, bool nesterov, bool first, float weight_decay, str decay_mode, float l1, float soft_threshold, "
    "float grad_scale) -> ()",
    reference=reference.sparse_sgd,
    fake=_nothing,
    cpu=_native.Route("_core", _VALUES, _sgd),
    cuda=_native.Route("_cuda", _VALUES, _sgd),
)
_native.register(
    "sparse_sm3",
    "(Tensor(a!) values, Tensor(b!) row_max, Tensor(c!) column_max, Tensor(d!)? momentum_buffer, Tensor shapes, "
    f"{_STATE}, {_GRADIENTS}, float lr, float momentum, float eps, float weight_decay, str decay_mode, "
    "float grad_scale) -> ()",
    reference=reference.sparse_sm3,
    fake=_nothing,
    cpu=_native.Route("_core", _VALUES, _sm3),
    cuda=_native.Route("_core", _VALUES, _arena.on_host_copies(_sm3, 0, 1, 2, 3, 4)),
)
