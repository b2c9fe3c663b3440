"""States in the middle of a training, and the three steps behind one signature."""

from __future__ import annotations

from typing import Any

import torch

from graftwork.ops.sparse_update import Support, gather_values, sparse_adamw_, sparse_sgd_, sparse_sm3_
from tests.generators.supports import random_tensors
from tests.ops.test_ordinal_planes import same_bits

State = dict[str, Any]


def make_state(support: Support, dtype: torch.dtype, seed: int = 0) -> State:
    """Arrays in the middle of a training: values, states, ages, accumulators, weights with their base."""
    generator = torch.Generator().manual_seed(seed)
    weights = random_tensors(support.numels, dtype, seed)
    normal = [torch.randn(support.entries, generator=generator) for _ in range(3)]
    state: State = {
        "values": normal[0] * 0.1,
        "exp_avg": normal[1],
        "exp_avg_sq": normal[2].square(),
        "ages": torch.randint(0, 2000, (support.entries,), generator=generator, dtype=torch.int32),
        "momentum_buffer": normal[1],
        "base": gather_values(support, weights),
        "weights": weights,
        "row_max": torch.rand(support.tensors + sum(support.numels), generator=generator),
        "column_max": torch.rand(support.tensors + sum(support.numels), generator=generator),
    }
    return state


def copied(state: State, device: str = "cpu") -> State:
    return {
        name: [tensor.to(device, copy=True) for tensor in value]
        if isinstance(value, list)
        else value.to(device, copy=True)
        for name, value in state.items()
    }


def same_state(one: State, other: State) -> bool:
    flat = [
        [t for value in state.values() for t in (value if isinstance(value, list) else [value])]
        for state in (one, other)
    ]
    return all(same_bits(a.cpu(), b.cpu()) for a, b in zip(*flat, strict=True))


def columns_of(support: Support) -> list[int]:
    """A divisor of every size, not always one or all."""
    return [
        next(c for c in (17, 8, 11, 7, 5, 1) if numel % c == 0 and (c == 1 or numel))
        for numel in support.numels
    ]


def adamw(support: Support, grads: Any, state: State, **options: Any) -> None:
    with_ages = options.pop("with_ages", False)
    arguments = {"step": state["ages"] if with_ages else 7, "lr": 0.01, "weights": state["weights"]}
    arrays = state["values"], state["exp_avg"], state["exp_avg_sq"]
    sparse_adamw_(support, grads, *arrays, base=state["base"], **{**arguments, **options})


def sgd(support: Support, grads: Any, state: State, **options: Any) -> None:
    arguments = {"lr": 0.1, "weights": state["weights"], "base": state["base"]}
    sparse_sgd_(support, grads, state["values"], state["momentum_buffer"], **{**arguments, **options})


def sm3(support: Support, grads: Any, state: State, **options: Any) -> None:
    columns = columns_of(support)
    rows = sum(n // c for n, c in zip(support.numels, columns, strict=True))
    accumulators = state["row_max"][:rows], state["column_max"][: sum(columns)]
    arguments = {"lr": 0.1, "weights": state["weights"], "base": state["base"]}
    arrays = state["values"], *accumulators, columns, state["momentum_buffer"]
    sparse_sm3_(support, grads, *arrays, **{**arguments, **options})


STEPS = {"adamw": adamw, "sgd": sgd, "sm3": sm3}
EVERYTHING: dict[str, State] = {
    "adamw": {
        "weight_decay": 0.1,
        "l1": 0.01,
        "soft_threshold": 0.001,
        "grad_scale": 0.3,
        "betas": (0.8, 0.95),
    },
    "sgd": {
        "weight_decay": 0.1,
        "l1": 0.01,
        "soft_threshold": 0.001,
        "grad_scale": 0.3,
        "momentum": 0.9,
        "dampening": 0.1,
    },
    "sm3": {"weight_decay": 0.1, "grad_scale": 0.3, "momentum": 0.9},
}
