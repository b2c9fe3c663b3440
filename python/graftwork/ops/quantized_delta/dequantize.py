"""Packed deltas back to numbers, alone or on top of a base.

GPU: on copies on the host. Not differentiable.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.quantized_delta.formats import SCALE_DTYPES, PackedDelta
from graftwork.ops.quantized_delta.quantize import FORMATS, _check_matrix
from graftwork.ops.sparse_update import _arena
from graftwork.reference.quantized_delta import dequantize as reference


def dequantize(pack: PackedDelta, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None) -> Tensor:
    """The matrix that a pack stands for: level · scale in float32, rounded once.

    Parameters
    ----------
    pack : PackedDelta
        One packed matrix.
    dtype : torch.dtype
        float16, bfloat16 or float32. That of `out` where it is given.
    out : Tensor, optional
        Memory for the result, contiguous.

    Returns
    -------
    Tensor
        ``[O, I]`` on the pack's device.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the result does not depend on device, ISA level or threads.

    Examples
    --------
    >>> from graftwork.ops.quantized_delta import PackFormat, delta_quantize
    >>> pack, _ = delta_quantize(torch.tensor([[3.0, -1.0, 2.0, -2.0]]), None, PackFormat(1, "sign", 0))
    >>> dequantize(pack).tolist()
    [[2.0, -2.0, 2.0, -2.0]]
    """
    _check_pack("dequantize", "pack", pack)
    if out is None:
        if dtype not in FORMATS:
            raise TypeError(f"dequantize: dtype must be one of {_checks.dtype_names(FORMATS)}, got {dtype}")
        out = torch.empty(pack.shape, dtype=dtype, device=pack.device)
    _check_out("dequantize", out, pack.shape, pack.codes, "pack")
    _run(None, [pack], [torch.ones(1, device=pack.device)], out)
    return out


def dequant_add(
    base: Tensor,
    packs: Sequence[PackedDelta],
    scales: Sequence[float | Tensor],
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Put packed deltas on a base: out = round(base + Σ_k λ_k · Δ̂_k), one pass over the base.

    All in float32: the terms level · (λ · scale) are added in the order of the packs, then the sum is rounded to the
    dtype of `out`, to nearest even.

    Parameters
    ----------
    base : Tensor
        float16, bfloat16 or float32 ``[O, I]``.
    packs : sequence of PackedDelta
        Any number of packs of this shape, each of its own format, on the base's device.
    scales : sequence of float or Tensor
        λ of each pack: a finite number, or float32 ``[O]`` with one for each row.
    out : Tensor, optional
        Memory for the result, contiguous, of the base's shape and any of these dtypes. It may be the base itself.

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
    Deterministic: the result does not depend on device, ISA level or threads. A row for which every λ is 0 is the base's
    bit for bit, also where that is −0 or NaN. Large results that are no cached memory are written past the caches.

    Examples
    --------
    >>> from graftwork.ops.quantized_delta import PackFormat, delta_quantize
    >>> pack, _ = delta_quantize(torch.tensor([[3.0, -1.0, 2.0, -2.0]]), None, PackFormat(1, "sign", 0))
    >>> dequant_add(torch.ones(1, 4), [pack, pack], [1.0, 0.5]).tolist()
    [[4.0, -2.0, 4.0, -2.0]]
    """
    _check_matrix("dequant_add", "base", base)
    shape = (base.shape[0], base.shape[1])
    if len(packs) != len(scales):
        raise ValueError(
            f"dequant_add: scales must be {len(packs)} numbers, one for each pack, got {len(scales)}"
        )
    factors = []
    for number, (pack, scale) in enumerate(zip(packs, scales, strict=True)):
        name = f"packs[{number}]"
        _check_pack("dequant_add", name, pack)
        if pack.shape != shape:
            raise ValueError(f"dequant_add: {name} must have the shape of base, {shape}, got {pack.shape}")
        _checks.check_device("dequant_add", f"{name}.codes", pack.codes, "base", base)
        factors.append(_factor(f"scales[{number}]", scale, base))
    if out is None:
        out = torch.empty(shape, dtype=base.dtype, device=base.device)
    _check_out("dequant_add", out, shape, base, "base")
    _run(base, packs, factors, out)
    return out


def _factor(name: str, scale: float | Tensor, base: Tensor) -> Tensor:
    if not isinstance(scale, Tensor):
        _arena.check_number("dequant_add", name, scale)
        return torch.tensor([scale], dtype=torch.float32, device=base.device)
    _checks.check_dtype("dequant_add", name, scale, (torch.float32,), "convert it first")
    _checks.check_device("dequant_add", name, scale, "base", base)
    if scale.shape != base.shape[:1]:
        raise ValueError(
            f"dequant_add: {name} must be a number or have one for each of {base.shape[0]} rows, got shape "
            f"{tuple(scale.shape)}"
        )
    if not bool(scale.isfinite().all()):
        raise ValueError(f"dequant_add: {name} must be finite")
    return scale.detach().contiguous()


def _check_pack(operation: str, name: str, pack: object) -> None:
    if not isinstance(pack, PackedDelta):
        raise TypeError(f"{operation}: {name} must be a PackedDelta, got {type(pack).__name__}")


def _check_out(operation: str, out: Tensor, shape: tuple[int, int], like: Tensor, name: str) -> None:
    _check_matrix(operation, "out", out)
    if out.shape != shape:
        raise ValueError(f"{operation}: out must have the shape of {name}, {shape}, got {tuple(out.shape)}")
    _checks.check_device(operation, "out", out, name, like)
    _checks.check_output(operation, "out", out)


def _run(base: Tensor | None, packs: Sequence[PackedDelta], factors: list[Tensor], out: Tensor) -> None:
    nothing = out.new_empty(0, dtype=torch.uint8)
    numbers = [
        number
        for pack in packs
        for number in (pack.format.bits, pack.format.scheme_number, pack.format.block, pack.scale_exp)
    ]
    in_place = base is not None and _native.is_same_place(base, out)
    if in_place and base is not None and not base.is_contiguous():
        raise ValueError("dequant_add: out overlaps base in memory; pass base itself, or a separate output")
    torch.ops.graftwork.dequant_add(
        out,
        None if in_place else base,
        in_place,
        [pack.codes for pack in packs],
        [pack.scales for pack in packs],
        [nothing if pack.zeros is None else pack.zeros for pack in packs],
        numbers,
        factors,
    )


def _dequant_add(
    out: Tensor,
    base: Tensor | None,
    in_place: bool,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    zeros: Sequence[Tensor],
    numbers: Sequence[int],
    factors: Sequence[Tensor],
) -> None:
    rows, columns = out.shape
    held = out if in_place else None if base is None else _native.packed(base)
    _native.check_output("dequant_add", "out", out, **({} if in_place or held is None else {"base": held}))
    table = []
    for number, mine in enumerate(codes):
        bits, scheme, block, exponent = numbers[4 * number : 4 * number + 4]
        scale, factor = scales[number], factors[number]
        places = _native.addresses([mine, scale, zeros[number], factor])  # 0 for no zeros
        table += [
            *(places[0], mine.shape[1], places[1], SCALE_DTYPES.index(scale.dtype), places[2]),
            *(places[3], int(factor.numel() != 1 or rows == 1), bits, scheme, block, exponent),
        ]
    arguments = (
        *(out, FORMATS.index(out.dtype), 0 if held is None else held),
        *(0 if held is None else FORMATS.index(held.dtype), rows, columns),
        *(array("q", table), len(codes)),
    )
    _native.call("dequant_add", *arguments, like=out)
    _arena.mark_written(out)


_native.register(
    "dequant_add",
    "(Tensor(a!) out, Tensor? base, bool in_place, Tensor[] codes, Tensor[] scales, Tensor[] zeros, int[] numbers, "
    "Tensor[] factors) -> ()",
    reference=reference.dequant_add,
    fake=lambda out, *rest: None,
    cpu=_native.Route("_core", FORMATS, _dequant_add),
    cuda=_native.Route("_core", FORMATS, _arena.on_host_copies(_dequant_add, 0)),
)
