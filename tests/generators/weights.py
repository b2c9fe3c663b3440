"""Pairs of a base and its fine-tune: realistic weights, hostile bit patterns, and hypothesis strategies for both."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from graftwork.ops.lossless_delta import WORDS

#: Nothing, one, around a vector, odd, around a block, and more than two chunks of work.
SIZES = (0, 1, 31, 33, 1000, 4097)
LARGE = 300_001

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def random_words(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Uniformly random bit patterns (0 or 1 for bool)."""
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 256
    data = torch.randint(0, high, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


def pair(
    numel: int, dtype: torch.dtype, seed: int = 0, step: float = 1e-4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights N(0, .02²) and a fine-tune N(0, step²) away, a third of it unchanged."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(numel, generator=generator, dtype=torch.float64) * 0.02
    moved = torch.rand(numel, generator=generator) > 1 / 3
    tuned = base + torch.randn(numel, generator=generator, dtype=torch.float64) * step * moved
    return base.to(dtype), torch.where(moved, tuned.to(dtype), base.to(dtype))


def special_words(dtype: torch.dtype) -> torch.Tensor:
    """Zeros, smallest and largest subnormals and normals, 1, infinities and NaN payloads, of both signs."""
    mantissa = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10, torch.float64: 52}[dtype]
    bits = 8 * dtype.itemsize
    infinity = ((1 << (bits - 1 - mantissa)) - 1) << mantissa
    normal, one = 1 << mantissa, (infinity >> 1) & -(1 << mantissa)
    magnitudes = [
        0,
        1,
        normal - 1,
        normal,
        one - 1,
        one,
        infinity - 1,
        infinity,
        infinity + 1,
        (1 << (bits - 1)) - 1,
    ]
    patterns = [*magnitudes, *(m - (1 << (bits - 1)) for m in magnitudes)]
    return torch.tensor(patterns, dtype=_INTEGER[dtype.itemsize]).view(dtype)


def special_pair(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of :func:`special_words`."""
    special = special_words(dtype)
    return special.repeat_interleave(len(special)), special.repeat(len(special))


@st.composite
def word_pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Any dtype, up to three dimensions, bit patterns near each other or far apart."""
    dtype = draw(st.sampled_from(WORDS))
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    base = random_words(shape, dtype, draw(st.integers(0, 1 << 20)))
    other = random_words(shape, dtype, draw(st.integers(0, 1 << 20)))
    return base, draw(st.sampled_from([base.clone(), other]))
