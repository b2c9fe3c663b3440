"""Steps of parameters that are tuned in full: torch's own arithmetic, with the terms that torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

States = Sequence[dict[str, Any]]


def _with_l1(
    group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor], states: States
) -> list[Tensor]:
    """The gradients and that of l1 · |weight − base|."""
    l1 = group.get("l1", 0.0)
    if not l1:
        return grads
    signs = torch._foreach_sub(params, _bases(states))
    torch._foreach_sign_(signs)
    return list(torch._foreach_add(grads, signs, alpha=l1))


def _bases(states: States) -> list[Tensor]:
    if any("base" not in state for state in states):
        raise ValueError(
            "l1, or a decay towards the base, was switched on after the optimizer was built, and where parameters that "
            "are tuned in full started is not known; set it at the start"
        )
    return [state["base"] for state in states]


def _decay(group: Mapping[str, Any], params: list[Tensor], states: States) -> None:
    """Draw the weights to zero or to their base."""
    share = group["lr"] * group["weight_decay"]
    if not share or group["decay_mode"] == "none":
        return
    if group["decay_mode"] == "weight":
        torch._foreach_mul_(params, 1 - share)
    else:
        torch._foreach_sub_(params, torch._foreach_sub(params, _bases(states)), alpha=share)


def step_adamw(group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor], states: States) -> None:
    """One step of AdamW; with the options of torch alone it is ``torch.optim.AdamW(fused=True)``, bit for bit."""
    for param, state in zip(params, states, strict=True):
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
    grads = _with_l1(group, params, grads, states)
    torch_decay = group["decay_mode"] == "weight" and group["decay_first"]
    if group["decay_first"] and not torch_decay:
        _decay(group, params, states)
    beta1, beta2 = group["betas"]

    def run(which: slice, eps: float) -> None:
        mine = states[which]
        adamw(
            params[which],
            grads[which],
            [state["exp_avg"] for state in mine],
            [state["exp_avg_sq"] for state in mine],
            [],
            [state["step"] for state in mine],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"] if torch_decay else 0.0,
            eps=eps,
            maximize=False,
        )

    if group["eps_mode"] == "corrected":
        run(slice(None), group["eps"])
    else:
        # (sqrt(v) + eps) / c is sqrt(v) / c + eps / c, and c depends on how often a parameter was updated.
        for place, state in enumerate(states):
            run(slice(place, place + 1), group["eps"] / (1 - beta2 ** (float(state["step"]) + 1)) ** 0.5)
    if not group["decay_first"]:
        _decay(group, params, states)


def step_sgd(group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor], states: States) -> None:
    """One step of ``torch.optim.SGD``."""
    grads = _with_l1(group, params, grads, states)
    decay = group["weight_decay"] if group["decay_mode"] == "weight" else 0.0
    if group["weight_decay"] and group["decay_mode"] == "delta":
        offsets = torch._foreach_sub(params, _bases(states))
        grads = list(torch._foreach_add(grads, offsets, alpha=group["weight_decay"]))
    buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in states]
    sgd(
        *(params, grads, buffers),
        foreach=False,
        weight_decay=decay,
        momentum=group["momentum"],
        lr=float(group["lr"]),
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=False,
    )
    for state, buffer in zip(states, buffers, strict=True):
        if buffer is not None:
            state["momentum_buffer"] = buffer


def step_sm3(
    group: Mapping[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    states: States,
    lengths: Callable[[Tensor], Mapping[str, int]],
) -> None:
    """One step of SM3 on whole matrices; states are float32."""
    for param, grad, state in zip(params, grads, states, strict=True):
        if "row_max" not in state:
            for name, length in lengths(param).items():
                state[name] = torch.zeros(length, dtype=torch.float32, device=param.device)
        rows, columns = state["row_max"], state["column_max"]
        gradient = grad.float().view(len(rows), len(columns))
        second = torch.minimum(rows[:, None], columns) + gradient * gradient
        update = gradient / (second + group["eps"]).sqrt()
        if second.numel():
            torch.maximum(rows, second.amax(1), out=rows)
            torch.maximum(columns, second.amax(0), out=columns)
        if group["momentum"]:
            buffer = state.setdefault("momentum_buffer", torch.zeros_like(update))
            update = buffer.mul_(group["momentum"]).add_(update, alpha=1 - group["momentum"])
        param.sub_((update * group["lr"]).view(param.shape).to(param.dtype))
    _decay(group, params, states)
