"""A file that is read: opened only if it is a regular file, and watched for changes."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from graftwork.checkpoint.closing import Closing
from graftwork.errors import CheckpointError, SourceChanged


class ReadableFile(Protocol):
    """What a header or a delta file is read from: a `SourceFile`, or bytes in memory."""

    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> int: ...

    def read(self, offset: int, nbytes: int) -> bytes: ...
    def read_into(self, offset: int, buffer: memoryview) -> None: ...
    def close(self) -> None: ...


class Signature(NamedTuple):
    """What tells one state of a file from another without reading it."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The signature in a ``stat`` result."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)

    def __str__(self) -> str:
        return f"{self.size} bytes, modified at {self.mtime_ns} ns, inode {self.inode}"


class SourceFile(Closing):
    """A regular file as it was when this object was made: its size, modification time and inode are kept.

    Reading is thread-safe. With ``keep_open=False`` the file is opened anew for each read (and must still be
    the same one), so that a folder of very many files does not run out of file descriptors.
    """

    __slots__ = ("_closed", "_fd", "_map", "_signature", "path")

    def __init__(self, path: str | os.PathLike[str], *, keep_open: bool = True) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        self._fd: int | None = _open_regular(self.path)
        self._signature = Signature.of(os.fstat(self._fd))
        self._closed = False
        if not keep_open:
            os.close(self._fd)
            self._fd = None

    @property
    def size(self) -> int:
        """Size in bytes when the file was opened."""
        return self._signature.size

    @property
    def signature(self) -> Signature:
        """What told the file's state from another when it was opened."""
        return self._signature

    def read(self, offset: int, nbytes: int) -> bytes:
        """``nbytes`` bytes from ``offset``."""
        data = bytearray(nbytes)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (writable bytes) from ``offset``; a file that became shorter is `SourceChanged`."""
        if not buffer.nbytes:
            return
        view = buffer if buffer.format == "B" and buffer.ndim == 1 else buffer.cast("B")
        fd = self._acquire()
        try:
            while view:
                count = os.preadv(fd, [view], offset)
                if count == 0:
                    raise SourceChanged(
                        "the file ended while it was read",
                        file=self.path,
                        got=f"{offset} bytes",
                        wanted=self.size,
                    )
                view = view[count:]
                offset += count
        except OSError as error:
            error.filename = str(self.path)
            raise
        finally:
            self._release(fd)

    def map(self) -> mmap.mmap | None:
        """The file in memory, copy on write: what is written there never reaches the file.

        None if the system will not promise so much memory.
        """
        if self._map is not None:
            return self._map
        fd = self._acquire()
        try:
            mapped = mmap.mmap(fd, self.size, access=mmap.ACCESS_COPY)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                return None
            error.filename = str(self.path)
            raise
        finally:
            self._release(fd)
        if self._fd is not None:
            self._map = mapped
        return mapped

    def check_unchanged(self) -> None:
        """Raise `SourceChanged` unless the path still holds the file that was opened, as it was then."""
        try:
            now = Signature.of(self.path.stat())
        except OSError as error:
            raise SourceChanged("the file is gone", file=self.path, got=error.strerror) from error
        self._compare(now)

    def _compare(self, now: Signature) -> None:
        if now != self._signature:
            raise SourceChanged(
                "the file changed while it was in use",
                file=self.path,
                got=str(now),
                wanted=str(self._signature),
                remedy="run again when nothing writes to it",
            )

    def _acquire(self) -> int:
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        if self._fd is not None:
            return self._fd
        try:
            fd = _open_regular(self.path)
        except FileNotFoundError as error:
            raise SourceChanged("the file is gone", file=self.path, got=error.strerror) from error
        try:
            self._compare(Signature.of(os.fstat(fd)))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _release(self, fd: int) -> None:
        if fd != self._fd:
            os.close(fd)

    def close(self) -> None:
        """Close the file; memory that `map` gave out stays valid for as long as it is referred to."""
        self._closed = True
        self._map = None
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:  # it is missing where opening failed
            self.close()


def _open_regular(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise CheckpointError("not a regular file", file=path, got=file_kind(mode), wanted="a regular file")
    return fd


def file_kind(mode: int) -> str:
    """The kind of file that a mode from ``stat`` stands for, in words."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFREG: "a regular file",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
