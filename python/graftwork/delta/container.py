"""Delta files: safetensors files that hold tensors as differences to a base.

Payload order: for each tensor that has a payload its ``NAME::stream`` (U8, the chunks' payloads one after
another) and its ``NAME::chunks`` (U8 ``[chunks, 44]``, the chunk table); at the end ``__manifest__`` (U8, the
manifest's JSON). The header is padded with spaces so that the payload starts on a 256-byte boundary.
``docs/store-format.md`` is the specification.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from graftwork.checkpoint.digest import LEAF_BYTES, leaf_digest
from graftwork.checkpoint.files import AtomicFile
from graftwork.checkpoint.header import MAX_HEADER_BYTES, read_source_header
from graftwork.checkpoint.source import SourceFile
from graftwork.delta.basis import BasisReader, words_of
from graftwork.delta.codecs import METHODS
from graftwork.delta.manifest import (
    CHUNK_RECORD_BYTES,
    VERSION,
    Chunk,
    TensorRecord,
    manifest_bytes,
    pack_table,
    parse_manifest,
    unpack_table,
)
from graftwork.delta.pipeline import Scratch
from graftwork.errors import ChecksumError, DeltaError

MANIFEST = "__manifest__"
_ALIGN = 256


class DeltaWriter:
    """Writes a delta file in one pass.

    Payload sizes are known only at the end, so room for the header is reserved for ``names``, and the header
    is written last.
    """

    def __init__(self, file: AtomicFile, base: str | None, names: Iterable[str]) -> None:
        self._file = file
        self._base = base
        bound = 512 + sum(2 * len(json.dumps(name)) + 240 for name in names)
        self._data_start = -(-bound // _ALIGN) * _ALIGN
        if self._data_start > MAX_HEADER_BYTES:
            raise DeltaError(
                "a delta file has no room for so many tensors",
                file=file.path,
                got=f"a header of up to {self._data_start} bytes",
                wanted=f"at most {MAX_HEADER_BYTES}",
                remedy="join the tensors into fewer, larger ones",
            )
        self._end = self._data_start
        self._fields: list[tuple[str, list[int], int]] = []
        self.records: list[TensorRecord] = []

    def write_payload(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Append a chunk's payload to the stream of the tensor that is being written."""
        for part in parts:
            self._file.pwrite(self._end, part)
            self._end += len(part)

    @property
    def position(self) -> int:
        """Where the next payload goes."""
        return self._end

    def rewind(self, position: int) -> None:
        """Forget the payloads written from ``position`` on: their tensor is stored elsewhere already."""
        self._end = position

    def finish_tensor(self, record: TensorRecord, chunks: Sequence[Chunk]) -> None:
        """Close the tensor whose chunks' payloads were written last."""
        self.records.append(record)
        if record.codec == "same":
            return
        stream = sum(chunk.length for chunk in chunks)
        self._fields.append((f"{record.name}::stream", [stream], stream))
        self._append_field(f"{record.name}::chunks", [len(chunks), CHUNK_RECORD_BYTES], pack_table(chunks))

    def finish(self) -> None:
        """Write the manifest and the header; the file is complete."""
        manifest = manifest_bytes(self._base, self.records)
        self._append_field(MANIFEST, [len(manifest)], manifest)
        header: dict[str, object] = {
            "__metadata__": {"format": "graftwork-delta", "version": _dotted(VERSION)}
        }
        at = 0
        for name, shape, nbytes in self._fields:
            header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [at, at + nbytes]}
            at += nbytes
        room = self._data_start - 8
        text = json.dumps(header, separators=(",", ":")).encode().ljust(room)
        if len(text) > room:
            raise DeltaError("a delta file's header outgrew its room", file=self._file.path, got=len(text))
        self._file.pwrite(0, room.to_bytes(8, "little") + text)
        self._file.truncate(self._end)

    def _append_field(self, name: str, shape: list[int], data: bytes) -> None:
        self._file.pwrite(self._end, data)
        self._end += len(data)
        self._fields.append((name, shape, len(data)))


class DeltaFile:
    """A delta file, open for reading; everything it declares is checked before it is used.

    ``records`` holds its tensors by name; ``base`` is the digest of the base that they are differences to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SourceFile(path)
        try:
            header = read_source_header(self._file, path.name)
            self._fields = {info.name: info for info in header.tensors}
            if MANIFEST not in self._fields:
                raise DeltaError(
                    "a delta file has no manifest", file=path, wanted=f"a tensor named {MANIFEST!r}"
                )
            self.base, self.records = parse_manifest(self._field(MANIFEST), path)
        except BaseException:
            self.close()
            raise
        self._chunks: dict[str, tuple[tuple[Chunk, ...], tuple[int, ...]]] = {}
        self._scratch = Scratch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def chunks(self, name: str) -> tuple[tuple[Chunk, ...], tuple[int, ...]]:
        """A tensor's chunks and where each one's payload starts in the file; empty for codec ``same``."""
        found = self._chunks.get(name)
        if found is None:
            record = self.records[name]
            if record.codec == "same":
                found = ((), ())
            else:
                stream = self._fields.get(f"{name}::stream")
                if stream is None or f"{name}::chunks" not in self._fields:
                    raise DeltaError("a tensor's payload is missing", file=self.path, tensor=name)
                chunks = unpack_table(self._field(f"{name}::chunks"), record, stream.nbytes, self.path)
                starts, at = [], stream.start
                for chunk in chunks:
                    starts.append(at)
                    at += chunk.length
                found = (chunks, tuple(starts))
            self._chunks[name] = found
        return found

    def stored_bytes(self, name: str) -> int:
        """Bytes that a tensor's payload and chunk table take in the file."""
        chunks, _ = self.chunks(name)
        return sum(chunk.length + CHUNK_RECORD_BYTES for chunk in chunks)

    def read_chunk(self, name: str, index: int, basis: BasisReader, tuned: memoryview) -> None:
        """Restore chunk ``index`` of a tensor into ``tuned`` and check it. Thread-safe.

        Raises
        ------
        ChecksumError
            The payload differs from its CRC-32, or the restored bytes differ from their digest (a damaged
            file, or another base than the delta was made against).
        """
        record = self.records[name]
        reference = basis.read(record.basis, record.dtype, index * LEAF_BYTES, len(tuned))
        if record.codec == "same":
            tuned[:] = reference
            return
        chunks, starts = self.chunks(name)
        chunk = chunks[index]
        payload = self._scratch.buffer("payload", chunk.length)
        self._file.read_into(starts[index], payload)
        if zlib.crc32(payload) != chunk.crc32:
            raise ChecksumError(
                "a chunk's payload is damaged", file=self.path, tensor=name, got=f"chunk {index}"
            )
        try:
            METHODS[chunk.method].decode(reference, payload, words_of(record.dtype), tuned)
        except DeltaError as error:
            raise DeltaError(
                f"chunk {index}: {error.what}",
                file=self.path,
                tensor=name,
                got=error.got,
                wanted=error.wanted,
            ) from error
        if leaf_digest(tuned) != chunk.leaf:
            raise ChecksumError(
                "a restored chunk differs from its digest",
                file=self.path,
                tensor=name,
                got=f"chunk {index}",
                remedy="the base is not the one that the delta was made against, or the file is damaged",
            )

    def _field(self, name: str) -> bytes:
        info = self._fields[name]
        return self._file.read(info.start, info.nbytes)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
