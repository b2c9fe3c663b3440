"""Quantised deltas back to numbers, in plain torch; see :mod:`graftwork.ops.quantized_delta.dequantize`.

A pack comes as codes, scales, zeros and six numbers: see :func:`graftwork.ops.quantized_delta.dequantize.dequant_add`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.reference.quantized_delta.bits import unpack_bits
from graftwork.reference.quantized_delta.levels import ASYM, levels, scale_values

#: Numbers of a pack beside its tensors: bits, scheme, block, scale_exp.
NUMBERS = 4


def terms(
    codes: Tensor, stored: Tensor, zeros: Tensor | None, numbers: Sequence[int], factor: Tensor, columns: int
) -> Tensor:
    """level · (factor · scale), float32 [rows, columns]; factor [rows or 1]."""
    bits, scheme, block, exponent = numbers
    scales = factor[:, None] * scale_values(stored, exponent)
    length = block if block > 0 else columns
    wide = scales.repeat_interleave(length, 1)[:, :columns] if block > 0 else scales
    zero = None
    if zeros is not None:
        zero = zeros.repeat_interleave(length, 1)[:, :columns] if block > 0 else zeros
    return levels(unpack_bits(codes, bits, columns), bits, scheme, zero) * wide


def dequant_add(
    out: Tensor,
    base: Tensor | None,
    in_place: bool,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    zeros: Sequence[Tensor],
    numbers: Sequence[int],
    factors: Sequence[Tensor],
) -> None:
    """out = round(base + sum of the packs' terms in their order); `zeros` is empty for a pack without.

    With `in_place` the base is `out`; without a base the first term stands alone.
    """
    rows, columns = out.shape
    base = out if in_place else base
    total = None if base is None else base.float()
    touched = torch.zeros(rows, dtype=torch.bool, device=out.device)
    for number, mine in enumerate(codes):
        about = numbers[NUMBERS * number : NUMBERS * (number + 1)]
        zero = zeros[number] if about[1] == ASYM else None
        factor = factors[number]
        term = terms(mine, scales[number], zero, about, factor, columns)
        used = (factor != 0).expand(rows)
        touched |= used
        term = torch.where(used[:, None], term, 0.0)
        total = term if total is None else torch.where(used[:, None], total + term, total)
    if total is None:
        out.zero_()
        return
    result = total.to(out.dtype)
    if base is not None and base.dtype == out.dtype:
        result = torch.where(touched[:, None], result, base)
    out.copy_(result)
