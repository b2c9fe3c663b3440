"""One phase of lottery-ticket training, as the function that trains it sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from graftwork.adapt.optimizers.rules import SparseAdamW, SparseSGD, SparseSM3
from graftwork.adapt.optimizers.sparse_optimizer import SparseOptimizer

if TYPE_CHECKING:
    from graftwork.adapt.lottery.finetuner import LotterySparseFinetuner

OPTIMIZERS: dict[str, type[SparseAdamW] | type[SparseSGD] | type[SparseSM3]] = {
    "adamw": SparseAdamW,
    "sgd": SparseSGD,
    "sm3": SparseSM3,
}


class Phase:
    """What a training function is given: the model, an optimizer for what this phase tunes, and the L1 penalty.

    Attributes
    ----------
    kind : str
        "full": every maskable weight is tuned; "sparse": those that were chosen. Heads are tuned in both.
    iteration : int
        From 0.
    model : Module
        The model.
    steps : int
        Optimizer steps that this phase has done, those before an interruption too.
    resumed : bool
        Whether the phase continues one that was interrupted: skip the first ``steps`` batches.
    extra : dict
        For the training function: what else it needs to continue. Saved with the phase.
    """

    def __init__(
        self, owner: LotterySparseFinetuner, kind: str, iteration: int, saved: dict[str, Any] | None
    ) -> None:
        self.kind, self.iteration, self.model = kind, iteration, owner.model
        self.resumed = saved is not None
        self.steps: int = saved["steps"] if saved else 0
        self.extra: dict[str, Any] = saved["extra"] if saved else {}
        self._owner, self._saved = owner, saved
        self._best: dict[str, Any] | None = saved["best"] if saved else None
        self._optimizer: torch.optim.Optimizer | None = None
        self._scheduler: LRScheduler | None = None
        self._source: str | None = None

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the phase tunes, in part or in full."""
        return list(self._owner.roles.trainable.items())

    def optimizer(self, lr: float, *, kind: str = "adamw", **options: Any) -> SparseOptimizer:
        """A new optimizer for this phase, with its L1 penalty; in a phase that continues, with its state.

        Parameters
        ----------
        lr : float
            Learning rate.
        kind : str
            "adamw", "sgd" or "sm3".
        options :
            Those of `SparseAdamW`, `SparseSGD` or `SparseSM3`, such as ``max_norm=1.0``, which the paper's code clips
            to.

        Raises
        ------
        ValueError
            The kind is unknown, or has no L1 penalty where there is one; or the phase has an optimizer.
        """
        if kind not in OPTIMIZERS:
            raise ValueError(f"optimizer: kind must be one of {', '.join(OPTIMIZERS)}, got {kind!r}")
        owner, sparse = self._owner, self.kind == "sparse"
        weight = self._l1_weight()
        if weight and kind == "sm3":
            raise ValueError("optimizer: sm3 has no L1 penalty; use adamw or sgd, or l1=(0, 0)")
        groups: list[dict[str, Any]] = []
        for params, l1 in ((owner.roles.maskable, weight), (owner.roles.full, weight * owner.l1_on_full)):
            if params:
                groups.append({"params": list(params.items()), **({} if kind == "sm3" else {"l1": l1})})
        made = OPTIMIZERS[kind](
            groups, owner.indices if sparse else None, lr=lr, bases=self._bases(sparse), **options
        )
        if sparse:
            made.start_from_(owner.values)
        return self.adopt(made)  # type: ignore[return-value]

    def _bases(self, sparse: bool) -> Mapping[str, Tensor]:
        """Where the weights started: of all in a sparse phase, else where the penalty needs it."""
        return self._owner.start if sparse or self._l1_weight() else {}

    def adopt(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Use an optimizer of one's own in a full phase, over :meth:`parameters`, and add :meth:`penalty` to its loss.

        Its steps are counted, and its state is saved with the phase and restored here.
        """
        if self._optimizer is not None:
            raise ValueError("a phase has one optimizer; this one has its own already")
        if self.kind == "sparse" and not isinstance(optimizer, SparseOptimizer):
            raise ValueError("a sparse phase tunes chosen weights alone; use phase.optimizer(lr, ...)")
        self._optimizer = optimizer
        if self._saved is not None and self._saved["optimizer"] is not None:
            optimizer.load_state_dict(self._saved["optimizer"])
            if isinstance(optimizer, SparseOptimizer):
                optimizer.write_()
        optimizer.register_step_pre_hook(lambda *_: self.use_source(None))
        optimizer.register_step_post_hook(self._count)
        return optimizer

    def scheduler(self, make: Callable[[torch.optim.Optimizer], LRScheduler]) -> LRScheduler:
        """A learning-rate scheduler for the phase's optimizer; in a phase that continues, with its state.

        A scheduler that is made otherwise sets the learning rate of a resumed optimizer back to the first one.

        Parameters
        ----------
        make : callable
            Makes it, given the optimizer.
        """
        if self._optimizer is None or self._scheduler is not None:
            raise ValueError("make the phase's optimizer first, and then one scheduler")
        self._scheduler = make(self._optimizer)
        if self._saved is not None and self._saved["scheduler"] is not None:
            self._scheduler.load_state_dict(self._saved["scheduler"])
            for group, saved in zip(
                self._optimizer.param_groups, self._saved["optimizer"]["param_groups"], strict=True
            ):
                group.update({name: value for name, value in saved.items() if not name.startswith("param")})
        return self._scheduler

    def _count(self, *_: object) -> None:
        self.steps += 1

    def _l1_weight(self) -> float:
        """λ / N of this phase."""
        owner = self._owner
        return owner.l1[self.kind == "sparse"] / owner.roles.numel

    def penalty(self) -> Tensor:
        """λ/N · Σ |θ − θ⁰| over what the phase tunes, N the weights of the whole model: for reports, or a loss.

        An optimizer of :meth:`optimizer` has its gradient already: do not add it to the loss there.
        """
        owner, total = self._owner, torch.zeros((), dtype=torch.float32)
        for name, param in self.parameters():
            if name in owner.roles.maskable or owner.l1_on_full:
                total = total + (param.float() - owner.start[name].float()).abs().sum().to(total.device)
        return total * self._l1_weight()

    def use_source(self, name: str | None) -> None:
        """Add the delta of a source to the model until another is used, or the optimizer steps.

        So a batch of a source is seen by the model with that source's delta, and the step is made on the weights
        without: call it before each forward pass. Nothing is done where the source is in use already.

        Parameters
        ----------
        name : str or None
            A key of the finetuner's ``sources``; None for no delta.
        """
        if name == self._source:
            return
        if name is not None and name not in self._owner.sources:
            raise ValueError(f"use_source: {name!r} is none of the sources, {list(self._owner.sources)}")
        # The weights are being trained, so that they are not the base that the delta knows.
        self._owner.active.set_([] if name is None else [self._owner.sources[name]], check_base=False)
        self._source = name

    @torch.no_grad()
    def keep_if_best(self, metric: float, *, higher_is_better: bool = True) -> bool:
        """Keep the weights as they are now if no metric before was better; the phase ends with the best ones.

        Returns
        -------
        bool
            Whether they were kept.
        """
        self.use_source(None)
        score = metric if higher_is_better else -metric
        if self._best is not None and not score > self._best["score"]:
            return False
        self._best = {"score": score, "weights": self._weights(), "values": self._values()}
        return True

    def _weights(self) -> dict[str, Tensor]:
        """Copies of what is tuned in full in this phase."""
        held = self._owner.roles.trainable if self.kind == "full" else self._owner.roles.full
        return {name: param.detach().clone() for name, param in held.items()}

    def _values(self) -> dict[str, Tensor]:
        if self.kind == "full":
            return {}
        state = self._sparse_optimizer().state
        return {name: state[param]["values"].clone() for name, param in self._owner.roles.maskable.items()}

    def _sparse_optimizer(self) -> SparseOptimizer:
        if not isinstance(self._optimizer, SparseOptimizer):
            raise ValueError("the sparse phase has no optimizer; call phase.optimizer(lr, ...) in it first")
        return self._optimizer

    @torch.no_grad()
    def finish(self) -> None:
        """Put the best weights back."""
        if self.kind == "sparse":
            self._sparse_optimizer()
        if self._best is None:
            return
        for name, weight in self._best["weights"].items():
            self._owner.roles.trainable[name].copy_(weight)
        if self.kind == "sparse":
            self._sparse_optimizer().start_from_(self._best["values"])

    def moved(self) -> dict[str, Tensor]:
        """After a sparse phase: how far each chosen weight is from its start, by parameter."""
        found = {}
        for arena in self._sparse_optimizer().arenas():
            parts = arena.support.split(arena.moved())
            found.update(dict(zip(arena.params, parts, strict=True)))
        return {name: found[param].clone() for name, param in self._owner.roles.maskable.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue the phase from here."""
        self.use_source(None)
        return {
            "steps": self.steps,
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "weights": self._weights(),
            "best": self._best,
            "extra": self.extra,
        }
