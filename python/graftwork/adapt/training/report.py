"""What a training run tells: its phases, what was tuned, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graftwork.texts.corpus import Label


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean cross-entropy and share of right predictions on the texts held out, after ``step`` updates of a phase."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """One phase of training.

    ``before`` is the model at its beginning, ``after`` with the weights that were kept: the best of ``evaluations``.
    They are None if no texts are held out. ``train_loss`` is that of the last update.
    """

    kind: str
    iteration: int
    steps: int
    train_loss: float
    before: Evaluation | None
    after: Evaluation | None
    evaluations: list[Evaluation]
    seconds: float
    optimizer_bytes: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> PhaseReport:
        """From what a state holds."""
        rows = {key: record[key] for key in ("kind", "iteration", "steps", "train_loss", "seconds")}
        evaluations = [Evaluation(*row) for row in record["evaluations"]]
        return cls(
            **rows,
            before=Evaluation(*record["before"]) if record["before"] else None,
            after=evaluations[record["kept"]] if evaluations else None,
            evaluations=evaluations,
            optimizer_bytes=record["optimizer_bytes"],
        )


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What `train_sparse` did.

    Attributes
    ----------
    out : Path
        The delta's file.
    model, task, method : str
        As in the recipe.
    tuned : int
        Weights that the delta changes.
    tunable : int
        Weights that could have been chosen.
    density : float
        ``tuned / tunable``.
    chosen, unchanged : int
        Weights that were chosen, and how many of these did not change in the end and are not in the delta.
    not_chosen : int
        How many fewer than wanted were chosen, because no more weights changed in the full phase.
    full : int
        Weights that were tuned in full, such as a head's.
    texts, held_out : int
        Documents for training, and those held out.
    cut : int
        Documents of which the end was left out, for the task of classification.
    labels : list
        The classes in the order of the head's outputs.
    phases : list of PhaseReport
        In their order.
    seconds : float
        Of all phases.
    delta_bytes : int
        Size of the file.
    notes : list of str
        What is worth knowing.
    """

    out: Path
    model: Path
    task: str
    method: str
    tuned: int
    tunable: int
    density: float
    chosen: int
    unchanged: int
    not_chosen: int
    full: int
    texts: int
    held_out: int
    cut: int
    labels: list[Label]
    phases: list[PhaseReport]
    seconds: float
    delta_bytes: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {**asdict(self), "out": str(self.out), "model": str(self.model)}
