"""The wire form: a delta file in memory, strict enough that no changed byte of it goes unnoticed.

``docs/weight-sync.md`` is the specification.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

from graftwork.delta.codecs import METHODS, Method
from graftwork.delta.container import MANIFEST, DeltaFile, file_metadata, header_text
from graftwork.delta.manifest import CHUNK_RECORD_BYTES, Chunk, TensorRecord
from graftwork.delta.memory import MemoryFile
from graftwork.delta.source import DescribedTensor, Description, leaf_ranges
from graftwork.errors import BaseMismatch, ChecksumError, DeltaError

Payload = bytes | bytearray | memoryview | str | os.PathLike[str]
"""A payload's bytes, or the path of a file that holds them."""

REVERSIBLE = ("same", "sparse", "ordz")
"""Methods that a payload may use: the words before follow from the words after."""

_DOMAIN = b"graftwork-sync-1"
_REMEDY = "have the payload sent again"


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a payload changes.

    ``digest`` is the tensors digest of the weights that it leads to, as a store knows a set of tensors by.
    ``changed_bytes`` are those of the chunks in which anything changes. Tied tensors count once.
    """

    version: str | None
    parent: str | None
    digest: str
    tensors: int
    nbytes: int
    chunks: int
    changed_chunks: int
    changed_bytes: int
    payload_bytes: int


class Leaf(NamedTuple):
    """One chunk of a tensor of a payload."""

    record: TensorRecord
    number: int
    offset: int
    length: int
    chunk: Chunk

    @property
    def method(self) -> Method:
        """How it is stored."""
        return METHODS[self.chunk.method]

    @property
    def changes(self) -> bool:
        """Whether it differs from what was there before."""
        return self.chunk.method != 0


def seal_metadata(
    manifest: bytes, version: str | None, parent: str | None, tied: Mapping[str, str]
) -> dict[str, str]:
    """What a payload's header says beside the usual metadata; ``tied`` maps other names to the tensor's own."""
    said = {"parent": parent, "tied": dict(tied), "version": version}
    sync = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return {"sync": sync, "seal": _seal(sync, manifest)}


def _seal(sync: str, manifest: bytes) -> str:
    text = sync.encode()
    return hashlib.sha256(_DOMAIN + len(text).to_bytes(8, "little") + text + manifest).hexdigest()


class SyncPayload:
    """A payload, open for reading, after checking all of it that can be checked without the weights."""

    def __init__(self, payload: Payload) -> None:
        if isinstance(payload, str | os.PathLike):
            self.delta = DeltaFile(Path(payload))
        else:
            self.delta = DeltaFile(MemoryFile(payload))
        try:
            said = self._read_metadata()
            self.version: str | None = said["version"]
            self.parent: str | None = said["parent"]
            self.tied: dict[str, str] = said["tied"]
            self._check_fields()
            for record in self.delta.records.values():
                self._check_record(record)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self.delta.close()

    def groups(self) -> dict[str, list[str]]:
        """All names of each tensor of the payload, by the name that it has there."""
        groups = {name: [name] for name in self.delta.records}
        for name, own in self.tied.items():
            groups[own].append(name)
        return groups

    def leaves(self, record: TensorRecord) -> Iterator[Leaf]:
        """A tensor's chunks."""
        chunks, _ = self.delta.chunks(record.name)
        for index, (offset, length) in enumerate(leaf_ranges(record.nbytes)):
            yield Leaf(record, index, offset, length, chunks[index])

    def check_parent(self, wanted: str | None) -> None:
        """Refuse a payload that does not follow the version ``wanted``, if that is given."""
        if wanted is not None and self.parent != wanted:
            raise BaseMismatch(
                "the payload follows another version",
                file=self.delta.path,
                got=f"version {self.version!r}, which follows {self.parent!r}",
                wanted=f"one that follows {wanted!r}",
                remedy="apply the payloads in order, each once; if one is lost, send the weights whole",
            )

    def report(self) -> SyncReport:
        """What the payload changes."""
        records = self.delta.records.values()
        leaves = [leaf for record in records for leaf in self.leaves(record)]
        changed = [leaf.length for leaf in leaves if leaf.changes]
        described = {r.name: DescribedTensor(r.name, r.dtype, r.shape, r.nbytes, r.digest) for r in records}
        nbytes = sum(record.nbytes for record in records)
        return SyncReport(
            self.version,
            self.parent,
            Description(described).digest,
            len(described),
            nbytes,
            len(leaves),
            len(changed),
            sum(changed),
            self.delta.size,
        )

    def _refuse(self, what: str, *, tensor: str | None = None, **details: Any) -> NoReturn:
        raise DeltaError(what, file=self.delta.path, tensor=tensor, **{"remedy": _REMEDY, **details})

    def _read_metadata(self) -> dict[str, Any]:
        metadata = self.delta.header.metadata
        if metadata.keys() != {*file_metadata(), "sync", "seal"}:
            self._refuse(
                "this is not a sync payload", got=", ".join(sorted(metadata)), remedy="make it with encode()"
            )
        sync, manifest = metadata["sync"], self.delta.manifest()
        if _seal(sync, manifest) != metadata["seal"]:
            raise ChecksumError(
                "the payload's manifest differs from its seal", file=self.delta.path, remedy=_REMEDY
            )
        try:
            said = json.loads(sync)
            version, parent, tied = said["version"], said["parent"], said["tied"]
            groups = {name: self.delta.records[own] for name, own in tied.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DeltaError(
                f"the payload's metadata is malformed: {error!r}", file=self.delta.path, remedy=_REMEDY
            ) from error
        if groups.keys() & self.delta.records.keys() or not all(
            value is None or isinstance(value, str) for value in (version, parent)
        ):
            self._refuse("the payload's metadata is malformed", got=sync[:200])
        return {"version": version, "parent": parent, "tied": tied}

    def _check_fields(self) -> None:
        """The header says what a writer would have said of this manifest, byte for byte."""
        header = self.delta.header
        wanted = [part for name in self.delta.records for part in (f"{name}::stream", f"{name}::chunks")]
        found = [info.name for info in header.tensors]
        if sorted(found) != sorted([*wanted, MANIFEST]):
            self._refuse("the payload's fields are not those of its manifest", got=found[:8])
        fields: list[tuple[str, list[int], int]] = []
        for info in header.tensors:
            rows = [info.nbytes // CHUNK_RECORD_BYTES, CHUNK_RECORD_BYTES]
            fields.append((info.name, rows if info.name.endswith("::chunks") else [info.nbytes], info.nbytes))
        usual = file_metadata(json.loads(self.delta.manifest())["version"])
        text = header_text(fields, usual | {key: header.metadata[key] for key in ("sync", "seal")})
        if text.ljust(header.data_start - 8) != header.raw[8:]:
            self._refuse("the payload's header is not in canonical form", got=f"{len(header.raw)} bytes")

    def _check_record(self, record: TensorRecord) -> None:
        basis = record.basis
        if basis is None or (basis.dtype, basis.nbytes) != (record.dtype, record.nbytes):
            self._refuse("a tensor of a payload is not a difference to all of itself", tensor=record.name)
        for leaf in self.leaves(record):
            if leaf.method.name not in REVERSIBLE:
                self._refuse(
                    "a payload uses a method that cannot be undone",
                    tensor=record.name,
                    got=leaf.method.name,
                    wanted=REVERSIBLE,
                    remedy="make payloads with encode(); restore other delta files through a store",
                )
            if leaf.chunk.length == 0 and leaf.chunk.crc32 != 0:
                self._refuse("an empty chunk has a checksum", tensor=record.name, got=leaf.chunk.crc32)


def inspect(payload: Payload) -> SyncReport:
    """Check a payload, but for the chunks' payloads, and say what it changes; no weights are needed.

    Raises
    ------
    DeltaError
        It is malformed or damaged.
    """
    with SyncPayload(payload) as opened:
        return opened.report()
