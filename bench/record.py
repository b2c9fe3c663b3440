"""Benchmark records: one row per operation, implementation, case, shape and dtype; a JSON file per stem."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine
from bench.measure import MIN_REPEATS, Job, Timing, alternate

SCHEMA = 1
RESULTS = machine.ROOT / "bench" / "results"
SCRATCH = machine.ROOT / "build" / "bench"  # git ignores it: what may not be published is written here


@dataclass(frozen=True)
class Options:
    """What the command line asks of a stem."""

    quick: bool = False
    device: str = "cpu"
    workdir: Path | None = None


@dataclass
class Run:
    """One implementation at one thread count (or on one GPU): seconds, and the peak measured beside it."""

    seconds: Timing
    bytes_per_second: float | None = None
    peak_bytes_per_second: float | None = None
    roofline_fraction: float | None = None


@dataclass
class Row:
    """One record. ``runs`` maps a thread count (``"1"``, ``"2"``) or ``"cuda"`` to its figures."""

    operation: str
    implementation: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    case: str = ""
    bytes: int = 0
    flops: int = 0
    version: str = ""
    status: str = "measured"
    runs: dict[str, Run] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add_run(self, label: str, timing: Timing, peak: Timing | None = None) -> None:
        """Add a run; ``peak`` is the timing of the probe that moved the row's bytes with the same threads."""
        run = Run(timing)
        if self.bytes:
            run.bytes_per_second = self.bytes / timing.median
        if self.bytes and peak is not None:
            run.peak_bytes_per_second = self.bytes / peak.median
            run.roofline_fraction = peak.median / timing.median
        self.runs[label] = run


class Contest:
    """Implementations that are timed in turn, each call for one run of one row."""

    def __init__(self) -> None:
        self._entries: list[tuple[Row, str, Job, Sequence[Job]]] = []

    def add(self, row: Row, label: str, job: Job, probes: Sequence[Job] = ()) -> None:
        """Enter ``job`` as the run ``label`` of ``row``; the fastest of the probes is the peak it is held against."""
        self._entries.append((row, label, job, probes))

    def run(self, *, rounds: int, budget: float, min_repeats: int = MIN_REPEATS) -> list[Row]:
        """Time everything (see `alternate`) and return the rows with their runs."""
        jobs = {id(job): job for _, _, job, probes in self._entries for job in (*probes, job)}
        alternate(jobs.values(), rounds=rounds, budget=budget, min_repeats=min_repeats)
        for row, label, job, probes in self._entries:
            peak = min((probe.timing for probe in probes), key=lambda timing: timing.median, default=None)
            row.add_run(label, job.timing, peak)
        return list({id(row): row for row, *_ in self._entries}.values())


@dataclass(frozen=True)
class Target:
    """A stated limit, upper or (``at_least``) lower, and what was measured against it."""

    name: str
    got: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.got >= self.limit if self.at_least else self.got <= self.limit


@dataclass
class Measurement:
    """What a stem hands back. ``notes`` say in words what a reader must know to compare the rows."""

    rows: list[Row]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def document(
    stem: str, taken: Measurement, options: Options, canaries: list[dict[str, Any] | None]
) -> dict[str, Any]:
    """The JSON document of one run of a stem."""
    revision, dirty = machine.commit()
    return {
        "schema": SCHEMA,
        "stem": stem,
        "void": any(machine.is_busy(reading) for reading in canaries),
        "quick": options.quick,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": revision,
        "dirty": dirty,
        "machine": machine.describe(options.device),
        "canaries": canaries,
        "notes": taken.notes,
        "targets": [{**dataclasses.asdict(target), "met": target.met} for target in taken.targets],
        "failures": taken.failures,
        "records": [dataclasses.asdict(row) for row in taken.rows],
    }


def write(found: dict[str, Any], results: Path) -> Path:
    """Write the document as ``<results>/<machine>/<stem>.json`` and return the path."""
    path = results / machine.slug(found["machine"]) / f"{found['stem']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, default=float) + "\n", encoding="utf-8")
    return path


def read_all(stem: str, results: Path = RESULTS) -> list[dict[str, Any]]:
    """The stem's publishable documents of every machine, in the order of the machines' folder names."""
    paths = sorted(results.glob(f"*/{stem}.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return [
        entry for entry in found if entry["schema"] == SCHEMA and not entry["void"] and not entry["quick"]
    ]
