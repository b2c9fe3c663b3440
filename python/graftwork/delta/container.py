"""Delta files: safetensors files that hold tensors as differences to a base.

Payload order: for each tensor that has a payload its ``NAME::stream`` (U8, the chunks' payloads one after
another) and its ``NAME::chunks`` (U8 ``[chunks, 44]``, the chunk table); at the end ``__manifest__`` (U8, the
manifest's JSON). The header is padded with spaces so that the payload starts on a 256-byte boundary.
``docs/store-format.md`` is the specification.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Protocol

from graftwork.checkpoint.bulk import makes_many_objects
from graftwork.checkpoint.closing import Closing
from graftwork.checkpoint.digest import LEAF_BYTES, leaf_digest
from graftwork.checkpoint.header import MAX_HEADER_BYTES, read_source_header
from graftwork.checkpoint.source import ReadableFile, SourceFile
from graftwork.delta.basis import BasisReader, words_of
from graftwork.delta.codecs import METHODS, WRONG_BASE, method_named
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
_WRITE_BYTES = 1 << 16
_RAW = method_named("raw").code


class WritableFile(Protocol):
    """What a delta file is written to: a file that is being made, or memory."""

    path: Path

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...
    def truncate(self, nbytes: int) -> None: ...


@makes_many_objects
def header_text(fields: Iterable[tuple[str, Sequence[int], int]], metadata: Mapping[str, str]) -> bytes:
    """A delta file's header before its padding: ``fields`` are (name, shape, bytes), in payload order."""
    rows = ['"__metadata__":' + json.dumps(dict(metadata), separators=(",", ":"))]
    at = 0
    for name, shape, nbytes in fields:
        sizes = ",".join(map(str, shape))
        rows.append(f'{quoted(name)}:{{"dtype":"U8","shape":[{sizes}],"data_offsets":[{at},{at + nbytes}]}}')
        at += nbytes
    return f"{{{','.join(rows)}}}".encode()


def file_metadata(version: Sequence[int] = VERSION) -> dict[str, str]:
    """The ``__metadata__`` of a delta file whose manifest says ``version``."""
    return {"format": "graftwork-delta", "version": ".".join(map(str, version))}


def header_room(name: str) -> int:
    """Bytes that a tensor takes in a delta file's header at most."""
    return 2 * len(quoted(name)) + 240


class DeltaWriter:
    """Writes a delta file in one pass.

    Payload sizes are known only at the end, so room for the header is reserved for ``names``, and the header
    is written last. ``metadata_bytes`` more bytes are kept free for what `finish` adds to its metadata.
    """

    def __init__(
        self, file: WritableFile, base: str | None, names: Iterable[str], *, metadata_bytes: int = 0
    ) -> None:
        self._file = file
        self._base = base
        bound = 512 + metadata_bytes + sum(map(header_room, names))
        self._data_start = -(-bound // _ALIGN) * _ALIGN
        if self._data_start > MAX_HEADER_BYTES:
            raise DeltaError(
                "a delta file has no room for so many tensors",
                file=file.path,
                got=f"a header of up to {self._data_start} bytes",
                wanted=f"at most {MAX_HEADER_BYTES}",
                remedy="join the tensors into fewer, larger ones",
            )
        self._written = self._data_start
        self._waiting = bytearray()  # many small pieces are written at once
        self._fields: list[tuple[str, list[int], int]] = []
        self.records: list[TensorRecord] = []

    def write_payload(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Append a chunk's payload to the stream of the tensor that is being written."""
        for part in parts:
            self._append(part)

    @property
    def position(self) -> int:
        """Where the next payload goes."""
        return self._written + len(self._waiting)

    def rewind(self, position: int) -> None:
        """Forget the payloads written from ``position`` on: their tensor is stored elsewhere already."""
        del self._waiting[max(0, position - self._written) :]
        self._written = min(self._written, position)

    def finish_tensor(self, record: TensorRecord, chunks: Sequence[Chunk]) -> None:
        """Close the tensor whose chunks' payloads were written last."""
        self.records.append(record)
        if record.codec == "same":
            return
        stream = sum(chunk.length for chunk in chunks)
        self._fields.append((f"{record.name}::stream", [stream], stream))
        self._append_field(f"{record.name}::chunks", [len(chunks), CHUNK_RECORD_BYTES], pack_table(chunks))

    def finish(self, metadata: Callable[[bytes], Mapping[str, str]] | None = None) -> None:
        """Write the manifest and the header; the file is complete.

        ``metadata`` is given the manifest's bytes and returns what the header says beside its usual metadata.
        """
        manifest = manifest_bytes(self._base, self.records)
        self._append_field(MANIFEST, [len(manifest)], manifest)
        said = file_metadata() | dict(metadata(manifest) if metadata else {})
        room = self._data_start - 8
        text = header_text(self._fields, said).ljust(room)
        if len(text) > room:
            raise DeltaError("a delta file's header outgrew its room", file=self._file.path, got=len(text))
        self._flush()
        self._file.pwrite(0, room.to_bytes(8, "little") + text)
        self._file.truncate(self._written)

    def _append_field(self, name: str, shape: list[int], data: bytes) -> None:
        self._append(data)
        self._fields.append((name, shape, len(data)))

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        if len(self._waiting) + len(data) > _WRITE_BYTES:
            self._flush()
        if len(data) < _WRITE_BYTES:
            self._waiting += data
        else:
            self._file.pwrite(self._written, data)
            self._written += len(data)

    def _flush(self) -> None:
        if self._waiting:
            self._file.pwrite(self._written, self._waiting)
            self._written += len(self._waiting)
            self._waiting.clear()


class DeltaFile(Closing):
    """A delta file, open for reading; everything it declares is checked before it is used.

    ``source`` is a path, or an open file (`MemoryFile` for one in memory). ``header`` is the safetensors header;
    ``records`` holds its tensors by name; ``base`` is the digest of the base that they are differences to;
    ``version`` is the format's, as the manifest says it.
    """

    def __init__(self, source: Path | ReadableFile) -> None:
        self._file = SourceFile(source) if isinstance(source, str | os.PathLike) else source
        self.path = self._file.path
        try:
            self.header = read_source_header(self._file, self.path.name)
            self._fields = {info.name: info for info in self.header.tensors}
            if MANIFEST not in self._fields:
                raise DeltaError(
                    "a delta file has no manifest", file=self.path, wanted=f"a tensor named {MANIFEST!r}"
                )
            self.version, self.base, self.records = parse_manifest(self.manifest(), self.path)
        except BaseException:
            self.close()
            raise
        self._chunks: dict[str, tuple[tuple[Chunk, ...], tuple[int, ...]]] = {}
        self._scratch = Scratch()

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._file.size

    def manifest(self) -> bytes:
        """The manifest as it stands in the file."""
        return self._field(MANIFEST)

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
                table = self._field(f"{name}::chunks")
                chunks = unpack_table(table, record, stream.nbytes, self.path)
                if pack_table(chunks) != table:
                    raise DeltaError(
                        "reserved bytes of a chunk table are not zero", file=self.path, tensor=name
                    )
                starts, at = [], stream.start
                for chunk in chunks:
                    starts.append(at)
                    at += chunk.length
                found = (chunks, tuple(starts))
            if len(found[0]) > 1:  # a short table is read again more cheaply than a million of them are kept
                self._chunks[name] = found
        return found

    def stored_bytes(self, name: str) -> int:
        """Bytes that a tensor's payload and chunk table take in the file."""
        chunks, _ = self.chunks(name)
        return sum(chunk.length + CHUNK_RECORD_BYTES for chunk in chunks)

    def payload(self, name: str, index: int) -> memoryview:
        """The payload of chunk ``index`` of a tensor, checked against its CRC-32. Thread-safe.

        The buffer is valid until this thread's next call.
        """
        chunks, starts = self.chunks(name)
        buffer = self._scratch.buffer("payload", chunks[index].length)
        return self.read_payload(name, index, chunks[index], starts[index], buffer)

    def read_payload(
        self, name: str, index: int, chunk: Chunk, start: int, payload: memoryview
    ) -> memoryview:
        """Fill ``payload`` with that of a chunk as `chunks` describes it, and check it against its CRC-32."""
        self._file.read_into(start, payload)
        if zlib.crc32(payload) != chunk.crc32:
            raise ChecksumError(
                "a chunk's payload is damaged", file=self.path, tensor=name, got=f"chunk {index}"
            )
        return payload

    def read_chunk(self, name: str, index: int, basis: BasisReader, tuned: memoryview) -> None:
        """Restore chunk ``index`` of a tensor into ``tuned`` and check it. Thread-safe.

        Raises
        ------
        ChecksumError
            The payload differs from its CRC-32, or the restored bytes differ from their digest (a damaged
            file, or another base than the delta was made against).
        """
        record = self.records[name]
        if record.codec == "same":
            basis.read_into(record.basis, record.dtype, index * LEAF_BYTES, tuned)
            return
        chunks, _ = self.chunks(name)
        chunk = chunks[index]
        reference = memoryview(b"")  # a chunk as it is needs none
        if chunk.method != _RAW:
            reference = basis.read(record.basis, record.dtype, index * LEAF_BYTES, len(tuned))
        payload = self.payload(name, index)
        try:
            METHODS[chunk.method].decode(reference, payload, words_of(record.dtype), tuned)
        except DeltaError as error:
            raise error.placed(before=f"chunk {index}: ", file=self.path, tensor=name) from error
        if leaf_digest(tuned) != chunk.leaf:
            raise ChecksumError(
                "a restored chunk differs from its digest",
                file=self.path,
                tensor=name,
                got=f"chunk {index}",
                remedy=WRONG_BASE,
            )

    def _field(self, name: str) -> bytes:
        info = self._fields[name]
        return self._file.read(info.start, info.nbytes)
