"""Packs of every format and batches over them, for the tests of delta_linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftwork.ops.quantized_delta import (
    FACTOR_FORMATS,
    LowRankPack,
    PackedDelta,
    PackFormat,
    PackList,
    delta_quantize,
    dequantize,
    lowrank_quantize,
    svd_delta,
)
from graftwork.ops.quantized_delta.formats import SCHEME_BITS

LINEAR_OPERATIONS = ("delta_linear",)
KINDS = [(scheme, bits) for scheme, widths in SCHEME_BITS.items() for bits in widths]
FACTOR_BITS = (16, 8, 4, 3, 2, 1)

Pack = PackedDelta | LowRankPack | None


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(
    rows: int,
    columns: int,
    scheme: str,
    bits: int,
    block: int = 64,
    scale_dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> PackedDelta:
    """A packed matrix of small numbers, whose rows differ in size."""
    delta = 0.1 * noise(rows, columns, seed=seed) * (1 + torch.arange(rows)[:, None] % 3)
    return delta_quantize(delta, None, PackFormat(bits, scheme, block, scale_dtype))[0]


def low_rank(
    rows: int, columns: int, bits: int, block: int = 128, scheme: str | None = None, seed: int = 0
) -> LowRankPack:
    """Triples of several widths, most of them of `bits`."""
    formats = {
        width: PackFormat(width, scheme or made.scheme, block, made.scale_dtype)
        for width, made in FACTOR_FORMATS.items()
    }
    triples = svd_delta(0.1 * noise(rows, columns, seed=seed), None, rank=min(rows, columns, 23), seed=seed)
    return lowrank_quantize(*triples, [(1, 16), (2, 8), (None, bits)], formats=formats)


def dense(pack: Pack, shape: tuple[int, int]) -> Tensor:
    """The matrix that a pack stands for, float64."""
    if pack is None:
        return torch.zeros(shape, dtype=torch.float64)
    if isinstance(pack, PackedDelta):
        return dequantize(pack).double()
    left, values, right = pack.factors()
    return (left.double().T * values.double()) @ right.double()


def exact(
    x: Tensor,
    weight: Tensor | None,
    packs: Sequence[Pack],
    ids: Tensor,
    shape: tuple[int, int],
    *,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """What delta_linear approximates, float64, row by row; `scales` one for each row."""
    matrices = [dense(pack, shape) for pack in packs]
    base = torch.zeros(shape, dtype=torch.float64) if weight is None else weight.double().cpu()
    found = []
    for row, pack in enumerate(ids.tolist()):
        factor = 1.0 if scales is None else float(scales[row])
        matrix = base if pack < 0 else base + factor * matrices[pack]
        found.append(x[row].double().cpu() @ matrix.T)
    total = torch.stack(found) if found else torch.zeros(0, shape[0], dtype=torch.float64)
    return total if bias is None else total + bias.double().cpu()


def linear_arguments(dtype: torch.dtype, device: str, requires_grad: bool) -> tuple[Any, ...]:
    """Arguments of ``torch.ops.graftwork.delta_linear``: a pack of each kind, a row of the base, one of no pack."""
    rows, columns = 5, 33
    packs = [quantized(rows, columns, "asym", 2, 8), low_rank(rows, columns, 4), None]
    listed = PackList([None if pack is None else pack.to(device) for pack in packs])
    x, weight, bias = (
        noise(*shape).to(device, dtype).requires_grad_(requires_grad)
        for shape in ((5, columns), (rows, columns), (rows,))
    )
    ids = torch.tensor([1, 0, -1, 2, 1], dtype=torch.int32, device=device)
    return x, weight, bias, ids, torch.linspace(-1, 1, 5, device=device), *listed.flat, rows
