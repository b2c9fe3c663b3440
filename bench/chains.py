"""The operations of ``lossless_delta`` as a user would write them: chains of torch calls, and of numpy calls.

They take and return what the operations do (floats of two or four bytes; outputs are given for the planes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

CODES = {2: torch.int16, 4: torch.int32}
MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
EXPONENT_BITS = {torch.bfloat16: 8, torch.float16: 5, torch.float32: 8}


def _torch_ordinal(codes: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats; differences of them are those of the unsigned ordinals."""
    info = torch.iinfo(codes.dtype)
    return codes ^ ((codes >> (info.bits - 1)) & info.max)


def torch_encode(base: torch.Tensor, tuned: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    codes = CODES[base.element_size()]
    difference = _torch_ordinal(tuned.view(codes)) - _torch_ordinal(base.view(codes))
    zigzag = (difference << 1) ^ (difference >> (8 * base.element_size() - 1))
    planes.copy_(zigzag.view(torch.uint8).view(-1, base.element_size()).t())
    return planes


def torch_decode(base: torch.Tensor, planes: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    codes = CODES[base.element_size()]
    zigzag = planes.t().contiguous().view(codes).view(-1)
    positive = torch.iinfo(codes).max  # the shift of a signed integer brings copies of the sign in at the top
    difference = ((zigzag >> 1) & positive) ^ -(zigzag & 1)
    tuned.view(codes).copy_(_torch_ordinal(_torch_ordinal(base.view(codes)) + difference))
    return tuned


def torch_delta_stats(
    base: torch.Tensor, tuned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes, bits = CODES[base.element_size()], 8 * base.element_size()
    b, t = base.view(codes), tuned.view(codes)
    x, y = base.double(), tuned.double()
    counts = torch.stack([(b != t).sum(), x.isnan().sum(), x.isinf().sum(), y.isnan().sum(), y.isinf().sum()])
    finite = x.isfinite() & y.isfinite()
    x, y = x[finite], y[finite]
    change = y - x
    sums = torch.stack([change.square().sum(), x.square().sum(), y.square().sum(), change.abs().max()])
    difference = _torch_ordinal(t) - _torch_ordinal(b)
    length = torch.frexp(difference.double())[1]
    exponent_bits = EXPONENT_BITS[base.dtype]
    exponent = (b.int() >> MANTISSA_BITS[base.dtype]) & ((1 << exponent_bits) - 1)
    classes = 2 * bits + 1
    cell = exponent * classes + bits + difference.sign() * length
    histogram = torch.bincount(cell, minlength=classes << exponent_bits).view(-1, classes)
    return counts, sums, histogram


def torch_update_survival(
    base: torch.Tensor, tuned: torch.Tensor, save_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    saved_base, saved_tuned = base.to(save_dtype).double(), tuned.to(save_dtype).double()
    x, y = base.double(), tuned.double()
    finite = x.isfinite() & y.isfinite()
    wanted, saved = (y - x)[finite], (saved_tuned - saved_base)[finite]
    changed = wanted != 0
    overflow = (y.isfinite() & saved_tuned.isinf()).sum()
    counts = torch.stack([changed.sum(), (changed & (saved == 0)).sum(), overflow])
    sums = torch.stack([wanted.square().sum(), saved.square().sum(), (wanted * saved).sum()])
    return counts, sums


def _numpy_codes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(CODES[tensor.element_size()]).numpy()


def _numpy_ordinal(codes: np.ndarray) -> np.ndarray:
    info = np.iinfo(codes.dtype)
    return codes ^ ((codes >> (info.bits - 1)) & codes.dtype.type(info.max))


def _numpy_floats(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return (tensor.view(torch.int16).numpy().astype(np.int32) << 16).view(np.float32)
    return tensor.numpy()


def numpy_encode(base: torch.Tensor, tuned: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    difference = _numpy_ordinal(_numpy_codes(tuned)) - _numpy_ordinal(_numpy_codes(base))
    zigzag = (difference << 1) ^ (difference >> (8 * base.element_size() - 1))
    np.copyto(planes.numpy(), zigzag.view(np.uint8).reshape(-1, base.element_size()).T)
    return planes


def numpy_decode(base: torch.Tensor, planes: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    codes = _numpy_codes(base)
    unsigned = np.dtype(f"u{codes.itemsize}")
    zigzag = np.ascontiguousarray(planes.numpy().T).view(unsigned).reshape(-1)
    difference = (zigzag >> 1) ^ (~(zigzag & 1) + unsigned.type(1))
    ordinal = _numpy_ordinal(codes) + difference.view(codes.dtype)
    np.copyto(_numpy_codes(tuned), _numpy_ordinal(ordinal))
    return tuned


def numpy_delta_stats(
    base: torch.Tensor, tuned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    b, t = _numpy_codes(base), _numpy_codes(tuned)
    x, y = _numpy_floats(base).astype(np.float64), _numpy_floats(tuned).astype(np.float64)
    counts = [(b != t).sum(), np.isnan(x).sum(), np.isinf(x).sum(), np.isnan(y).sum(), np.isinf(y).sum()]
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    change = y - x
    sums = [np.square(change).sum(), np.square(x).sum(), np.square(y).sum(), np.abs(change).max()]
    difference = _numpy_ordinal(t) - _numpy_ordinal(b)
    length = np.frexp(difference.astype(np.float64))[1]
    exponent_bits, bits = EXPONENT_BITS[base.dtype], 8 * base.element_size()
    exponent = (b.astype(np.int32) >> MANTISSA_BITS[base.dtype]) & ((1 << exponent_bits) - 1)
    classes = 2 * bits + 1
    cell = exponent * classes + bits + np.sign(difference) * length
    histogram = np.bincount(cell, minlength=classes << exponent_bits).reshape(-1, classes)
    return torch.tensor(counts), torch.tensor(sums, dtype=torch.float64), torch.from_numpy(histogram)


def numpy_update_survival(
    base: torch.Tensor, tuned: torch.Tensor, save_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = _numpy_floats(base), _numpy_floats(tuned)
    saved_base, saved_tuned = (_numpy_round(part, save_dtype).astype(np.float64) for part in (x, y))
    x, y = x.astype(np.float64), y.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    wanted, saved = (y - x)[finite], (saved_tuned - saved_base)[finite]
    changed = wanted != 0
    overflow = (np.isfinite(y) & np.isinf(saved_tuned)).sum()
    counts = [changed.sum(), (changed & (saved == 0)).sum(), overflow]
    sums = [np.square(wanted).sum(), np.square(saved).sum(), (wanted * saved).sum()]
    return torch.tensor(counts), torch.tensor(sums, dtype=torch.float64)


def _numpy_round(values: np.ndarray, save_dtype: torch.dtype) -> np.ndarray:
    """Round to nearest, ties to even; finite input."""
    if save_dtype == torch.float16:
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


TORCH_CHAINS: dict[str, Callable[..., Any]] = {
    "encode_ordinal_planes": torch_encode,
    "decode_ordinal_planes": torch_decode,
    "delta_stats": torch_delta_stats,
    "update_survival": torch_update_survival,
}
NUMPY_CHAINS: dict[str, Callable[..., Any]] = {
    "encode_ordinal_planes": numpy_encode,
    "decode_ordinal_planes": numpy_decode,
    "delta_stats": numpy_delta_stats,
    "update_survival": numpy_update_survival,
}
