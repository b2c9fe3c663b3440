"""The stored forms of one tensor's change: what fields each has in the file, and how it is added to a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from graftwork.ops.quantized_delta import PackedDelta, dequant_add
from graftwork.store.skill_pack.file import Form
from graftwork.store.skill_pack.packed import (
    CODES,
    NAMES,
    Facts,
    FieldNames,
    Fields,
    check_exponent,
    packed_facts,
    packed_fields,
    packed_forms,
    packed_words,
    read_packed,
    scaled_down,
    scaled_up,
)
from graftwork.store.skill_pack.roles import matrix_shape, stack_of

__all__ = ["Dropped", "Outline", "Piece", "Quantized", "RawChange", "dense"]


@dataclass(frozen=True, slots=True)
class Outline:
    """A tensor as a piece sees it: ``stack`` matrices of ``rows`` by ``columns``, one on top of the other."""

    stack: int
    rows: int
    columns: int

    @classmethod
    def of(cls, name: str, shape: Sequence[int]) -> Self:
        """The outline of a tensor."""
        return cls(stack_of(name, shape), *matrix_shape(name, shape))

    @property
    def shape(self) -> tuple[int, int]:
        """All of it as one matrix."""
        return self.stack * self.rows, self.columns

    @property
    def numel(self) -> int:
        return self.stack * self.rows * self.columns


class Piece(Protocol):
    """One tensor's change in some stored form."""

    codec: ClassVar[str]

    @property
    def outline(self) -> Outline: ...

    def words(self) -> str:
        """The form, for people."""
        ...

    def fields(self) -> dict[str, Tensor]:
        """What the file holds, by field name."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the manifest must say beside the fields, to read them."""
        ...

    def add_(self, total: Tensor, scale: float) -> None:
        """Add ``scale`` times the change to a contiguous float32 matrix of the outline's shape."""
        ...

    @staticmethod
    def forms(facts: Facts, outline: Outline) -> dict[str, Form]:
        """The fields that facts of a file ask for; ValueError, TypeError or KeyError if they are malformed."""
        ...

    @classmethod
    def read(cls, facts: Facts, outline: Outline, fields: Fields) -> Self:
        """The piece that `fields` of the right `forms` hold; ValueError if their content is malformed."""
        ...


def stored_bytes(piece: Piece) -> int:
    """Bytes of a piece's fields."""
    return sum(field.nbytes for field in piece.fields().values())


def dense(piece: Piece) -> Tensor:
    """The change as a float32 matrix of the outline's shape."""
    total = torch.zeros(piece.outline.shape, dtype=torch.float32)
    piece.add_(total, 1.0)
    return total


@dataclass(frozen=True, slots=True, eq=False)
class Dropped:
    """No change at all."""

    outline: Outline
    codec: ClassVar[str] = "drop"

    def words(self) -> str:
        return "dropped"

    def fields(self) -> dict[str, Tensor]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {}

    def add_(self, total: Tensor, scale: float) -> None:
        pass

    @staticmethod
    def forms(facts: Facts, outline: Outline) -> dict[str, Form]:
        return {}

    @classmethod
    def read(cls, facts: Facts, outline: Outline, fields: Fields) -> Self:
        return cls(outline)


@dataclass(frozen=True, slots=True, eq=False)
class RawChange:
    """The change in 16 or 32 bits; halves are divided by a power of two, so that small changes keep their digits."""

    outline: Outline
    values: Tensor
    exponent: int = 0
    codec: ClassVar[str] = "raw"

    @classmethod
    def of(cls, outline: Outline, delta: Tensor, dtype: torch.dtype) -> Self:
        """The float32 change in ``dtype``."""
        stored, exponent = scaled_down(delta.reshape(-1), dtype)
        return cls(outline, stored, exponent)

    def words(self) -> str:
        return f"raw {NAMES[self.values.dtype]}"

    def fields(self) -> dict[str, Tensor]:
        return {"raw": self.values}

    def facts(self) -> dict[str, Any]:
        return {"dtype": NAMES[self.values.dtype], "exponent": self.exponent}

    def add_(self, total: Tensor, scale: float) -> None:
        values = scaled_up(self.values.to(total.device), self.exponent)
        total.view(-1).add_(values, alpha=scale)

    @staticmethod
    def forms(facts: Facts, outline: Outline) -> dict[str, Form]:
        check_exponent(facts["exponent"])
        return {"raw": Form(CODES[facts["dtype"]], (outline.numel,))}

    @classmethod
    def read(cls, facts: Facts, outline: Outline, fields: Fields) -> Self:
        if not bool(torch.isfinite(fields["raw"]).all()):
            raise ValueError("a raw change is not finite")
        return cls(outline, fields["raw"], facts["exponent"])


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A few bits for every entry."""

    outline: Outline
    pack: PackedDelta
    codec: ClassVar[str] = "quantize"

    def words(self) -> str:
        return packed_words(self.pack.format)

    def fields(self) -> dict[str, Tensor]:
        return packed_fields(self.pack, FieldNames.alone())

    def facts(self) -> dict[str, Any]:
        return packed_facts(self.pack)

    def add_(self, total: Tensor, scale: float) -> None:
        dequant_add(total, [self.pack.to(total.device)], [scale], out=total)

    @staticmethod
    def forms(facts: Facts, outline: Outline) -> dict[str, Form]:
        return packed_forms(facts, outline.shape, FieldNames.alone())

    @classmethod
    def read(cls, facts: Facts, outline: Outline, fields: Fields) -> Self:
        return cls(outline, read_packed(facts, outline.shape, fields, FieldNames.alone()))
