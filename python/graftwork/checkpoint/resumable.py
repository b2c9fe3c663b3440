"""A folder that takes long to build: what an interrupted or killed writer left is gone on from, not thrown away.

As with `AtomicFolder` it appears whole or not at all. Beside its files lies a journal with one line for each piece of work
that is done; the journal goes away before the folder takes its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from graftwork.checkpoint.files import AtomicFolder, Data
from graftwork.checkpoint.steps import step
from graftwork.errors import GraftworkError

__all__ = ["ResumableFolder", "SizedFile"]

_JOURNAL = "journal.jsonl.partial"  # hidden below: readers take it for an unfinished write


class ResumableFolder(AtomicFolder):
    """A folder to be built under ``.path``; what is there when it is interrupted, the next writer goes on from.

    A `GraftworkError` removes it: the same inputs would lead to the same error.

    Parameters
    ----------
    path : path
        Where the folder shall stand.
    work : str
        What is being done, in a word that differs if anything that the result depends on does. What another work left
        is removed.
    resume : bool
        Whether to go on; else all that is there is removed.

    Attributes
    ----------
    done : list of dict
        The journal's lines of before.
    """

    def __init__(self, path: str | os.PathLike[str], work: str, *, resume: bool = True) -> None:
        super().__init__(path)
        self._work, self._resume = work, resume
        self._journal = -1
        self._hopeless = False
        self.done: list[dict[str, Any]] = []

    @property
    def _journal_path(self) -> Path:
        return self.path / f".{_JOURNAL}"

    def _begin(self) -> None:
        lines = _read_lines(self._journal_path) if self._resume else []
        if not lines or lines[0][1] != {"work": self._work}:
            super()._begin()
            lines = []
        self.done = [line for _, line in lines[1:]]
        with step("create", self._journal_path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._journal = os.open(self._journal_path, flags, 0o666)
        with step("write", self._journal_path):  # a line that was cut off goes
            os.ftruncate(self._journal, lines[-1][0] if lines else 0)
            os.lseek(self._journal, 0, os.SEEK_END)
        if not lines:
            self.note({"work": self._work})

    def note(self, line: Mapping[str, Any]) -> None:
        """Append a line to the journal: its work need not be done again."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with step("write", self._journal_path):
            while data:
                data = data[os.write(self._journal, data) :]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, GraftworkError):
            self._hopeless = True  # the same inputs would fail again
        if kind is None:
            try:
                self.check_free()  # before the work is given up as a thing to go on from
                with step("remove", self._journal_path):
                    self._journal_path.unlink()
            except BaseException:
                self._discard()
                raise
        super().__exit__(kind, error, trace)

    def _discard(self) -> None:
        if self._hopeless:
            super()._discard()
        else:
            self._close()

    def _close(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
        super()._close()


def _read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The whole lines of a journal, each with where it ends; from the first that is none on, nothing is believed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    lines: list[tuple[int, dict[str, Any]]] = []
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        try:
            line = json.loads(data[start:end])
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        lines.append((end + 1, line))
        start = end + 1
    return lines


class SizedFile:
    """A file of a known size in a `ResumableFolder`, written at any offset; what it holds already stays.

    Use it as a context manager: it is flushed to disk at the end.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self._nbytes = nbytes
        self._fd = -1

    def __enter__(self) -> Self:
        with step("create", self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o666)
        try:
            if os.fstat(self._fd).st_size != self._nbytes:
                with step("write", self.path):
                    os.ftruncate(self._fd, self._nbytes)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def pwrite(self, offset: int, data: Data) -> None:
        """Write ``data`` at ``offset``."""
        whole = memoryview(data)
        view = whole.cast("B") if whole.nbytes else whole[:0]
        with step("write", self.path):
            while view.nbytes:
                written = os.pwrite(self._fd, view, offset)
                view = view[written:]
                offset += written

    def pread(self, offset: int, nbytes: int) -> bytes:
        """``nbytes`` bytes at ``offset``, or what there is of them."""
        return os.pread(self._fd, nbytes, offset)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with step("fsync", self.path):
                    os.fsync(self._fd)
        finally:
            os.close(self._fd)
            self._fd = -1
