"""What importing graftwork and starting its command cost, and that they load nothing they do not need."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.checkpoints import work_folder, write_small_pair
from bench.machine import ROOT
from bench.measure import Timing
from bench.record import Measurement, Options, Row, Target

TESTS = ("tests/cli",)
LIMIT_MS = 100.0
NOTES = [
    "each sample is a fresh interpreter, the kinds in turn; imports are timed inside it, commands from outside",
    "list reads a store of one entry",
]
TIMED_IMPORT = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import graftwork
print(middle - start, time.perf_counter() - middle)
"""
COMMAND = "import sys; from graftwork.cli import main; sys.exit(main())"
LOADED = """
import json, sys
try:
    {statement}
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
JOBS = ("store", "delta", "checkpoint", "ops", "reference", "report", "recipe", "cli", "triton_kernels")
FORBIDDEN = {
    "import graftwork": (
        "triton",
        "graftwork._core",
        "graftwork._cuda",
        *(f"graftwork.{job}" for job in JOBS),
    ),
    "graftwork --help": ("torch", "triton", "graftwork._core", "graftwork._cuda"),
    "graftwork list": ("torch", "triton", "graftwork._core", "graftwork._cuda"),
}


def measure(options: Options) -> Measurement:
    """Time the imports and the commands that import no torch, and check what they load."""
    repeats = 3 if options.quick else 15
    with work_folder(options.workdir) as folder:
        store = _make_store(folder)
        calls = {
            "import graftwork": [],
            "graftwork --help": ["--help"],
            "graftwork list": ["list", str(store)],
        }
        seconds: dict[str, list[float]] = {"import torch": [], **{name: [] for name in calls}}
        for _ in range(repeats):
            torch_seconds, ours = map(float, _python(TIMED_IMPORT).stdout.split())
            seconds["import torch"].append(torch_seconds)
            seconds["import graftwork"].append(ours)
            for name in list(calls)[1:]:
                seconds[name].append(_timed(lambda arguments=calls[name]: _python(COMMAND, *arguments)))
        failures = [
            problem for name, arguments in calls.items() for problem in _needless_modules(name, arguments)
        ]
    taken = Measurement([], notes=NOTES, failures=failures)
    for name, samples in seconds.items():
        row = Row(name, "torch" if name == "import torch" else "graftwork")
        row.add_run("1", Timing.of(samples))
        taken.rows.append(row)
    beyond = 1000 * Timing.of(seconds["import graftwork"]).median
    taken.targets.append(Target("import graftwork beyond import torch", beyond, LIMIT_MS, "ms"))
    return taken


def _make_store(folder: Path) -> Path:
    """A store of one small entry, packed in a process of its own."""
    base, tuned = write_small_pair(folder)
    _python(COMMAND, "pack", str(base), str(tuned), "-o", str(folder / "store"))
    return folder / "store"


def _needless_modules(name: str, arguments: list[str]) -> list[str]:
    """What the call loads of that which it must not load."""
    statement = COMMAND.replace("; ", "\n    ") if arguments else "import graftwork"
    loaded = json.loads(_python(LOADED.format(statement=statement), *arguments).stderr.splitlines()[-1])
    return [f"{name} loads {module}" for module in FORBIDDEN[name] if module in loaded]


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
