"""Tensors with supports: random positions of tuned weights, empty ones among them, as odd as they come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from graftwork.ops.sparse_update import Support
from tests.generators.weights import SIZES

#: Elements of several tensors in one support: nothing, one, around a vector, odd, more than a tile.
NUMELS = (*SIZES, 0, 5)
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def random_tensors(
    numels: Sequence[int], dtype: torch.dtype, seed: int = 0, std: float = 1.0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(numel, generator=generator) * std).to(dtype) for numel in numels]


def some_support(
    numels: Sequence[int], density: float = 0.3, index: torch.dtype = torch.int32, seed: int = 0
) -> Support:
    """About a share of every tensor; the first and the last element of those that have one."""
    generator = torch.Generator().manual_seed(seed)
    indices = []
    for numel in numels:
        chosen = torch.rand(numel, generator=generator) < density
        chosen[:1] = chosen[-1:] = density > 0
        indices.append(chosen.nonzero().view(-1).to(index))
    return Support(indices, numels)


@st.composite
def supports(draw: st.DrawFn) -> Support:
    """Up to four tensors of up to 300 elements, any share of each."""
    numels = draw(st.lists(st.integers(0, 300), min_size=1, max_size=4))
    index = draw(st.sampled_from([torch.int32, torch.int64]))
    return some_support(
        numels, draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])), index, draw(st.integers(0, 999))
    )
