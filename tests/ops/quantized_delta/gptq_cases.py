"""Arguments of ``torch.ops.graftwork.gptq_block``."""

from __future__ import annotations

from typing import Any

import torch

from graftwork.reference.quantized_delta.levels import SCHEMES

CODES = [
    *(("sign", 1), ("sym", 2), ("sym", 4), ("sym", 8), ("midrise", 2), ("midrise", 3)),
    *(("asym", 3), ("asym", 8), ("nf4", 4)),
]

#: Within a tile of 64 rows, around one, several; one column and all a block may have.
BLOCK_SHAPES = [(0, 5), (3, 0), (1, 1), (3, 5), (64, 31), (65, 128), (200, 33)]


def block_case(shape: tuple[int, int], scheme: str, bits: int, device: str) -> tuple[Any, ...]:
    """A block of weights with some zero and subnormal scales, dead columns, and groups in no order."""
    generator = torch.Generator().manual_seed(7)
    rows, columns = shape
    weights = torch.randn(shape, generator=generator)
    corrected = weights + 0.1 * torch.randn(shape, generator=generator)
    feedback = torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=generator).triu(1)
    scales = torch.rand(rows, 3, generator=generator) * 0.5
    scales[::7], scales[1::7, 1] = 0, 1e-39
    zeros = torch.randint(0, 2**bits, (rows, 3), generator=generator, dtype=torch.uint8)
    groups = torch.randint(0, 3, (columns,), generator=generator, dtype=torch.int32)
    diagonal = torch.rand(columns, generator=generator)
    diagonal[::5] = 0
    tensors = (weights, corrected, feedback, scales, zeros if scheme == "asym" else None, groups, diagonal)
    on_device = [None if tensor is None else tensor.to(device) for tensor in tensors]
    losses = torch.full((rows,), 0.5, dtype=torch.float64, device=device)
    return *on_device, 0.01, bits, SCHEMES.index(scheme), losses
