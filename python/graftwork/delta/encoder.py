"""Turn one chunk of a fine-tuned tensor into a payload: the work that pack does on every thread."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from graftwork.checkpoint.digest import leaf_digest
from graftwork.delta.basis import Basis, BasisReader, words_of
from graftwork.delta.codecs import Parts, method_named
from graftwork.delta.manifest import Chunk
from graftwork.delta.pipeline import Scratch
from graftwork.delta.source import TensorSource

_SAME, _RAW, _ORDZ = (method_named(name) for name in ("same", "raw", "ordz"))


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """A chunk to encode; ``base_leaf`` is the digest of the same bytes of the base, when those exist."""

    name: str
    dtype: str
    offset: int
    length: int
    basis: Basis | None
    base_leaf: bytes | None


class ChunkEncoder:
    """Encodes chunks of ``tuned`` against their basis; one instance serves all threads.

    ``levels`` are zstd levels: the smallest result wins, the first of equals.
    """

    def __init__(self, base: BasisReader, tuned: TensorSource, levels: Sequence[int]) -> None:
        self._base = base
        self._tuned = tuned
        self._levels = levels
        self._scratch = Scratch()

    def __call__(self, job: ChunkJob) -> tuple[Chunk, Parts]:
        tuned = self._scratch.buffer("tuned", job.length)
        self._tuned.read_into(job.name, job.offset, tuned)
        leaf = leaf_digest(tuned)
        if leaf == job.base_leaf:
            return Chunk(0, _SAME.code, 0, leaf), ()
        basis = self._base.read(job.basis, job.dtype, job.offset, job.length)
        if job.base_leaf is None and _equal(basis, tuned):
            return Chunk(0, _SAME.code, 0, leaf), ()
        method, parts = self._smallest(basis, tuned, job.dtype)
        length, crc = 0, 0
        for part in parts:
            length += len(part)
            crc = zlib.crc32(part, crc)
        return Chunk(length, method, crc, leaf), parts

    def _smallest(self, basis: memoryview, tuned: memoryview, dtype: str) -> tuple[int, Parts]:
        words = words_of(dtype)
        smallest: Parts | None = None
        size = len(tuned)
        for level in self._levels:
            parts = _ORDZ.encode(basis, tuned, words, level)
            if sum(map(len, parts)) < size:
                smallest, size = parts, sum(map(len, parts))
        if smallest is None:
            return _RAW.code, _RAW.encode(basis, tuned, words, 0)
        return _ORDZ.code, smallest


def codec_of(chunks: Sequence[Chunk]) -> str:
    """The codec whose methods these chunks use, for a tensor that is not its base tensor itself."""
    return "ordz" if any(chunk.method == _ORDZ.code for chunk in chunks) else "raw"


def _equal(a: memoryview, b: memoryview) -> bool:
    import numpy as np

    return bool(np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)))
