"""Advisory locks (``flock``): they never wait, and the lock of a killed process is free by itself."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from graftwork.checkpoint.steps import step
from graftwork.errors import StoreError


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file or folder; False when another holds it.

    A file system that has no such locks grants it.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
    return True


class FolderLock:
    """A lock on a folder: an exclusive (or shared) ``flock`` on an empty file in it.

    Use it as a context manager. If others hold the lock, `StoreError` names it. The empty file stays. A
    shared lock on a file system that cannot be written needs no file: nobody can write there.
    """

    def __init__(self, path: str | os.PathLike[str], *, shared: bool = False) -> None:
        self.path = Path(path)
        self.shared = shared
        self._fd = -1

    def __enter__(self) -> Self:
        fd = self._open()
        if fd >= 0 and not try_lock(fd, shared=self.shared):
            os.close(fd)
            raise StoreError(
                "another writer is at work" if self.shared else "another reader or writer is at work",
                file=self.path,
                got="the lock is held by a living process",
                remedy="try again when it has finished",
            )
        self._fd = fd
        return self

    def _open(self) -> int:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with suppress(FileNotFoundError):
            return os.open(self.path, flags | (os.O_RDONLY if self.shared else os.O_RDWR))
        try:
            with step("create", self.path):
                return os.open(self.path, flags | os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if self.shared and error.errno in (errno.EROFS, errno.EACCES):
                return -1
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
