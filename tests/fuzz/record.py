"""Fuzzes until every target has had its share of ten million inputs, and records it in ``bench/results``.

    python -m tests.fuzz.record [--seconds S] [--executions N]

Progress is kept in ``build/fuzz/progress.json`` after every run of a target, so that this may be stopped and called
again; it begins anew when the sources that are fuzzed have changed. The record is written when all is done, or, with
what there is, when the time is up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench import record
from tests.fuzz import native_program, run

PROGRESS = native_program.BUILD / "progress.json"
#: Shares of the executions: what every target runs in about the same time, the slow decoders in twice that.
SHARES = {
    "ordinal_planes": 300,
    "ordinal_rans": 30,
    "sparse_delta": 30,
    "index_codec": 60,
    "header": 90,
    "index": 45,
    "manifest": 95,
    "root": 20,
    "entry": 120,
    "recipe": 8,
    "delta_file": 45,
    "delta_records": 120,
    "decode_chunk": 130,
    "sync": 40,
    "sparse_form": 30,
}
SLICE_SECONDS = 60
NOTES = [
    "executions are inputs run, of all runs of a target since its sources last changed; coverage is that of the last "
    "run: places in the code under test that were reached, as the driver counts them",
    "native targets run under AddressSanitizer and UndefinedBehaviorSanitizer, every ISA level on every input",
    "seconds are those of the fuzzing, without compiling and loading",
]


def main(arguments: list[str] | None = None) -> int:
    """Run, record; 0 if every target had its share and none failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.record", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--seconds", type=float, default=3000, help="stop after about this time and record what there is"
    )
    parser.add_argument(
        "--executions", type=int, default=10_000_000, help="inputs to run in all, all calls together"
    )
    parser.add_argument("--slice", type=float, default=SLICE_SECONDS, help="seconds of one run of one target")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the records")
    given = parser.parse_args(arguments)
    wanted = {
        target: -(-given.executions * share // sum(SHARES.values())) for target, share in SHARES.items()
    }
    end = time.monotonic() + given.seconds
    progress = read_progress()
    while open_targets(progress, wanted) and time.monotonic() < end:
        for target in open_targets(progress, wanted):
            if time.monotonic() >= end:
                break
            seed = progress.get(target, {}).get("runs", 0) + 1
            result = run.run(target, seconds=given.slice, seed=seed, corpus=run.CORPUS / target)
            print(run.summary(result), flush=True)
            add(progress, result)
            write_progress(progress)
    found = record.document("fuzz", measurement(progress, wanted), record.Options(), [])
    print(f"recorded in {record.write(found, given.results)}")
    return int(not all(target["met"] for target in found["targets"]))


def open_targets(progress: dict[str, Any], wanted: dict[str, int]) -> list[str]:
    """The targets whose share is not yet done; one that fails is not run again."""
    rows = {target: progress.get(target, {"executions": 0, "failures": []}) for target in wanted}
    return [
        target for target, row in rows.items() if row["executions"] < wanted[target] and not row["failures"]
    ]


def add(progress: dict[str, Any], result: run.Result) -> None:
    """Add a run of a target to what is known of it."""
    row = progress.setdefault(result.target, {"executions": 0, "seconds": 0.0, "runs": 0, "failures": []})
    row["executions"] += result.executions
    row["seconds"] += result.seconds
    row["runs"] += 1
    row |= {"driver": result.driver, "corpus": result.corpus, "coverage": result.coverage}
    row["failures"] += [path.name for path in result.failures] or ([] if result.ok else ["no end"])


def measurement(progress: dict[str, Any], wanted: dict[str, int]) -> record.Measurement:
    """The record's rows, and whether all is done."""
    rows = []
    for target, row in progress.items():
        facts = {**row, "executions_per_second": row["executions"] / max(row["seconds"], 1e-9)}
        rows.append(record.Row(target, row["driver"], facts=facts))
    missing = sum(
        max(0, share - progress.get(target, {}).get("executions", 0)) for target, share in wanted.items()
    )
    failures = [f"{target}: {name}" for target, row in progress.items() for name in row["failures"]]
    goals = [
        record.Target("inputs not yet run", missing, 0, "inputs"),
        record.Target("failures", len(failures), 0, "inputs"),
    ]
    return record.Measurement(rows, goals, NOTES, failures)


def read_progress() -> dict[str, Any]:
    """What earlier calls did with the sources as they are now."""
    if not PROGRESS.exists():
        return {}
    known: dict[str, Any] = json.loads(PROGRESS.read_text())
    targets: dict[str, Any] = known["targets"]
    return targets if known["sources"] == sources_digest() else {}


def write_progress(targets: dict[str, Any]) -> None:
    """Keep it for the next call."""
    PROGRESS.parent.mkdir(parents=True, exist_ok=True)
    partial = PROGRESS.with_suffix(".partial")
    partial.write_text(json.dumps({"sources": sources_digest(), "targets": targets}, indent=1) + "\n")
    partial.replace(PROGRESS)


def sources_digest() -> str:
    """Changes with the code that is fuzzed and with the targets."""
    folders = (native_program.CORE, run.ROOT / "python" / "graftwork", native_program.HERE)
    suffixes = (".py", ".h", ".cpp", ".inl")
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(run.ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
