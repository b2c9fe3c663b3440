"""Timing in turn, rows and their roofline, records on disk, and the machine's name."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from bench import machine, measure, record
from bench.measure import Job, Timing
from bench.record import Contest, Measurement, Options, Row, Target


def test_a_timing_is_the_median_and_two_percentiles() -> None:
    timing = Timing.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    assert timing == Timing(median=3.5, p20=2.0, p80=5.0, repeats=6)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0, 1)


def test_jobs_alternate_and_spent_ones_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Clocked(Job):
        def sample(self) -> None:
            self.run()
            self.seconds.append(float(self.threads))

    jobs = [Clocked(lambda: calls.append("slow"), 5), Clocked(lambda: calls.append("quick"), 1)]
    measure.alternate(jobs, rounds=4, budget=4.5, min_repeats=2)
    assert calls == ["slow", "quick", "slow", "quick", "quick", "quick"]


def test_a_sample_sets_the_threads_and_prepares_outside_the_clock() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    jobs = [Job(lambda: seen.append(torch.get_num_threads()), n, lambda: time.sleep(0.05)) for n in (1, 2)]
    measure.alternate(jobs, rounds=1, budget=1.0)
    assert seen == [1, 2]
    assert max(job.timing.median for job in jobs) < 0.05
    assert torch.get_num_threads() == before


def test_settle_waits_for_threads_that_are_still_at_work() -> None:
    stop = threading.Event()
    end = time.monotonic() + 0.3

    def spin() -> None:
        while time.monotonic() < end and not stop.is_set():
            pass

    worker = threading.Thread(target=spin)
    worker.start()
    measure.settle(window=0.05)
    stop.set()
    worker.join()
    assert time.monotonic() >= end


def test_settle_gives_up() -> None:
    with pytest.raises(TimeoutError, match="still busy"):
        measure.settle(limit=0.0)


def test_the_probes_move_what_they_say() -> None:
    copied = measure.copy_probe(1 << 10)()
    assert isinstance(copied, torch.Tensor)
    assert copied.nbytes == 1 << 9
    assert measure.read_probe(1 << 10)() == 1 << 7
    combined = measure.combine_probe(3 << 10)()
    assert isinstance(combined, torch.Tensor)
    assert combined.nbytes == 1 << 10


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot hold threads to cores")
def test_cores_holds_threads_to_cores() -> None:
    before = os.sched_getaffinity(0)
    with measure.cores(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_a_contest_holds_each_run_against_its_peak() -> None:
    row = Row("copy", "graftwork", "uint8", (100,), bytes=100)
    contest = Contest()
    slow, peak, job = Job(lambda: None), Job(lambda: None), Job(lambda: None)
    contest.add(row, "1", job, [slow, peak])
    slow.seconds, peak.seconds, job.seconds = [2.0], [1.0], [4.0]
    (found,) = contest.run(rounds=0, budget=0.0)
    run = found.runs["1"]
    assert (run.bytes_per_second, run.peak_bytes_per_second, run.roofline_fraction) == (25.0, 100.0, 0.25)


@pytest.mark.parametrize(("got", "met"), [(99.0, True), (100.0, True), (100.5, False)])
def test_a_target_is_met_up_to_its_limit(got: float, met: bool) -> None:
    assert Target("import", got, 100.0, "ms").met is met


@pytest.mark.parametrize(("got", "met"), [(399.0, False), (400.0, True), (401.0, True)])
def test_a_lower_limit_is_met_from_it_on(got: float, met: bool) -> None:
    target = Target("encode", got, 400.0, "MB/s", at_least=True)
    assert target.met is met
    found = record.document("fake", Measurement([], [target]), Options(), [None])
    assert (found["targets"][0]["at_least"], found["targets"][0]["met"]) == (True, met)


def test_only_publishable_records_are_read(tmp_path: Path) -> None:
    taken = Measurement([Row("copy", "graftwork")], notes=["a note"])
    found = record.document("fake", taken, Options(), [None])
    path = record.write(found, tmp_path)
    assert path == tmp_path / machine.slug(found["machine"]) / "fake.json"
    (read,) = record.read_all("fake", tmp_path)
    assert read["notes"] == ["a note"]
    assert read["records"][0]["operation"] == "copy"
    for flaw in ({"void": True}, {"quick": True}, {"schema": record.SCHEMA + 1}):
        record.write({**found, **flaw}, tmp_path)
        assert record.read_all("fake", tmp_path) == []
    assert record.read_all("other", tmp_path) == []


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"cpu": "AMD EPYC", "cores": 2}, "amd-epyc-2c"),
        ({"cpu": "AMD EPYC 9654 96-Core Processor", "cores": 16}, "amd-epyc-9654-16c"),
        ({"cpu": "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", "cores": 28}, "intel-xeon-e5-2680-v4-28c"),
        ({"cpu": "AMD EPYC", "cores": 16, "gpu": "NVIDIA H100 80GB HBM3"}, "nvidia-h100"),
        ({"cpu": "AMD EPYC", "cores": 16, "gpu": "NVIDIA A100-SXM4-40GB"}, "nvidia-a100"),
    ],
)
def test_a_machine_is_named_by_its_gpu_or_its_processor(facts: dict[str, object], name: str) -> None:
    assert machine.slug(facts) == name


def test_two_threads_slower_than_one_mean_a_busy_neighbour() -> None:
    assert machine.is_busy({"speedup": 0.9})
    assert not machine.is_busy({"speedup": 1.8})
    assert not machine.is_busy(None)
