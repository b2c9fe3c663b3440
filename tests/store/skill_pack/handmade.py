"""Files of skill packs taken apart and put together anew: written from docs/papers/skill_packs.md, not with the package."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

DOMAIN = b"graftwork-skill-pack-1"
BYTES = {"U8": 1, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4}

Parts = dict[str, Any]


def take_apart(data: bytes) -> Parts:
    """Metadata, manifest, and fields by name: [dtype, shape, bytes]."""
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    metadata = header.pop("__metadata__")
    fields = {}
    for name, row in header.items():
        start, stop = (length + at for at in row["data_offsets"])
        if not name.startswith("__pad__."):
            fields[name] = [row["dtype"], row["shape"], data[start:stop]]
    return {"metadata": metadata, "manifest": json.loads(metadata["delta.manifest"]), "fields": fields}


def put_together(parts: Parts, *, seal: bool = True) -> bytes:
    """A file of these parts; with ``seal``, manifest and seal are written anew."""
    metadata = dict(parts["metadata"])
    if seal:
        text = canonical(parts["manifest"])
        count = len(text.encode()).to_bytes(8, "little")
        digest = hashlib.sha256(DOMAIN + count + text.encode()).hexdigest()
        version = metadata["version"]
        metadata = {"format": metadata["format"], "version": version, "delta.manifest": text, "seal": digest}
    rows: dict[str, Any] = {"__metadata__": metadata}
    payload, pads = b"", 0

    def order(name: str) -> tuple[int, str]:
        dtype, shape, _ = parts["fields"][name]
        large = BYTES[dtype] * math.prod(shape) >= 4096
        return (0 if large else 9 - BYTES[dtype]), name

    for name in sorted(parts["fields"], key=order):
        dtype, shape, data = parts["fields"][name]
        gap = -len(payload) % (256 if len(data) >= 4096 else BYTES[dtype])
        if gap:
            offsets = [len(payload), len(payload) + gap]
            rows[f"__pad__.{pads}"] = {"dtype": "U8", "shape": [gap], "data_offsets": offsets}
            payload, pads = payload + bytes(gap), pads + 1
        offsets = [len(payload), len(payload) + len(data)]
        rows[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        payload += data
    text = json.dumps(rows, separators=(",", ":")).encode()
    room = -(-(8 + len(text)) // 256) * 256 - 8
    return room.to_bytes(8, "little") + text.ljust(room) + payload


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def changed(data: bytes, change: Callable[[Parts], object], *, seal: bool = True) -> bytes:
    """A file with its parts changed."""
    parts = take_apart(data)
    change(parts)
    return put_together(parts, seal=seal)


def leaf_digest(data: bytes) -> str:
    """The digest of up to a mebibyte: a tree of one leaf."""
    leaves = [hashlib.sha256(data).digest()] if data else []
    return hashlib.sha256(
        b"graftwork-tree-1" + len(data).to_bytes(8, "little") + b"".join(leaves)
    ).hexdigest()


def redigest(parts: Parts, tensor: str) -> None:
    """Let the manifest have the right digest of a tensor's fields."""
    own = {n.rpartition("::")[2]: f[2] for n, f in parts["fields"].items() if n.rpartition("::")[0] == tensor}
    rows = "".join(f"{name}:{leaf_digest(own[name])}\n" for name in sorted(own))
    parts["manifest"]["tensors"][tensor]["fields_sha256"] = hashlib.sha256(rows.encode()).hexdigest()
