"""Truncated singular value decompositions of deltas, in plain torch; see :mod:`graftwork.ops.quantized_delta.svd`."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_for_energy(values: Tensor, energy: float, total: float | None = None) -> int | None:
    """The smallest k whose first k squares have `energy` of the total, that of all values unless given.

    None if all the values together have less.
    """
    if energy <= 0:
        return 0
    kept = values.double().square().cumsum(0)
    whole = (float(kept[-1]) if kept.numel() else 0.0) if total is None else total
    if whole == 0:
        return 0
    enough = (kept >= energy * whole).nonzero()
    return int(enough[0]) + 1 if enough.numel() else None


def svd_delta(
    tuned: Tensor, base: Tensor | None, rank: int | None, energy: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """U [O, r], S [r] and V [I, r] in float64, from the whole decomposition."""
    delta = tuned.double() if base is None else tuned.double() - base.double()
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    found = values.numel() if energy is None else rank_for_energy(values, energy)
    kept = values.numel() if found is None else found
    if rank is not None:
        kept = min(kept, rank)
    return left[:, :kept], values[:kept], right[:kept].mT
