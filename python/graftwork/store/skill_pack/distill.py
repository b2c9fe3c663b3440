"""Scales of a pack by distillation: the mounted base should answer as the fine-tune does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from graftwork.errors import DataError
from graftwork.store.skill_pack.calibration import run_batch
from graftwork.store.skill_pack.manifest import ErrorOf, TensorRow
from graftwork.store.skill_pack.pack import SkillPack

__all__ = ["DistillReport", "distill_scales"]


@dataclass(frozen=True, slots=True)
class DistillReport:
    """Mean squared difference of outputs before and after, over all batches, and the factor of each tensor."""

    before: float
    after: float
    factors: dict[str, float]


def distill_scales(
    pack: SkillPack,
    model: nn.Module,
    batches: Sequence[Any],
    *,
    teacher: nn.Module,
    steps: int = 200,
    lr: float = 1e-4,
    outputs: Callable[[Any], Tensor] | None = None,
) -> tuple[SkillPack, DistillReport]:
    """Fit one factor for each quantised or sparse tensor, so that base and pack give the fine-tune's outputs.

    Minimises the mean of ‖z(base + Σ α_t·Δ̂_t) − z(teacher)‖² over the batches with AdamW, a batch a step. What is stepped
    is, as in the paper, the mean magnitude of a tensor's change, in units of weights.

    Parameters
    ----------
    pack : SkillPack
        Of ``model``; it is not changed.
    model, teacher : Module
        The base and the fine-tune. Neither is changed.
    batches : sequence
        A mapping gives keyword arguments, a tuple or list positional ones.
    steps, lr : int, float
        200 steps at 1e-4, falling to zero along a half cosine.
    outputs : callable, optional
        Takes what a model returns, gives the tensor that is compared; by default ``.logits``, or the first of a tuple.

    Returns
    -------
    tuple of (SkillPack, DistillReport)
        The pack with its factors, or as it was if it got no better.

    Raises
    ------
    DataError
        There are no batches, or the loss is not finite.

    Notes
    -----
    Paper: BitDelta, arXiv 2402.10193, section 3.1. Differs from the paper: any pack with quantised or sparse tensors takes
    part, each by one factor; the changes of these tensors are in memory in float32.
    """
    if not len(batches):
        raise DataError("there are no batches to distil with", got=0, wanted="at least one")
    take = outputs or _outputs
    names = [
        name
        for name, row in pack.tensors.items()
        if row.codec in ("quantize", "sparse") and len(row.shape) > 1
    ]
    with _evaluating(model, teacher):
        mounted = _Mounted(pack, model, names)
        with torch.no_grad():
            wanted = [take(run_batch(teacher, batch)).detach().float() for batch in batches]
            before = mounted.loss(batches, wanted, take)
        if not names:
            return pack, DistillReport(before, before, {})
        mounted.train(batches, wanted, take, steps, lr)
        with torch.no_grad():
            after = mounted.loss(batches, wanted, take)
    if not after <= before:
        return pack, DistillReport(before, before, dict.fromkeys(names, 1.0))
    factors = {name: float(factor) for name, factor in zip(names, mounted.factors().detach(), strict=True)}
    rows = {name: _scaled(pack.tensors[name], mounted.changes[name], factors[name]) for name in names}
    return pack.with_rows(rows, {"distilled": steps}), DistillReport(before, after, factors)


class _Mounted:
    """The base with the pack on it, as a function of the factors."""

    def __init__(self, pack: SkillPack, model: nn.Module, names: list[str]) -> None:
        self._model = model
        self._names = names
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        self._tensors: dict[str, Tensor] = {}
        self.changes: dict[str, Tensor] = {}
        self._keys: dict[str, list[str]] = {}
        for name, row in pack.tensors.items():
            keys = [key for key in (name, *row.tied) if key in tensors]
            if not keys:
                raise DataError("the model lacks a tensor of the pack", tensor=name)
            base, change = tensors[keys[0]].detach(), pack.delta(name).to(tensors[keys[0]].device)
            if name in names:
                self.changes[name], self._keys[name] = change, keys
            self._tensors |= {key: (base if name in names else base + change.to(base.dtype)) for key in keys}
        sizes = [float(self.changes[name].abs().mean()) or 1.0 for name in names]
        self._sizes = torch.tensor(sizes)
        self._steps = torch.zeros(len(names), requires_grad=True)

    def factors(self) -> Tensor:
        """α of each tensor."""
        return 1.0 + self._steps / self._sizes

    def _outputs(self, batch: Any, take: Callable[[Any], Tensor]) -> Tensor:
        tensors = dict(self._tensors)
        for name, factor in zip(self._names, self.factors(), strict=True):
            base = tensors[self._keys[name][0]]
            whole = (base.float() + factor.to(base.device) * self.changes[name]).to(base.dtype)
            tensors |= dict.fromkeys(self._keys[name], whole)
        runner = _Runner(self._model)
        found = functional_call(runner, {f"model.{key}": value for key, value in tensors.items()}, (batch,))
        return take(found).float()

    def loss(self, batches: Sequence[Any], wanted: Sequence[Tensor], take: Callable[[Any], Tensor]) -> float:
        """The mean over all batches."""
        losses = [
            float((self._outputs(batch, take) - target).square().mean())
            for batch, target in zip(batches, wanted, strict=True)
        ]
        return sum(losses) / len(losses)

    def train(
        self,
        batches: Sequence[Any],
        wanted: Sequence[Tensor],
        take: Callable[[Any], Tensor],
        steps: int,
        lr: float,
    ) -> None:
        """AdamW on the factors."""
        optimizer = torch.optim.AdamW([self._steps], lr=lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        with torch.enable_grad():
            for step in range(steps):
                number = step % len(batches)
                loss = (self._outputs(batches[number], take) - wanted[number]).square().mean()
                if not bool(torch.isfinite(loss)):
                    raise DataError(
                        "the loss of distillation is not finite", got=f"step {step}", remedy="lower lr"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


class _Runner(nn.Module):
    """A model that takes a batch of any form as its one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Any:
        return run_batch(self.model, batch)


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """Dropout is off within, and every module's mode what it was afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _outputs(found: Any) -> Tensor:
    logits = getattr(found, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    first = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(first, Tensor):
        raise DataError(
            "the model returns no tensor to compare", got=type(first).__name__, remedy="pass outputs="
        )
    return first


def _scaled(row: TensorRow, change: Tensor, factor: float) -> TensorRow:
    """A row with another factor. |αΔ̂ − Δ|² follows from what is known; the largest difference becomes a bound."""
    size = float(change.double().square().sum())
    error = row.error
    product = (size + error.energy - error.squared) / 2
    squared = max(error.energy + factor * factor * size - 2 * factor * product, 0.0)
    largest = error.max_abs + abs(factor - 1.0) * float(change.abs().max())
    return replace(row, scale=row.scale * factor, error=ErrorOf(squared, largest, error.energy))
