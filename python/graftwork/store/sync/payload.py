"""The wire form: a delta file in memory, strict enough that no changed byte of it goes unnoticed.

``docs/weight-sync.md`` is the specification.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from graftwork.checkpoint.closing import Closing
from graftwork.delta.codecs import METHODS, Method
from graftwork.delta.container import DeltaFile
from graftwork.delta.manifest import Chunk, TensorRecord
from graftwork.delta.memory import MemoryFile
from graftwork.delta.seal import check_spelling, read_sealed
from graftwork.delta.seal import seal_metadata as sealed
from graftwork.delta.source import DescribedTensor, Description, leaf_ranges
from graftwork.errors import BaseMismatch, DeltaError

Payload = bytes | bytearray | memoryview | str | os.PathLike[str]
"""A payload's bytes, or the path of a file that holds them."""

REVERSIBLE = ("same", "sparse", "ordz")
"""Methods that a payload may use: the words before follow from the words after."""

_DOMAIN, _KIND = b"graftwork-sync-1", "sync"
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
    """One chunk of a tensor of a payload; ``start`` is where its payload lies in the file."""

    record: TensorRecord
    number: int
    offset: int
    length: int
    chunk: Chunk
    start: int

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
    return sealed(_DOMAIN, _KIND, sync, manifest)


class SyncPayload(Closing):
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
            check_spelling(self.delta, _KIND, remedy=_REMEDY)
            self._leaves = {record.name: self._read_leaves(record) for record in self.delta.records.values()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self.delta.close()

    def groups(self) -> dict[str, list[str]]:
        """All names of each tensor of the payload, by the name that it has there."""
        groups = {name: [name] for name in self.delta.records}
        for name, own in self.tied.items():
            groups[own].append(name)
        return groups

    def leaves(self, record: TensorRecord) -> list[Leaf]:
        """A tensor's chunks."""
        return self._leaves[record.name]

    def read(self, leaf: Leaf, buffer: memoryview) -> memoryview:
        """Fill ``buffer``, which has its size, with a chunk's payload, checked against its CRC-32. Thread-safe."""
        return self.delta.read_payload(leaf.record.name, leaf.number, leaf.chunk, leaf.start, buffer)

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
        leaves = [leaf for mine in self._leaves.values() for leaf in mine]
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
        remedies = ("make it with encode()", _REMEDY)
        sync = read_sealed(self.delta, _DOMAIN, _KIND, what="a sync payload", remedies=remedies)
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

    def _read_leaves(self, record: TensorRecord) -> list[Leaf]:
        """A tensor's chunks, checked."""
        basis = record.basis
        if basis is None or (basis.dtype, basis.nbytes) != (record.dtype, record.nbytes):
            self._refuse("a tensor of a payload is not a difference to all of itself", tensor=record.name)
        if record.codec == "same":
            self._refuse("a tensor of a payload has no chunk table", tensor=record.name)
        chunks, starts = self.delta.chunks(record.name)
        leaves = [
            Leaf(record, index, offset, length, chunk, start)
            for index, ((offset, length), chunk, start) in enumerate(
                zip(leaf_ranges(record.nbytes), chunks, starts, strict=True)
            )
        ]
        for leaf in leaves:
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
        return leaves


def inspect(payload: Payload) -> SyncReport:
    """Check a payload, but for the chunks' payloads, and say what it changes; no weights are needed.

    Raises
    ------
    DeltaError
        It is malformed or damaged.
    """
    with SyncPayload(payload) as opened:
        return opened.report()
