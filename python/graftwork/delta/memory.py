"""Delta files that live in memory: written into a growing buffer, read from any bytes."""

from __future__ import annotations

import io
from pathlib import Path

from graftwork.errors import DeltaError

IN_MEMORY = Path("<memory>")
"""Where errors say that such a file is."""


class MemoryWriter:
    """What `DeltaWriter` writes to, in memory."""

    def __init__(self) -> None:
        self.path = IN_MEMORY
        self._buffer = io.BytesIO()

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``offset``; a gap before it is zero."""
        self._buffer.seek(offset)
        self._buffer.write(data)

    def truncate(self, nbytes: int) -> None:
        """Cut the file to its first ``nbytes`` bytes."""
        self._buffer.truncate(nbytes)

    def getvalue(self) -> bytes:
        """All that was written; not copied if nothing is written after it."""
        return self._buffer.getvalue()


class MemoryFile:
    """Bytes that somebody holds, read like a `SourceFile`."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.path = IN_MEMORY
        self._data = memoryview(data).cast("B")

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self._data)

    def read(self, offset: int, nbytes: int) -> bytes:
        """``nbytes`` bytes from ``offset``."""
        return bytes(self._piece(offset, nbytes))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        buffer[:] = self._piece(offset, len(buffer))

    def _piece(self, offset: int, nbytes: int) -> memoryview:
        found = self._data[offset : offset + nbytes]
        if len(found) != nbytes:
            raise DeltaError("a delta ends early", file=self.path, got=self.size, wanted=offset + nbytes)
        return found

    def close(self) -> None:
        """Nothing to release."""
