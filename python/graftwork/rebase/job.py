"""Rebase: pre-flight, scale, and the transfer of a fine-tune's difference to another base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftwork.delta.pipeline import Progress, default_threads
from graftwork.delta.weights import Stateful
from graftwork.errors import CheckpointError, TargetExists
from graftwork.rebase.candidate import Candidate, gather_evidence
from graftwork.rebase.configuration import merged_config
from graftwork.rebase.difference import Preserve, Writer
from graftwork.rebase.evidence import Evaluate, Evidence, Probe
from graftwork.rebase.lineage import check_old, digest_of, lineage_of, read_lineage
from graftwork.rebase.methods import METHODS
from graftwork.rebase.output import write_result
from graftwork.rebase.pairing import Pairing, ResizeVocab, pair
from graftwork.rebase.result import RebaseReport
from graftwork.rebase.sides import Side, open_side
from graftwork.rebase.statistics import measure_pairing
from graftwork.rebase.verdict import Compatibility, judge

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["preflight", "transfer", "transfer_state"]

SCALES = (1.0, 0.25, 0.5, 0.75, 1.25)
"""Scales that are tried on examples."""
POINTS = 11

Path_ = str | os.PathLike[str]
Examples = Path_ | Probe
Mismatch = Literal["error", "skip"]


def preflight(
    old: Stateful,
    tuned: Stateful,
    new: Stateful,
    *,
    examples: Examples | None = None,
    loss: Evaluate | None = None,
    scale: float | None = None,
    scales: Sequence[float] = SCALES,
    points: int = POINTS,
    resize_vocab: ResizeVocab = "zero",
    short: Stateful | None = None,
    progress: Progress | None = None,
) -> Compatibility:
    """Say whether the difference tuned − old may be added to new, and why; nothing is written.

    Parameters
    ----------
    old, tuned, new : path, Checkpoint, module or mapping of str to Tensor
        The old base, its fine-tune, and the new base.
    examples : path or Probe, optional
        Texts (``.txt``, ``.jsonl``) that the models, then Hugging Face's, are tried out on, one half to choose by and one
        half held out; or how else to try them out.
    loss : callable, optional
        Weights by name to a loss (lower is better) or an `Evaluation`; in place of examples.
    scale : float, optional
        The factor of the difference. None: 1, or with examples the best of ``scales``.
    scales : sequence of float
        What is tried then.
    points : int
        Points of the path between the fine-tune and the result on which the loss is taken, ends included.
    resize_vocab : {"zero", "refuse"}
        Whether missing rows of a vocabulary count as zeros, or are a problem.
    short : as new, optional
        A short fine-tune of the new base on the same task: the cosine of its difference tells much.
    progress : callable, optional
        ``progress(stage, done, total)``.

    Returns
    -------
    Compatibility
        The verdict with its reasons, and all that was measured.

    Raises
    ------
    CheckpointError
        A checkpoint is malformed, or a weight is NaN or infinite.
    DataError, MissingExtra
        The examples are malformed; transformers is not installed.

    Notes
    -----
    The statistics are streamed: no model is held in memory, but the one that examples are tried out on.

    Examples
    --------
    >>> import torch
    >>> old = {"w": torch.tensor([[1.0, -2.0], [3.0, 4.0]])}
    >>> tuned = {"w": old["w"] + torch.tensor([[0.0, 0.0], [1.0, 0.0]])}
    >>> new = {"w": old["w"] + torch.tensor([[0.0, 0.25], [0.0, 0.0]])}
    >>> preflight(old, tuned, new).verdict
    'go'
    """
    with _opened(old, tuned, new, short) as (sides, fourth):
        pairing = pair(*sides, resize_vocab)
        return _judged(pairing, sides, fourth, _Trial(examples, loss, scale, scales, points), progress)


def transfer(
    old: Stateful,
    tuned: Path_,
    new: Path_,
    out: Path_ | None,
    *,
    scale: float | None = None,
    method: str = "auto",
    on_mismatch: Mismatch = "error",
    resize_vocab: ResizeVocab = "zero",
    examples: Examples | None = None,
    loss: Evaluate | None = None,
    scales: Sequence[float] = SCALES,
    points: int = POINTS,
    short: Stateful | None = None,
    preserve: Preserve = "none",
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RebaseReport:
    """Carry a fine-tune over to another version of its base: new + scale · (tuned − old), with a pre-flight.

    Parameters
    ----------
    old, tuned, new : path
        The old base, its fine-tune, the new base: folders of safetensors files, or such files. To carry a fine-tune of
        the newer base back to the older one, swap the bases.
    out : path or None
        The folder to make, or a file if it ends in ``.safetensors``. None: nothing is written (a dry run).
    scale : float, optional
        λ. None: 1, or with examples the best of ``scales``.
    method : {"auto", "diff"}
        "auto" writes nothing where the verdict is "dont"; "diff" writes in any case.
    on_mismatch : {"error", "skip"}
        What is done where the models' names, shapes or ties differ: an error, or only what fits is carried over, into
        the new base with its own configuration.
    preserve : {"none", "stochastic", "residual"}
        Rounding to nearest; so that small updates survive in expectation; or to nearest with the exact rest beside it.
    seed : int
        Of stochastic rounding.
    threads : int, optional
        Worker threads for digests; the result does not depend on it.
    examples, loss, scales, points, resize_vocab, short, progress
        As in `preflight`.

    Returns
    -------
    RebaseReport
        The verdict, what was carried over and what not, and what survived the rounding.

    Raises
    ------
    CheckpointError
        A checkpoint is malformed; names, shapes or ties differ; weights are quantised, NaN or infinite.
    BaseMismatch
        The fine-tune's lineage names another base than ``old``.
    TargetExists, SourceChanged, OSError
        Something stands at ``out``; a file changes meanwhile, or cannot be read or written. Nothing is left at ``out``.

    Notes
    -----
    Differences and sums are float32, rounded once to the new base's dtype. Memory: a few tiles; with a residual one
    tensor. The bytes do not depend on threads or on where the models lie. Lin et al. 2025 (arXiv 2503.20110). Differs
    from the paper: integers, buffers and tensors that the fine-tune alone has are taken over as they are; configuration
    keys that the fine-tune has as the old base had them are the new base's.
    """
    if method not in METHODS:
        raise ValueError(f"transfer: method must be one of {', '.join(METHODS)}, got {method!r}")
    if on_mismatch not in ("error", "skip"):
        raise ValueError(f"transfer: on_mismatch must be 'error' or 'skip', got {on_mismatch!r}")
    if preserve not in ("none", "stochastic", "residual"):
        raise ValueError(f"transfer: preserve must be 'none', 'stochastic' or 'residual', got {preserve!r}")
    _check_target(out)
    with _opened(old, tuned, new, short) as (sides, fourth):
        pairing = pair(*sides, resize_vocab)
        pairing.check(skip=on_mismatch == "skip", file=sides[1].what)
        found = _judged(pairing, sides, fourth, _Trial(examples, loss, scale, scales, points), progress)
        factor = scale if scale is not None else found.evidence.scale if found.evidence else 1.0
        report = RebaseReport(
            out=None,
            old=sides[0].what,
            tuned=sides[1].what,
            new=sides[2].what,
            method=METHODS[method].does,
            scale=factor,
            compatibility=found,
            preserve=preserve,
        )
        frame = sides[1] if pairing.frame == "tuned" else sides[2]
        config, report.config_changes = _config(pairing, sides)
        if out is None or (METHODS[method].obeys and found.verdict == "dont"):
            return report
        _write(Path(out), report, sides, frame, config, seed, threads or default_threads(), progress)
    return report


def transfer_state(
    old: Stateful,
    tuned: Stateful,
    new: Stateful,
    *,
    scale: float = 1.0,
    on_mismatch: Mismatch = "error",
    resize_vocab: ResizeVocab = "zero",
) -> dict[str, Tensor]:
    """`transfer` in memory: the tensors of the result, by name, without a verdict.

    Examples
    --------
    >>> import torch
    >>> old, tuned, new = ({"w": torch.tensor([x])} for x in (1.0, 1.5, 2.0))
    >>> transfer_state(old, tuned, new, scale=0.5)["w"].item()
    2.25
    """
    with _opened(old, tuned, new, None) as (sides, _):
        pairing = pair(*sides, resize_vocab)
        pairing.check(skip=on_mismatch == "skip", file=sides[1].what)
        measure_pairing(pairing, *sides)  # refuses what is not finite
        with Candidate(pairing, *sides) as candidate:
            candidate.put_result(scale)
            return dict(candidate.weights)


@dataclass(frozen=True)
class _Trial:
    """What is to be tried out on examples."""

    examples: Examples | None
    loss: Evaluate | None
    scale: float | None
    scales: Sequence[float]
    points: int

    def __post_init__(self) -> None:
        if self.examples is not None and self.loss is not None:
            raise ValueError("give examples or a loss, not both")
        if self.points < 2:
            raise ValueError(f"points must be at least 2, the ends, got {self.points}")
        for scale in (*self.scales, *(() if self.scale is None else (self.scale,))):
            if not abs(scale) < 1e6:
                raise ValueError(f"a scale must be a finite number, got {scale}")

    def evidence(self, pairing: Pairing, sides: tuple[Side, Side, Side]) -> Evidence | None:
        probe = self._probe(sides)
        if probe is None or not pairing.differences:
            return None
        if pairing.frame == "new":  # old and tuned are models of another kind: there is no gain to compare
            pairing.notes.append(
                "nothing was tried out on examples: the fine-tune does not fit the new base as a whole"
            )
            return None
        scales = tuple(self.scales) if self.scale is None and self.scales else (self.scale or 0.0,)
        with Candidate(pairing, *sides, live=probe.live) as candidate:
            return gather_evidence(candidate, probe, scales=scales, points=self.points)

    def _probe(self, sides: tuple[Side, Side, Side]) -> Probe | None:
        if self.loss is not None:
            return Probe(self.loss)
        if self.examples is None or isinstance(self.examples, Probe):
            return self.examples
        from graftwork.rebase.examples import probe_of_examples

        checkpoint = sides[1].checkpoint
        if checkpoint is None:
            raise CheckpointError(
                "examples in a file are tried out on a Hugging Face folder",
                got="tensors in memory",
                wanted="the fine-tune's folder",
                remedy="pass loss=, a function of the weights",
            )
        return probe_of_examples(checkpoint.path, Path(self.examples))


def _judged(
    pairing: Pairing,
    sides: tuple[Side, Side, Side],
    short: Side | None,
    trial: _Trial,
    progress: Progress | None,
) -> Compatibility:
    statistics = measure_pairing(pairing, *sides, short, progress)
    return judge(pairing, statistics, trial.evidence(pairing, sides))


@contextmanager
def _opened(
    old: Stateful, tuned: Stateful, new: Stateful, short: Stateful | None
) -> Iterator[tuple[tuple[Side, Side, Side], Side | None]]:
    with ExitStack() as stack:
        given = (old, "old"), (tuned, "tuned"), (new, "new")
        first, second, third = (stack.enter_context(open_side(*one)) for one in given)
        fourth = None if short is None else stack.enter_context(open_side(short, "short"))
        yield (first, second, third), fourth


def _check_target(out: Path_ | None) -> None:
    """A target that is taken is better known before an hour's work than after."""
    if out is None:
        return
    path = Path(out)
    empty = path.is_dir() and not path.is_symlink() and next(path.iterdir(), None) is None
    if (path.exists() or path.is_symlink()) and not empty:
        raise TargetExists("the target exists already", file=path, remedy="choose another path, or remove it")


def _config(pairing: Pairing, sides: tuple[Side, Side, Side]) -> tuple[dict[str, Any] | None, list[str]]:
    if pairing.frame == "tuned":
        return merged_config(*sides)
    return dict(sides[2].config) or None, []


def _write(
    out: Path,
    report: RebaseReport,
    sides: tuple[Side, Side, Side],
    frame: Side,
    config: Mapping[str, Any] | None,
    seed: int,
    threads: int,
    progress: Progress | None,
) -> None:
    if frame.checkpoint is None:
        raise TypeError("transfer writes files and needs paths; transfer_state works in memory")
    before = read_lineage(sides[1].checkpoint) if sides[1].checkpoint else None
    digests = [digest_of(side, threads) for side in sides]
    check_old(before, digests[0], sides[0], sides[1])
    models = [
        {"role": side.role, "name": side.name, "digest": digest}
        for side, digest in zip(sides, digests, strict=True)
    ]
    settings = {"method": report.method, "scale": report.scale, "preserve": report.preserve}
    if report.preserve == "stochastic":
        settings["seed"] = seed
    base = {key: models[2][key] for key in ("name", "digest")}
    report.lineage = lineage_of(settings | {"verdict": report.verdict}, base, models, before)
    writer = Writer(*sides, report.scale, report.preserve, seed, report.survival)  # type: ignore[arg-type]
    write_result(
        out, report.compatibility.pairing, writer, frame.checkpoint,
        config=config, lineage=report.lineage, progress=progress,
    )  # fmt: skip
    report.out = out
