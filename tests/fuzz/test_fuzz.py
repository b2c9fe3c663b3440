"""A seeded minute of fuzzing, what earlier runs found, and whether a run would find anything at all."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import fuzz_readers, mutation, native_program, reader_seeds, readers, record, run
from tests.fuzz.delta_inputs import delta_of, with_checksums

NATIVE_SECONDS, READER_SECONDS = 13, 20  # a minute in all
TIME_BYTES = 1 << 23
TOOLCHAINS = [
    pytest.param(
        "libfuzzer",
        marks=pytest.mark.skipif(not native_program.has_libfuzzer(), reason="no clang with libFuzzer"),
    ),
    "standalone",
]


def regressions(targets: tuple[str, ...]) -> list[Path]:
    return [path for target in targets for path in sorted((run.REGRESSIONS / target).glob("*"))]


def in_folder(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


# ---- what is fuzzed


def test_every_target_is_run() -> None:
    assert set(run.READERS) == set(readers.TARGETS)
    sources = {path.stem for path in native_program.HERE.glob("*.cpp")} - {"standalone_main", "planted"}
    assert set(run.NATIVE) == sources
    assert set(record.SHARES) == {*run.NATIVE, *run.READERS}
    assert {path.name for path in run.REGRESSIONS.iterdir()} <= set(record.SHARES)


@pytest.mark.slow
@pytest.mark.parametrize("target", run.NATIVE)
def test_a_while_of_fuzzing_a_native_decoder_finds_nothing(target: str, tmp_path: Path) -> None:
    result = run.run(target, seconds=NATIVE_SECONDS, corpus=tmp_path)
    assert result.ok, run.summary(result)
    assert result.executions > 100


@pytest.mark.slow
def test_a_while_of_fuzzing_the_readers_finds_nothing() -> None:
    result = run.run("all", seconds=READER_SECONDS)
    assert result.ok, run.summary(result)
    assert result.executions > 100


@pytest.mark.parametrize("target", run.READERS)
def test_a_moment_of_mutations_finds_nothing(target: str) -> None:
    inputs, tokens = reader_seeds.start_inputs(target), reader_seeds.token_bytes()
    mutator = mutation.Mutator(inputs, tokens, seed=2, max_len=1024)
    for _ in range(40):
        readers.TARGETS[target].read(mutator.next())


# ---- what was found


@pytest.mark.parametrize("path", regressions(run.READERS), ids=in_folder)
def test_a_reader_takes_what_once_broke_it(path: Path) -> None:
    readers.TARGETS[path.parent.name].read(path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("target", run.NATIVE)
def test_a_decoder_takes_what_once_broke_it(target: str) -> None:
    program, paths = native_program.build(target), regressions((target,))
    command = [str(program), *map(str, paths)] if paths else [str(program), "-runs=1"]
    ended = subprocess.run(
        command, env=native_program.environment(), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_time_grows_with_the_size_alone() -> None:
    """Texts that repetitions make 8 MB long: whatever needs the square of that does not end before the time-out."""
    code = f"""
from tests.fuzz import reader_seeds, readers, run
readers.EXPANDED_BYTES = {TIME_BYTES}
for target in run.TEXTS:
    found = [path.read_bytes() for path in (run.REGRESSIONS / target).glob("*")]
    for data in reader_seeds.start_inputs(target) + found:
        readers.TARGETS[target].read(data)
"""
    environment = {**os.environ, "PYTHONPATH": str(run.ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr


# ---- whether anything would be found


@pytest.mark.parametrize("target", run.READERS)
def test_start_inputs_are_taken(target: str) -> None:
    """All but those whose repetitions or mistakes are the point: a run that begins with refusals goes nowhere."""
    taken = [readers.TARGETS[target].read(data) for data in reader_seeds.start_inputs(target)]
    assert sum(taken) >= len(taken) / 2


@pytest.mark.slow
@pytest.mark.parametrize("tools", TOOLCHAINS)
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("a", "SEGV|heap-buffer-overflow|BUS"),
        ("b", "use-after-poison"),
        ("c", "as planted"),
        ("d", "shift exponent 40"),
        ("e", "timeout|takes too long"),
    ],
)
def test_a_planted_mistake_is_reported(tools: str, mistake: str, message: str, tmp_path: Path) -> None:
    ended = planted(tools, tmp_path, "-timeout=2", write(tmp_path / "input", mistake))
    assert ended.returncode != 0
    assert any(word in ended.stderr for word in message.split("|")), ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tools", TOOLCHAINS)
def test_a_planted_mistake_is_found_and_its_input_kept(tools: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    ended = planted(tools, tmp_path, "-timeout=2", "-seed=1", "-max_total_time=60", str(corpus))
    assert ended.returncode != 0
    (kept,) = (path for path in tmp_path.iterdir() if path.name.startswith("found-"))
    assert kept.read_bytes()[:1] in b"abcde"


@pytest.mark.slow
def test_the_seed_fixes_a_run_of_the_standalone_driver(tmp_path: Path) -> None:
    outcomes = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        (tmp_path / name).mkdir()
        program = native_program.build("ordinal_planes", native_program.toolchain("standalone"))
        command = [str(program), f"-seed={seed}", "-runs=2000", str(tmp_path / name)]
        ended = subprocess.run(
            command, env=native_program.environment(), capture_output=True, text=True, timeout=300
        )
        assert "stat::number_of_executed_units: 2000" in ended.stderr
        outcomes.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert outcomes[0] == outcomes[1] != outcomes[2]
    assert len(outcomes[0]) > 5


def planted(tools: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = native_program.build("planted", native_program.toolchain(tools))
    command = [str(program), f"-artifact_prefix={folder}/found-", *arguments]
    return subprocess.run(
        command, env=native_program.environment(), capture_output=True, text=True, timeout=300
    )


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_failing_reader_fails_its_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loop stops with the error, and the input is on disk."""

    def read(data: bytes) -> bool:
        if len(data) > 40:
            raise KeyError("as planted")
        return True

    monkeypatch.setitem(readers.TARGETS, "recipe", readers.Target(read, 100))
    monkeypatch.setattr(reader_seeds, "start_inputs", lambda target: [b"{}"])
    monkeypatch.setattr(fuzz_readers, "_bound_memory", lambda: None)  # of this process
    monkeypatch.setenv("GRAFTWORK_FUZZER", "standalone")
    with pytest.raises(KeyError, match="as planted"):
        fuzz_readers.main(["recipe", "-runs=10000", f"-artifact_prefix={tmp_path}/"])
    assert len((tmp_path / "crash-current").read_bytes()) > 40


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is bounded where /proc says what is mapped"
)
def test_memory_is_bounded() -> None:
    code = "from tests.fuzz import fuzz_readers as f; f._bound_memory(); bytearray(100 << 20); bytearray(2 << 30)"
    environment = {**os.environ, "PYTHONPATH": str(run.ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr.strip().endswith("MemoryError")
    assert "bytearray(2 << 30)" in ended.stderr or "<module>" in ended.stderr


# ---- how inputs are made


def test_repetitions_are_written_out() -> None:
    assert readers.expanded(b"plain") == b"plain"
    assert readers.EXPANDED_BYTES == 1 << 18
    assert readers.expanded(b"ab\xff\x02\x0ec") == b"ab" + b"ab" * 8 + b"c"
    assert readers.expanded(b"ab\xff\x02\x0ec", share=4) == b"ab" + b"ab" * 2 + b"c"
    assert readers.expanded(b"xyz\xff\x01\x00") == b"xyz" + b"z" * (readers.EXPANDED_BYTES - 3)
    assert readers.expanded(b"ab\xff\x00\x05c\xff") == b"abc\xff"


def test_the_seed_fixes_the_mutations() -> None:
    def made(seed: int) -> list[bytes]:
        mutator = mutation.Mutator([b'{"a": [1, 2]}', b"bytes"], [b"null"], seed, 64)
        return [mutator.next() for _ in range(200)]

    assert made(1) == made(1) != made(2)
    assert max(map(len, made(1))) <= 64
    assert len(set(made(1))) > 150


def test_json_stays_json_with_what_is_around_it() -> None:
    pick, seen = random.Random(3), set()
    for _ in range(200):
        changed = mutation.json_mutated(b'\1{"a": {"b": [1, "x"]}}\0rest', pick)
        assert changed is not None and changed.startswith(b"\1") and changed.endswith(b"\0rest")
        seen.add(changed)
    assert len(seen) > 100
    assert mutation.json_mutated(b"no object", pick) is None
    assert mutation.json_mutated(b'{"a": ', pick) is None


def test_a_delta_file_comes_back_from_its_text() -> None:
    """What `delta_of` makes is read down to its chunks, and a wrong checksum is made right."""
    for text in reader_seeds.start_inputs("delta_records"):
        whole = delta_of(text)
        assert whole is not None and with_checksums(whole) == whole
    damaged = bytearray(whole)
    at = whole.index(b"__manifest__")
    damaged[at] ^= 1
    assert with_checksums(bytes(damaged)) == bytes(damaged)  # not a delta file any more: left as it is


# ---- the record


def test_a_record_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def fake(target: str, *, seconds: float, seed: int, corpus: Path) -> run.Result:
        calls.append((target, seed))
        failures = (tmp_path / "crash-1",) if target == "root" else ()
        return run.Result(target, "fake", 50, seconds, 7, 3, failures, "DONE")

    monkeypatch.setattr(run, "run", fake)
    monkeypatch.setattr(record, "SHARES", {"header": 3, "root": 1, "entry": 1})
    monkeypatch.setattr(record, "PROGRESS", tmp_path / "progress.json")
    options = ["--executions=500", f"--results={tmp_path}", "--slice=1"]
    assert record.main([*options, "--seconds=0"]) == 1
    assert calls == []
    assert record.main([*options, "--seconds=60"]) == 1  # a target failed, and was not run again
    assert sorted(calls) == [
        ("entry", 1),
        ("entry", 2),
        *(("header", seed) for seed in range(1, 7)),
        ("root", 1),
    ]
    assert record.main([*options, "--seconds=60"]) == 1
    assert len(calls) == 9
    monkeypatch.setattr(record, "sources_digest", lambda: "others")
    assert record.read_progress() == {}
    (path,) = tmp_path.glob("*/fuzz.json")
    found = json.loads(path.read_text())
    assert found["failures"] == ["root: crash-1"]
    assert [target["got"] for target in found["targets"]] == [50, 1]
    assert {row["operation"]: row["facts"]["executions"] for row in found["records"]} == {
        "header": 300, "root": 50, "entry": 100
    }  # fmt: skip
