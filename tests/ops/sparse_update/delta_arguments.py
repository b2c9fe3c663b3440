"""Arguments of the operations on sparse deltas, their indices and their gradients, for the tests of all operations."""

from __future__ import annotations

import torch

from tests.generators.supports import some_support

DELTA_OPERATIONS = ("merge_deltas", "compare_deltas", "encode_indices", "decode_indices", "sddmm")


def delta_arguments(name: str, dtype: torch.dtype, device: str, requires_grad: bool) -> tuple:
    supports = [some_support([37, 0, 5], seed=seed).to(device) for seed in (0, 1)]
    values = [torch.ones(s.entries, device=device, requires_grad=requires_grad) for s in supports]
    arrays = [s.indices for s in supports], [s.offsets for s in supports], values
    indices = torch.tensor([0, 3, 34], device=device)
    x, dy = (torch.ones(4, size, dtype=dtype, device=device, requires_grad=requires_grad) for size in (5, 7))
    return {
        "merge_deltas": (*arrays, [1.0, -0.5]),
        "compare_deltas": arrays,
        "encode_indices": (indices, 35, 3),
        "decode_indices": (torch.tensor([3, 6], dtype=torch.uint8, device=device), 2, 35, 2, torch.int32),
        "sddmm": (x, dy, indices),
    }[name]
