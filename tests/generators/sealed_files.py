"""Sealed delta files with a part changed, and sealed anew: written from the pages of the formats, not with the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

MANIFEST = "__manifest__"
DOMAINS = {
    "sync": b"graftwork-sync-1",
    "sparse": b"graftwork-sparse-delta-1",
    "residual": b"graftwork-residual-1",
}
"""What a seal begins with, by the name under which a file of that kind says its own."""

Parts = dict[str, Any]


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sealed(kind: str, said: Any, manifest: bytes) -> dict[str, str]:
    """Metadata with a valid seal."""
    text = canonical(said).encode()
    parts = (DOMAINS[kind], len(text).to_bytes(8, "little"), text, manifest)
    return {kind: text.decode(), "seal": hashlib.sha256(b"".join(parts)).hexdigest()}


def rewrite(data: bytes, kind: str, change: Callable[[Parts], object], *, seal: bool = True) -> bytes:
    """A file with its parts changed: metadata, manifest, what it ``said`` of its own, and fields by name."""
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    metadata = header.pop("__metadata__")
    places = {name: (length + start for start in row["data_offsets"]) for name, row in header.items()}
    fields = {name: data[slice(*place)] for name, place in places.items()}
    manifest, said = json.loads(fields[MANIFEST]), json.loads(metadata[kind])
    parts = {"metadata": metadata, "manifest": manifest, "said": said, "fields": fields}
    change(parts)
    fields[MANIFEST] = canonical(parts["manifest"]).encode()
    if seal:
        parts["metadata"] |= sealed(kind, parts["said"], fields[MANIFEST])
    new: dict[str, Any] = {"__metadata__": parts["metadata"]}
    at = 0
    for name, field in fields.items():
        shape = [len(field) // 44, 44] if name.endswith("::chunks") else [len(field)]
        new[name] = {"dtype": "U8", "shape": shape, "data_offsets": [at, at + len(field)]}
        at += len(field)
    text = json.dumps(new, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(fields.values())
