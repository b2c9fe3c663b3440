"""Merging a planned checkpoint, one tensor at a time: read, put in order by content, merge, measure, write, note."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from graftwork.checkpoint.dtypes import torch_dtype
from graftwork.compose.identity import content_digest, donor_key
from graftwork.compose.memory import Buffers
from graftwork.compose.output import Output
from graftwork.compose.plan import Input, MergePlan, PlannedTensor
from graftwork.compose.task import Nonfinites, Outcome, TensorTask
from graftwork.delta.survival import Survival, measure_survival, rounding_key
from graftwork.errors import CheckpointError
from graftwork.ops._native import thread_limit

if TYPE_CHECKING:
    from graftwork.delta.residual import ResidualWriter

__all__ = ["Executor", "Merged"]

_TILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Merged:
    """What is known of a tensor that is done.

    ``inputs`` are the digests of the planned inputs, in the plan's order; ``nonfinite`` how many of each one's elements
    are not finite.
    """

    digest: str
    inputs: tuple[str, ...]
    nonfinite: tuple[int, ...]
    survival: Survival | None = None

    def to_line(self, name: str) -> dict[str, Any]:
        """A line of the journal."""
        found = self.survival
        sums = None if found is None else [
            found.changed, found.lost, found.overflow, found.wanted_square, found.saved_square, found.dot
        ]  # fmt: skip
        return {
            "tensor": name,
            "digest": self.digest,
            "inputs": self.inputs,
            "nonfinite": self.nonfinite,
            "survival": sums,
        }

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Merged:
        """From a line of the journal."""
        sums = line["survival"]
        return cls(
            line["digest"],
            tuple(line["inputs"]),
            tuple(line["nonfinite"]),
            None if sums is None else Survival(*sums),
        )


class _Loaded(NamedTuple):
    """An input with its content: by it, and for equal contents by its parameters, donors are put in order."""

    place: int
    part: Input
    tensor: Tensor
    digest: str
    own: Mapping[str, Any]

    @property
    def rank(self) -> tuple[str, str]:
        return self.digest, repr(sorted(self.own.items()))


class Executor:
    """Merges the tensors of a plan into an output.

    Attributes
    ----------
    digest_seconds : float
        CPU seconds that digests took.
    """

    def __init__(
        self,
        plan: MergePlan,
        output: Output,
        buffers: Buffers,
        *,
        threads: int,
        residuals: ResidualWriter | None = None,
    ) -> None:
        self._plan, self._output, self._buffers, self._threads = plan, output, buffers, threads
        self._recipe = plan.recipe
        self._residuals = residuals
        self.digest_seconds = 0.0

    def merge(self, planned: PlannedTensor) -> Merged:
        """Merge one tensor and write it."""
        with thread_limit(self._threads):
            loaded = [self._load(place, part, planned) for place, part in enumerate(planned.inputs)]
            if planned.copied:
                return self._copy(planned, loaded)
            return self._merge(planned, loaded)

    def _load(self, place: int, part: Input, planned: PlannedTensor) -> _Loaded:
        tensor = part.donor.tensor(part.name, self._threads)
        if part.rows is not None:
            tensor = part.rows.gather(tensor, self._threads)
        own = planned.own[place] if place < len(planned.own) else {}
        return _Loaded(place, part, tensor, self._digest(tensor), own)

    def _digest(self, tensor: Tensor) -> str:
        begun = time.process_time()
        found = content_digest(tensor, self._threads)
        self.digest_seconds += time.process_time() - begun
        return found

    def _copy(self, planned: PlannedTensor, loaded: Sequence[_Loaded]) -> Merged:
        first = loaded[-1]
        for other in loaded:
            if other.digest != first.digest:
                raise CheckpointError(
                    "a tensor of integers differs between the models, and integers are not merged",
                    file=other.part.donor.file(other.part.name),
                    tensor=planned.name,
                    wanted=f"what {first.part.donor.file(first.part.name)} has",
                    remedy="give base_model a model without it, or make it equal in all",
                )
        self._output.write(planned.name, 0, _bytes(first.tensor))
        return Merged(first.digest, tuple(row.digest for row in loaded), (0,) * len(loaded))

    def _merge(self, planned: PlannedTensor, loaded: Sequence[_Loaded]) -> Merged:
        recipe = self._recipe
        base = loaded[-1] if planned.base is not None else None
        donors = sorted(loaded[: len(planned.donors)], key=lambda row: row.rank)
        dtype = torch_dtype(planned.form.code)
        if dtype is None:
            raise CheckpointError("torch has no such dtype", tensor=planned.name, got=planned.form.code)
        exact = self._exact(planned, dtype)
        stochastic = recipe.preserve == "stochastic" and dtype != torch.float32
        task = TensorTask(
            name=planned.name,
            base=None if base is None else base.tensor,
            donors=[row.tensor for row in donors],
            own=[row.own for row in donors],
            shared=planned.shared,
            out=self._buffers.take("out", planned.form.shape, dtype)
            if stochastic or exact is None
            else exact,
            keys=_keys(recipe.seed, planned.name, [row.digest for row in donors]),
            nonfinite="zero" if recipe.nan == "zero" else "propagate",
            rounding="stochastic" if stochastic else "nearest",
            rounding_key=rounding_key(recipe.seed, planned.name) if stochastic else None,
            residual=exact if stochastic else None,
        )
        try:
            outcome = recipe.method.merge(task) if donors else _of_base(task)
        except ZeroDivisionError as error:
            raise CheckpointError(
                f"the method {recipe.method.name} has no result for a tensor",
                file=recipe.file,
                tensor=planned.name,
                got=error,
                remedy="set other weights, or take another method for it",
            ) from None
        met = self._met(planned, loaded, donors, outcome)
        written, survival = self._finish(planned, task, exact, dtype, None if base is None else base.tensor)
        self._output.write(planned.name, 0, _bytes(written))
        return Merged(self._digest(written), tuple(row.digest for row in loaded), met, survival)

    def _exact(self, planned: PlannedTensor, dtype: torch.dtype) -> Tensor | None:
        """Where the result goes before it is rounded, if what rounding does to it is asked for.

        With stochastic rounding this takes what rounding took away instead, which is then added to the result.
        """
        needed = planned.base is not None or self._recipe.preserve != "none"
        if not needed or dtype == torch.float32:
            return None
        return self._buffers.take("exact", planned.form.shape, torch.float32)

    def _finish(
        self,
        planned: PlannedTensor,
        task: TensorTask,
        exact: Tensor | None,
        dtype: torch.dtype,
        base: Tensor | None,
    ) -> tuple[Tensor, Survival | None]:
        """The tensor to write, and what of the update survives in it."""
        written = task.out
        if exact is not None and task.out is exact:
            written = self._buffers.take("out", planned.form.shape, dtype)
        survival = Survival() if base is not None else None
        flats = [None if tensor is None else tensor.reshape(-1) for tensor in (exact, base)]
        if survival is not None or exact is not None:
            for start in range(0, written.numel(), _TILE):
                tiles = [None if flat is None else flat[start : start + _TILE] for flat in flats]
                mine = written.view(-1)[start : start + _TILE]
                found = _finish_tile(mine, *tiles, rounded=task.residual is not None)
                survival = None if survival is None or found is None else survival + found
        if self._residuals is not None and exact is not None:
            self._residuals.add(planned.name, written, exact)
        return written, survival

    def _met(
        self, planned: PlannedTensor, loaded: Sequence[_Loaded], donors: Sequence[_Loaded], outcome: Outcome
    ) -> tuple[int, ...]:
        """How many elements of each input are not finite, in the plan's order; an error where that is refused."""
        found: dict[int, Nonfinites] = {
            row.place: met for row, met in zip(donors, outcome.donors, strict=True)
        }
        if planned.base is not None:
            found[loaded[-1].place] = outcome.base
        for row in loaded:
            met = found[row.place]
            if met.number and self._recipe.nan == "refuse":
                value = row.tensor.reshape(-1)[met.first].item()
                raise CheckpointError(
                    "a tensor holds numbers that are not finite",
                    file=row.part.donor.file(row.part.name),
                    tensor=row.part.name,
                    got=f"{value} at flat index {met.first}, and {met.number - 1} more",
                    wanted="finite numbers",
                    remedy="repair the model; or set nan: zero (such a number counts for nothing) or nan: propagate",
                )
        return tuple(found[row.place].number for row in loaded)


def _finish_tile(
    written: Tensor, exact: Tensor | None, base: Tensor | None, *, rounded: bool
) -> Survival | None:
    """Round a tile, or (``rounded``) add to what is left of it what is written; measure it against the base."""
    if exact is None:
        return None if base is None else _survived_whole(written, base)
    if rounded:
        exact.add_(written.float())
    else:
        written.copy_(exact)
    if base is None:
        return None
    return measure_survival(base, exact, written if rounded else written.dtype)


def _survived_whole(written: Tensor, base: Tensor) -> Survival:
    """Of a result that is not rounded: all of it."""
    moved = (written - base.float()).double()
    moved = torch.where(moved.isfinite(), moved, 0.0)
    square = float(moved.square().sum())
    return Survival(int((moved != 0).sum()), 0, 0, square, square, square)


def _of_base(task: TensorTask) -> Outcome:
    """A merge of no donors: the base."""
    from graftwork.ops.merge import combine

    counts = combine([task.start], [1.0], **task.writing)[1]
    return Outcome([], Nonfinites(counts.nonfinite[0], counts.first_nonfinite[0]))


def _keys(seed: int, name: str, digests: Sequence[str]) -> list[tuple[int, int]]:
    """A key for each donor, in order; donors of equal content have different ones."""
    seen: dict[str, int] = {}
    keys = []
    for digest in digests:
        keys.append(donor_key(seed, name, digest, seen.get(digest, 0)))
        seen[digest] = seen.get(digest, 0) + 1
    return keys


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
