"""Sparse fine-tuning of a Hugging Face model from a recipe: LT-SFT or SpIEL, evaluated, saved and resumed exactly."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.lottery.finetuner import LotterySparseFinetuner
from graftwork.adapt.lottery.phase import Phase
from graftwork.adapt.training.data import Order, derived_seed, divide
from graftwork.adapt.training.model import LoadedModel, load_model
from graftwork.adapt.training.report import Evaluation, PhaseReport, TrainReport
from graftwork.adapt.training.stage import LotteryStage, SpielStage, Stage, exchange_policy
from graftwork.adapt.training.state import StateFile, StopRequest, check_places, report_path
from graftwork.checkpoint.files import make_folder, write_file
from graftwork.errors import CheckpointError, GraftworkError, RecipeError
from graftwork.recipe import SparseRecipe, load_recipe, naming_recipe
from graftwork.texts.corpus import Label, read_corpus
from graftwork.texts.hugging_face import load_tokenizer, ordered_labels
from graftwork.texts.tasks import TASKS, Piece, Task

__all__ = ["Evaluation", "PhaseReport", "TrainReport", "train_sparse"]

Progress = Callable[[str, int, int], None]


def train_sparse(
    recipe: SparseRecipe | str | os.PathLike[str], *, resume: bool = False, progress: Progress | None = None
) -> TrainReport:
    """Fine-tune a few weights of a Hugging Face model on local texts, and keep them as a `SparseDelta`.

    Parameters
    ----------
    recipe : SparseRecipe or path
        What to do: a YAML file, or its contents. ``docs/papers/sparse_finetuning.md`` explains the keys.
    resume : bool
        Go on from the state of a run of this recipe that was interrupted; from the beginning if there is none.
    progress : callable, optional
        Called with the name of a phase, its updates so far, and its updates in all.

    Returns
    -------
    TrainReport
        It is also written beside the delta, as ``<out>.json``.

    Raises
    ------
    RecipeError
        A value does not suit the method, the model or the data; or training diverged.
    DataError, CheckpointError, BaseMismatch
        The data, the model's folder, the state or a delta to start from are malformed, or do not go together.
    MissingExtra
        transformers is not installed.
    TargetExists
        Something stands where a file is to be written. Nothing has been done then.
    KeyboardInterrupt
        SIGINT or SIGTERM came: the update was finished and the state saved. At a second signal it ends at once, and the
        state that was saved before stays as it is.

    Notes
    -----
    Chance is derived from the seed and the number of the update. So a resumed run gives the same bits as one without
    interruption, on the same machine, with as many threads, as far as torch's own operations are deterministic, which
    they are on a CPU. The state of torch's generators is the same afterwards as before.

    Papers: Ansell et al., ACL 2022 (LT-SFT) and 2024 (SpIEL). Differs from their code: the loss of an update is the mean
    over all tokens that it predicts, whatever the micro-batches; texts longer than ``max_tokens`` are several pieces, and
    documents are not joined.
    """
    file = None if isinstance(recipe, SparseRecipe) else Path(recipe)
    read = recipe if isinstance(recipe, SparseRecipe) else load_recipe(recipe, SparseRecipe)
    check_places(read, resume)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with naming_recipe(file), torch.random.fork_rng(devices):
        return _Run(read, progress).train(resume)


@contextmanager
def _suiting(what: str) -> Iterator[None]:
    """Makes recipe errors of the errors that a finetuner raises at its settings."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if isinstance(error, GraftworkError):
            raise
        raise RecipeError(f"{what}: {error}") from error


class _Run:
    """One training: model, texts, and what is told of the phases that are done."""

    def __init__(self, recipe: SparseRecipe, progress: Progress | None) -> None:
        self._recipe, self._progress, self._stop = recipe, progress, StopRequest()
        if recipe.policy is not None:
            with _suiting("the policy"):
                exchange_policy(recipe.policy)
        files = recipe.data if isinstance(recipe.data, list) else [recipe.data]
        corpus = read_corpus(files, labelled=recipe.task == "classification")
        self._file = StateFile(recipe, corpus.digest)
        tokenizer = load_tokenizer(recipe.model)
        self._labels: list[Label] = ordered_labels(recipe.model, corpus.labels)
        texts = corpus.documents
        self._task: Task = TASKS[recipe.task](tokenizer, recipe.max_tokens, texts[0].text, self._labels)
        learned, held = divide(len(texts), recipe.held_out, recipe.seed)
        pieces = self._task.pieces(texts)
        self._pieces = [piece for number in learned for piece in pieces[number]]
        self._held = [piece for number in held for piece in pieces[number]]
        self._loaded: LoadedModel = load_model(recipe, self._task, tokenizer, self._labels)
        self._made = {name: param.detach().clone() for name, param in self._loaded.made.items()}
        self._done: list[dict[str, Any]] = []
        self._texts, self._held_out = len(learned), len(held)

    def train(self, resume: bool) -> TrainReport:
        """All phases, or those that are left; then the delta and the report are written."""
        make_folder(self._recipe.out.absolute().parent)
        state = self._file.load() if resume else None
        if state is not None:
            self._done = list(state["done"])
            self._restore_made(state["made"])
        train = self._lottery if self._recipe.method == "lottery" else self._spiel
        with self._stop:
            delta, chosen, not_chosen = train(state)
        return self._write(delta, chosen, not_chosen)

    @torch.no_grad()
    def _restore_made(self, saved: dict[str, Tensor]) -> None:
        """Let a new head begin as it did: how transformers makes one is its own affair."""
        if saved.keys() != self._made.keys():
            raise self._unfit(f"it has {sorted(saved)} as new parameters, the model has {sorted(self._made)}")
        self._made = saved
        for name, value in saved.items():
            self._loaded.made[name].copy_(value)

    # The two methods.

    def _lottery(self, state: dict[str, Any] | None) -> tuple[SparseDelta, int, int]:
        recipe, roles = self._recipe, self._loaded.roles
        selector = recipe.selector or "magnitude"
        with _suiting("the recipe does not suit the model"):
            finetuner = LotterySparseFinetuner(
                self._loaded.model,
                k=recipe.k,
                density=recipe.density,
                maskable=lambda name, _: name in roles.maskable,
                full=lambda name, _: name in roles.full,
                frozen=lambda name, _: name in roles.frozen,
                l1=(recipe.l1[0], recipe.l1[1]) if recipe.l1 else (0.0, 0.0),
                iterations=recipe.iterations or 1,
                selector=selector,
                seed=recipe.seed,
            )
        if state is not None:
            with self._fitting():
                finetuner.load_state_dict(state["finetuner"])

        def phase(steps: int) -> Callable[[Phase], None]:
            def run(phase: Phase) -> None:
                stage = LotteryStage(phase, recipe, steps, heads=bool(roles.full))
                self._run(stage, lambda: {"finetuner": finetuner.state_dict()})

            return run

        full = None if selector == "random" else phase(recipe.full_steps or recipe.steps)
        delta = finetuner.fit(full, phase(recipe.steps))
        chosen = sum(selection.chosen for selection in finetuner.selections)
        not_chosen = sum(selection.unchanged for selection in finetuner.selections)
        return self._loaded.stored(delta, recipe.model), chosen, not_chosen

    def _spiel(self, state: dict[str, Any] | None) -> tuple[SparseDelta, int, int]:
        with self._fitting() if state else _suiting("the recipe does not suit the model"):
            stage = SpielStage(self._loaded, self._recipe, state["stage"] if state else None)
        self._run(stage, lambda: {"stage": stage.state_dict()})
        return stage.delta(self._loaded, self._recipe), sum(stage.finetuner.ks.values()), 0

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Around the loading of a state: what is wrong with it is one kind of error."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._unfit(str(error)) from error

    def _unfit(self, why: str) -> CheckpointError:
        return CheckpointError(
            "the state is not one of this model and recipe",
            file=self._file.path,
            got=why[:300],
            remedy="give the model that it was made with; or remove the state, and start from the beginning",
        )

    # The updates.

    def _run(self, stage: Stage, state: Callable[[], dict[str, Any]]) -> None:
        """Make the updates of a stage that are left, and evaluate and save where the recipe says so."""
        recipe, record = self._recipe, stage.record
        order = Order(len(self._pieces), derived_seed(recipe.seed, "order", stage.kind, stage.iteration))
        if self._held and record["before"] is None:
            record["before"] = self._evaluate(stage)
        try:
            while stage.steps < stage.total:
                record["train_loss"] = self._update(stage, order)
                done = stage.steps
                if self._held and (done == stage.total or done % (recipe.evaluate_every or stage.total) == 0):
                    self._keep(stage)
                if self._progress is not None:
                    self._progress(_title(stage, recipe), done, stage.total)
                if recipe.save_every and (self._stop.made or done % recipe.save_every == 0):
                    stage.told()
                    self._file.save({"done": self._done, "made": self._made, **state()})
                if self._stop.made:
                    raise KeyboardInterrupt(self._interrupted(stage))
        finally:
            stage.close()
        self._done.append(stage.told())

    def _interrupted(self, stage: Stage) -> str:
        kept = f"its state is in {self._file.path}, and --resume goes on from there"
        return (
            f"interrupted in the {stage.kind} phase after update {stage.steps} of {stage.total}; "
            f"{kept if self._recipe.save_every else 'no state was saved, as the recipe says'}"
        )

    def _update(self, stage: Stage, order: Order) -> float:
        """One update of the model; the mean loss of what it predicted."""
        recipe, model = self._recipe, self._loaded.model
        size, number = recipe.batch * recipe.accumulate, stage.steps
        seed = derived_seed(recipe.seed, stage.kind, stage.iteration, number)
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        pieces = [self._pieces[place] for place in order.take(number * size, size)]
        batches = [self._task.batch(part, generator) for part in _parts(pieces, recipe.batch)]
        predicted = max(1, sum(batch.predicted for batch in batches))
        total = 0.0
        model.train()
        stage.optimizer.zero_grad()
        for batch in batches:
            loss = self._task.losses(model, batch)[0] / predicted
            loss.backward()
            total += loss.item()
        try:
            stage.optimizer.step()
        except FloatingPointError as error:
            raise self._diverged(stage, str(error)) from error
        stage.scheduler.step()
        return total

    def _diverged(self, stage: Stage, what: str) -> RecipeError:
        return RecipeError(
            f"training diverged in the {stage.kind} phase after update {stage.steps}",
            got=what,
            wanted="finite numbers",
            remedy="lower 'lr', raise 'warmup', or set 'max_norm'; with 16-bit weights try dtype: float32",
        )

    @torch.no_grad()
    def _evaluate(self, stage: Stage) -> list[float]:
        """Step, mean loss and share of right predictions; what is hidden from the model is the same each time."""
        model, loss, right, predicted = self._loaded.model, 0.0, 0, 0
        model.eval()
        for number, part in enumerate(_parts(self._held, self._recipe.batch)):
            seed = derived_seed(self._recipe.seed, "evaluation", number)
            batch = self._task.batch(part, torch.Generator().manual_seed(seed))
            if batch.predicted:
                loss_of, right_of = self._task.losses(model, batch)
                loss, right, predicted = loss + float(loss_of), right + right_of, predicted + batch.predicted
        if not math.isfinite(loss):
            raise self._diverged(stage, f"a loss of {loss} on the texts held out")
        return [stage.steps, loss / max(1, predicted), right / max(1, predicted)]

    def _keep(self, stage: Stage) -> None:
        """Evaluate, and keep the weights if they are the best so far: by accuracy for classes, by loss for tokens."""
        rows = stage.record["evaluations"]
        rows.append(self._evaluate(stage))
        _, loss, accuracy = rows[-1]
        if stage.keep_if_best(accuracy if self._recipe.task == "classification" else -loss):
            stage.record["kept"] = len(rows) - 1

    # The end.

    def _write(self, delta: SparseDelta, chosen: int, not_chosen: int) -> TrainReport:
        recipe, roles = self._recipe, self._loaded.roles
        delta.save(recipe.out)
        tunable = sum(param.numel() for param in roles.maskable.values())
        report = TrainReport(
            out=recipe.out,
            model=recipe.model,
            task=recipe.task,
            method=recipe.method,
            tuned=delta.entries,
            tunable=tunable,
            density=delta.entries / tunable,
            chosen=chosen,
            unchanged=chosen - delta.entries,
            not_chosen=not_chosen,
            full=sum(param.numel() for param in roles.full.values()),
            texts=self._texts,
            held_out=self._held_out,
            cut=self._task.cut,
            labels=self._labels,
            phases=[PhaseReport.of(record) for record in self._done],
            seconds=sum(record["seconds"] for record in self._done),
            delta_bytes=recipe.out.stat().st_size,
            notes=self._loaded.notes,
        )
        write_file(report_path(recipe), (json.dumps(report.to_dict(), indent=2) + "\n").encode())
        self._file.remove()
        return report


def _parts(pieces: Sequence[Piece], size: int) -> list[Sequence[Piece]]:
    return [pieces[start : start + size] for start in range(0, len(pieces), size)]


def _title(stage: Stage, recipe: SparseRecipe) -> str:
    several = f" {stage.iteration + 1} of {recipe.iterations}" if (recipe.iterations or 1) > 1 else ""
    return f"{stage.kind} phase{several}"
