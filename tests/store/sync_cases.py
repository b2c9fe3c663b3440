"""Weights of two versions for the tests of sync, and what is compared of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tests.generators.checkpoints import random_tensor

State = dict[str, torch.Tensor]
SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CHUNK = 1 << 20


def bits(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Every tensor's bytes in row-major order."""
    return {
        name: tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in state.items()
    }


def cloned(state: Mapping[str, torch.Tensor]) -> State:
    """Copies that keep their strides."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def stepped(state: Mapping[str, torch.Tensor], seed: int = 0, share: float = 0.05) -> State:
    """The next version: one unit in the last place, up or down, in a share of all elements (at least one)."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in state.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1).clone()
        chosen = torch.rand(flat.shape, generator=generator) < share
        chosen[:1] = True
        if tensor.dtype is torch.bool:
            flat[chosen] = ~flat[chosen]
        else:
            words = flat.view(SIGNED[tensor.itemsize])
            words[chosen] += (
                torch.randint(0, 2, (int(chosen.sum()),), generator=generator).to(words.dtype) * 2 - 1
            )
        result[name] = flat.reshape(tensor.shape).to(tensor.device)
    return result


def chunked_state(chunks: int = 3, dtype: torch.dtype = torch.bfloat16) -> State:
    """Two tensors: one of a whole number of chunks and a rest, and a small one."""
    elements = chunks * CHUNK // dtype.itemsize - 1000
    return {"w": random_tensor((elements,), dtype, 1), "b": random_tensor((33,), torch.float32, 2)}
