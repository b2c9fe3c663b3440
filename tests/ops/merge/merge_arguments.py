"""Donors, rules and arguments of ``torch.ops.graftwork.*`` for the tests of the merge operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.merge import Sparsify
from graftwork.reference.merge.merge_many import Options

MERGE_OPERATIONS = (
    *("add_diff", "nearswap", "philox_uniform", "magnitude_thresholds", "sparsify_norms"),
    *("merge_many", "merge_gram", "sce_select"),
)
FORMATS = (torch.float16, torch.bfloat16, torch.float32)


def fine_tunes(
    shape: tuple[int, ...], dtype: torch.dtype, count: int, seed: int = 0, step: float = 2e-3
) -> tuple[Tensor, list[Tensor]]:
    """A base N(0, .02²) and fine-tunes N(0, step²) away from it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * 0.02
    donors = [(base + torch.randn(shape, generator=generator) * step).to(dtype) for _ in range(count)]
    return base.to(dtype), donors


def rules(donors: int, numel: int) -> dict[str, Sparsify]:
    """One of each kind, with another number for each donor."""
    keys = [(7 + k, 1 << 31 | k) for k in range(donors)]
    density = [0.2 + 0.6 * k / donors for k in range(donors)]
    return {
        "none": Sparsify.none(),
        "magnitude": Sparsify.magnitude([int(share * numel) for share in density]),
        "magnitude_l1": Sparsify.magnitude([int(share * numel) for share in density], rescale="l1"),
        "band": Sparsify.band(density, [0.01 * k for k in range(donors)]),
        "random": Sparsify.random(density, keys),
        "random_l1": Sparsify.random(density, keys, rescale="l1"),
        "random_plain": Sparsify.random(density, keys, rescale=None),
        "ranked": Sparsify.ranked(density, [0.15] * donors, keys),
        "ranked_plain": Sparsify.ranked(density, [0.15] * donors, keys, rescale=None),
    }


def same_bits(one: Tensor, other: Tensor) -> bool:
    integer = torch.int16 if one.itemsize == 2 else torch.int32
    return one.dtype == other.dtype and torch.equal(one.view(integer), other.view(integer))


@contextmanager
def by_the_reference() -> Iterator[None]:
    """Operations that are called inside run by their references."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "_missing", lambda module: f"graftwork.{module} is left out (test)")
        patch.setattr(_native, "_warn_fallback", lambda *_: None)
        yield


def merge_arguments(name: str, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """For the tests that run over all that is registered; float32 where the dtype is no weight's."""
    dtype = dtype if dtype in FORMATS else torch.float32
    base, donors = fine_tunes((5, 9), dtype, 3)
    base, donors = base.to(device), [donor.to(device) for donor in donors]
    out, residual = torch.zeros_like(base), torch.zeros(5, 9, device=device)
    limits = torch.tensor([[1 << 31, 3, 4, 0]] * 3)
    weights = torch.ones(3)
    options = list(Options(kind=2, columns=9, consensus=1, normalize=1))
    return {
        "add_diff": (donors[0], base, donors[1], 0.5, out),
        "nearswap": (donors[0], base, 1e-3, options, out, residual),
        "philox_uniform": (torch.zeros(37, device=device), 1, 2, 3),
        "magnitude_thresholds": (donors, base, [4, 0, 45], False),
        "sparsify_norms": (donors, base, 2, limits, 9, True),
        "merge_many": (donors, base, weights[None], weights, limits, 1.0, options, out, residual),
        "merge_gram": (donors, base, True),
        "sce_select": (donors, base, 0.5, False),
    }[name]
