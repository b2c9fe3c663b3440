"""Gradients of single weights of a linear layer; see :mod:`graftwork.ops.sparse_update`."""

from __future__ import annotations

import torch
from torch import Tensor

_PIECE = 1 << 24  # products at a time


def refuse_outside(operation: str, outside: bool, numel: int) -> None:
    """Raise what an index raises that is no weight's."""
    if outside:
        raise ValueError(
            f"{operation}: indices must be in [0, {numel}), the row-major positions in a weight [out, in] of x [batch, in] "
            f"and dy [batch, out]"
        )


def sddmm(x: Tensor, dy: Tensor, indices: Tensor) -> Tensor:
    """Σ_b dy[b, row]·x[b, column] of each index, in float32."""
    columns = x.shape[1]
    numel = columns * dy.shape[1]
    refuse_outside("sddmm", bool(((indices < 0) | (indices >= numel)).any()), numel)
    pieces = indices.long().split(max(1, _PIECE // max(1, x.shape[0])))
    sums = [
        (dy[:, piece // columns].float() * x[:, piece % columns].float()).sum(0)
        for piece in pieces
        if piece.numel()
    ]
    return torch.cat(sums) if sums else x.new_zeros(0, dtype=torch.float32)
