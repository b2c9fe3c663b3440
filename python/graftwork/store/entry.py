"""An entry's manifest: the layout of its files, and where each of its tensors is stored.

The layout (files, their headers, shard names, tensor order) is a record of its own; the tensors' payloads do
not depend on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from graftwork.checkpoint.bulk import makes_many_objects
from graftwork.checkpoint.dtypes import DTYPES, tensor_bits
from graftwork.checkpoint.paths import check_distinct, check_relative
from graftwork.delta.manifest import check_format, is_digest
from graftwork.errors import GraftworkError, StoreError
from graftwork.store.chains import Link
from graftwork.store.root import canonical_json

FORMAT = "graftwork-entry"
VERSION = (1, 1)
MIN_READER = (1, 0)
CHAIN_MIN_READER = (1, 1)
"""For an entry that is a difference to another: a reader of version 1.0 takes it for one to the store's base."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of an entry: a blob reference to its bytes, or, if it holds tensors, to its header's bytes."""

    path: str
    nbytes: int
    holds_tensors: bool
    blob: dict[str, object]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of an entry: its identity, and the delta object and key under which it is stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    object: str
    key: str

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True)
class EntryManifest:
    """All that a store knows of one entry."""

    base: str | None
    tensors_digest: str
    files: tuple[StoredFile, ...]
    tensors: Mapping[str, StoredTensor]
    facts: Mapping[str, list[str]]
    stored_bytes: int
    min_reader: tuple[int, int] = MIN_READER

    @property
    def link(self) -> Link:
        """What the entry is a difference to, and what it restores."""
        return Link(self.base, self.tensors_digest)

    @property
    def listing_digest(self) -> str:
        """The tensors digest that follows from the tensors; it is ``tensors_digest`` unless a writer erred."""
        return listing_digest((t.name, t.dtype, t.shape, t.digest) for t in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all files of the entry, as they were packed."""
        return sum(file.nbytes for file in self.files)

    @property
    def content(self) -> str:
        """Digest of what the entry restores: every file and tensor, however it is stored."""
        rows = [(f.path, f.nbytes, f.holds_tensors, str(f.blob["digest"])) for f in self.files]
        return content_digest(rows, self.tensors_digest)

    @makes_many_objects
    def to_bytes(self) -> bytes:
        """The manifest as canonical JSON."""
        return canonical_json(
            {
                "format": FORMAT,
                "version": list(VERSION),
                "min_reader": list(self.min_reader),
                "base": self.base,
                "tensors_digest": self.tensors_digest,
                "stored_bytes": self.stored_bytes,
                "files": [
                    {"path": f.path, "nbytes": f.nbytes, "holds_tensors": f.holds_tensors, "blob": f.blob}
                    for f in self.files
                ],
                "tensors": {
                    t.name: [t.dtype, list(t.shape), t.digest, t.object, t.key] for t in self.tensors.values()
                },
                "facts": {kind: list(rows) for kind, rows in self.facts.items()},
            }
        )


@makes_many_objects
def listing_digest(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """Digest of a set of tensors from their ``(name, dtype, shape, digest)``; their order does not matter."""
    rows = {name: [dtype, list(shape), digest] for name, dtype, shape, digest in tensors}
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def content_digest(files: Sequence[tuple[str, int, bool, str]], tensors_digest: str) -> str:
    """Digest of an entry's content from its files' ``(path, bytes, holds tensors, digest)``, sorted by path."""
    return hashlib.sha256(canonical_json([[list(row) for row in files], tensors_digest])).hexdigest()


@makes_many_objects
def parse_entry(data: bytes, name: str) -> EntryManifest:
    """The manifest in ``data``; its digest has been checked, so a fault here is a writer's fault."""
    try:
        content = json.loads(data)
        check_format(content, FORMAT, VERSION, Path(name))
        manifest = EntryManifest(
            content["base"],
            content["tensors_digest"],
            tuple(_parse_file(row, name) for row in content["files"]),
            {key: _parse_tensor(key, row, name) for key, row in content["tensors"].items()},
            _parse_facts(content["facts"], name),
            content["stored_bytes"],
            tuple(content["min_reader"]),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, GraftworkError):
            raise
        raise StoreError(f"an entry's manifest is malformed: {error!r}", file=name) from error
    check_distinct([file.path for file in manifest.files], file=f"the manifest of entry {name!r}")
    if not (
        (manifest.base is None or is_digest(manifest.base))
        and is_digest(manifest.tensors_digest)
        and _is_size(manifest.stored_bytes)
    ):
        got = [manifest.base, manifest.tensors_digest, manifest.stored_bytes]
        raise StoreError("an entry's manifest has a malformed digest or size", file=name, got=got)
    return manifest


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _parse_tensor(key: str, row: list[Any], name: str) -> StoredTensor:
    dtype, shape, digest, place, stored_as = row
    if not (is_digest(digest) and is_digest(place)):
        raise StoreError("an entry's manifest names a tensor by something other than a digest", file=name)
    bits = tensor_bits(dtype, shape) if isinstance(shape, list) and all(map(_is_size, shape)) else None
    if bits is None or bits % 8 or not isinstance(stored_as, str):
        raise StoreError("an entry's tensor is malformed", file=name, tensor=key, got=row)
    # Equal strings are kept once: an entry may have a million tensors in ten files.
    return StoredTensor(
        key, intern(dtype), tuple(shape), digest, intern(place), key if stored_as == key else stored_as
    )


def _parse_facts(facts: dict[str, list[str]], name: str) -> dict[str, list[str]]:
    for kind, rows in facts.items():
        if not (isinstance(rows, list) and all(isinstance(row, str) for row in rows)):
            raise StoreError("an entry's facts are not lists of text", file=name, got={kind: rows})
    return facts


def _parse_file(row: dict[str, Any], name: str) -> StoredFile:
    path, blob = check_relative(row["path"], file=f"the manifest of entry {name!r}"), row["blob"]
    if not (is_digest(blob["object"]) and is_digest(blob["digest"]) and _is_size(blob["nbytes"])):
        raise StoreError("an entry's file has a malformed reference", file=path, got=blob)
    if not (_is_size(row["nbytes"]) and isinstance(row["holds_tensors"], bool)):
        raise StoreError("an entry's file has a malformed size", file=path, got=row)
    return StoredFile(path, row["nbytes"], row["holds_tensors"], blob)
