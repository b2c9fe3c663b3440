"""The file of a sparse delta: a sealed delta file with the indices and values of every tensor.

``docs/papers/sparse_finetuning.md`` specifies it.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from graftwork.adapt.deltas.arrangement import index_dtype, no_support
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.tuned_tensor import DTYPES, TunedTensor
from graftwork.checkpoint.digest import leaf_digest, tree_digest
from graftwork.checkpoint.dtypes import code_of, tensor_bits, torch_dtype, torch_form
from graftwork.checkpoint.files import AtomicFile
from graftwork.checkpoint.source import ReadableFile
from graftwork.delta.basis import BasisReader, words_of
from graftwork.delta.codecs import METHODS, Parts, method_named
from graftwork.delta.container import DeltaFile, DeltaWriter
from graftwork.delta.encoder import codec_of
from graftwork.delta.manifest import Chunk, TensorRecord, check_format, is_digest
from graftwork.delta.pipeline import default_threads, ordered_map
from graftwork.delta.seal import check_spelling, read_sealed, seal_metadata
from graftwork.delta.source import leaf_ranges
from graftwork.delta.weights import StateSource
from graftwork.errors import DeltaError
from graftwork.ops.sparse_update import Support, decode_indices, encode_indices

FORMAT = "graftwork-sparse-delta"
VERSION = (1, 0)
_DOMAIN, _KIND = b"graftwork-sparse-delta-1", "sparse"
_REMEDY = "the file is damaged: restore it from a copy"
_REMEDIES = ("read other delta files through a store", _REMEDY)
_LEAST_SHARE = 8
"""No chunk is stored in less than its length by this: so a small file cannot ask for much memory."""
_RAW, _RANS = method_named("raw"), method_named("ordrans")
_INDICES, _VALUES, _FULL = "indices/", "values/", "full/"


def save_delta(
    delta: SparseDelta,
    path: str | os.PathLike[str],
    *,
    values_dtype: torch.dtype,
    overwrite: bool,
    threads: int | None,
) -> None:
    """See `SparseDelta.save`."""
    tensors, said = _contents(delta, values_dtype)
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    source = StateSource(tensors)
    room = 2 * len(json.dumps(text)) + 256
    with AtomicFile(path, replace=overwrite) as file:
        writer = DeltaWriter(file, None, tensors, metadata_bytes=room)
        encoder = _Encoder(source)
        jobs = _jobs(source)
        with closing(ordered_map(encoder, jobs, threads=threads or default_threads(), weigh=_weigh)) as done:
            for name, meta in source.metas.items():
                chunks = []
                for _ in leaf_ranges(meta.nbytes):
                    chunk, parts = next(done)
                    writer.write_payload(parts)
                    chunks.append(chunk)
                digest = tree_digest(meta.nbytes, (chunk.leaf for chunk in chunks))
                shape, codec = tuple(meta.shape), codec_of(chunks)
                record = TensorRecord(name, meta.dtype, shape, meta.nbytes, digest, codec, None)
                writer.finish_tensor(record, chunks)
        writer.finish(lambda manifest: seal_metadata(_DOMAIN, _KIND, text, manifest))


def _contents(delta: SparseDelta, values_dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the file, in its order, and what it says of the delta's."""
    values = delta.values.cpu().to(values_dtype) if values_dtype in DTYPES else None
    if values is None or not bool(torch.isfinite(values).all()):
        raise DeltaError(
            "the changes cannot be kept in this dtype",
            got=values_dtype,
            wanted="float32, bfloat16 or float16, in the range of which all changes are",
        )
    tensors: dict[str, Tensor] = {}
    rows: dict[str, list[Any]] = {}
    support = delta.support.to("cpu")
    parts = zip(delta.tensors, support.split(support.indices), support.split(values), strict=True)
    for tensor, indices, mine in parts:
        codec = None
        if len(indices):
            codec, coded = encode_indices(indices, tensor.numel)
            tensors[_INDICES + tensor.name], tensors[_VALUES + tensor.name] = coded, mine
        rows[tensor.name] = [code_of(tensor.dtype), list(tensor.shape), len(indices), codec, tensor.digest]
    for name, full in delta.full.items():
        tensors[_FULL + name] = full.cpu()
    said = {
        "base": delta.base_digest,
        "format": FORMAT,
        "full": list(delta.full),
        "min_reader": list(VERSION),
        "tensors": rows,
        "tied": dict(delta.tied),
        "values": code_of(values_dtype),
        "version": list(VERSION),
    }
    return tensors, said


class _Job(NamedTuple):
    name: str
    dtype: str
    offset: int
    length: int


def _weigh(job: _Job) -> int:
    return job.length


def _jobs(source: StateSource) -> Iterator[_Job]:
    for name, meta in source.metas.items():
        for offset, length in leaf_ranges(meta.nbytes):
            yield _Job(name, meta.dtype, offset, length)


class _Encoder:
    """Encodes chunks of tensors that have no base: entropy coded if they are floats and that pays, else as they are."""

    def __init__(self, source: StateSource) -> None:
        self._source = source

    def __call__(self, job: _Job) -> tuple[Chunk, Parts]:
        data = memoryview(bytearray(job.length))
        self._source.read_into(job.name, job.offset, data)
        words = words_of(job.dtype)
        method, parts = _RAW, _RAW.encode(data, data, words, 1) or ()
        if words.exponent_bits:
            coded = _RANS.encode(memoryview(bytearray(job.length)), data, words, 1) or ()
            if job.length <= _LEAST_SHARE * sum(map(len, coded)) < _LEAST_SHARE * job.length:
                method, parts = _RANS, coded
        length, crc = 0, 0
        for part in parts:
            length += len(part)
            crc = zlib.crc32(part, crc)
        return Chunk(length, method.code, crc, leaf_digest(data)), parts


def load_delta(source: str | os.PathLike[str] | ReadableFile, *, threads: int | None) -> SparseDelta:
    """See `SparseDelta.load`; a file may be one that is open already."""
    opened = Path(source) if isinstance(source, str | os.PathLike) else source
    with DeltaFile(opened) as file:
        return _Reader(file, threads or default_threads()).delta()


class _Row(NamedTuple):
    """What the file says of a tensor."""

    tensor: TunedTensor
    entries: int
    codec: str | None


class _Reader:
    """Reads a delta out of an open file, and believes nothing of it."""

    def __init__(self, file: DeltaFile, threads: int) -> None:
        self._file = file
        self._threads = threads
        what = "the file of a sparse delta"
        text = read_sealed(file, _DOMAIN, _KIND, what=what, remedies=_REMEDIES)
        try:
            said = json.loads(text)
            check_format(said, FORMAT, VERSION, file.path)
            self._rows = [self._row(name, row) for name, row in said["tensors"].items()]
            self._values: str = said["values"]
            self._base: str | None = said["base"]
            self._full = [self._name(name) for name in said["full"]]
            self._tied = {self._name(name): self._name(own) for name, own in said["tied"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, DeltaError):
                raise
            raise DeltaError(
                f"what the file says of the delta is malformed: {error!r}", file=file.path, remedy=_REMEDY
            ) from error
        if not (self._base is None or is_digest(self._base)):
            self._refuse("the base's digest is malformed", got=self._base)
        if self._values not in [code_of(dtype) for dtype in DTYPES]:
            self._refuse("the values have an unknown dtype", got=self._values)
        check_spelling(file, _KIND, remedy=_REMEDY)
        self._check_records()

    def _refuse(self, what: str, tensor: str | None = None, **details: Any) -> NoReturn:
        raise DeltaError(what, file=self._file.path, tensor=tensor, **{"remedy": _REMEDY, **details})

    def _name(self, name: object) -> str:
        if not isinstance(name, str):
            self._refuse("a tensor's name is no text", got=name)
        return name

    def _row(self, name: str, row: list[Any]) -> _Row:
        code, shape, entries, codec, digest = row
        dtype = torch_dtype(code)
        if dtype not in DTYPES:
            self._refuse("a tensor's dtype cannot be tuned", name, got=code)
        if not all(type(size) is int and size >= 0 for size in (*shape, entries)):
            self._refuse("a tensor's shape is not made of whole numbers", name, got=(shape, entries))
        if tensor_bits(code, shape) is None or entries > math.prod(shape):
            self._refuse("a tensor has more changes than elements", name, got=entries, wanted=shape)
        if not (digest is None or is_digest(digest)):
            self._refuse("a tensor's digest is malformed", name, got=digest)
        return _Row(TunedTensor(name, tuple(shape), dtype, digest), entries, codec)

    def _check_records(self) -> None:
        """The manifest's tensors are those that the delta needs, and their chunks are not too short."""
        records = self._file.records
        wanted: dict[str, tuple[str, tuple[int, ...] | None]] = {
            _FULL + name: ("", None) for name in self._full
        }
        for row in self._rows:
            if row.entries:
                wanted[_INDICES + row.tensor.name] = "U8", None
                wanted[_VALUES + row.tensor.name] = self._values, (row.entries,)
        if records.keys() != wanted.keys():
            missing = sorted(records.keys() ^ wanted.keys())[:8]
            self._refuse("the file's tensors are not those of the delta", got=missing)
        for name, (dtype, shape) in wanted.items():
            record = records[name]
            fits = (dtype in ("", record.dtype)) and shape in (None, record.shape)
            if not fits or record.basis is not None or torch_form(record.dtype, record.shape) is None:
                self._refuse("a tensor of the file is of another kind than the delta says", name)
            chunks, _ = self._file.chunks(name)
            for chunk, (_, length) in zip(chunks, leaf_ranges(record.nbytes), strict=True):
                if METHODS[chunk.method] not in (_RAW, _RANS) or chunk.length * _LEAST_SHARE < length:
                    self._refuse("a chunk is stored in another way than a sparse delta's", name)

    def delta(self) -> SparseDelta:
        """The delta, after reading and checking all of the file."""
        indices, values = [], []
        dtype = index_dtype(row.tensor.numel for row in self._rows)
        for row in self._rows:
            if not row.entries:
                indices.append(torch.empty(0, dtype=dtype))
                continue
            coded = self._read(_INDICES + row.tensor.name)
            values.append(self._read(_VALUES + row.tensor.name).float())
            indices.append(self._decode(row, coded, dtype))
        numels = [row.tensor.numel for row in self._rows]
        support = Support(indices, numels) if numels else no_support()
        return SparseDelta(
            [row.tensor for row in self._rows],
            support,
            torch.cat(values) if values else torch.empty(0),
            full={name: self._read(_FULL + name) for name in self._full},
            tied=self._tied,
            base_digest=self._base,
        )

    def _decode(self, row: _Row, coded: Tensor, dtype: torch.dtype) -> Tensor:
        try:
            return decode_indices(row.codec or "", coded, row.tensor.numel, row.entries, dtype)
        except (ValueError, TypeError) as error:
            raise DeltaError(
                f"a tensor's indices are malformed: {error}",
                file=self._file.path,
                tensor=row.tensor.name,
                remedy=_REMEDY,
            ) from error

    def _read(self, name: str) -> Tensor:
        """A tensor of the file, every chunk checked."""
        record = self._file.records[name]
        data = torch.empty(record.nbytes, dtype=torch.uint8)
        whole = data.numpy().data
        basis = BasisReader(None)
        pieces = list(leaf_ranges(record.nbytes))

        def restore(number: int) -> None:
            offset, length = pieces[number]
            self._file.read_chunk(name, number, basis, whole[offset : offset + length])

        for _ in ordered_map(restore, range(len(pieces)), threads=min(self._threads, len(pieces))):
            pass
        form = torch_form(record.dtype, record.shape)
        if form is None:
            self._refuse("torch has no tensor of this type", name, got=record.dtype)
        return data.view(form[0]).view(form[1])
