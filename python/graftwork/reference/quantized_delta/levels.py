"""Schemes and stored scales: what a code stands for, and how a scale is rounded; shared by all quantised deltas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: The schemes, in the order of the native code's numbers.
SCHEMES = ("sign", "sym", "midrise", "asym", "nf4")
SIGN, SYM, MIDRISE, ASYM, NF4 = range(5)

#: The sixteen levels of "nf4" (Dettmers et al. 2023, appendix E).
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)

#: A float16 scale is stored divided by 2^scale_exp, which is in this range: the product is then never lost.
LEAST_EXP, LARGEST_EXP = -120, 113
_NORMAL = 2.0**-14


def levels(codes: Tensor, bits: int, scheme: int, zeros: Tensor | None) -> Tensor:
    """What the codes stand for before they are multiplied by the scale, float32; `zeros` broadcasts to the codes."""
    if scheme == NF4:
        return torch.tensor(NF4_LEVELS, device=codes.device)[codes.long()]
    u = codes.float()
    if scheme == SIGN:
        return 2 * u - 1
    if scheme == ASYM and zeros is not None:
        return u - zeros.float()
    return u - 2 ** (bits - 1) + (0.5 if scheme == MIDRISE else 0.0)


def codes_of(delta: Tensor, scale: Tensor, bits: int, scheme: int, zeros: Tensor | None) -> Tensor:
    """The codes of float32 `delta`; scales and zeros broadcast to it. A scale of 0 gives the code of 0."""
    if scheme == SIGN:
        return (delta > 0).to(torch.uint8)
    x, half = divided(delta, scale), 2 ** (bits - 1)
    if scheme == NF4:
        middles = nf4_middles(delta.device)
        return torch.searchsorted(middles, x.contiguous()).to(torch.uint8)  # ties to the lower
    if scheme == ASYM and zeros is not None:
        return (x.round() + zeros.float()).clamp(0, 2**bits - 1).to(torch.uint8)
    if scheme == SYM:
        return (x.round().clamp(1 - half, half - 1) + half).to(torch.uint8)
    return (x.floor().clamp(-half, half - 1) + half).to(torch.uint8)


def nf4_middles(device: torch.device) -> Tensor:
    """Between neighbouring levels of "nf4", float32 [15]."""
    table = torch.tensor(NF4_LEVELS, dtype=torch.float64, device=device)
    return ((table[1:] + table[:-1]) / 2).float()


def divided(delta: Tensor, scale: Tensor) -> Tensor:
    """delta · (1/scale) in float32; where the scale is subnormal, the quotient; where it is 0, 0."""
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return torch.where((scale > 0) & (scale < 2.0**-126), delta / scale, delta * inverse)


def round_scales(scales: Tensor, dtype: torch.dtype, exponent: int | None) -> Tensor:
    """Float32 scales as they are stored, positive ones never to 0. Float16 without an exponent: to 11 significant bits."""
    if dtype == torch.float32:
        return scales
    if dtype == torch.bfloat16:
        rounded, smallest = scales.bfloat16().float(), 2.0**-133
    elif exponent is None:
        bits = scales.view(torch.int32)
        rounded, smallest = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32), 2.0**-149
    else:
        rounded = (times_power(scales, -exponent).half().float()).double().mul(2.0**exponent).float()
        smallest = 2.0 ** (exponent - 24)
    return torch.where((scales > 0) & (rounded == 0), smallest, rounded)


def times_power(values: Tensor, exponent: int) -> Tensor:
    """values · 2^exponent, rounded once to float32."""
    return (values.double() * 2.0**exponent).float()


def scale_exponent(scales: Tensor) -> int:
    """The power of two that float16 scales are stored divided by: the largest is then in [2^14, 2^15)."""
    largest = float(scales.max()) if scales.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return 0
    return min(max(math.frexp(largest)[1] - 15, LEAST_EXP), LARGEST_EXP)


def exact_in_float16(scales: Tensor, exponent: int) -> bool:
    """Whether no scale of 11 significant bits loses any as a float16."""
    return bool(((scales == 0) | (times_power(scales, -exponent) >= _NORMAL)).all())


def stored_scales(scales: Tensor, dtype: torch.dtype, exponent: int) -> Tensor:
    """Rounded float32 scales in their dtype."""
    return (times_power(scales, -exponent) if dtype == torch.float16 else scales).to(dtype)


def scale_values(stored: Tensor, exponent: int) -> Tensor:
    """Stored scales as float32."""
    return times_power(stored.float(), exponent) if exponent else stored.float()
