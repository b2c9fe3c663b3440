"""``python -m bench.run``: no numbers without green tests, no record from a busy machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import machine, record, run
from bench.measure import Timing
from bench.record import Measurement, Options, Row

QUIET = {"operation": "matmul", "seconds_1_thread": 2.0, "seconds_2_threads": 1.0, "speedup": 2.0}
BUSY = {**QUIET, "seconds_2_threads": 4.0, "speedup": 0.5}


@pytest.fixture
def stem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A stem called ``fake`` with green tests on a quiet machine; ``measured`` counts how often it was measured."""
    fake = SimpleNamespace(TESTS=("tests",), measured=0, failures=[], results=tmp_path / "results")

    def measure(options: Options) -> Measurement:
        fake.measured += 1
        row = Row("copy", "graftwork", "uint8", (8,), bytes=8)
        row.add_run("1", Timing.of([1.0]))
        return Measurement([row], failures=fake.failures)

    fake.measure = measure
    monkeypatch.setitem(sys.modules, "bench.fake", fake)
    monkeypatch.setattr(run, "STEMS", ("fake",))
    monkeypatch.setattr(run, "tests_pass", lambda paths: True)
    monkeypatch.setattr(machine, "canary", lambda: QUIET)
    monkeypatch.setattr(record, "SCRATCH", tmp_path / "scratch")
    fake.run = lambda *more: run.main(["fake", "--results", str(fake.results), *more])
    fake.records = lambda: [json.loads(path.read_text()) for path in fake.results.rglob("*.json")]
    fake.scratch = lambda: [json.loads(path.read_text()) for path in (tmp_path / "scratch").rglob("*.json")]
    return fake


def test_a_full_run_on_a_quiet_machine_is_recorded(stem: SimpleNamespace) -> None:
    assert stem.run() == 0
    (found,) = stem.records()
    assert found["void"] is False
    assert found["canaries"] == [QUIET, QUIET]
    assert found["records"][0]["runs"]["1"]["bytes_per_second"] == 8.0
    assert {"cpu", "cores", "isa_level", "torch", "python"} <= found["machine"].keys()


def test_red_tests_give_no_numbers(stem: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "tests_pass", lambda paths: False)
    assert stem.run() == 1
    assert stem.measured == 0
    assert stem.records() == stem.scratch() == []


def test_tests_that_do_not_exist_are_red(capsys: pytest.CaptureFixture[str]) -> None:
    assert not run.tests_pass(("tests/no/such/test.py",))
    assert "tests/no/such/test.py" in capsys.readouterr().err


def test_a_busy_machine_is_not_measured(
    stem: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "canary", lambda: BUSY)
    assert stem.run() == 1
    assert stem.measured == 0
    assert "busy neighbour" in capsys.readouterr().err


def test_a_neighbour_who_comes_later_voids_the_record(
    stem: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readings = iter([QUIET, BUSY])
    monkeypatch.setattr(machine, "canary", lambda: next(readings))
    assert stem.run() == 1
    assert stem.records() == []
    assert stem.scratch()[0]["void"] is True
    assert "busy neighbour" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--quick", "--no-tests"])
def test_development_runs_are_not_recorded(stem: SimpleNamespace, option: str) -> None:
    assert stem.run(option) == 0
    assert stem.measured == 1
    assert stem.records() == []
    assert len(stem.scratch()) == 1


def test_a_failed_round_trip_is_not_recorded(stem: SimpleNamespace) -> None:
    stem.failures.append("something came back wrong")
    assert stem.run() == 1
    assert stem.records() == []


def test_list_names_the_stems(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(run.STEMS)


@pytest.mark.parametrize(("arguments", "message"), [(["stor"], "no stem 'stor'"), ([], "no stem given")])
def test_an_unknown_stem_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        run.main(arguments)
    assert refusal.value.code == 2
    assert message in capsys.readouterr().err
