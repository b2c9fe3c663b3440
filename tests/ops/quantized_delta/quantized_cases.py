"""Every format of a quantised delta, pairs of matrices, and arguments of ``torch.ops.graftwork.*``."""

from __future__ import annotations

from typing import Any

import torch

from graftwork.ops.quantized_delta import PackedDelta, PackFormat
from graftwork.ops.quantized_delta.formats import SCHEME_BITS

QUANTIZED_OPERATIONS = (
    "delta_quantize",
    "dequant_add",
    "pack_bits",
    "unpack_bits",
    "mark_kept",
    "mark_drawn",
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CODES = [(scheme, bits) for scheme, widths in SCHEME_BITS.items() for bits in widths]
#: One column, odd, around a vector, short last blocks, several tiles, nothing.
SHAPES = [(3, 1), (5, 13), (2, 33), (3, 1000), (2, 4097), (0, 5), (4, 0)]


def matrices(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A base and its fine-tune, one row of which did not move."""
    generator = torch.Generator().manual_seed(seed)
    base = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
    tuned = (base.float() + torch.randn(shape, generator=generator) * 1e-3).to(dtype)
    if shape[0] > 2:
        tuned[1] = base[1]
    return base, tuned


def quantized_arguments(name: str, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """Small ones; weights of float32 where the dtype is no weight's."""
    dtype = dtype if dtype in DTYPES else torch.float32
    base, tuned = (matrix.to(device) for matrix in matrices((3, 37), dtype))
    format = PackFormat(3, "asym", 16)
    pack = PackedDelta.empty(format, 3, 37, device)
    fields = pack.codes.fill_(0), pack.scales.fill_(0.5), pack.zeros
    assert fields[2] is not None
    fields[2].fill_(1)
    how = format.bits, format.scheme_number, format.block
    codes = torch.arange(3 * 37, device=device).view(3, 37).to(torch.uint8)
    return {
        "delta_quantize": (tuned, base, *how, 2, *fields),
        "dequant_add": (
            *(tuned, base, False, [fields[0]], [fields[1]], [fields[2]]),
            *([*how, 0], [torch.ones(1, device=device)]),
        ),
        "pack_bits": (codes, 3, torch.zeros(3, 15, dtype=torch.uint8, device=device)),
        "unpack_bits": (pack.codes, 3, 37),
        "mark_kept": (tuned, base, 0, 1e-3, 0, 0, 0),
        "mark_drawn": (torch.zeros(5, dtype=torch.uint8, device=device), 37, 1, 2, 1 << 23),
    }[name]
