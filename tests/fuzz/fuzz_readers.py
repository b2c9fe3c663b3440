"""Fuzzes one Python reader, or all of them in turn, with libFuzzer's options.

    python -m tests.fuzz.fuzz_readers TARGET [-seed=N] [-runs=N] [-max_total_time=S] [-artifact_prefix=P] [PATH...]

``TARGET`` is a key of ``readers.TARGETS`` or ``all``. With atheris the run is guided by coverage and keeps what it
finds in the first folder; without it (or with ``GRAFTWORK_FUZZER=standalone``) a seeded loop mutates the start inputs.
Paths that are files are read once each. Memory is bounded, so that a size which is believed before it is checked shows.
"""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HEADROOM_BYTES = (
    512 << 20
)  # beyond what is mapped after the start inputs: 500 times the largest expanded input
SECONDS_AN_INPUT = 30
INSTRUMENTED = ("graftwork", "yaml")


def main(arguments: Sequence[str]) -> int:
    """Run the target; 0 unless an input made it fail."""
    name, *rest = arguments
    options = dict(entry[1:].split("=", 1) for entry in rest if entry.startswith("-"))
    paths = [Path(entry) for entry in rest if not entry.startswith("-")]
    guided = (
        os.environ.get("GRAFTWORK_FUZZER") != "standalone" and importlib.util.find_spec("atheris") is not None
    )
    if guided:
        import atheris

        # An editable install has loaders of its own, into which atheris cannot look. They have given the package
        # its folders when it is imported; the interpreter's own finders do the rest.
        importlib.import_module("graftwork")
        sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
        with atheris.instrument_imports(include=list(INSTRUMENTED), enable_loader_override=False):
            read, inputs, max_len = _target(name)
    else:
        read, inputs, max_len = _target(name)
    for data in inputs:  # also loads what is imported late, before memory is bounded
        read(data)
    files = [path for path in paths if path.is_file()]
    if files:
        for path in files:
            read(path.read_bytes())
        print(f"stat::number_of_executed_units: {len(files)}", file=sys.stderr)
        return 0
    _bound_memory()
    if guided:
        _run_guided(read, inputs, max_len, options, paths)  # ends the process
    return _run_loop(read, inputs, max_len, options)


def _target(name: str) -> tuple[Callable[[bytes], bool], list[bytes], int]:
    from tests.fuzz import reader_seeds, readers

    if name != "all":
        target = readers.TARGETS[name]
        return target.read, reader_seeds.start_inputs(name), target.max_len
    inputs = [
        bytes([number]) + data
        for number, each in enumerate(readers.TARGETS)
        for data in reader_seeds.start_inputs(each)
    ]
    return readers.read_any, inputs, 1 + max(target.max_len for target in readers.TARGETS.values())


def _bound_memory() -> None:
    """Allow HEADROOM_BYTES beyond what is mapped now: a larger allocation is a MemoryError."""
    table = Path("/proc/self/statm")
    if table.exists():
        mapped = int(table.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + HEADROOM_BYTES, mapped + HEADROOM_BYTES))


def _run_guided(
    read: Callable[[bytes], bool],
    inputs: list[bytes],
    max_len: int,
    options: dict[str, str],
    paths: list[Path],
) -> None:
    import atheris

    from tests.fuzz.mutation import json_mutated
    from tests.fuzz.reader_seeds import token_bytes

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        pick = random.Random(seed)
        changed = json_mutated(data, pick) if pick.random() < 0.5 else None
        return atheris.Mutate(data, max_size) if changed is None else changed[:max_size]

    with tempfile.TemporaryDirectory(prefix="graftwork-fuzz-") as name:
        folder = Path(name)
        (folder / "start").mkdir()
        for number, data in enumerate(inputs):
            (folder / "start" / f"{number:03d}").write_bytes(data)
        escaped = ("".join(f"\\x{byte:02x}" for byte in token) for token in token_bytes())
        (folder / "tokens.dict").write_text("".join(f'"{token}"\n' for token in escaped if len(token) < 512))
        given = {
            "max_len": max_len,
            "len_control": 0,
            "timeout": SECONDS_AN_INPUT,
            "dict": folder / "tokens.dict",
            **options,
        }
        command = [sys.argv[0], *(f"-{key}={value}" for key, value in given.items())]
        atheris.Setup(
            [*command, *map(str, paths or [folder / "found"]), str(folder / "start")],
            lambda data: read(data) and None,
            custom_mutator=mutate,
        )
        (folder / "found").mkdir()
        atheris.Fuzz()


def _run_loop(
    read: Callable[[bytes], bool], inputs: list[bytes], max_len: int, options: dict[str, str]
) -> int:
    from tests.fuzz.mutation import Mutator
    from tests.fuzz.reader_seeds import token_bytes

    mutator = Mutator(inputs, token_bytes(), int(options.get("seed", "1")), max_len)
    runs = int(options.get("runs", "-1"))
    start = time.monotonic()
    end = start + float(options.get("max_total_time", "inf"))
    current = Path(options.get("artifact_prefix", "./") + "crash-current")
    executions = 0
    while executions != runs and time.monotonic() < end:
        data = mutator.next()
        current.write_bytes(data)  # before the run: nothing of ours runs after a hang or a crash
        signal.alarm(SECONDS_AN_INPUT)  # not handled: it ends the process, whatever holds the interpreter
        try:
            read(data)
        finally:
            signal.alarm(0)
        executions += 1
    current.unlink(missing_ok=True)
    print(f"#{executions} DONE corp: {len(inputs)}", file=sys.stderr)
    print(f"Done {executions} runs in {time.monotonic() - start:.0f} second(s)", file=sys.stderr)
    print(f"stat::number_of_executed_units: {executions}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
