"""Products with packed deltas in plain torch; see :mod:`graftwork.ops.quantized_delta.linear`.

Matrices come as codes, scales, zeros and five numbers each; a pack has none, one, or a right and a left factor for each
group of singular triples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.reference.quantized_delta.dequantize import terms

#: Numbers of a matrix beside its tensors: bits, scheme, block, scale_exp, columns. 16 bits: float16 without scales.
NUMBERS = 5
_TILE_ROWS = 512


def refuse_ids(outside: int | None, packs: int) -> None:
    """Raise ValueError for an id that names no pack."""
    if outside is not None:
        raise ValueError(
            f"delta_linear: ids must be in [-1, {packs}), the number of a pack or -1 for the base alone, got {outside}"
        )


def matrix(
    codes: Tensor, scales: Tensor, zeros: Tensor, numbers: Sequence[int], start: int, stop: int
) -> Tensor:
    """The rows start .. stop − 1 of a matrix, float32."""
    bits, scheme, block, exponent, columns = numbers
    if bits == 16:
        return codes[start:stop].float()
    rows = slice(None) if block == -1 else slice(start, stop)
    zero = zeros[rows] if zeros.numel() else None
    one = torch.ones(1, device=codes.device)
    return terms(codes[start:stop], scales[rows], zero, (bits, scheme, block, exponent), one, columns)


def rounded(total: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """total + x·weightᵀ + bias in the dtype of x; total is float32 (float64) and may be overwritten."""
    if bias is not None:
        total += bias
    if weight is None:
        return total.to(x.dtype)
    # The product's sums are float32 and start from what is added, so that the result is rounded once.
    if total.dtype == x.dtype:
        return total.addmm_(x, weight.t())
    return torch.addmm(total.to(x.dtype), x, weight.t())


def delta_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    ids: Tensor,
    factors: Tensor,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    zeros: Sequence[Tensor],
    numbers: Sequence[int],
    parts: Sequence[int],
    values: Sequence[Tensor],
    rows: int,
) -> Tensor:
    """x·weightᵀ + bias + factor · x·Δ̂ᵀ of the pack that each row of x names; −1 and packs of no parts add nothing."""
    outside = ids[(ids < -1) | (ids >= len(parts))]
    refuse_ids(int(outside[0]) if outside.numel() else None, len(parts))
    compute = torch.promote_types(x.dtype, torch.float32)
    total = x.new_zeros(x.shape[0], rows, dtype=compute)

    def multiply(number: int, rows_of_x: Tensor) -> Tensor:
        mine = codes[number], scales[number], zeros[number]
        about = numbers[NUMBERS * number : NUMBERS * (number + 1)]
        starts = range(0, codes[number].shape[0], _TILE_ROWS)
        tiles = (matrix(*mine, about, start, start + _TILE_ROWS) for start in starts)
        return torch.cat([rows_of_x @ tile.to(compute).T for tile in tiles], 1)

    first, group = 0, 0
    for pack, count in enumerate(parts):
        chosen = ((ids == pack) & (factors != 0)).nonzero().view(-1)
        mine = x[chosen].to(compute)
        delta = total.new_zeros(len(chosen), rows)
        if count == 1:
            delta += multiply(first, mine)
        for number in range(first, first + count - 1, 2):
            inner = multiply(number, mine) * values[group].to(compute)
            left = codes[number + 1], scales[number + 1], zeros[number + 1]
            about = numbers[NUMBERS * (number + 1) : NUMBERS * (number + 2)]
            delta += inner @ matrix(*left, about, 0, inner.shape[1]).to(compute)
            group += 1
        total.index_add_(0, chosen, delta * factors[chosen, None])
        first += count
    return rounded(total, x, weight, bias)
