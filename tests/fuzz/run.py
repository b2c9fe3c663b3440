"""Runs fuzz targets for a while: ``python -m tests.fuzz.run [TARGET ...] [--seconds S] [--seed N]``.

What a run finds new is kept in ``build/fuzz/corpus`` and is where the next one begins; an input that makes a target
fail is kept in ``build/fuzz/failures``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import native_program

ROOT = native_program.ROOT
CORPUS = native_program.BUILD / "corpus"
FAILURES = native_program.BUILD / "failures"
REGRESSIONS = native_program.HERE / "regressions"
NATIVE = native_program.TARGETS
TEXTS = ("header", "index", "manifest", "root", "entry", "recipe")
"""Readers whose inputs may have repetitions."""
READERS = (*TEXTS, "delta_file", "delta_records", "decode_chunk", "sync", "sparse_form")
"""The keys of ``readers.TARGETS``, which takes torch to import."""
MAX_LEN = 4096
SECONDS_AN_INPUT = 60
START_SECONDS = 300  # what compiling, loading torch and one slow input may take beside the fuzzing


@dataclass(frozen=True)
class Result:
    """One run of one target; ``seconds`` are those of the fuzzing, without compiling and loading."""

    target: str
    driver: str
    executions: int
    seconds: float
    corpus: int
    coverage: int | None
    failures: tuple[Path, ...]
    output: str

    @property
    def ok(self) -> bool:
        return self.executions > 0 and not self.failures and "DONE" in self.output


def run(
    target: str, *, seconds: float, seed: int = 1, corpus: Path | None = None, failures: Path = FAILURES
) -> Result:
    """Fuzz one target (or ``all`` readers) and say what came of it.

    ``corpus`` is a folder to begin with and to add to; without one the run begins from the target's start inputs
    alone, and the seed and the time fix what it does.
    """
    failures.mkdir(parents=True, exist_ok=True)
    prefix = failures / f"{target}-"
    known = set(failures.glob(f"{target}-*"))
    options = [f"-seed={seed}", f"-max_total_time={round(seconds)}", f"-artifact_prefix={prefix}"]
    options.append("-print_final_stats=1")
    if target in NATIVE:
        driver = native_program.toolchain().name
        command = [
            str(native_program.build(target)),
            *options,
            f"-max_len={MAX_LEN}",
            f"-timeout={SECONDS_AN_INPUT}",
        ]
        if driver == "libfuzzer":
            command += ["-len_control=0", "-entropic_scale_per_exec_time=1"]
        command += _start_folders(target, corpus)
        environment = native_program.environment()
    else:
        driver = "atheris" if is_guided() else "standalone"
        command = [sys.executable, "-m", "tests.fuzz.fuzz_readers", target, *options]
        command += _start_folders(target, corpus)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
    start = time.monotonic()
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace",
        timeout=seconds + START_SECONDS,
    )  # fmt: skip
    output = ended.stdout + ended.stderr
    found = set(failures.glob(f"{target}-*")) - known
    slow = {path for path in found if "slow-unit" in path.name}  # a remark of libFuzzer's, no failure
    if ended.returncode and not found - slow:
        found |= {_kept(prefix, output)}
    return _result(target, driver, output, time.monotonic() - start, corpus, tuple(sorted(found - slow)))


def is_guided() -> bool:
    """Whether the readers' runs are guided by coverage."""
    return (
        os.environ.get("GRAFTWORK_FUZZER") != "standalone" and importlib.util.find_spec("atheris") is not None
    )


def _start_folders(target: str, corpus: Path | None) -> list[str]:
    """Folders of start inputs. A fuzzer adds to the first, which must not be the one that git knows."""
    if corpus is None:
        return []
    corpus.mkdir(parents=True, exist_ok=True)
    folders = [corpus, REGRESSIONS / target]
    return [str(folder) for folder in folders if folder.is_dir()]


def _kept(prefix: Path, output: str) -> Path:
    """A file with the output of a run that failed without an input to show for it."""
    path = Path(f"{prefix}output.txt")
    path.write_text(output)
    return path


def _result(
    target: str, driver: str, output: str, seconds: float, corpus: Path | None, failures: tuple[Path, ...]
) -> Result:
    fuzzed = re.findall(r"^Done \d+ runs in (\d+) second", output, re.MULTILINE)
    executions = re.findall(r"stat::number_of_executed_units: *(\d+)", output)
    coverage = re.findall(r"DONE +cov: (\d+)", output)
    size = re.findall(r"DONE .*corp: (\d+)", output)
    if corpus is not None and corpus.is_dir():
        size = [str(sum(1 for _ in corpus.iterdir()))]
    return Result(
        target,
        driver,
        int(executions[-1]) if executions else 0,
        max(1.0, float(fuzzed[-1])) if fuzzed else seconds,
        int(size[-1]) if size else 0,
        int(coverage[-1]) if coverage else None,
        failures,
        output,
    )


def main(arguments: list[str] | None = None) -> int:
    """Give every target its share of the time; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join((*NATIVE, *READERS))}; all"
    )
    parser.add_argument("--seconds", type=float, default=600, help="time in all, shared by the targets")
    parser.add_argument("--seed", type=int, default=int(time.time()) & 0xFFFF, help="fixes the mutations")
    given = parser.parse_args(arguments)
    targets = given.targets or [*NATIVE, *READERS]
    if unknown := set(targets) - {*NATIVE, *READERS}:
        parser.error(f"unknown target {', '.join(sorted(unknown))}")
    failed = False
    for target in targets:
        result = run(
            target,
            seconds=given.seconds / len(targets),
            seed=given.seed,
            corpus=CORPUS / target,
            failures=FAILURES,
        )
        failed |= not result.ok
        print(summary(result), flush=True)
    return int(failed)


def summary(result: Result) -> str:
    """One line, and for a failure the inputs and the end of the output."""
    covered = "" if result.coverage is None else f", {result.coverage} places reached"
    line = f"{result.target} ({result.driver}): {result.executions} inputs in {result.seconds:.0f} s, "
    line += f"{result.corpus} kept{covered}"
    if result.ok:
        return line
    kept = "\n".join(f"  {path}" for path in result.failures)
    told = [row for row in result.output.splitlines() if not _PROGRESS.match(row)]
    return "\n".join([line, "FAILED with", kept, *told])[-8000:]


_PROGRESS = re.compile(r"#\d+\s+(NEW|REDUCE|pulse|RELOAD|INITED)|INFO: |\s+NEW_FUNC|WARNING: Failed to find")


if __name__ == "__main__":
    sys.exit(main())
