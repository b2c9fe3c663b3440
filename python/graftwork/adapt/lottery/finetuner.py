"""LT-SFT: tune everything to see which weights matter, go back, and tune those alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.adapt.deltas.delta_set import DeltaSet
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.lottery.phase import Phase
from graftwork.adapt.roles import Choice, assign_roles, entries_of, random_indices
from graftwork.checkpoint.digest import bytes_digest
from graftwork.ops.sparse_update import Support, gather_values, restore_values_, topk_absdiff, write_values_

#: Of the tuned weights, those at the start, and how many, the indices of the chosen ones by name.
Selector = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Selection:
    """What the selection of one iteration found.

    Attributes
    ----------
    wanted, chosen : int
        Weights to choose, and chosen.
    unchanged : int
        Of those wanted, how many were left out because no more weights had changed.
    threshold : float
        The smallest change that was chosen; NaN where chance or a function chose.
    """

    wanted: int
    chosen: int
    unchanged: int
    threshold: float


class LotterySparseFinetuner:
    """Lottery-ticket sparse fine-tuning (LT-SFT): the weights that move most when all are tuned are tuned alone.

    Each iteration: tune all maskable weights and the head (full phase); choose the weights with the largest
    |θ¹ − θ⁰| of all maskable tensors together; set every weight back, the head too; tune the chosen ones and the head
    (sparse phase). The result is the difference of the chosen weights to where they started.

    Parameters
    ----------
    model : Module
        The model, at the weights θ⁰ that the delta will be relative to. A copy of the trainable ones is kept.
    k, density : int or float
        How many weights to choose, or which share of the maskable ones. One of the two.
    maskable, full, frozen : choice, optional
        See `assign_roles`.
    l1 : (float, float)
        λ of the full and of the sparse phase: λ/N · Σ |θ − θ⁰| is added to the loss, N the weights of the model. Its
        gradient is added once in each step, not for each micro-batch.
    l1_on_full : bool
        Whether the penalty covers parameters that are tuned in full.
    iterations : int
        How often; a part of k is chosen in each, from the weights that are not yet.
    selector : str or callable
        "magnitude"; "random", each set of weights as likely as any other; or a function of the weights after the full
        phase, those at the start, and a number, that gives indices by name: sorted, unique, none chosen before.
    sources : mapping of str to SparseDelta, optional
        Deltas that a phase switches between with ``phase.use_source``, such as those of languages.
    seed : int
        For the selector "random".

    Attributes
    ----------
    roles : Roles
        What becomes of each parameter.
    k : int
        Weights to choose in all.
    selections : list of Selection
        What each iteration found.
    phase : Phase or None
        The phase that runs.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the same training functions give the same bits. :meth:`state_dict` can be taken between any two
    steps; the model itself is not needed to resume, only its weights at the start.

    Paper: Ansell et al., Composable Sparse Fine-Tuning for Cross-Lingual Transfer, ACL 2022, section 3.1. Differs from
    the authors' code: exactly k weights are chosen where changes are equal, and none that did not change; the last
    iteration takes what division leaves over; the penalty's gradient is not clipped. Buffers, such as running
    statistics, are not set back.

    Examples
    --------
    >>> model = nn.Linear(4, 1, bias=False)
    >>> inputs = torch.eye(4)
    >>> def train(phase):
    ...     optimizer = phase.optimizer(lr=0.1, kind="sgd")
    ...     for _ in range(10):
    ...         optimizer.zero_grad()
    ...         (model(inputs).squeeze(1) - torch.tensor([9.0, 0.0, 0.0, -9.0])).square().sum().backward()
    ...         optimizer.step()
    >>> delta = LotterySparseFinetuner(model, k=2).fit(train, train)
    >>> delta.changes("weight")[0].tolist()
    [0, 3]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        k: int | None = None,
        density: float | None = None,
        maskable: Choice | None = None,
        full: Choice | None = None,
        frozen: Choice | None = None,
        l1: tuple[float, float] = (0.0, 0.0),
        l1_on_full: bool = True,
        iterations: int = 1,
        selector: str | Selector = "magnitude",
        sources: Mapping[str, SparseDelta] | None = None,
        seed: int = 0,
    ) -> None:
        if iterations < 1:
            raise ValueError(f"LotterySparseFinetuner: iterations must be at least 1, got {iterations}")
        if len(l1) != 2 or min(l1) < 0:
            raise ValueError(f"LotterySparseFinetuner: l1 must be two numbers, none negative, got {l1}")
        if selector not in ("magnitude", "random") and not callable(selector):
            raise ValueError(
                f"LotterySparseFinetuner: selector must be 'magnitude', 'random' or a function, got {selector!r}"
            )
        self.model = model
        self.roles = assign_roles(model, maskable, full, frozen)
        self.k = entries_of(sum(p.numel() for p in self.roles.maskable.values()), k, density)
        self.l1, self.l1_on_full = (float(l1[0]), float(l1[1])), l1_on_full
        self.iterations, self.selector = iterations, selector
        self.sources = dict(sources or {})
        self.start = {name: p.detach().clone() for name, p in self.roles.trainable.items()}
        self.selections: list[Selection] = []
        self.phase: Phase | None = None
        self.active = DeltaSet(model)  # the source that a phase uses
        self._generator = torch.Generator().manual_seed(seed)
        self._iteration, self._stage = 0, "full"
        self._resume: dict[str, Any] | None = None
        self._digest: str | None = None
        # What is chosen so far, and where it was after the last sparse phase; of heads, where they were.
        self.indices = {
            name: torch.empty(0, dtype=torch.int64, device=p.device) for name, p in self._maskable()
        }
        self.values = {name: torch.empty(0, device=p.device) for name, p in self._maskable()}
        self._heads = {name: self.start[name] for name in self.roles.full}

    def _maskable(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.roles.maskable.items())

    def fit(
        self, full_phase: Callable[[Phase], object] | None, sparse_phase: Callable[[Phase], object]
    ) -> SparseDelta:
        """Run all phases, or those that are left.

        Parameters
        ----------
        full_phase, sparse_phase : callable
            Trains the model with ``phase.optimizer(...)``, whatever way it likes: a loop, a
            ``transformers.Trainer(optimizers=...)``. The weights that it leaves count. `full_phase` may be None if
            weights are chosen at random.

        Returns
        -------
        SparseDelta
            At most k weights, relative to where the model started, and what was tuned in full. The model has it.

        Raises
        ------
        ValueError
            Weights are NaN after the full phase, or a training function did not do its part.
        """
        if full_phase is None and self.selector != "random":
            raise ValueError("fit: full_phase may be None only if selector is 'random'")
        with self._frozen():
            while self._iteration < self.iterations:
                if self._stage == "full":
                    if full_phase is not None:
                        self._run(full_phase)
                    self._select()
                    self._rewind()
                    self._stage = "sparse"
                phase = self._run(sparse_phase)
                self.values = phase.moved()
                self._heads = {name: p.detach().clone() for name, p in self.roles.full.items()}
                self._write_values()
                self._iteration, self._stage = self._iteration + 1, "full"
        return self.delta()

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Frozen parameters require no gradient meanwhile."""
        held = [p for p in self.roles.frozen.values() if p.requires_grad]
        try:
            for param in held:
                param.requires_grad_(False)
            yield
        finally:
            for param in held:
                param.requires_grad_(True)
            self.phase = None

    def _run(self, train: Callable[[Phase], object]) -> Phase:
        self.phase = phase = Phase(self, self._stage, self._iteration, self._resume)
        self._resume = None
        try:
            train(phase)
        finally:
            phase.use_source(None)
        phase.finish()
        self.phase = None
        return phase

    # Selection.

    @torch.no_grad()
    def _select(self) -> None:
        """Choose this iteration's share of k among what is not chosen yet."""
        names, params = zip(*self._maskable(), strict=True)
        share = self.k // self.iterations
        wanted = share if self._iteration < self.iterations - 1 else self.k - share * (self.iterations - 1)
        threshold = float("nan")
        if not isinstance(self.selector, str):
            weights = {name: p.detach() for name, p in self._maskable()}
            found = self.selector(weights, {name: self.start[name] for name in names}, wanted)
            chosen = [found.get(name, self.indices[name][:0]) for name in names]
        elif self.selector == "random":
            chosen = random_indices(params, wanted, list(self.indices.values()), self._generator)
        else:
            threshold, chosen = self._largest(names, params, wanted)
        for name, param, mine in zip(names, params, chosen, strict=True):
            self._choose(name, param, mine.long())
        count = sum(map(len, chosen))
        if count > wanted:
            raise ValueError(f"selector chose {count} weights where {wanted} were wanted")
        self.selections.append(Selection(wanted, count, wanted - count, threshold))

    def _largest(
        self, names: Sequence[str], params: Sequence[Tensor], wanted: int
    ) -> tuple[float, list[Tensor]]:
        """The weights that moved most, without those that are chosen, and without any that did not move."""
        weights, bases = [p.detach() for p in params], [self.start[name] for name in names]
        for name, weight, base in zip(names, weights, bases, strict=True):
            support = Support([self.indices[name]], [weight.numel()])
            restore_values_(support, [weight], gather_values(support, [base]))  # what is chosen has not moved
        try:
            threshold, found = topk_absdiff(weights, bases, wanted)
        except ValueError:
            bad = [name for name, weight in zip(names, weights, strict=True) if weight.isnan().any()]
            if not bad:
                raise
            raise ValueError(f"parameter {bad[0]!r} is NaN after the full phase; training diverged") from None
        moved = [
            mine[weight.view(-1)[mine.long()] != base.view(-1)[mine.long()]]
            for mine, weight, base in zip(found, weights, bases, strict=True)
        ]
        return threshold, moved

    def _choose(self, name: str, param: Tensor, mine: Tensor) -> None:
        """Add to what is chosen of one parameter; new weights have not moved."""
        Support([mine], [param.numel()])
        both = torch.cat([self.indices[name], mine.to(param.device)])
        values = torch.cat([self.values[name], self.values[name].new_zeros(len(mine))])
        self.indices[name], order = both.sort()
        self.values[name] = values[order]
        if (self.indices[name].diff() == 0).any():
            raise ValueError(f"selector chose weights of {name!r} that were chosen before")

    @torch.no_grad()
    def _rewind(self) -> None:
        """Set every weight back to where this iteration began."""
        for name, param in self._maskable():
            param.copy_(self.start[name])
        for name, param in self.roles.full.items():
            param.copy_(self._heads[name])
        self._write_values()

    @torch.no_grad()
    def _write_values(self) -> None:
        for name, param in self._maskable():
            support = Support([self.indices[name]], [param.numel()])
            base = gather_values(support, [self.start[name]])
            write_values_(support, [param.detach()], base, self.values[name])

    def delta(self) -> SparseDelta:
        """What the sparse phases so far have made; weights that did not move are left out."""
        changes = {}
        for name, _ in self._maskable():
            kept = self.values[name] != 0
            changes[name] = self.indices[name][kept], self.values[name][kept]
        found = SparseDelta.from_changes(changes, {name: self.start[name] for name, _ in self._maskable()})
        full = {name: head.clone() for name, head in self._heads.items()}
        return SparseDelta(
            found.tensors, found.support, found.values, full=full, tied=self.roles.tied_of_trainable
        )

    # State.

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here with a model at its first weights; take it between two steps.

        A source's delta is taken off the model. Tensors are those in use: save or copy them before the next step.
        """
        return {
            "start": self._start_digest(),
            "settings": self._settings(),
            "iteration": self._iteration,
            "stage": self._stage,
            "selections": [asdict(selection) for selection in self.selections],
            "indices": dict(self.indices),
            "values": dict(self.values),
            "heads": dict(self._heads),
            "generator": self._generator.get_state(),
            "phase": None if self.phase is None else self.phase.state_dict(),
        }

    def _settings(self) -> dict[str, Any]:
        named = self.selector if isinstance(self.selector, str) else "function"
        return {"k": self.k, "l1": list(self.l1), "l1_on_full": self.l1_on_full, "selector": named} | {
            "iterations": self.iterations,
            "maskable": list(self.roles.maskable),
            "full": list(self.roles.full),
        }

    def _start_digest(self) -> str:
        if self._digest is None:
            parts = [
                bytes_digest(start.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                for start in self.start.values()
            ]
            self._digest = bytes_digest("".join(parts).encode())
        return self._digest

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: the model's weights become those of then, and :meth:`fit` runs what is left.

        Raises
        ------
        ValueError
            The state was made with other settings, or from other weights at the start.
        """
        for name, mine in self._settings().items():
            if state["settings"].get(name) != mine:
                raise ValueError(
                    f"load_state_dict: the state was made with {name}={state['settings'].get(name)}, here it is {mine}"
                )
        if state["start"] != self._start_digest():
            raise ValueError(
                "load_state_dict: the state was made from other weights; build the finetuner with the pretrained model"
            )
        self._iteration, self._stage = state["iteration"], state["stage"]
        self.selections = [Selection(**selection) for selection in state["selections"]]
        for mine, name in ((self.indices, "indices"), (self.values, "values"), (self._heads, "heads")):
            for key, held in state[name].items():
                mine[key] = held.to(self.start[key].device, copy=True)
        self._generator.set_state(state["generator"])
        self._resume = state["phase"]
        self._rewind()
        if self._resume is not None:
            for name, weight in self._resume["weights"].items():
                self.roles.trainable[name].copy_(weight)
