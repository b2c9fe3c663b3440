"""Hessians of a layer's inputs, and the factors that GPTQ takes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.ops import _checks
from graftwork.ops.sparse_update import _arena

_RAISES = 3  # times that the damping is raised by ten


@dataclass(frozen=True, eq=False)
class GptqFactor:
    """What GPTQ needs of a Hessian: made once, used for every matrix with the same inputs.

    H = R·Rᵀ with R upper triangular, in the order in which the columns are quantised. The factor U of the paper, with
    H⁻¹ = Uᵀ·U, is R⁻¹, and the error that column i passes on to column j is e_i·R_ij/R_jj: no inverse is needed.

    Attributes
    ----------
    feedback : Tensor
        float32 ``[I, I]``: R_ij/R_jj, upper triangular with ones on the diagonal.
    diagonal : Tensor
        float32 ``[I]``: R_jj.
    order : Tensor or None
        int64 ``[I]``: the column that is quantised j-th; None where it is the j-th.
    dead : Tensor
        bool ``[I]``: columns that no input reaches, H_jj = 0.
    damping : float
        What was added to the diagonal.
    decoupled : bool
        Whether H is diagonal, so that rounding to nearest is the best there is.
    """

    feedback: Tensor
    diagonal: Tensor
    order: Tensor | None
    dead: Tensor
    damping: float
    decoupled: bool

    @classmethod
    def of(
        cls, hessian: Tensor, *, damp: float = 0.01, act_order: bool = False, name: str = "hessian"
    ) -> GptqFactor:
        """Factor a Hessian.

        Parameters
        ----------
        hessian : Tensor
            ``[I, I]`` float32 or float64, symmetric: (2/n)·Σ x·xᵀ of n inputs x, as :func:`accumulate_hessian` gives,
            or any multiple. A float64 one is factored in float64.
        damp : float
            So many times the mean of the diagonal, over the columns that are not dead, is added to it. Where H is not
            positive definite still, ten times as much, up to three times.
        act_order : bool
            Quantise the columns with the largest diagonal first.
        name : str
            What errors call the Hessian: the tensor's name, where the caller knows it.

        Raises
        ------
        TypeError, ValueError
            An argument is not as above, or the damping does not suffice.

        Examples
        --------
        >>> factor = GptqFactor.of(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), damp=0.0)
        >>> torch.linalg.inv(factor.feedback * factor.diagonal)
        tensor([[ 0.8165, -0.4082],
                [ 0.0000,  0.7071]])
        """
        _check_hessian(hessian, name)
        _arena.check_number("gptq_quantize", "damp", damp, 0)
        with torch.no_grad():
            return cls._made(hessian, damp, act_order, name)

    @classmethod
    def _made(cls, hessian: Tensor, damp: float, act_order: bool, name: str) -> GptqFactor:
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        alive = diagonal[~dead]
        mean = float(alive.double().mean()) if alive.numel() else 1.0
        order = diagonal.argsort(descending=True, stable=True) if act_order else None
        back = (
            torch.arange(hessian.shape[0] - 1, -1, -1, device=hessian.device)
            if order is None
            else order.flip(0)
        )
        flipped = hessian[back][:, back]  # a lower factor of this is R, seen from its end
        flipped.diagonal()[dead[back]] = mean
        decoupled = int(flipped.count_nonzero()) == flipped.shape[0]
        added = 0.0
        for attempt in range(_RAISES + 1):
            wanted = damp * 10**attempt * mean
            flipped.diagonal().add_(wanted - added)
            added = wanted
            lower, failed = torch.linalg.cholesky_ex(flipped)
            if not int(failed):
                break
        else:
            raise ValueError(
                f"gptq_quantize: {name} is not positive definite, not with {damp * 10**_RAISES:g} times the mean of its "
                f"diagonal added ({added:g}); take more calibration inputs, or a larger damp"
            )
        del flipped
        upper = lower.flip(0, 1)
        own = upper.diagonal().clone()
        return cls(upper.div_(own).float(), own.float(), order, dead, added, decoupled)


def accumulate_hessian(hessian: Tensor, inputs: Tensor, seen: int) -> int:
    """Take more inputs into the mean H = (2/n)·Σ x·xᵀ, in place.

    Parameters
    ----------
    hessian : Tensor
        float32 or float64 ``[I, I]``, written in place; zeros at first.
    inputs : Tensor
        float16, bfloat16, float32 or float64 ``[..., I]`` on its device.
    seen : int
        Inputs taken so far.

    Returns
    -------
    int
        Inputs taken now.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or an input is not finite.

    Examples
    --------
    >>> hessian = torch.zeros(2, 2)
    >>> seen = accumulate_hessian(hessian, torch.tensor([[1.0, 0.0], [1.0, 2.0]]), 0)
    >>> seen, hessian.tolist()
    (2, [[2.0, 2.0], [2.0, 4.0]])
    """
    _checks.check_tensor("accumulate_hessian", "hessian", hessian)
    _checks.check_dtype(
        "accumulate_hessian", "hessian", hessian, (torch.float32, torch.float64), "make it so"
    )
    _checks.check_tensor("accumulate_hessian", "inputs", inputs)
    columns = inputs.shape[-1] if inputs.dim() else 0
    if hessian.shape != (columns, columns):
        raise ValueError(
            f"accumulate_hessian: hessian must be [I, I] for inputs [..., I], got {tuple(hessian.shape)} for "
            f"{tuple(inputs.shape)}"
        )
    if seen < 0:
        raise ValueError(f"accumulate_hessian: seen must be at least 0, got {seen}")
    _checks.check_device("accumulate_hessian", "inputs", inputs, "hessian", hessian)
    flat = inputs.detach().reshape(-1, columns).to(hessian.dtype)
    if not bool(flat.isfinite().all()):
        raise ValueError("accumulate_hessian: inputs must be finite; look for the layer that overflows")
    total = seen + flat.shape[0]
    if total > seen:
        hessian.addmm_(flat.T, flat, beta=seen / total, alpha=2 / total)
    return total


def _check_hessian(hessian: Tensor, name: str) -> None:
    _checks.check_tensor("gptq_quantize", name, hessian)
    _checks.check_dtype(
        "gptq_quantize", name, hessian, (torch.float32, torch.float64), "sum it in one of them"
    )
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"gptq_quantize: {name} must be square, [I, I], got shape {tuple(hessian.shape)}")
    if not hessian.numel():
        return
    with torch.no_grad():
        lowest, largest = map(float, hessian.diagonal().aminmax())
        if not all(map(math.isfinite, map(float, hessian.aminmax()))):
            raise ValueError(f"gptq_quantize: {name} must be finite; look for inputs that overflow")
        if lowest < 0:
            raise ValueError(
                f"gptq_quantize: {name} must have no negative diagonal, got {lowest}; it is no sum of x·xᵀ"
            )
        # A product with one vector of signs shows it, for far less than a transpose of the whole matrix.
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (hessian.shape[0],), generator=generator).to(hessian) * 2 - 1
        apart = float((hessian @ signs - hessian.mT @ signs).abs().max())
        if apart > 1e-3 * largest * hessian.shape[0] ** 0.5:
            raise ValueError(f"gptq_quantize: {name} must be symmetric; average it with its transpose")
