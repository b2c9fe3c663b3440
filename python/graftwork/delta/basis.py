"""The basis: which words a tensor is stored as a difference to.

The basis of a fine-tuned tensor is the base's tensor of the same name, brought to the fine-tune's dtype and
length: rows that only the fine-tune has (a grown vocabulary) and tensors that only it has are differences to
zero words, rows that only the base has are left out, and a floating base of another dtype is cast. Every one
of these is an explicit fact of the delta's manifest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from graftwork.checkpoint.dtypes import DTYPES
from graftwork.delta.pipeline import Scratch
from graftwork.delta.source import TensorMeta, TensorSource
from graftwork.errors import DeltaError

_CASTS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""Dtypes between which a base is cast. A cast widens exactly to fp32 and rounds once, to nearest even; a NaN
of the base becomes the zero word, so that every implementation gets the same bits."""


@dataclass(frozen=True, slots=True)
class Words:
    """How a dtype's bytes are read as words: their size in bytes and whether they are sign-magnitude floats."""

    nbytes: int
    is_float: bool

    @property
    def torch_dtype(self) -> Any:
        """A torch dtype with this word size and ordinal map (``ops.encode_ordinal_planes`` needs no more)."""
        import torch

        floats = {1: torch.float8_e5m2, 2: torch.float16, 4: torch.float32, 8: torch.float64}
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return (floats if self.is_float else integers)[self.nbytes]


def words_of(dtype: str) -> Words:
    """Word layout of a safetensors dtype."""
    info = DTYPES[dtype]
    return Words(info.word_bytes, info.kind == "float")


@dataclass(frozen=True, slots=True)
class Basis:
    """A base tensor as the basis of a fine-tuned one.

    ``nbytes`` of the fine-tune's bytes have a counterpart in the base; those after are differences to zero.
    ``dtype`` is the base's dtype: other than the fine-tune's means a cast.
    """

    name: str
    digest: str
    dtype: str
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as it stands in a delta's manifest."""
        return {"name": self.name, "digest": self.digest, "dtype": self.dtype, "nbytes": self.nbytes}


def find_basis(tuned: TensorMeta, base: TensorMeta | None, digest: str | None) -> Basis | None:
    """The basis that ``base`` offers to ``tuned``, or None: zero words throughout.

    Shapes may differ in the first dimension only; dtypes only among F16, BF16 and F32.
    """
    if base is None or digest is None or len(base.shape) != len(tuned.shape):
        return None
    if base.dtype != tuned.dtype and not (base.dtype in _CASTS and tuned.dtype in _CASTS):
        return None
    if tuned.shape and base.shape[1:] != tuned.shape[1:]:
        return None
    if base.shape == tuned.shape:
        return Basis(base.name, digest, base.dtype, tuned.nbytes)
    bits = min(base.shape[0], tuned.shape[0]) * math.prod(tuned.shape[1:]) * DTYPES[tuned.dtype].bits
    return Basis(base.name, digest, base.dtype, bits // 8) if bits >= 8 else None


class BasisReader:
    """Reads the words of bases from a source, cast and padded to the fine-tune's.

    Each reader keeps its own buffers, so readers may be nested: a base that is itself stored as differences.
    """

    def __init__(self, source: TensorSource | None) -> None:
        self._source = source
        self._scratch = Scratch()

    def read(self, basis: Basis | None, dtype: str, offset: int, length: int) -> memoryview:
        """The basis of the fine-tune's ``length`` bytes from ``offset`` on.

        Thread-safe; the view is valid until this thread's next call.
        """
        buffer = self._scratch.buffer("basis", length)
        held = 0 if basis is None else max(0, min(length, basis.nbytes - offset))
        if basis is not None and held:
            source = self._source_of(basis)
            if basis.dtype == dtype:
                source.read_into(basis.name, offset, buffer[:held])
            else:
                self._read_cast(source, basis, dtype, offset, buffer[:held])
        if held < length:
            buffer[held:] = bytes(length - held)
        return buffer

    def _source_of(self, basis: Basis) -> TensorSource:
        """The source, after checking that it has what a manifest says it has."""
        if self._source is None:
            raise DeltaError("a delta needs its base and none was given", tensor=basis.name)
        held = self._source.metas.get(basis.name)
        if held is None or held.dtype != basis.dtype:
            raise DeltaError(
                "the base lacks a tensor that a delta refers to",
                tensor=basis.name,
                got="no such tensor" if held is None else held.dtype,
                wanted=basis.dtype,
                remedy="give the base that the delta was made against",
            )
        return self._source

    def _read_cast(
        self, source: TensorSource, basis: Basis, dtype: str, offset: int, buffer: memoryview
    ) -> None:
        import torch

        source_type, target_type = (getattr(torch, _CASTS[code]) for code in (basis.dtype, dtype))
        first, count = offset // target_type.itemsize, len(buffer) // target_type.itemsize
        raw = self._scratch.buffer("cast", count * source_type.itemsize)
        source.read_into(basis.name, first * source_type.itemsize, raw)
        words = torch.frombuffer(raw, dtype=source_type).float()
        words.masked_fill_(words.isnan(), 0.0)
        torch.frombuffer(buffer, dtype=target_type).copy_(words)
