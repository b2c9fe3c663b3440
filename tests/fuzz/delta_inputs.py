"""Delta files made of a fuzzer's bytes: what checksums and digests cover is made right, so that it is read at all."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from typing import Any, NamedTuple

import torch

from graftwork.checkpoint.digest import leaf_digest, tree_digest
from graftwork.checkpoint.header import parse_header
from graftwork.delta.basis import words_of
from graftwork.delta.codecs import METHODS
from graftwork.delta.container import MANIFEST, file_metadata, header_text
from graftwork.delta.manifest import CHUNK_RECORD_BYTES
from graftwork.errors import CheckpointError, GraftworkError
from tests.generators.checkpoints import random_tensor

NOT_A_MANIFEST = (
    ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, struct.error
)  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    """What the payloads of a sync are applied to: a tensor of each kind of word, contiguous and not."""
    return {
        "a": random_tensor((6, 5), torch.bfloat16, 1),
        "b": random_tensor((7,), torch.float32, 2),
        "c": random_tensor((3,), torch.int32, 3),
        "d": random_tensor((4, 6), torch.float16, 4)[:, ::2],
        "e": random_tensor((5,), torch.float8_e4m3fn, 5),
    }


def bytes_of(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes in order."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


_HELD = {name: bytes_of(tensor) for name, tensor in weights().items()}


def with_checksums(whole: bytes) -> bytes:
    """A delta file with the CRC-32 of every payload that its chunk tables cut out made right."""
    out = bytearray(whole)
    try:
        header = parse_header(whole, "delta", len(whole))
    except CheckpointError:
        return whole
    places = {info.name: info for info in header.tensors}
    for name, table in places.items():
        stream = places.get(name.removesuffix("::chunks") + "::stream")
        if not name.endswith("::chunks") or stream is None:
            continue
        at = stream.start
        for record in range(table.start, table.stop - CHUNK_RECORD_BYTES + 1, CHUNK_RECORD_BYTES):
            (length,) = struct.unpack_from("<I", out, record)
            payload = bytes(out[at : min(at + length, stream.stop)])
            struct.pack_into("<I", out, record + 8, zlib.crc32(payload))
            at += length
    return bytes(out)


class _Field(NamedTuple):
    name: str
    shape: list[int]
    body: bytes


def delta_of(text: bytes, *, sealed: bool = False) -> bytes | None:
    """A delta file of the manifest in ``text``, in which every tensor has ``payloads`` too.

    They are what its chunks hold, each ``[method, latin-1 text]``. A tensor without ``digest`` gets the one of its
    chunks: of what they make of `weights`, as far as that can be made. ``sealed`` makes a payload of a sync; the
    manifest's ``sync`` is its metadata. None if the text is no manifest at all.
    """
    try:
        manifest = json.loads(text)
        sync = json.dumps(manifest.pop("sync", None), sort_keys=True, separators=(",", ":"))
        fields: list[_Field] = []
        for name, row in manifest["tensors"].items():
            fields += _fields(name, row)
        content = json.dumps(manifest).encode()
    except NOT_A_MANIFEST:
        return None
    fields.append(_Field(MANIFEST, [len(content)], content))
    said = file_metadata()
    if sealed:
        seal = b"graftwork-sync-1" + len(sync).to_bytes(8, "little") + sync.encode() + content
        said |= {"sync": sync, "seal": hashlib.sha256(seal).hexdigest()}
    start = header_text([(field.name, field.shape, len(field.body)) for field in fields], said)
    return len(start).to_bytes(8, "little") + start + b"".join(field.body for field in fields)


def _fields(name: str, row: dict[str, Any]) -> list[_Field]:
    payloads = [(method, body.encode("latin-1")) for method, body in row.pop("payloads", [])]
    leaves = [_leaf(name, row["dtype"], method, body) for method, body in payloads]
    if "digest" not in row:
        row["digest"] = tree_digest(row["nbytes"], leaves)
    table = b"".join(
        struct.pack("<IB3xI32s", len(body), method, zlib.crc32(body), leaf)
        for (method, body), leaf in zip(payloads, leaves, strict=True)
    )
    stream = b"".join(body for _, body in payloads)
    return [
        _Field(f"{name}::stream", [len(stream)], stream),
        _Field(f"{name}::chunks", [len(payloads), CHUNK_RECORD_BYTES], table),
    ]


def _leaf(name: str, dtype: str, method: int, body: bytes) -> bytes:
    """The digest of the chunk that a payload makes of the tensor's words in `weights`; zeros if it makes none."""
    held = _HELD.get(name)
    if held is None or method not in METHODS:
        return bytes(32)
    tuned = bytearray(len(held))
    try:
        METHODS[method].decode(
            memoryview(bytearray(held)), memoryview(bytearray(body)), words_of(dtype), memoryview(tuned)
        )
    except (
        GraftworkError,
        ValueError,
        TypeError,
        LookupError,
    ):  # the reader under test meets the same payload
        return bytes(32)
    return leaf_digest(tuned)
