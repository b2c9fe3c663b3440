"""Models and sparse deltas for the tests of `graftwork.adapt.SparseDelta`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from graftwork.adapt import SparseDelta
from tests.generators.checkpoints import random_tensor

State = dict[str, torch.Tensor]
SHAPES = {
    "embed.weight": (64, 32),
    "layers.0.weight": (33, 31),
    "layers.1.weight": (31,),
    "nothing": (0, 4),
    "scalar": (),
}


def base_state(dtype: torch.dtype = torch.float32, seed: int = 0) -> State:
    """A model's worth of tensors."""
    return {name: random_tensor(shape, dtype, seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


def mixed_state() -> State:
    """Tensors of all dtypes that can be tuned, and one of another."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float32, torch.bfloat16)
    state = {name: base_state(dtype)[name] for name, dtype in zip(SHAPES, dtypes, strict=True)}
    return {**state, "steps": torch.arange(5)}


def cloned(state: Mapping[str, torch.Tensor]) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def bits(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Every tensor's bytes."""
    return {
        name: tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in state.items()
    }


def random_delta(base: Mapping[str, torch.Tensor], seed: int, density: float = 0.1) -> SparseDelta:
    """Normal changes at random places of all floats, of which the last element of each is one."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for name, tensor in base.items():
        if not tensor.is_floating_point():
            continue
        chosen = torch.rand(tensor.numel(), generator=generator) < density
        chosen[-1:] = True
        indices = chosen.nonzero().view(-1)
        changes[name] = indices, torch.randn(len(indices), generator=generator) * 0.05
    return SparseDelta.from_changes(changes, base, threads=1)


def expected(base: Mapping[str, torch.Tensor], deltas: Mapping[SparseDelta, float]) -> State:
    """What a model must be with these deltas on it, in plain torch."""
    state = cloned(base)
    for name, tensor in state.items():
        total = torch.zeros(tensor.numel())
        touched = torch.zeros(tensor.numel(), dtype=torch.bool)
        for delta, scale in deltas.items():
            if name in [one.name for one in delta.tensors]:
                indices, values = delta.changes(name)
                total[indices.long()] += values * scale
                touched[indices.long()] = True
        flat = tensor.view(-1)
        flat[touched] = (flat[touched].float() + total[touched]).to(tensor.dtype)
    return state


class Tied(nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def with_head(base: State, **full: torch.Tensor) -> SparseDelta:
    """A random delta with tensors in full."""
    delta = random_delta(base, 1)
    return SparseDelta(delta.tensors, delta.support, delta.values, full=full, base_digest=delta.base_digest)
