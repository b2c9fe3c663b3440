"""Fails or kills a writer at each step of the file layer, and looks at what stands on disk after it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from graftwork.checkpoint.files import AtomicFile, AtomicFolder, Step, make_folder, observe, write_file

When = Literal["before", "after"]
Observer = Callable[[Step], None]


class Fault(Exception):
    """What a test's observer raises."""


def steps_of(write: Callable[[], object]) -> list[Step]:
    """The steps that a writer takes when nothing fails."""
    steps: list[Step] = []
    with observe(after=steps.append):
        write()
    return steps


def at_step(count: int, act: Callable[[Step], object]) -> Observer:
    """An observer that acts once: at step number ``count``."""
    left = iter(range(count, -1, -1))

    def observer(step: Step) -> None:
        if next(left, None) == 0:
            act(step)

    return observer


def raise_fault(step: Step) -> None:
    raise Fault(f"{step.kind} {step.path}")


def raise_no_space(step: Step) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_io_error(step: Step) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def observers(count: int, act: Callable[[Step], object]) -> Iterator[tuple[When, dict[str, Observer]]]:
    """The arguments of ``observe`` that act before step ``count``, then those that act after it."""
    yield "before", {"before": at_step(count, act)}
    yield "after", {"after": at_step(count, act)}


def killed(count: int, when: When, write: Callable[[], object]) -> bool:
    """Run the writer in a child process that dies on the spot at step ``count``; whether it did."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with observe(**{when: at_step(count, lambda step: os._exit(9))}):
                write()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def write_folder(target: Path) -> None:
    """A writer whose result is ``FOLDER``."""
    with AtomicFolder(target) as folder:
        write_file(folder.path / "a.txt", b"a")
        make_folder(folder.path / "sub")
        with AtomicFile(folder.path / "sub" / "b.txt") as file:
            file.write(b"b" * 10)
            file.pwrite(2, b"BB")


FOLDER = {"a.txt": b"a", "sub": None, "sub/b.txt": b"bbBBbbbbbb"}
