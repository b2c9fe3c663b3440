"""Run independent pieces of work on several threads and take the results in order, with bounded look-ahead."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_BATCH_BYTES = 1 << 20
_BATCH_ITEMS = 256

Progress = Callable[[str, int, int], None]
"""``progress(stage, done_bytes, total_bytes)``, called from the caller's thread as work advances."""


def default_threads() -> int:
    """Number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int,
    window: int | None = None,
    weigh: Callable[[T], int] | None = None,
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for every item, in the items' order, computed on ``threads`` threads.

    At most ``window`` results (default: ``4 * threads``) wait unconsumed, so memory stays bounded however
    slowly the consumer takes them. Each worker runs its operations on one thread: the pieces are the
    parallelism. The first exception is raised in the caller's thread; work not yet begun is dropped.

    With ``weigh``, which gives the bytes that an item stands for, a thread is handed several small items at a
    time: to hand over one costs more than the work on it. The window then counts such batches.
    """
    from graftwork.ops._native import thread_limit

    def run(batch: Sequence[T]) -> list[R]:
        with thread_limit(1):
            return [function(item) for item in batch]

    batches = ([item] for item in items) if weigh is None else in_batches(items, weigh)
    if threads <= 1:
        for batch in batches:
            yield from run(batch)
        return
    ahead = window or 4 * threads
    pending: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="graftwork") as pool:
        try:
            for batch in batches:
                pending.append(pool.submit(run, batch))
                if len(pending) >= ahead:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def for_each(function: Callable[[int], object], count: int, *, threads: int) -> None:
    """Call ``function`` with every number below ``count``, on ``threads`` threads, in no order.

    Threads take numbers from a common counter: nothing is handed over between them. After an exception no number is
    begun any more; the first one is raised when all threads have come to their end.
    """
    from graftwork.ops._native import thread_limit

    numbers = iter(range(count))  # taking the next one cannot be interrupted
    failed = threading.Event()

    def work(_: int) -> None:
        with thread_limit(1):
            for number in numbers:
                if failed.is_set():
                    return
                try:
                    function(number)
                except BaseException:
                    failed.set()
                    raise

    if threads <= 1 or count < 2:
        work(0)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="graftwork") as pool:
        workers = [pool.submit(work, thread) for thread in range(threads)]
    for worker in workers:
        worker.result()


def in_batches(
    items: Iterable[T], weigh: Callable[[T], int], batch_bytes: int = _BATCH_BYTES
) -> Iterator[list[T]]:
    """Cut ``items`` into batches of at most ``batch_bytes`` together; a larger item is alone."""
    batch: list[T] = []
    room = batch_bytes
    for item in items:
        nbytes = weigh(item)
        if batch and (nbytes > room or len(batch) == _BATCH_ITEMS):
            yield batch
            batch, room = [], batch_bytes
        batch.append(item)
        room -= nbytes
    if batch:
        yield batch


class Scratch(threading.local):
    """Byte buffers that a worker thread keeps and reuses, since fresh pages cost more than the work on them."""

    def __init__(self) -> None:
        self._buffers: dict[str, bytearray] = {}

    def buffer(self, role: str, nbytes: int) -> memoryview:
        """A writable buffer of ``nbytes`` bytes for ``role``; its contents are what its last user left."""
        held = self._buffers.get(role)
        if held is None or len(held) < nbytes:
            held = self._buffers[role] = bytearray(nbytes)
        return memoryview(held)[:nbytes]

    def buffers(self, role: str, sizes: Sequence[int]) -> list[memoryview]:
        """Writable buffers of these sizes, cut out of the one for ``role``; each starts at a multiple of 16 bytes in it."""
        starts = [0, *accumulate(-(-size // 16) * 16 for size in sizes)]
        whole = self.buffer(role, starts[-1])
        return [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def copy_bytes(source: memoryview, target: memoryview) -> None:
    """Copy bytes between buffers of one size; other threads run meanwhile, as they do not while a slice is assigned."""
    if len(source) < _BATCH_BYTES // 16:
        target[:] = source
        return
    import numpy as np

    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
