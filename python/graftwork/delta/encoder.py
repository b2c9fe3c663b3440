"""Turn one chunk of a fine-tuned tensor into a payload: the work that pack does on every thread."""

from __future__ import annotations

import zlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache

from graftwork.checkpoint.digest import leaf_digest
from graftwork.delta.basis import Basis, BasisReader, Words, words_of
from graftwork.delta.codecs import CODECS, FEW_CHANGES, METHODS, Attempt, Parts, attempts, method_named
from graftwork.delta.manifest import Chunk
from graftwork.delta.pipeline import Scratch
from graftwork.delta.source import TensorSource, read_piece

_SAME, _RAW = method_named("same"), method_named("raw")
_PROBE = 1 << 12  # bytes that usually show a difference, so that the rest need not be compared


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

    ``effort`` is "fast", "auto" or "small" (`codecs.attempts`). With ``methods`` only these are used; a chunk that
    none of them makes smaller is stored by the last that suits it.
    """

    def __init__(
        self,
        base: BasisReader,
        tuned: TensorSource,
        effort: str = "auto",
        methods: Container[str] | None = None,
    ) -> None:
        self._base = base
        self._tuned = tuned
        self._effort = effort
        self._methods = methods
        self._scratch = Scratch()

    def __call__(self, job: ChunkJob) -> tuple[Chunk, Parts]:
        tuned = read_piece(self._tuned, job.name, job.offset, self._scratch.buffer("tuned", job.length))
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
        best: tuple[int, Parts] | None = None
        size = len(tuned) if self._allows("raw") else None
        for attempt in self._attempts(words, len(tuned)):
            method = method_named(attempt.method)
            parts = method.encode(basis, tuned, words, attempt.level)
            if parts is None or (size is not None and sum(map(len, parts)) >= size):
                continue
            best, size = (method.code, parts), sum(map(len, parts))
            if attempt.method == "sparse" and self._effort == "auto" and size < len(tuned) // FEW_CHANGES:
                break
        return best if best is not None else (_RAW.code, _RAW.encode(basis, tuned, words, 0) or ())

    def _attempts(self, words: Words, nbytes: int) -> list[Attempt]:
        tried = [attempt for attempt in attempts(self._effort, words, nbytes) if self._allows(attempt.method)]
        if not self._allows("raw") and Attempt("ordz", 1) not in tried:  # something must store whatever comes
            tried.append(Attempt("ordz", 1))
        return tried

    def _allows(self, method: str) -> bool:
        return self._methods is None or method in self._methods


def codec_of(chunks: Sequence[Chunk]) -> str:
    """The narrowest codec whose methods these chunks use, for a tensor that is not its base tensor itself."""
    return _codec_of(frozenset(chunk.method for chunk in chunks))


@cache
def _codec_of(methods: frozenset[int]) -> str:
    used = {METHODS[method].name for method in methods} | {"raw"}
    return next(codec for codec, allowed in CODECS.items() if used <= {*allowed})


def _equal(a: memoryview, b: memoryview) -> bool:
    import numpy as np

    if bytes(a[:_PROBE]) != bytes(b[:_PROBE]):
        return False
    word = np.uint64 if len(a) % 8 == 0 else np.uint8
    return bool(np.array_equal(np.frombuffer(a, word), np.frombuffer(b, word)))
