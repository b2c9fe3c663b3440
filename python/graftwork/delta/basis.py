"""The basis: which words a tensor is stored as a difference to.

The basis of a fine-tuned tensor is the base's tensor of the same name, brought to the fine-tune's dtype and
length: rows that only the fine-tune has (a grown vocabulary) and tensors that only it has are differences to
zero words, rows that only the base has are left out, and a floating base of another dtype is cast. Every one
of these is an explicit fact of the delta's manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftwork.checkpoint.dtypes import DTYPES
from graftwork.delta.pipeline import Scratch
from graftwork.delta.source import TensorMeta, TensorSource, read_piece
from graftwork.errors import DeltaError

_CASTS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""Dtypes between which a base is cast. A cast widens exactly to fp32 and rounds once, to nearest even; a NaN
of the base becomes the zero word, so that every implementation gets the same bits."""

_EXPONENT_BITS = {"F16": 5, "BF16": 8, "F32": 8, "C64": 8}


@dataclass(frozen=True, slots=True)
class Words:
    """How a dtype's bytes are read as words: their size in bytes and whether they are sign-magnitude floats.

    ``exponent_bits`` is 0 but for the floats of 2 and 4 bytes, which can be entropy coded.
    """

    nbytes: int
    is_float: bool
    exponent_bits: int = 0

    @property
    def torch_dtype(self) -> Any:
        """A torch dtype with this word size and ordinal map (``ops.encode_ordinal_planes`` needs no more)."""
        import torch

        floats = {1: torch.float8_e5m2, 2: torch.float16, 4: torch.float32, 8: torch.float64}
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return (floats if self.is_float else integers)[self.nbytes]

    @property
    def float_dtype(self) -> Any:
        """The torch dtype of these words, which have exponent bits."""
        import torch

        return {(2, 5): torch.float16, (2, 8): torch.bfloat16, (4, 8): torch.float32}[
            self.nbytes, self.exponent_bits
        ]


def words_of(dtype: str) -> Words:
    """Word layout of a safetensors dtype."""
    info = DTYPES[dtype]
    return Words(info.word_bytes, info.kind == "float", _EXPONENT_BITS.get(dtype, 0))


@dataclass(frozen=True, slots=True)
class Basis:
    """A base tensor as the basis of a fine-tuned one.

    ``nbytes`` of the fine-tune's bytes have a counterpart in the base; those after are differences to zero.
    ``dtype`` is the base's dtype: other than the fine-tune's means a cast. ``digest`` is None if nobody took
    it: then only the digests of what is restored tell a wrong base.
    """

    name: str
    digest: str | None
    dtype: str
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as it stands in a delta's manifest."""
        return {"name": self.name, "digest": self.digest, "dtype": self.dtype, "nbytes": self.nbytes}


def is_castable(base: str, tuned: str) -> bool:
    """Whether words of dtype ``base`` can be the basis of a tensor of dtype ``tuned``: as they are, or cast."""
    return base == tuned or (base in _CASTS and tuned in _CASTS)


def find_basis(tuned: TensorMeta, base: TensorMeta | None, digest: str | None) -> Basis | None:
    """The basis that ``base`` offers to ``tuned``, or None: zero words throughout.

    Shapes may differ in the first dimension only; dtypes only among F16, BF16 and F32.
    """
    if base is None or digest is None or len(base.shape) != len(tuned.shape):
        return None
    if not is_castable(base.dtype, tuned.dtype):
        return None
    if tuned.shape and base.shape[1:] != tuned.shape[1:]:
        return None
    if base.shape == tuned.shape:
        return Basis(base.name, digest, base.dtype, tuned.nbytes)
    bits = min(base.shape[0], tuned.shape[0]) * math.prod(tuned.shape[1:]) * DTYPES[tuned.dtype].bits
    return Basis(base.name, digest, base.dtype, bits // 8) if bits >= 8 else None


def check_basis(basis: Basis, metas: Mapping[str, TensorMeta]) -> None:
    """Refuse a source, given its tensors, that lacks the one that a delta's manifest names.

    Tensors that know their digest are held to it.
    """
    held = metas.get(basis.name)
    digest = getattr(held, "digest", basis.digest) if basis.digest else basis.digest
    if held is None or (held.dtype, digest) != (basis.dtype, basis.digest):
        raise DeltaError(
            "the base lacks a tensor that a delta refers to",
            tensor=basis.name,
            got="no such tensor" if held is None else f"{held.dtype}, digest {digest}",
            wanted=f"{basis.dtype}, digest {basis.digest}",
            remedy="give the base that the delta was made against",
        )


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
        if basis is not None and basis.dtype == dtype and offset + length <= basis.nbytes:
            return read_piece(self._source_of(basis), basis.name, offset, buffer)
        self.read_into(basis, dtype, offset, buffer)
        return buffer

    def read_into(self, basis: Basis | None, dtype: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the basis of the fine-tune's bytes from ``offset`` on. Thread-safe."""
        length = len(buffer)
        held = 0 if basis is None else max(0, min(length, basis.nbytes - offset))
        if basis is not None and held:
            source = self._source_of(basis)
            if basis.dtype == dtype:
                source.read_into(basis.name, offset, buffer[:held])
            else:
                self._read_cast(source, basis, dtype, offset, buffer[:held])
        if held < length:
            buffer[held:] = bytes(length - held)

    def _source_of(self, basis: Basis) -> TensorSource:
        """The source, after checking that it has what a manifest says it has."""
        if self._source is None:
            raise DeltaError("a delta needs its base and none was given", tensor=basis.name)
        check_basis(basis, self._source.metas)
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
