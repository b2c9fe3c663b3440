"""Run independent pieces of work on several threads and take the results in order, with bounded look-ahead."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[str, int, int], None]
"""``progress(stage, done_bytes, total_bytes)``, called from the caller's thread as work advances."""


def default_threads() -> int:
    """Number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, window: int | None = None
) -> Iterator[R]:
    """Yield ``function(item)`` for every item, in the items' order, computed on ``threads`` threads.

    At most ``window`` results (default: ``4 * threads``) wait unconsumed, so memory stays bounded however
    slowly the consumer takes them. Each worker runs its operations on one thread: the pieces are the
    parallelism. The first exception is raised in the caller's thread; work not yet begun is dropped.
    """
    from graftwork.ops._native import thread_limit

    def run(item: T) -> R:
        with thread_limit(1):
            return function(item)

    if threads <= 1:
        yield from map(run, items)
        return
    ahead = window or 4 * threads
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="graftwork") as pool:
        try:
            for item in items:
                pending.append(pool.submit(run, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


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
