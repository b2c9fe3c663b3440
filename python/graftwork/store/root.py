"""``store.json``: the one file of a store that changes, and so the one commit point.

It names the base, and each entry's manifest by digest; ``digest`` is the SHA-256 of the canonical JSON of all
the rest. Everything else in a store is under the digests that start here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftwork.checkpoint import files
from graftwork.delta.manifest import check_format, is_digest
from graftwork.errors import ChecksumError, GraftworkError, StoreError, VersionTooNew

FILE = "store.json"
OBJECTS = "objects"
WRITER_LOCK = "writer.lock"
"""Held exclusively by pack, remove and gc."""
READER_LOCK = "reader.lock"
"""Shared by whoever reads objects; held exclusively by gc, which removes them."""
FORMAT = "graftwork-store"
VERSION = (1, 1)
MIN_READER = (1, 0)


@dataclass(frozen=True)
class Root:
    """A store's table of contents. ``base`` is the base's digest, ``description`` the object that lists it."""

    base: str
    description: str
    entries: Mapping[str, str] = field(default_factory=dict)

    def with_entry(self, name: str, manifest: str) -> Root:
        """This root with entry ``name`` at ``manifest``."""
        return Root(self.base, self.description, {**self.entries, name: manifest})

    def without_entry(self, name: str) -> Root:
        """This root without entry ``name``."""
        return Root(self.base, self.description, {k: v for k, v in self.entries.items() if k != name})

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": list(VERSION),
            "min_reader": list(MIN_READER),
            "base": {"digest": self.base, "description": self.description},
            "entries": {name: {"manifest": manifest} for name, manifest in self.entries.items()},
        }
        content["digest"] = hashlib.sha256(canonical_json(content)).hexdigest()
        return canonical_json(content) + b"\n"


def canonical_json(content: object) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def write_root(store: Path, root: Root) -> None:
    """Commit: the store is now what ``root`` says."""
    files.write_file(store / FILE, root.to_bytes())


def read_root(store: Path, *, to_write: bool = False) -> Root:
    """The store's root, checked byte for byte; ``to_write`` says that it will be replaced.

    Raises
    ------
    StoreError
        ``store`` is no store.
    ChecksumError
        ``store.json`` is damaged.
    VersionTooNew
        A newer graftwork wrote it: it cannot be read, or replacing it would lose what the newer one added.
    """
    path = store / FILE
    if not path.is_file():
        raise StoreError(
            "this is not a store",
            file=store,
            wanted=f"a folder with {FILE}",
            remedy="graftwork pack makes one",
        )
    data = path.read_bytes()
    try:
        content = json.loads(data)
        check_format(content, FORMAT, VERSION, path)
        if to_write and tuple(content["version"]) > VERSION:
            raise VersionTooNew(
                "a newer graftwork wrote this store; this one can only read it",
                file=path,
                got=content["version"],
                wanted=list(VERSION),
                remedy="upgrade graftwork (pip install --upgrade graftwork)",
            )
        digest = content.pop("digest")
        base = content["base"]
        root = Root(
            base["digest"],
            base["description"],
            {name: row["manifest"] for name, row in content["entries"].items()},
        )
        whole = digest == hashlib.sha256(canonical_json(content)).hexdigest() and all(
            map(is_digest, (root.base, root.description, *root.entries.values()))
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, GraftworkError):
            raise
        raise ChecksumError(f"{FILE} is malformed: {error!r}", file=path, remedy=_REMEDY) from error
    if not whole or canonical_json({**content, "digest": digest}) + b"\n" != data:
        raise ChecksumError(f"{FILE} differs from its digest", file=path, remedy=_REMEDY)
    return root


_REMEDY = "restore the file from a copy of the store"
