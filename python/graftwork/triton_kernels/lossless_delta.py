"""Triton kernel of update_survival.

Triton, not CUDA: the operation is one elementwise chain and one reduction, which Triton fuses and vectorises as well
as hand-written code would. Every value is widened to fp32 right after its load, so that the kernel computes the same
under Triton's interpreter, where arithmetic on bf16 is unreliable.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # elements a program: 8 a thread, one or two 16-byte loads of each tensor
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}  # no fusion: products round as on the CPU
FIELDS = 6  # of a partial result: changed, lost, overflow, sum w², sum s², sum w·s

_SIGN = tl.constexpr(-0x80000000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def _widen(value: tl.tensor) -> tl.tensor:
    """Floats as fp32. bf16 goes by its bits: the interpreter loses subnormals in the conversion."""
    if value.dtype == tl.bfloat16:
        return (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return value.to(tl.float32)


@triton.jit
def _round_to_bf16(value: tl.tensor) -> tl.tensor:
    """The nearest bf16, ties to even, of finite fp32 values, as fp32."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & _MAGNITUDE
    rounded = (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) & -0x10000
    return (rounded | (bits & _SIGN)).to(tl.float32, bitcast=True)


@triton.jit
def _round_to_fp16(value: tl.tensor) -> tl.tensor:
    """The nearest fp16, ties to even, of finite fp32 values, as fp32.

    Below 2^-14 the spacing is 2^-24, that of fp32 values around 1/2; from 65520 on the result is infinite.
    """
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & _MAGNITUDE
    subnormal = ((magnitude.to(tl.float32, bitcast=True) + 0.5) - 0.5).to(tl.int32, bitcast=True)
    normal = (magnitude + 0xFFF + ((magnitude >> 13) & 1)) & -0x2000
    rounded = tl.where(magnitude < 0x38800000, subnormal, normal)
    rounded = tl.where(rounded >= 0x47800000, _INFINITY, rounded)
    return (rounded | (bits & _SIGN)).to(tl.float32, bitcast=True)


@triton.jit
def _is_finite(value: tl.tensor) -> tl.tensor:
    return (value.to(tl.int32, bitcast=True) & _MAGNITUDE) < _INFINITY


@triton.jit
def update_survival_kernel(
    base: tl.tensor,
    tuned: tl.tensor,
    partials: tl.tensor,
    numel: tl.tensor,
    SAVE_BF16: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Writes the six fields of this block's elements to ``partials[field, block]``, in fp64; counts are exact."""
    block = tl.program_id(0)
    index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < numel
    x = _widen(tl.load(base + index, mask=inside, other=0.0))
    y = _widen(tl.load(tuned + index, mask=inside, other=0.0))
    finite = _is_finite(x) & _is_finite(y)
    x = tl.where(finite, x, 0.0)
    y = tl.where(finite, y, 0.0)
    if SAVE_BF16:
        saved_x = _round_to_bf16(x)
        saved_y = _round_to_bf16(y)
    else:
        saved_x = _round_to_fp16(x)
        saved_y = _round_to_fp16(y)
    overflow = (_is_finite(saved_y) == 0) & finite
    gone = (saved_x == saved_y) | overflow | (_is_finite(saved_x) == 0)
    changed = x != y

    wanted = y.to(tl.float64) - x.to(tl.float64)
    saved = tl.where(gone, 0.0, saved_y).to(tl.float64) - tl.where(gone, 0.0, saved_x).to(tl.float64)
    blocks = tl.num_programs(0).to(tl.int64)
    partials += block
    tl.store(partials, tl.sum(changed.to(tl.int32)).to(tl.float64))
    tl.store(partials + blocks, tl.sum((changed & gone).to(tl.int32)).to(tl.float64))
    tl.store(partials + 2 * blocks, tl.sum(overflow.to(tl.int32)).to(tl.float64))
    tl.store(partials + 3 * blocks, tl.sum(wanted * wanted))
    tl.store(partials + 4 * blocks, tl.sum(saved * saved))
    tl.store(partials + 5 * blocks, tl.sum(wanted * saved))


def update_survival(base: Tensor, tuned: Tensor, save_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Launch the kernel; see :func:`graftwork.ops.lossless_delta.update_survival`, which checks the arguments.

    Parameters
    ----------
    base, tuned : Tensor
        float32, bfloat16 or float16; contiguous, same shape, dtype and device.
    save_dtype : torch.dtype
        ``torch.bfloat16`` or ``torch.float16``.

    Returns
    -------
    counts : Tensor
        int64 ``[3]``.
    sums : Tensor
        float64 ``[3]``.

    Notes
    -----
    Deterministic: each block reduces in a fixed tree, and torch adds the blocks' partial results in a fixed order.
    """
    blocks = triton.cdiv(base.numel(), BLOCK)
    partials = torch.empty(FIELDS, blocks, dtype=torch.float64, device=base.device)
    if blocks:
        with torch.cuda.device_of(base):
            update_survival_kernel[(blocks,)](
                base, tuned, partials, base.numel(), save_dtype is torch.bfloat16, BLOCK, **OPTIONS
            )
    totals = partials.sum(1)
    return totals[:3].to(torch.int64), totals[3:].clone()
