"""The Python readers as fuzz targets: whatever bytes they get, nothing but the errors they document comes out.

A target takes bytes, makes of them what its reader reads, and looks at all that the reader hands back. Bytes
``ff S C`` in the text of a target repeat the ``S`` bytes before them until they fill 1/2^C of the greatest size, so that
an input of a few bytes reaches sizes at which work that grows with the square of the input does not end in time.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import safetensors
import torch

from graftwork.checkpoint.digest import LEAF_BYTES, tree_digest
from graftwork.checkpoint.dtypes import DTYPES
from graftwork.checkpoint.folder import INDEX_NAME, read_config, read_index
from graftwork.checkpoint.header import parse_header
from graftwork.delta.basis import BasisReader, Words, words_of
from graftwork.delta.codecs import METHODS
from graftwork.delta.container import DeltaFile
from graftwork.delta.manifest import CHUNK_RECORD_BYTES, TensorRecord, can_code, parse_manifest, unpack_table
from graftwork.delta.source import DescribedTensor
from graftwork.errors import CheckpointError, DeltaError, GraftworkError, RecipeError
from graftwork.recipe import PackRecipe, load_recipe
from graftwork.store import sync
from graftwork.store.entry import parse_entry
from graftwork.store.root import FILE, canonical_json, read_root
from tests.fuzz.delta_inputs import delta_of, weights, with_checksums

_SHARED_MEMORY = Path("/dev/shm")
_folder = tempfile.TemporaryDirectory(
    prefix="graftwork-fuzz-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
)
FOLDER = Path(_folder.name)  # removed when Python ends


EXPANDED_BYTES = 1 << 18
"""What an input may grow to; a longer one is cut."""


class Target(NamedTuple):
    """A reader under test."""

    read: Callable[[bytes], bool]
    """Whether the reader takes the bytes; only errors that it should not raise come out."""
    max_len: int


def expanded(data: bytes, share: int = 1) -> bytes:
    """``data`` with its repetitions written out, cut at EXPANDED_BYTES / ``share``."""
    out, at, limit = bytearray(), 0, EXPANDED_BYTES // share
    for mark in re.finditer(rb"\xff(.)(.)", data, re.DOTALL):
        out += data[at : mark.start()]
        piece = out[len(out) - mark[1][0] :] if mark[1][0] else b""
        out += piece * ((limit >> mark[2][0] % 24) // max(1, len(piece)))
        at = mark.end()
        if len(out) > limit:
            break
    else:
        out += data[at:]
    return bytes(out[:limit])


def _flag(data: bytes) -> bool:
    """The first byte's lowest bit."""
    return bool(data) and data[0] & 1 == 1


def _place(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


# ---- Checkpoints ----


def read_checkpoint_header(data: bytes) -> bool:
    """Flag: whether the rest is a whole file, or the payload's size (3 bytes) and the header's text."""
    if _flag(data):
        whole = data[1:]
        text_bytes = int.from_bytes(whole[:8], "little")
    else:
        text = expanded(data[4:])
        text_bytes = len(text)
        whole = len(text).to_bytes(8, "little") + text + bytes(int.from_bytes(data[1:4], "little") % 4096)
    try:
        header = parse_header(whole[: 8 + min(text_bytes, len(whole))], "model.safetensors", len(whole))
    except CheckpointError:
        return False
    known = {
        name: (row["dtype"], tuple(row["shape"]), row["data"]) for name, row in safetensors.deserialize(whole)
    }
    ours = {info.name: (info.dtype, info.shape, whole[info.start : info.stop]) for info in header.tensors}
    _require(ours == known, "the stock reader sees other tensors", ours, known)
    return True


def read_index_file(data: bytes) -> bool:
    """Flag: whether the rest is a configuration or a shard index."""
    path = _place(INDEX_NAME, expanded(data[1:]))
    try:
        if _flag(data):
            read_config(path)
        else:
            index = read_index(FOLDER, INDEX_NAME)
            _require(
                all((FOLDER / shard).is_relative_to(FOLDER) for shard in index.shards), "a shard lies outside"
            )
    except CheckpointError:
        return False
    return True


# ---- Delta files ----


def read_manifest(data: bytes) -> bool:
    """The manifest's text; then, after a zero byte, what the chunk tables of its tensors are made of."""
    text, _, table = data.partition(b"\0")
    file = Path("delta")
    try:
        _, base, records = parse_manifest(expanded(text), file)
    except GraftworkError:
        return False
    _require(base is None or isinstance(base, str), "the base is no text", base)
    for record in list(records.values())[:4]:
        if record.nbytes <= len(table) * LEAF_BYTES:
            _unpack(record, table)
    return True


def _unpack(record: TensorRecord, table: bytes) -> None:
    """Read a table as the record's, once as it is and once as long and with the digest that the record needs."""
    count = -(-record.nbytes // LEAF_BYTES)
    fitted = table[: count * CHUNK_RECORD_BYTES].ljust(count * CHUNK_RECORD_BYTES, b"\0")
    leaves = [fitted[at - 32 : at] for at in range(CHUNK_RECORD_BYTES, len(fitted) + 1, CHUNK_RECORD_BYTES)]
    whole = TensorRecord(**{**_fields(record), "digest": tree_digest(record.nbytes, leaves)})
    stored = sum(struct.unpack_from("<I", fitted, at)[0] for at in range(0, len(fitted), CHUNK_RECORD_BYTES))
    for given, candidate, stream in ((table, record, len(table)), (fitted, whole, stored)):
        try:
            chunks = unpack_table(given, candidate, stream, Path("delta"))
        except DeltaError:
            continue
        _require(sum(chunk.length for chunk in chunks) == stream, "the chunks do not fill the stream", chunks)


def _fields(record: TensorRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


class _Zeros:
    """A base that has just the tensors that a delta file refers to, all zeros."""

    def __init__(self, records: Iterable[TensorRecord]) -> None:
        bases = [record.basis for record in records if record.basis is not None]
        self.metas = {
            basis.name: DescribedTensor(basis.name, basis.dtype, (), basis.nbytes, basis.digest)
            for basis in bases
        }

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))


def read_delta_file(data: bytes) -> bool:
    """Flag: whether checksums are made right first, so that what they cover is read. The rest is the file."""
    whole = data[1:]
    return _read_delta(with_checksums(whole) if _flag(data) else whole)


def read_delta_records(data: bytes) -> bool:
    """A manifest's JSON in which every tensor has ``payloads`` too: what its chunks hold, each ``[method, text]``."""
    whole = delta_of(expanded(data, share=4))
    return whole is not None and _read_delta(whole)


def _read_delta(whole: bytes) -> bool:
    path = _place("delta.safetensors", whole)
    try:
        with DeltaFile(path) as delta:
            basis = BasisReader(_Zeros(delta.records.values()))
            for name, record in list(delta.records.items())[:8]:
                for index in range(min(2, -(-record.nbytes // LEAF_BYTES))):
                    _read_chunk(delta, name, index, basis)
    except GraftworkError:
        return False
    return True


def _read_chunk(delta: DeltaFile, name: str, index: int, basis: BasisReader) -> None:
    nbytes = delta.records[name].nbytes
    try:
        delta.chunks(name)  # as all that read do, before they allocate
        tuned = bytearray(min(LEAF_BYTES, nbytes - index * LEAF_BYTES))
        delta.read_chunk(name, index, basis, memoryview(tuned))
    except GraftworkError:
        return


@runtime_checkable
class Reversible(Protocol):
    """A method that changes words in place."""

    def apply_(
        self, chunk: memoryview, payload: memoryview, words: Words, *, reverse: bool = False
    ) -> None: ...


_DTYPES = {words_of(code): code for code in DTYPES}.values()  # one for each way in which words are read
CODERS = tuple(
    (method, words_of(dtype))
    for code, method in sorted(METHODS.items())
    for dtype in _DTYPES
    if code > 1 and can_code(method.name, dtype)
)
"""Every method that has a payload of its own, with each kind of word that it is for."""


def read_sync_payload(data: bytes) -> bool:
    """Flag: whether the rest is a payload, or the text of `delta_of`. Weights that refuse it keep their bits."""
    payload = with_checksums(data[1:]) if _flag(data) else delta_of(expanded(data[1:], share=4), sealed=True)
    if payload is None:
        return False
    state = weights()
    try:
        sync.apply_(state, payload, threads=1)
    except GraftworkError:
        same = all(map(torch.equal, map(_bits, state.values()), map(_bits, weights().values())))
        _require(same, "weights that refuse a payload have changed")
        return False
    return True


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def read_sparse_form(data: bytes) -> bool:
    """An update in the sparse form of training frameworks."""
    try:
        payload = sync.import_sparse(data, weights(), threads=1)
    except GraftworkError:
        return False
    sync.apply_(weights(), payload, threads=1)
    return True


def decode_chunk(data: bytes) -> bool:
    """Byte 0: a method and a kind of word; bytes 1-2: the number of words less one. The rest is the payload."""
    head = data[:3].ljust(3, b"\0")
    method, words = CODERS[head[0] % len(CODERS)]
    count = 1 + int.from_bytes(head[1:], "little") % 5000  # a chunk is never empty
    basis = bytes(range(251)) * (1 + count * words.nbytes // 251)
    tuned = bytearray(count * words.nbytes + 1)
    tuned[-1] = 0xA5
    view = memoryview(bytearray(basis))[: count * words.nbytes]
    payload = memoryview(bytearray(data[3:]))
    try:
        method.decode(view, payload, words, memoryview(tuned)[:-1])
        taken = True
    except DeltaError:
        taken = False
    _require(tuned[-1] == 0xA5, "a byte past the chunk was written")
    if isinstance(method, Reversible):
        _apply_in_place(method, words, view, payload, memoryview(tuned)[:-1] if taken else view)
    return taken


def _apply_in_place(
    method: Reversible, words: Words, basis: memoryview, payload: memoryview, wanted: memoryview
) -> None:
    """Apply a payload to the words themselves, and take it back; ``wanted`` is what it must make of them."""
    chunk = bytearray(basis)
    try:
        method.apply_(memoryview(chunk), payload, words)
        _require(chunk == wanted, "the words changed in place are not those that are restored")
        method.apply_(memoryview(chunk), payload, words, reverse=True)
    except DeltaError:
        _require(wanted is basis, "a payload is refused in place and taken elsewhere")
    _require(chunk == basis, "the words do not come back")


# ---- Stores ----


def read_store_root(data: bytes) -> bool:
    """Flag: whether the text is first made canonical and given its digest. The rest is ``store.json``."""
    text = expanded(data[1:])
    _place(FILE, with_digest(text) if _flag(data) else text)
    try:
        root = read_root(FOLDER)
    except GraftworkError:
        return False
    _require(all(isinstance(digest, str) for digest in root.entries.values()), "an entry has no digest", root)
    root.to_bytes()
    return True


def with_digest(text: bytes) -> bytes:
    """``store.json`` in canonical form and with the digest of what it says, if it is an object at all."""
    try:
        content = json.loads(text)
        content.pop("digest", None)
        digest = hashlib.sha256(canonical_json(content)).hexdigest()
        return canonical_json({**content, "digest": digest}) + b"\n"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return text


def read_entry_manifest(data: bytes) -> bool:
    """The manifest's text."""
    try:
        manifest = parse_entry(expanded(data), "entry")
    except GraftworkError:
        return False
    _require(all(tensor.nbytes >= 0 for tensor in manifest.tensors.values()), "a size is negative")
    _require(manifest.file_bytes >= 0 and len(manifest.content) == 64, "a size is negative")
    _require(
        parse_entry(manifest.to_bytes(), "entry") == manifest, "the manifest does not come back", manifest
    )
    return True


# ---- Recipes ----


@dataclass(frozen=True)
class _Step:
    lr: float
    steps: int | None = None
    mode: Literal["a", "b", 3] = "a"


@dataclass(frozen=True)
class _Job:
    name: str
    step: _Step
    data: list[Path] | dict[str, Path] = field(default_factory=list)
    weights: dict[str, float | list[int]] | None = None
    more: list[_Step] = field(default_factory=list)


def read_recipe(data: bytes) -> bool:
    """Flag: which of two schemas. The rest is the YAML."""
    path = _place("recipe.yaml", expanded(data[1:], share=256))  # YAML is read slowly
    try:
        load_recipe(path, _Job if _flag(data) else PackRecipe)
    except RecipeError as error:
        _require(len(str(error)) < 1 << 16, "an error's text is longer than the recipe")
        return False
    return True


TARGETS = {
    "header": Target(read_checkpoint_header, 2048),
    "index": Target(read_index_file, 2048),
    "manifest": Target(read_manifest, 4096),
    "delta_file": Target(read_delta_file, 8192),
    "delta_records": Target(read_delta_records, 4096),
    "decode_chunk": Target(decode_chunk, 8192),
    "sync": Target(read_sync_payload, 4096),
    "sparse_form": Target(read_sparse_form, 2048),
    "root": Target(read_store_root, 2048),
    "entry": Target(read_entry_manifest, 4096),
    "recipe": Target(read_recipe, 2048),
}


def read_any(data: bytes) -> bool:
    """Byte 0 chooses the target, the rest is its input."""
    names = list(TARGETS)
    return TARGETS[names[data[0] % len(names)] if data else names[0]].read(data[1:])


def _require(holds: bool, what: str, *facts: object) -> None:
    if not holds:
        raise AssertionError(f"{what}: {facts!r:.2000}")
