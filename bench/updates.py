"""Synthetic updates of weights: full fine-tunes of several strengths, and a step of reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

MAIN_UPDATE = "gaussian 2e-4"
STEP_UPDATE = "1% of words by 1 ulp"
Update = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Turns a base of rows into its fine-tune, of the same dtype and on the generator's device."""


def nudged(base: torch.Tensor, generator: torch.Generator, sigma: float) -> torch.Tensor:
    """``base`` plus N(0, sigma^2), rounded."""
    return _noise(base, generator).mul_(sigma).add_(base).to(base.dtype)


def nudged_by_row(base: torch.Tensor, generator: torch.Generator, sigma: float) -> torch.Tensor:
    """``base`` plus noise whose scale differs from row to row: log-uniform over a decade, of mean ``sigma``."""
    decade = torch.rand(base.shape[0], 1, generator=generator, device=base.device)
    scale = (10**decade).mul_(sigma * math.log(10) / 9)  # the mean of 10^u for u in [0, 1) is 9 / ln 10
    return _noise(base, generator).mul_(scale).add_(base).to(base.dtype)


def stepped(base: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    """``base`` with this share of its words moved by one unit in the last place; a zero moves away from zero."""
    codes = base.view({2: torch.int16, 4: torch.int32}[base.itemsize])
    moved = torch.rand(base.shape, generator=generator, device=base.device) < share
    steps = torch.randint(0, 2, base.shape, generator=generator, dtype=codes.dtype, device=base.device)
    steps.mul_(2).sub_(1).masked_fill_(base == 0, 1)
    return (codes + steps * moved).view(base.dtype)


def _noise(base: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(base.shape, generator=generator, device=base.device)


UPDATES: dict[str, Update] = {
    "gaussian 5e-5": partial(nudged, sigma=5e-5),
    MAIN_UPDATE: partial(nudged, sigma=2e-4),
    "gaussian 1e-3": partial(nudged, sigma=1e-3),
    "gaussian 2e-4, rows 10x apart": partial(nudged_by_row, sigma=2e-4),
    STEP_UPDATE: partial(stepped, share=0.01),
}
"""The updates that sizes and speeds are measured on; for weights N(0, 0.02^2)."""
