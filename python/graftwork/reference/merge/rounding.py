"""From float32 values to the words of a dtype, to the nearest or at random, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

_WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """To the nearest, ties to even; every NaN becomes the positive quiet one without payload."""
    return torch.where(
        values.isnan(), torch.tensor(torch.nan, dtype=dtype, device=values.device), values.to(dtype)
    )


def stochastic(values: Tensor, dtype: torch.dtype, words: Tensor) -> Tensor:
    """Up or down with probabilities that make the expectation the value; from the largest finite one on, as nearest."""
    near = nearest(values, dtype)
    if dtype == torch.float32:
        return near
    bits = values.view(torch.int32).long()
    magnitude = bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        limit, rounded = 0x7F7F0000, magnitude + (words & 0xFFFF) >> 16
    else:
        limit = 0x477FE000
        normal = magnitude + (words & 0x1FFF) - (112 << 23) >> 13
        steps = values.abs().clamp(max=1.0) * 2.0**24  # of subnormal numbers: exact
        whole = steps.floor()
        up = (words >> 8).float() * 2.0**-24 < steps - whole
        rounded = torch.where(magnitude < 0x38800000, whole.long() + up, normal)
    word = rounded | (bits >> 16 & 0x8000)
    signed = torch.where(word >= 0x8000, word - 0x10000, word).to(torch.int16).view(dtype)
    return torch.where(magnitude >= limit, near, signed)


def same_words(one: Tensor, other: Tensor) -> Tensor:
    """Where two tensors of one dtype have the same bits."""
    return one.view(_WORDS[one.dtype]) == other.view(_WORDS[other.dtype])
