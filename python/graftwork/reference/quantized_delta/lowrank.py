"""Quantised singular triples in plain torch; see :mod:`graftwork.ops.quantized_delta.lowrank`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bits_total(groups: Sequence[tuple[int, int]], rows: int, columns: int) -> int:
    """Σ_g n_g·b_g·(O + I): the bits of the codes, without scales."""
    return sum(count * bits for count, bits in groups) * (rows + columns)


def dense(factors: Sequence[tuple[Tensor, Tensor, Tensor]], rows: int, columns: int) -> Tensor:
    """Σ U·diag(S)·Vᵀ in float64, of groups (Uᵀ [n, O], S [n], Vᵀ [n, I])."""
    total = torch.zeros(rows, columns, dtype=torch.float64)
    for left, values, right in factors:
        total += (left.double() * values.double()[:, None]).T @ right.double()
    return total


def fitted_left(left: Tensor, values: Tensor, right: Tensor, kept: Tensor, hessian: Tensor | None) -> Tensor:
    """The M [O, r] of least ‖(U·diag(S)·Vᵀ − M·K)·x‖ for rows K [r, I], float64; U [O, n], S [n], V [I, n]."""
    known = right.double()
    inner = kept.double() if hessian is None else kept.double() @ hessian.double()
    cross = known.mT @ inner.mT
    return torch.linalg.solve(inner @ kept.double().mT, (left.double() * values.double() @ cross).mT).mT
