"""Safetensors files and model folders made by hand, byte by byte, so that they can be wrong in any way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def container(
    header: str | bytes | Mapping[str, Any], payload: bytes = b"", length: int | None = None
) -> bytes:
    """A safetensors file from its header (JSON text, or what becomes it) and its payload."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + payload


def entry(dtype: str = "U8", shape: Any = (4,), begin: Any = 0, end: Any = 4) -> dict[str, Any]:
    """One tensor's entry in a header."""
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [begin, end],
    }


def shard(*names: str, fill: int = 0) -> bytes:
    """A file that holds four bytes under each name."""
    header = {name: entry(begin=4 * i, end=4 * i + 4) for i, name in enumerate(names)}
    return container(header, bytes([fill]) * 4 * len(names))


def make_tree(root: Path, files: Mapping[str, bytes | str | Mapping[str, Any]]) -> Path:
    """Write files under a folder; mappings become JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Mapping):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def sharded(root: Path, **replaced: Any) -> Path:
    """A model of two shards with an index, a configuration and a tokenizer; ``None`` leaves a file out."""
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    files: dict[str, Any] = {
        first: shard("a", "b"),
        second: shard("c"),
        "model.safetensors.index.json": {
            "metadata": {"total_size": 12},
            "weight_map": {"a": first, "b": first, "c": second},
        },
        "config.json": {"model_type": "toy"},
        "tokenizer/vocab.txt": "x\n",
    }
    keys = {
        "first": first,
        "second": second,
        "index": "model.safetensors.index.json",
        "config": "config.json",
    }
    files |= {keys[key]: value for key, value in replaced.items()}
    return make_tree(root, {name: content for name, content in files.items() if content is not None})


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every path under a folder with its content (None for a folder), to see that nothing has changed."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }
