"""Timing of several implementations in turn, and the bandwidth that the same memory gives in the same run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

MIN_REPEATS = 3
CALLS_PER_GPU_SAMPLE = 20


@dataclass(frozen=True)
class Timing:
    """Seconds of one implementation at one thread count, over its repeats."""

    median: float
    p20: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summary of the samples; percentiles interpolate linearly between them."""
        ordered = sorted(seconds)
        return cls(
            statistics.median(ordered), _percentile(ordered, 0.2), _percentile(ordered, 0.8), len(ordered)
        )


def _percentile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@dataclass
class Job:
    """One thing to time: a call at a thread count. ``prepare`` runs before each call and is not timed."""

    run: Callable[[], object]
    threads: int = 1
    prepare: Callable[[], object] | None = None
    device: str = "cpu"
    seconds: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Add the time of one call (on a GPU: of one of several calls in a row)."""
        if self.prepare is not None:
            self.prepare()
        torch.set_num_threads(self.threads)
        if self.device == "cuda":
            self.seconds.append(_gpu_seconds(self.run))
            return
        settle()
        if self.threads > 1:
            _wake_pool()
        start = time.perf_counter()
        self.run()
        self.seconds.append(time.perf_counter() - start)

    @property
    def timing(self) -> Timing:
        return Timing.of(self.seconds)


def alternate(jobs: Iterable[Job], *, rounds: int, budget: float, min_repeats: int = MIN_REPEATS) -> None:
    """Sample every job once a round, in turn, so that a slow moment of the machine meets all of them alike.

    A job that has spent ``budget`` seconds leaves after ``min_repeats`` samples.
    """
    jobs = list(jobs)
    before = torch.get_num_threads()
    try:
        for _ in range(rounds):
            for job in jobs:
                if len(job.seconds) < min_repeats or sum(job.seconds) < budget:
                    job.sample()
    finally:
        torch.set_num_threads(before)


def settle(window: float = 0.02, limit: float = 120.0) -> None:
    """Wait until no thread of this process is at work: what one call left running must not slow the next.

    Raises
    ------
    TimeoutError
        Threads are still busy after ``limit`` seconds.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        used = time.process_time()
        time.sleep(window)
        if time.process_time() - used < 0.2 * window:
            return
    raise TimeoutError(f"threads of an earlier call are still busy after {limit:g} s")


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Hold this thread and those that it starts to ``count`` cores; for calls without a thread argument."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wake_pool() -> None:
    """Have torch's threads at hand, as in a loop of operations: to wake a core that sleeps takes some milliseconds here."""
    torch.ones(1 << 20).add_(1.0)


def _gpu_seconds(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    run()
    start.record()
    for _ in range(CALLS_PER_GPU_SAMPLE):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / CALLS_PER_GPU_SAMPLE


def copy_probe(nbytes: int, device: str = "cpu") -> Callable[[], object]:
    """A copy that moves ``nbytes`` in all: half of them read, half of them written."""
    source = torch.ones(nbytes // 2, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def combine_probe(nbytes: int, device: str = "cpu") -> Callable[[], object]:
    """A XOR of two arrays into a third that moves ``nbytes`` in all: two thirds read, one third written."""
    left = torch.ones(nbytes // 24, dtype=torch.int64, device=device)
    right, target = torch.ones_like(left), torch.ones_like(left)
    return lambda: torch.bitwise_xor(left, right, out=target)


def read_probe(nbytes: int, device: str = "cpu") -> Callable[[], object]:
    """A sum that reads ``nbytes`` and writes next to nothing."""
    source = torch.ones(nbytes // 8, dtype=torch.int64, device=device)
    return source.sum


def thread_counts() -> tuple[int, ...]:
    """The thread counts that everything is timed at: 1 and, where there is a second core, 2."""
    from bench.machine import core_count

    return (1, 2) if core_count() > 1 else (1,)
