"""An entry's manifest: the layout of its files, and where each of its tensors is stored.

The layout (files, their headers, shard names, tensor order) is a record of its own; the tensors' payloads do
not depend on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.checkpoint.dtypes import DTYPES
from graftwork.checkpoint.paths import check_distinct, check_relative
from graftwork.delta.manifest import check_format, is_digest
from graftwork.errors import GraftworkError, StoreError
from graftwork.store.root import canonical_json

FORMAT = "graftwork-entry"
VERSION = (1, 0)
MIN_READER = (1, 0)


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

    @property
    def file_bytes(self) -> int:
        """Bytes of all files of the entry, as they were packed."""
        return sum(file.nbytes for file in self.files)

    @property
    def content(self) -> str:
        """Digest of what the entry restores: every file and tensor, however it is stored."""
        rows = [(f.path, f.nbytes, f.holds_tensors, str(f.blob["digest"])) for f in self.files]
        return content_digest(rows, self.tensors_digest)

    def to_bytes(self) -> bytes:
        """The manifest as canonical JSON."""
        return canonical_json(
            {
                "format": FORMAT,
                "version": list(VERSION),
                "min_reader": list(MIN_READER),
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


def content_digest(files: Sequence[tuple[str, int, bool, str]], tensors_digest: str) -> str:
    """Digest of an entry's content from its files' ``(path, bytes, holds tensors, digest)``, sorted by path."""
    return hashlib.sha256(canonical_json([[list(row) for row in files], tensors_digest])).hexdigest()


def parse_entry(data: bytes, name: str) -> EntryManifest:
    """The manifest in ``data``; its digest has been checked, so a fault here is a writer's fault."""
    try:
        content = json.loads(data)
        check_format(content, FORMAT, VERSION, Path(name))
        manifest = EntryManifest(
            content["base"],
            content["tensors_digest"],
            tuple(_parse_file(row, name) for row in content["files"]),
            {
                key: StoredTensor(key, row[0], tuple(row[1]), *row[2:])
                for key, row in content["tensors"].items()
            },
            content["facts"],
            content["stored_bytes"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, GraftworkError):
            raise
        raise StoreError(f"an entry's manifest is malformed: {error!r}", file=name) from error
    check_distinct([file.path for file in manifest.files], file=f"the manifest of entry {name!r}")
    if not all(is_digest(t.object) and is_digest(t.digest) for t in manifest.tensors.values()):
        raise StoreError("an entry's manifest names a tensor by something other than a digest", file=name)
    return manifest


def _parse_file(row: dict[str, Any], name: str) -> StoredFile:
    path, blob = check_relative(row["path"], file=f"the manifest of entry {name!r}"), row["blob"]
    if not (is_digest(blob["object"]) and is_digest(blob["digest"]) and type(blob["nbytes"]) is int):
        raise StoreError("an entry's file has a malformed reference", file=path, got=blob)
    return StoredFile(path, row["nbytes"], row["holds_tensors"], blob)
