"""``python -m bench.run STEM``: tests first, then ours, the reference and the peers in turn, then one record.

A red test means no numbers. A canary (one torch operation at 2 threads against 1) runs before and after; when
2 threads are the slower, a neighbour is busy and the record is void. Only a full run with green tests and quiet
canaries is written to ``bench/results``; anything else goes to ``build/bench``, which git ignores.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench import machine, record

STEMS = (
    "imports",
    "memory",
    "lossless_delta",
    "entropy_delta",
    "sparse_update",
    "sparse_finetuning",
    "cross_lingual",
    "rebase",
    "store",
    "skill_pack",
    "sync",
)
BUSY = "busy neighbour: 2 threads are slower than 1 right now, so the record is void; run again later"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stems that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.split("\n")[0])
    parser.add_argument("stems", nargs="*", metavar="STEM", help=f"all, or any of: {', '.join(STEMS)}")
    parser.add_argument("--list", action="store_true", help="print the stems and stop")
    parser.add_argument("--quick", action="store_true", help="small sizes; no record in bench/results")
    parser.add_argument("--no-tests", action="store_true", help="skip the tests; no record in bench/results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the operations run")
    parser.add_argument("--workdir", type=Path, help="folder for work files (default: the stem's choice)")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the records")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(STEMS))
        return 0
    stems = STEMS if given.stems == ["all"] else tuple(given.stems)
    unknown = [stem for stem in stems if stem not in STEMS]
    if unknown or not stems:
        problem = f"no stem {unknown[0]!r}" if unknown else "no stem given"
        parser.error(f"{problem}; there are all, {', '.join(STEMS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here")
    options = record.Options(given.quick, given.device, given.workdir)
    return max(run_stem(stem, options, tests=not given.no_tests, results=given.results) for stem in stems)


def run_stem(stem: str, options: record.Options, *, tests: bool, results: Path) -> int:
    """Test, measure and record one stem; returns 0, or 1 when there is nothing to publish that should be."""
    module = importlib.import_module(f"bench.{stem}")
    if tests and not tests_pass(module.TESTS):
        print(f"{stem}: tests are red or missing, so there are no numbers", file=sys.stderr)
        return 1
    canaries = [_canary(options)]
    if machine.is_busy(canaries[0]) and not options.quick:
        print(f"{stem}: {BUSY}", file=sys.stderr)
        return 1
    taken: record.Measurement = module.measure(options)
    canaries.append(_canary(options))
    found = record.document(stem, taken, options, canaries)
    publishable = tests and not (options.quick or found["void"] or taken.failures)
    path = record.write(found, results if publishable else record.SCRATCH)
    _print(found)
    print(f"{stem}: {'recorded in' if publishable else 'not for publication, written to'} {path}")
    for failure in taken.failures:
        print(f"{stem}: FAILED: {failure}", file=sys.stderr)
    if found["void"]:
        print(f"{stem}: {BUSY}", file=sys.stderr)
    return int(found["void"] or bool(taken.failures))


def tests_pass(paths: Sequence[str]) -> bool:
    """Whether the tests at ``paths`` exist and pass; each path is run once a process."""
    return all(_path_passes(path) for path in paths)


@cache
def _path_passes(path: str) -> bool:
    if not (machine.ROOT / path).exists():
        print(f"there is no {path}", file=sys.stderr)
        return False
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", path]
    return subprocess.run(command, cwd=machine.ROOT, check=False).returncode == 0


def _canary(options: record.Options) -> dict[str, Any] | None:
    return machine.canary() if options.device == "cpu" else None


def _print(found: dict[str, Any]) -> None:
    print(f"\n{found['stem']} on {', '.join(f'{key} {value}' for key, value in found['machine'].items())}")
    for row in found["records"]:
        name = " ".join(str(part) for part in (row["operation"], row["case"], row["dtype"]) if part)
        if row["shape"]:
            name += " " + "x".join(map(str, row["shape"]))
        cells = [_run_text(label, run) for label, run in row["runs"].items()]
        cells += [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row["facts"].items()
        ]
        if row["status"] != "measured":
            cells.append(row["status"])
        print(f"  {name:<58} {row['implementation']:<26} {' | '.join(cells)}")
    for target in found["targets"]:
        verdict, bound = "met" if target["met"] else "MISSED", "at least" if target["at_least"] else "at most"
        print(
            f"  {verdict}: {target['name']}: {target['got']:.4g} {target['unit']}, {bound} {target['limit']:g}"
        )


def _run_text(label: str, run: dict[str, Any]) -> str:
    text = f"[{label}] {run['seconds']['median'] * 1000:.4g} ms"
    if run["bytes_per_second"]:
        text += f", {run['bytes_per_second'] / 1e9:.3g} GB/s"
    if run["roofline_fraction"]:
        text += f", {run['roofline_fraction']:.0%} of peak"
    return text


if __name__ == "__main__":
    sys.exit(main())
