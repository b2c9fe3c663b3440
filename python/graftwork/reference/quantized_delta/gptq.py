"""GPTQ in plain torch, column by column; see :mod:`graftwork.ops.quantized_delta.gptq`."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.reference.quantized_delta.levels import codes_of, levels


def gptq_block(
    weights: Tensor,
    corrected: Tensor,
    feedback: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    groups: Tensor,
    diagonal: Tensor,
    damping: float,
    bits: int,
    scheme: int,
    losses: Tensor,
) -> tuple[Tensor, Tensor]:
    """Quantise the columns of a block in turn; each passes its error on to those behind it.

    Returns codes [O, n] and errors (weights − values) [O, n], and adds to `losses` [O].
    """
    codes = torch.zeros(weights.shape, dtype=torch.uint8, device=weights.device)
    errors = torch.zeros_like(weights)
    for column in range(weights.shape[1]):
        target = corrected[:, column].clone()
        for before in range(column):
            target += errors[:, before] * feedback[before, column]
        group = int(groups[column])
        scale, zero = scales[:, group], None if zeros is None else zeros[:, group]
        code = codes_of(target, scale, bits, scheme, zero)
        value = levels(code, bits, scheme, zero) * scale
        codes[:, column] = code
        errors[:, column] = weights[:, column] - value
        weight = diagonal[column].double()
        own = (target - value).double() * weight
        spread = errors[:, column].double().square() * damping
        losses += torch.where(weight > 0, own.square() - spread, 0.0)
    return codes, errors


def hessian_errors(errors: Tensor, hessian: Tensor) -> Tensor:
    """e·H·eᵀ of each row, float64 [O]."""
    wide = errors.double()
    return (wide @ hessian.double() * wide).sum(1)


def factor(hessian: Tensor) -> Tensor:
    """The upper triangular R with H = R·Rᵀ, of a positive definite matrix; its inverse is the factor of GPTQ's code."""
    return torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
