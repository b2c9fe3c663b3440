"""Low-rank packs on top of a base, by torch's matrix products, some rows at a time.

GPU: the same torch calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.quantized_delta.dequantize import dequantize
from graftwork.ops.quantized_delta.lowrank import LowRankPack
from graftwork.ops.quantized_delta.svd import multiplies_bfloat16
from graftwork.ops.sparse_update import _arena

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: Rows of a tile: from 256 on products of rank 1000 reach the speed of large ones.
TILE_ROWS = 512


def lowrank_dequant_add(
    base: Tensor,
    packs: LowRankPack | Sequence[LowRankPack],
    scales: float | Tensor | Sequence[float | Tensor],
    *,
    out: Tensor | None = None,
    compute: torch.dtype | None = None,
) -> Tensor:
    """Put low-rank packs on a base: out = round(base + Σ_k λ_k·Û_k·diag(S_k)·V̂_kᵀ).

    Factors are dequantised once; the packs are one product of the sum of their ranks, whose sums are float32, the base
    among them, rounded once.

    Parameters
    ----------
    base : Tensor
        float16, bfloat16 or float32 ``[O, I]``.
    packs : LowRankPack or sequence of LowRankPack
        Of this shape, on the base's device.
    scales : float, Tensor or sequence of them
        λ of each pack: a finite number, or float32 ``[O]`` with one for each row.
    out : Tensor, optional
        Memory for the result, contiguous, of the base's shape and any of these dtypes. It may be the base itself.
    compute : torch.dtype, optional
        What the factors are rounded to: float32, or bfloat16 for a bfloat16 base and result. None: bfloat16 where that
        is possible and the CPU multiplies it natively, which is twice as fast; a factor's rounding, of some 0.2 % of
        the delta, is far below that of the result.

    Returns
    -------
    Tensor
        ``[O, I]``: `out`, or a new tensor of the base's dtype.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or `out` overlaps the base without being it.

    Notes
    -----
    A row for which every λ is 0 is the base's bit for bit, also where that is −0 or NaN. Beside the factors there is one
    tile of :data:`TILE_ROWS` rows in memory. The last bits of a sum depend on torch's matrix product.

    Examples
    --------
    >>> from graftwork.ops.quantized_delta import lowrank_quantize, svd_delta
    >>> delta = torch.outer(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0]))
    >>> pack = lowrank_quantize(*svd_delta(delta, None, rank=1), [(None, 16)])
    >>> lowrank_dequant_add(torch.ones(2, 3), pack, 0.5).round(decimals=3).tolist()
    [[1.0, 2.5, 1.0], [1.0, 3.0, 1.0]]
    """
    listed, factors = _check_packs(base, packs, scales)
    out = _check_out(base, out)
    compute = _compute(base, out, compute)
    with torch.no_grad():
        used = [
            pair for pair in zip(listed, factors, strict=True) if pair[0].rank and bool((pair[1] != 0).any())
        ]
        _add(base.detach(), out.detach(), used, compute)
    _arena.mark_written(out)
    return out


def _check_packs(
    base: Tensor,
    packs: LowRankPack | Sequence[LowRankPack],
    scales: float | Tensor | Sequence[float | Tensor],
) -> tuple[list[LowRankPack], list[Tensor]]:
    name = "lowrank_dequant_add"
    _checks.check_tensor(name, "base", base)
    _checks.check_dtype(name, "base", base, DTYPES, "cast it first")
    if base.dim() != 2:
        raise ValueError(f"{name}: base must have two dimensions, got shape {tuple(base.shape)}; reshape it")
    listed = [packs] if isinstance(packs, LowRankPack) else list(packs)
    numbers = list(scales) if isinstance(scales, list | tuple) else [scales]
    if len(listed) != len(numbers):
        raise ValueError(
            f"{name}: scales must be {len(listed)} numbers, one for each pack, got {len(numbers)}"
        )
    for number, pack in enumerate(listed):
        if not isinstance(pack, LowRankPack):
            raise TypeError(f"{name}: packs[{number}] must be a LowRankPack, got {type(pack).__name__}")
        if pack.shape != tuple(base.shape):
            raise ValueError(
                f"{name}: packs[{number}] must have the shape of base, {tuple(base.shape)}, got {pack.shape}"
            )
        for group in pack.groups:
            _checks.check_device(name, f"packs[{number}]", group.values, "base", base)
    return listed, [_row_factors(f"scales[{number}]", scale, base) for number, scale in enumerate(numbers)]


def _row_factors(name: str, scale: object, base: Tensor) -> Tensor:
    """λ as float32 [1] or [O]."""
    if isinstance(scale, Tensor):
        _checks.check_dtype("lowrank_dequant_add", name, scale, (torch.float32,), "convert it first")
        _checks.check_device("lowrank_dequant_add", name, scale, "base", base)
        if scale.shape != base.shape[:1]:
            raise ValueError(
                f"lowrank_dequant_add: {name} must be a number or have one for each of {base.shape[0]} rows, got shape "
                f"{tuple(scale.shape)}"
            )
        if not bool(scale.isfinite().all()):
            raise ValueError(f"lowrank_dequant_add: {name} must be finite")
        return scale.detach()
    if not isinstance(scale, int | float):
        raise TypeError(
            f"lowrank_dequant_add: {name} must be a number or a tensor, got {type(scale).__name__}"
        )
    _arena.check_number("lowrank_dequant_add", name, scale)
    return torch.tensor([scale], dtype=torch.float32, device=base.device)


def _check_out(base: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return torch.empty(base.shape, dtype=base.dtype, device=base.device)
    name = "lowrank_dequant_add"
    _checks.check_tensor(name, "out", out)
    _checks.check_dtype(name, "out", out, DTYPES, "pass one of them")
    if out.shape != base.shape:
        raise ValueError(
            f"{name}: out must have the shape of base, {tuple(base.shape)}, got {tuple(out.shape)}"
        )
    _checks.check_device(name, "out", out, "base", base)
    _checks.check_output(name, "out", out)
    same = _native.is_same_place(out, base) and base.is_contiguous()
    mine, other = _native.memory_range(out), _native.memory_range(base)
    if not same and mine[0] == other[0] and mine[1] < other[2] and other[1] < mine[2]:
        raise ValueError(f"{name}: out overlaps base in memory; pass base itself, or a separate output")
    return out


def _compute(base: Tensor, out: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    half = base.dtype == out.dtype == torch.bfloat16
    if wanted is None:
        return torch.bfloat16 if half and multiplies_bfloat16(base.device) else torch.float32
    if wanted == torch.float32 or (wanted == torch.bfloat16 and half):
        return wanted
    raise ValueError(
        f"lowrank_dequant_add: compute must be float32, or bfloat16 where base and out are, got {wanted}; the result of a "
        f"product in bfloat16 could not be added in float32"
    )


def _add(base: Tensor, out: Tensor, used: Sequence[tuple[LowRankPack, Tensor]], compute: torch.dtype) -> None:
    rows = base.shape[0]
    left, right = _factors(used, compute, base)
    touched = torch.zeros(rows, dtype=torch.bool, device=base.device)
    for _, factor in used:
        touched |= factor != 0
    whole = bool(touched.all())
    in_place = _native.is_same_place(out, base)
    for begin in range(0, rows, TILE_ROWS):
        tile = slice(begin, min(begin + TILE_ROWS, rows))
        if not used:
            if not in_place:
                out[tile].copy_(base[tile])
            continue
        kept = None if whole else base[tile].clone()
        if compute == torch.bfloat16:
            if not in_place:
                out[tile].copy_(base[tile])
            out[tile].addmm_(left[:, tile].mT, right)
        else:
            total = base[tile].float() if base.dtype != torch.float32 else base[tile]
            out[tile].copy_(torch.addmm(total, left[:, tile].mT, right))
        if kept is not None:
            out[tile] = torch.where(touched[tile, None], out[tile], kept.to(out.dtype))


def _factors(
    used: Sequence[tuple[LowRankPack, Tensor]], compute: torch.dtype, base: Tensor
) -> tuple[Tensor, Tensor]:
    """diag(S)·Uᵀ·diag(λ) [r, O] and Vᵀ [r, I] of all packs, each rounded once to the dtype of the product."""
    rank = sum(pack.rank for pack, _ in used)
    left = torch.empty(rank, base.shape[0], dtype=compute, device=base.device)
    right = torch.empty(rank, base.shape[1], dtype=compute, device=base.device)
    row = 0
    for pack, factor in used:
        for group in pack.groups:
            chosen = slice(row, row + group.count)
            if isinstance(group.right, Tensor):
                right[chosen] = group.right
            else:
                dequantize(group.right, out=right[chosen])
            mine = group.left.float() if isinstance(group.left, Tensor) else dequantize(group.left)
            left[chosen] = mine.mul_(group.values[:, None]).mul_(factor)
            row += group.count
    return left, right
