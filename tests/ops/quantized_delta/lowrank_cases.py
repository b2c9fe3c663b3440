"""Matrices with known singular values, and the Hessians of inputs, for the tests of low-rank deltas."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_of(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix [rows, columns] with these singular values, float32."""
    generator = torch.Generator().manual_seed(seed)
    count = values.numel()
    left, right = (
        torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64)).Q
        for size in (rows, columns)
    )
    return (left * values.double() @ right.mT).float()


def power_law(count: int) -> Tensor:
    """A spectrum about as steep as that of trained deltas."""
    return torch.arange(1, count + 1) ** -0.6


def some_inputs(count: int, columns: int, seed: int = 0) -> Tensor:
    """Correlated inputs, some of their features far larger than others."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(0, -1.5, columns)[torch.randperm(columns, generator=generator)]
    mixed = torch.eye(columns) + torch.randn(columns, columns, generator=generator) * 0.3 / columns**0.5
    return torch.randn(count, columns, generator=generator) * sizes @ mixed


def hessian_of(inputs: Tensor) -> Tensor:
    """(2/n)·Σ x·xᵀ, float32."""
    wide = inputs.double()
    return (wide.mT @ wide * (2 / len(inputs))).float()
