"""What a delta file says of each tensor, and the bounds that every statement is held to before it is used."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from graftwork.checkpoint.bulk import makes_many_objects
from graftwork.checkpoint.digest import LEAF_BYTES, tree_digest
from graftwork.checkpoint.dtypes import DTYPES, tensor_bits
from graftwork.delta.basis import Basis, is_castable, words_of
from graftwork.delta.codecs import CODECS, CODECS_OF_1_0, METHODS
from graftwork.errors import ChecksumError, DeltaError, GraftworkError, UnknownCodec, VersionTooNew

FORMAT = "graftwork-delta"
VERSION = (1, 1)

_DIGEST = re.compile("[0-9a-f]{64}")
_CHUNK = struct.Struct("<IB3xI32s")
CHUNK_RECORD_BYTES = _CHUNK.size
MAX_PAYLOAD_BYTES = 4 * LEAF_BYTES
"""No method needs more for a chunk, however bad the basis; so a reader need not take memory for what a table claims."""


class Chunk(NamedTuple):
    """One record of a chunk table: 44 bytes, little-endian."""

    length: int
    """Bytes of the payload in the stream."""
    method: int
    """Code of the method that stored it."""
    crc32: int
    """CRC-32 (IEEE 802.3) of the payload."""
    leaf: bytes
    """SHA-256 of the restored chunk."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of a delta file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    digest: str
    codec: str
    basis: Basis | None

    @property
    def equals_basis(self) -> bool:
        """Whether the tensor is its base tensor, whole and as it is."""
        identity = (self.digest, self.dtype, self.nbytes)
        return self.basis is not None and identity == (self.basis.digest, self.basis.dtype, self.basis.nbytes)

    @property
    def in_format_1_0(self) -> bool:
        """Whether readers of format 1.0 understand it."""
        return self.codec in CODECS_OF_1_0 and (self.basis is None or self.basis.digest is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as it stands in the manifest."""
        return {
            "codec": self.codec,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "nbytes": self.nbytes,
            "digest": self.digest,
            "basis": None if self.basis is None else self.basis.to_dict(),
        }


def pack_table(chunks: Sequence[Chunk]) -> bytes:
    """The chunk table's bytes."""
    return b"".join(_CHUNK.pack(*chunk) for chunk in chunks)


def unpack_table(table: bytes, record: TensorRecord, stream_bytes: int, file: Path) -> tuple[Chunk, ...]:
    """The chunks of ``record``, checked against its size, its stream and its digest."""

    def refuse(what: str, got: object, wanted: object) -> DeltaError:
        return DeltaError(what, file=file, tensor=record.name, got=got, wanted=wanted, remedy=_REMEDY)

    count = -(-record.nbytes // LEAF_BYTES)
    if len(table) != count * CHUNK_RECORD_BYTES:
        raise refuse("a chunk table has the wrong size", len(table), count * CHUNK_RECORD_BYTES)
    chunks = tuple(map(Chunk._make, _CHUNK.iter_unpack(table)))
    stored = sum([chunk.length for chunk in chunks])
    if stored != stream_bytes:
        raise refuse("a tensor's chunks do not fill its stream", stored, stream_bytes)
    allowed = CODECS[record.codec]
    for chunk in chunks:
        if chunk.length > MAX_PAYLOAD_BYTES:
            raise refuse(
                "a chunk's payload is larger than any method makes it", chunk.length, MAX_PAYLOAD_BYTES
            )
    for method in {chunk.method for chunk in chunks}:
        if method not in METHODS or METHODS[method].name not in allowed:
            raise refuse(f"a chunk of codec {record.codec!r} has another method", method, allowed)
        if not can_code(METHODS[method].name, record.dtype):
            raise refuse("a chunk's method is not for the tensor's dtype", METHODS[method].name, record.dtype)
    if tree_digest(record.nbytes, [chunk.leaf for chunk in chunks]) != record.digest:
        raise ChecksumError(
            "a tensor's chunk digests do not add up to its digest",
            file=file,
            tensor=record.name,
            remedy=_REMEDY,
        )
    return chunks


def can_code(method: str, dtype: str) -> bool:
    """Whether a method is for tensors of a dtype: ``ordrans`` for 16- and 32-bit floats, ``sparse`` for such words."""
    if method == "ordrans":
        return words_of(dtype).exponent_bits > 0
    return method != "sparse" or words_of(dtype).nbytes in (2, 4)


@makes_many_objects
def manifest_bytes(base: str | None, records: Sequence[TensorRecord]) -> bytes:
    """The manifest as canonical JSON: sorted keys, no spaces, ASCII."""
    content = {
        "format": FORMAT,
        "version": list(VERSION),
        "min_reader": [1, 0] if all(record.in_format_1_0 for record in records) else [1, 1],
        "base": base,
        "tensors": {record.name: record.to_dict() for record in records},
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


class Manifest(NamedTuple):
    """What a delta file says of itself: its format's version, its base's digest, its tensors by name."""

    version: tuple[int, int]
    base: str | None
    records: dict[str, TensorRecord]


@makes_many_objects
def parse_manifest(data: bytes, file: Path) -> Manifest:
    """A manifest, checked; unknown extra keys are ignored, unknown codecs refused."""
    try:
        content = json.loads(data)
        check_format(content, FORMAT, VERSION, file)
        base = content["base"]
        records = {name: _parse_record(name, row, file) for name, row in content["tensors"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, GraftworkError):
            raise
        raise DeltaError(f"the manifest is malformed: {error!r}", file=file, remedy=_REMEDY) from error
    if not (base is None or is_digest(base)):
        raise DeltaError("the manifest's base is not a digest", file=file, got=base, remedy=_REMEDY)
    return Manifest(tuple(content["version"]), base, records)


def check_format(content: dict[str, Any], wanted: str, version: tuple[int, int], file: Path) -> None:
    """Refuse a document of another format, or one whose ``min_reader`` is above ``version``."""
    if content["format"] != wanted:
        raise DeltaError("a file is of another format", file=file, got=content["format"], wanted=wanted)
    for key in ("min_reader", "version"):
        said = content[key]
        if not (isinstance(said, list) and len(said) == 2 and all(type(part) is int for part in said)):
            raise DeltaError(f"a file's {key} is not a version", file=file, got=said, wanted="[major, minor]")
    minimum = content["min_reader"]
    if tuple(minimum) > version:
        raise VersionTooNew(
            "a file was written by a newer graftwork",
            file=file,
            got=f"min_reader {'.'.join(map(str, minimum))}",
            wanted=f"at most {'.'.join(map(str, version))}",
            remedy="upgrade graftwork (pip install --upgrade graftwork)",
        )


def is_digest(value: object) -> bool:
    """Whether ``value`` is 64 lower-case hexadecimal characters."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _parse_record(name: str, row: dict[str, Any], file: Path) -> TensorRecord:
    def refuse(what: str, got: object, wanted: object) -> DeltaError:
        return DeltaError(what, file=file, tensor=name, got=got, wanted=wanted, remedy=_REMEDY)

    codec, dtype, nbytes = row["codec"], row["dtype"], row["nbytes"]
    if codec not in CODECS:
        raise UnknownCodec(
            "a delta uses a codec that this graftwork does not have",
            file=file,
            tensor=name,
            got=codec,
            wanted=f"one of {', '.join(CODECS)}",
            remedy="upgrade graftwork (pip install --upgrade graftwork)",
        )
    if dtype not in DTYPES:
        raise refuse("a tensor's dtype is unknown", dtype, "a safetensors dtype")
    shape = tuple(row["shape"])
    if not all(type(size) is int and size >= 0 for size in (*shape, nbytes)):
        raise refuse("a tensor's shape or size is not made of whole numbers", (shape, nbytes), ">= 0")
    if tensor_bits(dtype, shape) != 8 * nbytes:
        raise refuse("a tensor's size does not follow from its shape", nbytes, f"{dtype} {list(shape)}")
    if not is_digest(row["digest"]):
        raise refuse("a tensor's digest is malformed", row["digest"], "64 hexadecimal characters")
    basis = _parse_basis(name, row["basis"], dtype, nbytes, file)
    record = TensorRecord(name, dtype, shape, nbytes, row["digest"], codec, basis)
    if codec == "same" and not record.equals_basis:
        raise refuse(
            "a tensor of codec 'same' differs from its basis", row["basis"], "the tensor's own identity"
        )
    return record


def _parse_basis(name: str, row: dict[str, Any] | None, dtype: str, nbytes: int, file: Path) -> Basis | None:
    if row is None:
        return None
    basis = Basis(row["name"], row["digest"], row["dtype"], row["nbytes"])
    if not (
        isinstance(basis.name, str)
        and (basis.digest is None or is_digest(basis.digest))
        and is_castable(basis.dtype, dtype)
        and type(basis.nbytes) is int
        and 0 <= basis.nbytes <= nbytes
        and (basis.dtype == dtype or 8 * basis.nbytes % DTYPES[dtype].bits == 0)  # a cast is of whole words
    ):
        raise DeltaError("a tensor's basis is malformed", file=file, tensor=name, got=row, remedy=_REMEDY)
    return basis


_REMEDY = "the file is damaged: restore it from a copy, or pack the fine-tune again"
