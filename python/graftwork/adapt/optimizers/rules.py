"""AdamW, SGD and SM3 for models of which some weights are tuned: torch optimizers with one operation for all tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from graftwork.adapt.optimizers.arena import Span
from graftwork.adapt.optimizers.full_step import step_adamw, step_sgd, step_sm3
from graftwork.adapt.optimizers.sparse_optimizer import Parameters, SparseOptimizer
from graftwork.ops.sparse_update import sparse_adamw_, sparse_sgd_, sparse_sm3_

DECAY_MODES = ("weight", "delta", "none")
EPS_MODES = ("corrected", "uncorrected")


def _check_numbers(name: str, group: Mapping[str, Any], limits: Mapping[str, float]) -> None:
    """Require finite options from 0 to below a limit."""
    for option, limit in limits.items():
        value = float(group[option])
        if not (math.isfinite(value) and 0 <= value < limit):
            wanted = f"in [0, {limit:g})" if limit < math.inf else "at least 0 and finite"
            raise ValueError(f"{name}: {option} must be {wanted}, got {value}")


def _check_choice(name: str, group: Mapping[str, Any], option: str, choices: tuple[str, ...]) -> None:
    if group[option] not in choices:
        raise ValueError(
            f"{name}: {option} must be one of {', '.join(map(repr, choices))}, got {group[option]!r}"
        )


class SparseAdamW(SparseOptimizer):
    r"""AdamW on chosen weights; the others stay as they are, bit for bit.

    With g = scale · gradient + l1 · sign(φ), for every tuned weight θ = θ⁰ + φ:
    m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  φ ← φ − lr · m̂ / (√v̂ + eps),  θ ← round(θ⁰ + φ).

    Parameters
    ----------
    params : iterable
        Parameters, named parameters, or groups of them, as for every torch optimizer. Those whose ``.grad`` is None in
        a step are left out of it.
    indices : mapping, optional
        The tuned weights of parameters, by parameter or, where parameters are named, by name: row-major flat indices,
        sorted and unique, int32 or int64. None of them: the parameter is frozen. A parameter that is not in it is
        tuned in full, as by ``torch.optim.AdamW(fused=True)``. Weights tuned in part are float16, bfloat16 or float32,
        contiguous; values and moments are float32 whatever the weights are.
    lr, betas, eps, weight_decay :
        As in torch, but that `weight_decay` is 0 by default. Each group may have its own, as of the next four.
    eps_mode : str
        "corrected": √v̂ + eps as in torch. "uncorrected": eps is added before the bias correction, as in SpIEL's code.
    decay_mode : str
        What decay draws to zero: the "weight"; the "delta" φ, which draws the weight to where it started; or "none".
        Only what is tuned decays.
    decay_first : bool
        Decay before the update, as torch does; or after it.
    l1, soft_threshold : float
        The gradient of l1 · |φ|, with sign(0) = 0; and by how much |φ| shrinks after each step, on weights that are
        tuned in part.
    per_entry_steps : bool
        Count updates for each weight and not for each parameter, for weights that come in later.
    bases : mapping, optional
        Where parameters are thought to have started, of their shape and dtype; where they are now, if left out.
    nonfinite : str
        What to do if a gradient that would be used is NaN or infinite: "raise" FloatingPointError, "skip" the step and
        count it in ``skipped``, or "ignore" it. Nothing is updated in the first two cases.
    max_norm : float, optional
        Clip the norm of what a step uses, as :meth:`clip_grad_norm_` does.

    Notes
    -----
    A real :class:`torch.optim.Optimizer`: groups, closures, schedulers, hooks, GradScaler, accelerate and
    ``transformers.Trainer(optimizers=(optimizer, scheduler))``, there with ``max_grad_norm=0`` and `max_norm` here. A
    resumed run gives the same bits. Memory: 4 bytes for each of index, value and two moments, and the base.

    Deterministic: the result does not depend on threads or ISA level. Papers: Loshchilov & Hutter 2019; LT-SFT (Ansell
    et al. 2022, §3.1) and SpIEL (Ansell et al. 2024). Differs from their code: frozen weights do not decay, updates are
    not lost to the rounding of 16-bit weights.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> before = layer.weight.detach().clone()
    >>> optimizer = SparseAdamW(layer.named_parameters(), {"weight": torch.tensor([1])}, lr=0.5)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> (layer.weight - before).flatten().ne(0).tolist()
    [False, True, False, False]
    """

    entry_names: tuple[str, ...] = ("values", "base", "exp_avg", "exp_avg_sq")
    full_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Parameters,
        indices: Mapping[Any, Tensor] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_mode: str = "corrected",
        decay_mode: str = "weight",
        decay_first: bool = True,
        l1: float = 0.0,
        soft_threshold: float = 0.0,
        per_entry_steps: bool = False,
        bases: Mapping[Any, Tensor] | None = None,
        nonfinite: str = "raise",
        max_norm: float | None = None,
    ) -> None:
        if per_entry_steps:
            self.entry_names = (*type(self).entry_names, "age")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "eps_mode": eps_mode,
            "decay_mode": decay_mode,
            "decay_first": decay_first,
            "l1": l1,
            "soft_threshold": soft_threshold,
        }
        super().__init__(params, indices, defaults, bases=bases, nonfinite=nonfinite, max_norm=max_norm)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        free = dict.fromkeys(("lr", "eps", "weight_decay", "l1", "soft_threshold"), math.inf)
        _check_numbers(self._name, group, free)
        beta1, beta2 = group["betas"]
        _check_numbers(self._name, {"betas[0]": beta1, "betas[1]": beta2}, {"betas[0]": 1, "betas[1]": 1})
        _check_choice(self._name, group, "eps_mode", EPS_MODES)
        _check_choice(self._name, group, "decay_mode", DECAY_MODES)

    def _mark(self, state: Mapping[str, Any]) -> object:
        return True if self.has("age") else state["step"]

    def _step_span(self, group: Mapping[str, Any], span: Span) -> None:
        options = ("eps", "weight_decay", "eps_mode", "decay_mode", "decay_first", "l1", "soft_threshold")
        sparse_adamw_(
            *(span.support, span.grads, span.part("values"), span.part("exp_avg"), span.part("exp_avg_sq")),
            step=span.part("age") if self.has("age") else span.states[0]["step"] + 1,
            betas=tuple(group["betas"]),
            **span.settings(group, *options),
        )

    def _step_full(self, group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        step_adamw(group, params, grads, [self.state[param] for param in params])


class SparseSGD(SparseOptimizer):
    r"""Stochastic gradient descent on chosen weights; the others stay as they are, bit for bit.

    With g = scale · gradient + l1 · sign(φ) + weight_decay · (θ or φ), for every tuned weight θ = θ⁰ + φ:
    b ← momentum · b + (1 − dampening)g,  φ ← φ − lr · b (nesterov: lr · (g + momentum · b)),  θ ← round(θ⁰ + φ).

    Parameters
    ----------
    params, indices, decay_mode, l1, soft_threshold, bases, nonfinite, max_norm :
        As of :class:`SparseAdamW`. A parameter without indices is tuned in full, as by :class:`torch.optim.SGD`.
    lr, momentum, dampening, nesterov, weight_decay :
        As of :class:`torch.optim.SGD`: the first update sets the momentum buffer to g; decay is part of the gradient.

    Notes
    -----
    As of :class:`SparseAdamW`. Memory: 4 bytes for each of index and value, 4 with momentum, and the base.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimizer = SparseSGD([weight], {weight: torch.tensor([0, 2])}, lr=0.5)
    >>> weight.grad = torch.ones(3)
    >>> optimizer.step()
    >>> weight.tolist()
    [-0.5, 0.0, -0.5]
    """

    full_names: tuple[str, ...] = ("momentum_buffer",)

    def __init__(
        self,
        params: Parameters,
        indices: Mapping[Any, Tensor] | None = None,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        decay_mode: str = "weight",
        l1: float = 0.0,
        soft_threshold: float = 0.0,
        bases: Mapping[Any, Tensor] | None = None,
        nonfinite: str = "raise",
        max_norm: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "decay_mode": decay_mode,
            "l1": l1,
            "soft_threshold": soft_threshold,
        }
        if momentum > 0:
            self.entry_names = (*type(self).entry_names, "momentum_buffer")
        super().__init__(params, indices, defaults, bases=bases, nonfinite=nonfinite, max_norm=max_norm)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        limits = dict.fromkeys(("lr", "momentum", "weight_decay", "l1", "soft_threshold"), math.inf)
        _check_numbers(self._name, group, {**limits, "dampening": math.nextafter(1, 2)})
        _check_choice(self._name, group, "decay_mode", DECAY_MODES)
        if group["nesterov"] and (not group["momentum"] or group["dampening"]):
            raise ValueError(f"{self._name}: nesterov needs a momentum above 0, and no dampening")
        self._check_momentum(group)

    def _mark(self, state: Mapping[str, Any]) -> object:
        return state["step"] == 0

    def _step_span(self, group: Mapping[str, Any], span: Span) -> None:
        options = ("momentum", "dampening", "nesterov", "weight_decay", "decay_mode", "l1", "soft_threshold")
        sparse_sgd_(
            *(span.support, span.grads, span.part("values")),
            span.part("momentum_buffer") if self.has("momentum_buffer") else None,
            first=span.states[0]["step"] == 0,
            **span.settings(group, *options),
        )

    def _step_full(self, group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        step_sgd(group, params, grads, [self.state[param] for param in params])


class SparseSM3(SparseOptimizer):
    r"""SM3 on chosen weights: second moments take one number for each row and column of a matrix.

    For every tuned weight θ = θ⁰ + φ in row r and column c: u = min(R_r, C_c) + g²,  φ ← φ − lr · g / √(u + eps),
    then R_r and C_c become the largest u of theirs, decay follows, and θ ← round(θ⁰ + φ).

    Parameters
    ----------
    params, indices, bases, nonfinite, max_norm :
        As of :class:`SparseAdamW`. A parameter without indices is tuned in full, by the same rule. A tensor of more
        than two dimensions is a matrix with as many rows as its first has; one of fewer is a single row.
    lr : float
        Step size.
    momentum : float
        Above 0: the update becomes its running mean, in [0, 1).
    eps : float
        Inside the root.
    weight_decay, decay_mode :
        lr · weight_decay · (the "delta" φ, or the "weight" θ) is taken away after the update.

    Notes
    -----
    As of :class:`SparseAdamW`. Memory: 4 bytes for each of index and value, the base, and 4 for each row and column.
    Papers: Anil et al. 2019, SM3-II; SpIEL-MA (Ansell et al. 2024).

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = SparseSM3([weight], {weight: torch.tensor([0, 3])}, lr=0.5)
    >>> weight.grad = torch.tensor([[1.0, 9.0], [9.0, 2.0]])
    >>> optimizer.step()
    >>> weight.tolist()
    [[-0.5, 0.0], [0.0, -0.5]]
    """

    _MATRIX = ("row_max", "column_max")

    def __init__(
        self,
        params: Parameters,
        indices: Mapping[Any, Tensor] | None = None,
        lr: float = 1e-3,
        momentum: float = 0.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decay_mode: str = "delta",
        bases: Mapping[Any, Tensor] | None = None,
        nonfinite: str = "raise",
        max_norm: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
            "decay_mode": decay_mode,
        }
        if momentum > 0:
            self.entry_names = (*type(self).entry_names, "momentum_buffer")
        super().__init__(params, indices, defaults, bases=bases, nonfinite=nonfinite, max_norm=max_norm)

    def other_lengths(self, param: Tensor) -> dict[str, int]:
        """Rows and columns of the parameter as a matrix."""
        columns = param[0].numel() if param.dim() > 1 and len(param) else param.numel()
        return {"row_max": param.numel() // max(1, columns), "column_max": max(1, columns)}

    def _check_options(self, group: Mapping[str, Any]) -> None:
        limits = dict.fromkeys(("lr", "eps", "weight_decay"), math.inf)
        _check_numbers(self._name, group, {**limits, "momentum": 1})
        _check_choice(self._name, group, "decay_mode", DECAY_MODES)
        self._check_momentum(group)

    def _mark(self, state: Mapping[str, Any]) -> object:
        return True

    def _step_span(self, group: Mapping[str, Any], span: Span) -> None:
        columns = [len(state["column_max"]) for state in span.states]
        sparse_sm3_(
            *(span.support, span.grads, span.part("values"), span.part("row_max"), span.part("column_max")),
            columns,
            span.part("momentum_buffer") if self.has("momentum_buffer") else None,
            **span.settings(group, "momentum", "eps", "weight_decay", "decay_mode"),
        )

    def _step_full(self, group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        step_sm3(group, params, grads, [self.state[param] for param in params], self.other_lengths)
