"""The job: merge models by a recipe into a new checkpoint folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork import __version__
from graftwork.checkpoint.files import AtomicFolder, make_folder, write_file
from graftwork.checkpoint.folder import SUFFIX
from graftwork.checkpoint.paths import suffix_of
from graftwork.checkpoint.resumable import ResumableFolder
from graftwork.compose.companions import companion_files, copied_files
from graftwork.compose.donors import Donor, open_donors
from graftwork.compose.estimate import estimate
from graftwork.compose.identity import content_digest
from graftwork.compose.lineage import FILE, identity_of, lineage, recipe_content
from graftwork.compose.memory import Buffers
from graftwork.compose.output import SHARD_BYTES, Output
from graftwork.compose.plan import MergePlan, make_plan
from graftwork.compose.recipe import ComposeRecipe, read_recipe
from graftwork.compose.result import ComposeReport, DonorReport
from graftwork.delta.pipeline import Progress, default_threads
from graftwork.delta.source import DescribedTensor, Description
from graftwork.delta.survival import SurvivalReport
from graftwork.errors import RecipeError

if TYPE_CHECKING:
    from graftwork.compose.executor import Executor, Merged
    from graftwork.delta.residual import ResidualWriter

__all__ = ["check_export", "merge"]

_GO_ON = "interrupted; what is merged is kept beside the output, and the same call goes on from there"


def merge(
    recipe: ComposeRecipe | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    threads: int | None = None,
    resume: bool = True,
    max_shard_bytes: int = SHARD_BYTES,
    store_base: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ComposeReport:
    """Merge models into a new checkpoint, tensor by tensor.

    Parameters
    ----------
    recipe : path, mapping or ComposeRecipe
        A recipe as mergekit's, read strictly: ``merge_method``, ``models`` (or ``slices``), ``base_model``,
        ``parameters``, ``dtype``, ``out_dtype``, ``tokenizer_source`` or ``tokenizer``; and our own ``nan``
        (``refuse``, ``propagate``, ``zero``), ``preserve`` (``none``, ``stochastic``, ``residual``) and ``seed``.
        ``docs/papers/merging.md`` explains them. Paths start at the recipe's folder; a mapping's at the current one.
    out : path
        The folder to make; it appears whole or not at all.
    dry_run : bool
        Only check everything, and say what it would take; nothing is written.
    threads : int, optional
        Default: all processors. The bytes do not depend on it.
    resume : bool
        Go on from what an interrupted call with the same recipe, models and target has left; else begin anew.
    max_shard_bytes : int
        How large a file of weights may become that holds more than one tensor.
    store_base : path, optional
        The base of a store from which models are read (``STORE:NAME``), unless it holds that.
    progress : callable, optional
        Called with the stage, the bytes done and their total.

    Returns
    -------
    ComposeReport
        What was done, or would be; what the models have that the output has not; what of the update survives.

    Raises
    ------
    RecipeError
        The recipe has a fault; no file of a model has been opened then, unless tensors' names are needed to see it.
    CheckpointError, StoreError, AdapterError, VocabularyMismatch
        A model is malformed, or the models do not fit together; or a number is not finite and ``nan`` is ``refuse``.
    TargetExists
        Something stands at ``out``.

    Notes
    -----
    Deterministic: the bytes depend on the recipe's settings and the contents of the models, not on the order or place of
    the models, their shards, the threads, or interruptions. Sums are in the order of the digests of the donors' tensors;
    random numbers are Philox streams keyed by the seed, the tensor's name and such a digest.

    Examples
    --------
    >>> import tempfile, torch
    >>> from graftwork.checkpoint import open_checkpoint, write_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, value in (("base", 1.0), ("one", 2.0), ("two", 5.0)):
    ...         write_checkpoint(f"{folder}/{name}", {"up.weight": torch.full((2, 2), value)})
    ...     models = [{"model": f"{folder}/{name}", "parameters": {"weight": 0.5}} for name in ("one", "two")]
    ...     recipe = {"merge_method": "task_arithmetic", "base_model": f"{folder}/base", "models": models}
    ...     report = merge(recipe, f"{folder}/merged")
    ...     with open_checkpoint(f"{folder}/merged") as merged:
    ...         merged.tensor("up.weight")[0].tolist(), report.survival.total.changed
    ([3.5, 3.5], 4)
    """
    begun = time.perf_counter(), time.process_time()
    read = read_recipe(recipe)
    target = Path(out)
    if suffix_of(target.name) == SUFFIX:
        raise RecipeError(
            "a merge makes a folder", file=target, wanted="a folder's name", remedy="leave .safetensors out"
        )
    AtomicFolder(target).check_free()
    threads = threads or default_threads()
    with open_donors(read, store_base=store_base, threads=threads, progress=progress) as donors:
        plan = make_plan(read, donors)
        forms = {name: row.form for name, row in plan.tensors.items()}
        output = Output(forms, plan.metadata, max_shard_bytes)
        run = _Run(plan, output, target, threads, progress)
        report = run.plan_only() if dry_run else run.run(resume)
    report.seconds = time.perf_counter() - begun[0]
    report.cpu_seconds = time.process_time() - begun[1]
    return report


def check_export(recipe: ComposeRecipe, adapter: Path | None) -> str:
    """The place of the base that a merge can be written as a difference to; refused before anything is merged.

    Raises
    ------
    RecipeError
        The recipe has no base.
    TargetExists
        Something stands where the adapter shall.
    """
    if recipe.base_model is None:
        raise RecipeError(
            "a merge without a base is no difference to one",
            file=recipe.file,
            remedy="add base_model; or leave --lora and --store out",
        )
    if adapter is not None:
        AtomicFolder(adapter).check_free()
    return recipe.place(recipe.base_model)


class _Run:
    def __init__(
        self, plan: MergePlan, output: Output, out: Path, threads: int, progress: Progress | None
    ) -> None:
        self._plan, self._output, self._out = plan, output, out
        self._threads, self._progress = threads, progress
        self._done: dict[str, Merged] = {}

    # ---- what is known beforehand

    def plan_only(self) -> ComposeReport:
        """The report of a dry run."""
        return self._report(dry_run=True)

    def _work(self) -> str:
        """What the result depends on, in one word."""
        forms = {name: [row.form.code, row.form.shape] for name, row in self._plan.tensors.items()}
        files = sorted({spot.file for spot in self._output.spots.values()})
        recipe = recipe_content(self._plan.recipe, identity_of(self._plan.donors))
        text = json.dumps([__version__, recipe, forms, files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    # ---- the merge

    def run(self, resume: bool) -> ComposeReport:
        """Merge, and write the folder."""
        from graftwork.compose.executor import Executor

        make_folder(self._out.absolute().parent)
        recipe = self._plan.recipe
        again = (
            resume and recipe.preserve != "residual"
        )  # a residual is one stream: it cannot be gone on from
        with ResumableFolder(self._out, self._work(), resume=again) as folder:
            with self._output.open(folder.path), Buffers(folder.path) as buffers:
                resumed = self._take_up(folder)
                with self._residuals(folder.path) as residuals:
                    executor = Executor(
                        self._plan, self._output, buffers, threads=self._threads, residuals=residuals
                    )
                    self._merge_all(folder, executor)
            donors = self._donor_digests()
            files = self._write_companions(folder.path, donors)
            for donor in self._plan.donors.values():
                donor.check_unchanged()
        report = self._report(dry_run=False, donors=donors)
        report.resumed, report.files = resumed, files
        report.digest_seconds = executor.digest_seconds
        return report

    def _take_up(self, folder: ResumableFolder) -> int:
        """Believe the journal where the bytes in the files bear it out."""
        from graftwork.compose.executor import Merged

        for line in folder.done:
            name = line.get("tensor")
            if name in self._output.spots:
                merged = Merged.of_line(line)
                if self._output.digest(name) == merged.digest:
                    self._done[name] = merged
        return len(self._done)

    def _merge_all(self, folder: ResumableFolder, executor: Executor) -> None:
        total, done = self._plan.bytes_read, 0
        try:
            for name in self._output.spots:
                planned = self._plan.tensors[name]
                if name not in self._done:
                    self._done[name] = executor.merge(planned)
                    folder.note(self._done[name].to_line(name))
                done += sum(part.nbytes for part in planned.inputs)
                if self._progress is not None:
                    self._progress("merge", done, total)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(str(interrupt) or _GO_ON) from None

    @contextmanager
    def _residuals(self, folder: Path) -> Iterator[ResidualWriter | None]:
        if self._plan.recipe.preserve != "residual":
            with nullcontext():
                yield None
            return
        from graftwork.delta.residual import RESIDUAL, WRITTEN, ResidualWriter

        make_folder((folder / RESIDUAL).parent)
        names = [
            name for name, row in self._plan.tensors.items() if row.form.code in WRITTEN and not row.copied
        ]
        with ResidualWriter(folder / RESIDUAL, names, threads=self._threads) as writer:
            yield writer

    def _write_companions(self, folder: Path, donors: Mapping[str, str]) -> int:
        files = companion_files(self._plan) | self._output.index()
        tensors = {name: merged.digest for name, merged in self._done.items()}
        files[FILE] = lineage(self._plan, donors, tensors, self._digest())
        for name, data in files.items():
            make_folder((folder / name).parent)
            write_file(folder / name, data)
        return len(files) + len({spot.file for spot in self._output.spots.values()})

    # ---- digests of whole models

    def _digest(self) -> str:
        """The output's tensors by digest, as a store has it."""
        return _described(
            {
                name: (row.form.code, row.form.shape, self._done[name].digest)
                for name, row in self._plan.tensors.items()
            }
        )

    def _donor_digests(self) -> dict[str, str]:
        """The models' tensors by digest, those too that the output does not have."""
        known: dict[tuple[int, str], str] = {}
        for name, merged in self._done.items():
            for part, digest in zip(self._plan.tensors[name].inputs, merged.inputs, strict=True):
                if part.rows is None:
                    known[id(part.donor), part.name] = digest
        return {place: self._donor_digest(donor, known) for place, donor in self._plan.donors.items()}

    def _donor_digest(self, donor: Donor, known: Mapping[tuple[int, str], str]) -> str:
        rows = {}
        for name, meta in donor.metas.items():
            digest = known.get((id(donor), name))
            if digest is None:
                digest = content_digest(donor.tensor(name, self._threads), self._threads)
            rows[name] = (meta.dtype, tuple(meta.shape), digest)
        return _described(rows)

    # ---- the report

    def _report(self, *, dry_run: bool, donors: Mapping[str, str] | None = None) -> ComposeReport:
        plan = self._plan
        rows = list(plan.tensors.values())
        return ComposeReport(
            out=self._out,
            method=plan.recipe.method.name,
            nan=plan.recipe.nan,
            preserve=plan.recipe.preserve,
            dry_run=dry_run,
            tensors=len(rows),
            parameters=sum(row.numel for row in rows),
            dtypes=dict(sorted(Counter(row.form.code for row in rows).items())),
            donors=[self._donor_report(place, donor, donors) for place, donor in plan.donors.items()],
            estimate=estimate(plan, self._output.nbytes, threads=self._threads, timed=dry_run),
            tied=dict(plan.layout.tied),
            notes=self._notes(),
            digest=None if dry_run else self._digest(),
            survival=self._survival(),
        )

    def _donor_report(self, place: str, donor: Donor, donors: Mapping[str, str] | None) -> DonorReport:
        recipe = self._plan.recipe
        bases = {recipe.place(base) for part in recipe.slices if (base := recipe.base_of(part)) is not None}
        nonfinite = sum(
            count
            for name, merged in self._done.items()
            for part, count in zip(self._plan.tensors[name].inputs, merged.nonfinite, strict=True)
            if part.donor is donor
        )
        return DonorReport(
            donor.name,
            "base" if place in bases else "model",
            None if donors is None else donors[place],
            self._plan.layout.extra.get(donor.name, []),
            nonfinite,
        )

    def _notes(self) -> list[str]:
        plan = self._plan
        notes = list(plan.notes)
        for name, extra in plan.layout.extra.items():
            notes.append(f"{name} has {len(extra)} tensors that the output has not: {', '.join(extra[:3])}")
        if plan.recipe.preserve != "none" and all(row.form.code == "F32" for row in plan.tensors.values()):
            notes.append(
                f"preserve: {plan.recipe.preserve} has no effect: float32 loses nothing of the merge"
            )
        _, left = copied_files(plan)
        if left:
            notes.append(
                f"not copied from {plan.keeper.name}: {', '.join(left[:6])}"
                + (", ..." if len(left) > 6 else "")
            )
        return notes

    def _survival(self) -> SurvivalReport | None:
        report = SurvivalReport()
        for name, merged in self._done.items():
            if merged.survival is not None:
                row = self._plan.tensors[name]
                report.add(name, row.numel, row.form.code, merged.survival)
        return report if report.tensors else None


def _described(rows: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    described = {
        name: DescribedTensor(name, code, shape, 0, digest) for name, (code, shape, digest) in rows.items()
    }
    return Description(described).digest
