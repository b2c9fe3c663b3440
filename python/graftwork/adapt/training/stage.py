"""The updates that belong together, and the two methods behind them: a phase of LT-SFT, and all of SpIEL."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.lottery.phase import Phase
from graftwork.adapt.optimizers.sparse_optimizer import SparseOptimizer
from graftwork.adapt.spiel.finetuner import SpIELFinetuner
from graftwork.adapt.spiel.policies import AccumulatedGradient, Fixed, MomentApproximation, Policy
from graftwork.adapt.training.model import LoadedModel
from graftwork.recipe import ExchangePolicy, SparseRecipe


class Stage(ABC):
    """Some updates with one optimizer and one schedule of the learning rate.

    ``record`` is what is told of it, in plain values that go into a state.
    """

    def __init__(self, kind: str, iteration: int, total: int, record: dict[str, Any]) -> None:
        self.kind, self.iteration, self.total, self.record = kind, iteration, total, record
        fresh = {"kind": kind, "iteration": iteration, "steps": total, "train_loss": 0.0, "seconds": 0.0}
        for key, value in {**fresh, "before": None, "evaluations": [], "kept": 0}.items():
            record.setdefault(key, value)
        self._began = time.perf_counter() - record["seconds"]

    optimizer: SparseOptimizer
    scheduler: LambdaLR

    @property
    @abstractmethod
    def steps(self) -> int:
        """Updates so far."""

    @abstractmethod
    def keep_if_best(self, score: float) -> bool:
        """Keep the weights as they are if no score before was higher."""

    @abstractmethod
    def close(self) -> None:
        """Take off what hangs on the model."""

    def told(self) -> dict[str, Any]:
        """The record, up to date."""
        states = self.optimizer.state.values()
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        self.record["seconds"] = time.perf_counter() - self._began
        self.record["optimizer_bytes"] = sum(tensor.nbytes for tensor in tensors)
        return self.record


def schedule(total: int, warmup: float) -> Callable[[int], float]:
    """The factor of the learning rate by the number of updates before: up to 1 in a share of them, and down to 0."""
    rising = int(total * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return max(0.0, (total - step) / (total - rising))

    return factor


class LotteryStage(Stage):
    """A phase of LT-SFT."""

    def __init__(self, phase: Phase, recipe: SparseRecipe, total: int, heads: bool) -> None:
        super().__init__(phase.kind, phase.iteration, total, phase.extra)
        self._phase = phase
        self.optimizer = phase.optimizer(
            recipe.lr, weight_decay=recipe.weight_decay, max_norm=recipe.max_norm
        )
        if heads and recipe.head_lr is not None:
            self.optimizer.param_groups[-1]["lr"] = recipe.head_lr
        factor = schedule(total, recipe.warmup)
        self.scheduler = phase.scheduler(lambda made: LambdaLR(made, factor))  # type: ignore[assignment]
        self._gathering = self.optimizer.gather_in_backward() if self.kind == "sparse" else None

    @property
    def steps(self) -> int:
        return self._phase.steps

    def keep_if_best(self, score: float) -> bool:
        return self._phase.keep_if_best(score)

    def close(self) -> None:
        if self._gathering is not None:
            self._gathering.remove()


class SpielStage(Stage):
    """The whole of SpIEL."""

    def __init__(self, loaded: LoadedModel, recipe: SparseRecipe, saved: Mapping[str, Any] | None) -> None:
        super().__init__("sparse", 0, recipe.steps, dict(saved["record"]) if saved else {})
        maskable = {id(param) for param in loaded.roles.maskable.values()}
        self._heads = loaded.roles.full
        self.finetuner = SpIELFinetuner(
            loaded.model,
            k=recipe.k,
            density=recipe.density,
            targets=lambda _, module: id(getattr(module, "weight", None)) in maskable,
            policy=exchange_policy(recipe.policy or ExchangePolicy()),
            total_steps=recipe.steps,
            seed=recipe.seed,
        )
        self.optimizer = self.finetuner.optimizer(
            recipe.lr, weight_decay=recipe.weight_decay, max_norm=recipe.max_norm
        )
        if self._heads:  # a group of their own, for their learning rate
            for param in self._heads.values():
                param.requires_grad_(True)
            rate = recipe.lr if recipe.head_lr is None else recipe.head_lr
            self.optimizer.add_param_group({"params": list(self._heads.items()), "lr": rate})
        self.scheduler = LambdaLR(self.optimizer, schedule(recipe.steps, recipe.warmup))
        self._best: dict[str, Any] | None = None
        if saved is not None:
            self._load(saved)

    @property
    def steps(self) -> int:
        return self.finetuner.steps

    def keep_if_best(self, score: float) -> bool:
        if self._best is not None and not score > self._best["score"]:
            return False
        self._best = {"score": score, **self._tuned()}
        return True

    @torch.no_grad()
    def _tuned(self) -> dict[str, Any]:
        """Where each matrix changed and by how much, and the heads."""
        names: dict[Tensor, str] = {param: name for name, param in self.finetuner.roles.maskable.items()}
        changes = {}
        for arena in self.optimizer.arenas():
            moved = arena.support.split(arena.moved())
            for param, state, values in zip(arena.params, arena.states, moved, strict=True):
                kept = values != 0
                changes[names[param]] = state["indices"][kept].cpu(), values[kept].cpu()
        heads = {name: param.detach().cpu().clone().contiguous() for name, param in self._heads.items()}
        return {"changes": changes, "full": heads}

    def delta(self, loaded: LoadedModel, recipe: SparseRecipe) -> SparseDelta:
        """The best weights, or those of now where nothing was evaluated."""
        best = self._best or self._tuned()
        changes = {loaded.stored_names[name]: change for name, change in best["changes"].items()}
        found = SparseDelta.from_changes(changes, recipe.model)
        full = {loaded.stored_names[name]: tensor for name, tensor in best["full"].items()}
        tied = {name: first for name, first in loaded.roles.tied_of_trainable.items() if first in self._heads}
        return SparseDelta(
            found.tensors,
            found.support,
            found.values,
            full=full,
            tied={**found.tied, **{name: loaded.stored_names[first] for name, first in tied.items()}},
            base_digest=found.base_digest,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here, between two updates."""
        return {
            "record": self.told(),
            "finetuner": self.finetuner.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "full": {name: param.detach() for name, param in self._heads.items()},
            "best": self._best,
        }

    @torch.no_grad()
    def _load(self, saved: Mapping[str, Any]) -> None:
        self.finetuner.load_state_dict(saved["finetuner"])
        self.scheduler.load_state_dict(saved["scheduler"])
        for name, weight in saved["full"].items():
            self._heads[name].copy_(weight)
        self._best = saved["best"]

    def close(self) -> None:
        self.finetuner.close()


def exchange_policy(asked: ExchangePolicy) -> Policy:
    """The policy of a recipe."""
    rows = {key: getattr(asked, key) for key in ("period", "window", "rate", "schedule")}
    given = {key: value for key, value in rows.items() if value is not None}
    if asked.kind == "fixed":
        return Fixed()
    return (AccumulatedGradient if asked.kind == "accumulated_gradient" else MomentApproximation)(**given)
