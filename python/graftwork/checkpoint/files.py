"""The file layer: every write to disk in graftwork is one of the steps here.

A file or folder appears whole or not at all. It is built beside its place under the name ``.<name>.partial``,
flushed to disk, and renamed. A failure before the rename leaves what stood there untouched and removes the
partial one; a killed process leaves at most a ``.partial``, which readers ignore and the next writer to the
same place clears. A writer holds an exclusive ``flock`` on its partial file or folder, so two living writers
never share one.

Each step is announced before and after it happens (`observe`), so that a test can fail or kill at every one
of them. An ``OSError`` keeps its ``errno`` and gains the path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from graftwork.checkpoint.locks import FolderLock, try_lock
from graftwork.checkpoint.steps import Observer, Step, StepKind, observe, step
from graftwork.errors import TargetExists

__all__ = [
    "PARTIAL_SUFFIX", "AtomicFile", "AtomicFolder", "FolderLock", "Observer", "Step", "StepKind",
    "is_partial", "make_folder", "move_file", "observe", "partial_path", "remove_file", "remove_tree",
    "write_file",
]  # fmt: skip

PARTIAL_SUFFIX = ".partial"

Data = bytes | bytearray | memoryview


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Where a file or folder is built before it takes its place: ``.<name>.partial`` beside it."""
    path = Path(path)
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


def is_partial(name: str) -> bool:
    """Whether a file or folder name is that of an unfinished write."""
    return name.startswith(".") and name.endswith(PARTIAL_SUFFIX)


def _place(path: str | os.PathLike[str]) -> Path:
    place = Path(path).absolute()
    if place.name in ("", ".."):
        raise ValueError(f"cannot write to {os.fspath(path)!r}: the path must end in a name")
    return place


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _is_at(path: Path, fd: int) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _claim(path: Path, target: Path, open_it: Callable[[], int]) -> int:
    """Open the partial file or folder and lock it, trying again if its last owner moved it meanwhile."""
    while True:
        fd = open_it()
        try:
            if not try_lock(fd):
                raise TargetExists(
                    "another writer is at work on this path",
                    file=target,
                    got=f"{path.name} is locked by a living process",
                    remedy="wait for it to finish, or write to another path",
                )
            if _is_at(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _sync_folder(path: Path) -> None:
    with step("fsync_dir", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _rename(source: Path, target: Path) -> None:
    with step("rename", target):
        source.replace(target)


class AtomicFile:
    """A file that takes its place only when it is complete; use it as a context manager.

    Parameters
    ----------
    path : path
        Where the file shall stand; its folder exists.
    replace : bool
        Whether a file that stands there is replaced; otherwise `TargetExists` is raised.

    Notes
    -----
    `write` appends and `pwrite` writes at any offset; neither copies the data. On leaving the block the file
    is flushed to disk and renamed to ``path``; on an exception it is removed and ``path`` stays as it was.
    """

    def __init__(self, path: str | os.PathLike[str], *, replace: bool = True) -> None:
        self.path = _place(path)
        self._replace = replace
        self._partial = partial_path(self.path)
        self._fd = -1
        self._position = 0

    def __enter__(self) -> Self:
        self._check_free()
        self._fd = _claim(self._partial, self.path, self._create)
        try:
            if os.fstat(self._fd).st_size:
                self.truncate(0)
        except BaseException:
            self._discard()
            raise
        return self

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = -1
        try:
            with step("create", self._partial):
                fd = os.open(self._partial, flags, 0o666)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise TargetExists(
                    "the path of the partial file is taken",
                    file=self._partial,
                    wanted="a regular file",
                    remedy="remove it",
                )
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return fd

    def _check_free(self) -> None:
        if not self._replace and _exists(self.path):
            raise TargetExists(
                "the file exists already", file=self.path, remedy="choose another path, or remove it"
            )

    def write(self, data: Data) -> None:
        """Append ``data`` (bytes, or a contiguous memoryview of anything)."""
        self.pwrite(self._position, data)
        self._position += memoryview(data).nbytes

    def pwrite(self, offset: int, data: Data) -> None:
        """Write ``data`` at ``offset`` without moving the append position."""
        if self._fd < 0:
            raise ValueError(f"{self.path} is not open for writing: use AtomicFile in a `with` block")
        whole = memoryview(data)
        view = whole.cast("B") if whole.nbytes else whole[:0]  # an empty view cannot be cast
        with step("write", self._partial):
            while view.nbytes:
                written = os.pwrite(self._fd, view, offset)
                view = view[written:]
                offset += written

    def truncate(self, nbytes: int) -> None:
        """Cut the file to its first ``nbytes`` bytes; the append position does not move."""
        with step("write", self._partial):
            os.ftruncate(self._fd, nbytes)

    def tell(self) -> int:
        """Where the next `write` goes: the number of bytes appended so far."""
        return self._position

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with step("fsync", self._partial):
                os.fsync(self._fd)
            self._check_free()
            _rename(self._partial, self.path)
        except BaseException:
            self._discard()
            raise
        self._close()
        _sync_folder(self.path.parent)

    def _discard(self) -> None:
        try:
            if _is_at(self._partial, self._fd):  # an observer may have failed after the rename
                with suppress(OSError):
                    remove_file(self._partial)
        finally:
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _open_partial_folder(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise TargetExists(
                "the path of the partial folder is taken", file=path, wanted="a folder", remedy="remove it"
            ) from None
        raise


class AtomicFolder:
    """A folder that takes its place only when it is complete; use it as a context manager.

    Build it under ``.path``. On leaving the block its folders are flushed to disk and it is renamed; on an
    exception it is removed. A target that exists is `TargetExists`, unless it is an empty folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.target = _place(path)
        self.path = partial_path(self.target)
        self._fd = -1

    def __enter__(self) -> Self:
        self.check_free()
        self._fd = _claim(self.path, self.target, self._create)
        try:
            self._begin()
        except BaseException:
            self._close()
            raise
        return self

    def _begin(self) -> None:
        _clear(self.path)

    def _create(self) -> int:
        with suppress(FileExistsError), step("mkdir", self.path):
            self.path.mkdir()
        return _open_partial_folder(self.path)

    def check_free(self) -> None:
        """Raise `TargetExists` if something stands at the target that is no empty folder."""
        target = self.target
        empty = target.is_dir() and not target.is_symlink() and next(target.iterdir(), None) is None
        if _exists(target) and not empty:
            raise TargetExists(
                "the target exists already",
                file=target,
                wanted="a path that does not exist, or an empty folder",
                remedy="choose another path, or remove what stands there",
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            for folder, _, _ in os.walk(self.path, topdown=False):
                _sync_folder(Path(folder))
            self.check_free()
            _rename(self.path, self.target)
        except BaseException:
            self._discard()
            raise
        self._close()
        _sync_folder(self.target.parent)

    def _discard(self) -> None:
        try:
            if _is_at(self.path, self._fd):
                with suppress(OSError):
                    _clear(self.path)
                    _remove_folder(self.path)
        finally:
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


def write_file(path: str | os.PathLike[str], data: Data) -> None:
    """Write a whole file at once; a file that stands there is replaced, or kept if the write fails."""
    with AtomicFile(path) as file:
        file.write(data)


def move_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a complete file; what stands at ``target`` is replaced."""
    source, target = _place(source), _place(target)
    _rename(source, target)
    _sync_folder(target.parent)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder and its missing parents; an existing folder is left alone."""
    path = Path(path).absolute()
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    with step("mkdir", path):
        path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def remove_file(path: str | os.PathLike[str]) -> None:
    """Remove a file or link."""
    path = Path(path)
    with step("remove", path):
        path.unlink()


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a folder and all in it; links are removed, not followed.

    The folder is first renamed to its partial name, so that a half-removed one never looks like a result.
    """
    place = _place(path)
    partial = partial_path(place)
    if _exists(partial):
        fd = _claim(partial, place, lambda: _open_partial_folder(partial))
        try:
            _clear(partial)
            _remove_folder(partial)
        finally:
            os.close(fd)
    _rename(place, partial)
    _clear(partial)
    _remove_folder(partial)
    _sync_folder(place.parent)


def _clear(folder: Path) -> None:
    for where, folders, files in os.walk(folder, topdown=False):
        for name in files:
            remove_file(Path(where, name))
        for name in folders:
            entry = Path(where, name)
            if entry.is_symlink():
                remove_file(entry)
            else:
                _remove_folder(entry)


def _remove_folder(path: Path) -> None:
    with step("remove", path):
        path.rmdir()
