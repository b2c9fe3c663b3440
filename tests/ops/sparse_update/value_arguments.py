"""Arguments of ``torch.ops.graftwork.*`` for the steps and for reading and writing tuned weights."""

from __future__ import annotations

from typing import Any

import torch

from tests.generators.supports import random_tensors, some_support
from tests.ops.sparse_update.step_cases import make_state

VALUE_OPERATIONS = (
    *("gather_values", "gather_gradients", "write_values", "restore_values", "swap_values"),
    *("sparse_adamw", "sparse_sgd", "sparse_sm3"),
)


def value_arguments(name: str, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """Two tensors, one of which has no elements; weights of float32 where the dtype is no weight's."""
    numels, dtype = (37, 0, 12), dtype if dtype.itemsize == 2 else torch.float32
    support, state = some_support(numels), make_state(some_support(numels), dtype)
    weights, grads = ([t.to(device) for t in random_tensors(numels, dtype, seed)] for seed in (0, 1))
    at = support.to(device).indices, support.offsets
    values, m, v, buffer, base, ages = (
        state[key].to(device, copy=True)
        for key in ("values", "exp_avg", "exp_avg_sq", "momentum_buffer", "base", "ages")
    )
    rows, columns = torch.ones(37 + 4, device=device), torch.ones(1 + 1 + 3, device=device)
    shapes = torch.tensor([[1, 0, 0], [1, 37, 1], [3, 37, 2]])
    step = weights, base, *at, grads, False
    decay = 0.1, "weight"
    return {
        "gather_values": (weights, *at, base),
        "gather_gradients": (grads, *at, values, 0.5),
        "write_values": (weights, *at, base, values, 0.5),
        "restore_values": (weights, *at, base),
        "swap_values": (weights, *at, base, *at, values, 0.5),
        "sparse_adamw": (
            *(values, m, v, ages, *step, 0, 0.1, 0.9, 0.99, 1e-8),
            *(0.1, "corrected", "weight", True, 0.1, 0.1, 0.5),
        ),
        "sparse_sgd": (values, buffer, *step, 0.1, 0.9, 0.0, True, False, *decay, 0.1, 0.1, 0.5),
        "sparse_sm3": (
            *(values, rows, columns, None, shapes, weights, base, *at, grads, False),
            *(0.1, 0.0, 1e-8, *decay, 0.5),
        ),
    }[name]
