from __future__ import annotations

import threading
import time

import pytest

from graftwork.delta.pipeline import Scratch, ordered_map


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_order(threads: int) -> None:
    def slow_for_early(item: int) -> int:
        time.sleep(0.002 if item < 3 else 0)
        return item * item

    assert list(ordered_map(slow_for_early, range(50), threads=threads)) == [i * i for i in range(50)]


def test_look_ahead_is_bounded() -> None:
    started: list[int] = []
    results = ordered_map(lambda item: started.append(item) or item, range(1000), threads=2, window=4)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 4
    results.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("nbytes", [0, 100 << 10, 1 << 20, 5 << 20])
def test_small_items_go_to_a_thread_together(threads: int, nbytes: int) -> None:
    started: list[int] = []
    results = ordered_map(
        lambda item: started.append(item) or item,
        range(2000),
        threads=threads,
        window=2,
        weigh=lambda _: nbytes,
    )
    assert next(results) == 0
    wanted = {0: 256, 100 << 10: 10}.get(nbytes, 1) * (1 if threads == 1 else 2)
    end = time.monotonic() + 10
    while len(started) < wanted and time.monotonic() < end:
        time.sleep(0.001)
    assert set(started) == set(range(wanted))
    assert list(results) == list(range(1, 2000))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_among_items_that_go_together(threads: int) -> None:
    def fail(item: int) -> int:
        if item == 300:
            raise KeyError(item)
        return item

    results = ordered_map(fail, range(1000), threads=threads, weigh=lambda _: 1)
    assert [next(results) for _ in range(256)] == list(range(256))
    with pytest.raises(KeyError):
        list(results)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_exception_is_raised_in_the_caller(threads: int) -> None:
    def fail(item: int) -> int:
        if item == 5:
            raise KeyError(item)
        return item

    results = ordered_map(fail, range(100), threads=threads)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError):
        next(results)


def test_workers_run_their_operations_on_one_thread() -> None:
    from graftwork.ops import _native

    assert set(ordered_map(lambda _: _native.threads_for(1 << 30), range(4), threads=2)) == {1}


def test_scratch_is_kept_per_thread_and_grows() -> None:
    scratch = Scratch()
    first = scratch.buffer("a", 8)
    first[:] = b"12345678"
    assert bytes(scratch.buffer("a", 4)) == b"1234"
    assert len(scratch.buffer("a", 100)) == 100
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(len(scratch.buffer("a", 3))))
    thread.start()
    thread.join()
    assert other == [3]
