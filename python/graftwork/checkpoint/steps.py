"""The steps of the file layer: every change on disk is one, announced before and after it happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

StepKind = Literal["mkdir", "create", "write", "fsync", "rename", "remove", "fsync_dir"]


class Step(NamedTuple):
    """One change on disk: what happens, and to which path (of a rename, the path it ends at)."""

    kind: StepKind
    path: Path


Observer = Callable[[Step], object]

_observers: tuple[tuple[Observer | None, Observer | None], ...] = ()
_observers_lock = threading.Lock()


@contextmanager
def observe(before: Observer | None = None, after: Observer | None = None) -> Iterator[None]:
    """Call ``before(step)`` and ``after(step)`` around every step of every thread inside the ``with`` block.

    What an observer raises reaches the writer as if the step had failed there.
    """
    global _observers
    pair = (before, after)
    with _observers_lock:
        _observers = (*_observers, pair)
    try:
        yield
    finally:
        with _observers_lock:
            _observers = tuple(other for other in _observers if other is not pair)


@contextmanager
def step(kind: StepKind, path: Path) -> Iterator[None]:
    """Announce the step that the ``with`` block takes; an ``OSError`` out of it gains the path."""
    observers = _observers
    announced = Step(kind, path)
    try:
        for before, _ in observers:
            if before is not None:
                before(announced)
        yield
        for _, after in observers:
            if after is not None:
                after(announced)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
