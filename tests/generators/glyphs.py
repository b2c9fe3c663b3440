"""Ten classes of 8 × 8 images, drawn by chance: smooth patterns, shifted, scaled and with noise, as digits differ."""

from __future__ import annotations

import torch
from torch import Tensor


def glyphs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``count`` images in [0, 1], flat, and their classes; every seed draws other images of the same ten patterns."""
    fixed = torch.Generator().manual_seed(0)
    coarse = torch.rand(10, 1, 4, 4, generator=fixed)
    patterns = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear").squeeze(1)
    chance = torch.Generator().manual_seed(1000 + seed)
    labels = torch.randint(10, (count,), generator=chance)
    shifts = torch.randint(-1, 2, (count,), generator=chance)
    images = torch.stack(
        [patterns[label].roll(int(shift), 1) for label, shift in zip(labels, shifts, strict=True)]
    )
    strength = 0.7 + 0.6 * torch.rand(count, 1, 1, generator=chance)
    noise = 0.12 * torch.randn(count, 8, 8, generator=chance)
    return (images * strength + noise).clamp(0, 1).flatten(1), labels
