"""Measures of the update between two sets of weights, as sums that add up piece by piece."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from graftwork.delta.survival import Survival, finite

__all__ = ["Survival", "UpdateStats"]


def _sum(a: UpdateStats, b: UpdateStats) -> UpdateStats:
    """Field by field; the largest of two maxima, and what only one side has is taken as it is."""
    parts = ((f.name, getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return UpdateStats(**{k: max(x, y) if k.startswith("max") else _plus(x, y) for k, x, y in parts})


def _plus(x: Any, y: Any) -> Any:
    return y if x is None else x if y is None else x + y


def _ratio(numerator: float, denominator: float) -> float | None:
    """The quotient, or None where it is undefined."""
    return numerator / denominator if denominator else None


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """Sums over pairs of elements, from which the measures follow; two of them add up.

    The squares and ``max_update`` (the largest ``|tuned - base|``) are in fp64 over pairs that are finite.
    ``entropy_bits`` is the entropy of the ordinal differences' classes (sign and bit length) given the base's
    exponent, plus the bits below the leading one as they are. It is what a coder of such classes needs, element
    by element; one that sees more (unchanged rows, low bits that are not uniform) may need less.
    ``bf16`` and ``fp16`` are None where the question makes no sense (integers, fp8).
    """

    elements: int = 0
    changed: int = 0
    base_nan: int = 0
    base_inf: int = 0
    tuned_nan: int = 0
    tuned_inf: int = 0
    update_square: float = 0.0
    base_square: float = 0.0
    tuned_square: float = 0.0
    max_update: float = 0.0
    entropy_bits: float = 0.0
    bf16: Survival | None = None
    fp16: Survival | None = None

    __add__ = _sum

    @property
    def changed_share(self) -> float | None:
        """Share of the elements whose bits differ, in [0, 1]; None if there are no elements."""
        return _ratio(self.changed, self.elements)

    @property
    def update_norm(self) -> float:
        """``||tuned - base||``."""
        return math.sqrt(self.update_square)

    @property
    def relative_norm(self) -> float | None:
        """``||tuned - base|| / ||base||``; None if the base is all zeros."""
        return _ratio(self.update_norm, math.sqrt(self.base_square))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: counts, measures (None where undefined or not finite), and both survivals."""
        return {
            "elements": self.elements,
            "changed": self.changed,
            "changed_share": self.changed_share,
            "update_norm": finite(self.update_norm),
            "relative_norm": finite(self.relative_norm),
            "max_update": finite(self.max_update),
            "base_nan": self.base_nan,
            "base_inf": self.base_inf,
            "tuned_nan": self.tuned_nan,
            "tuned_inf": self.tuned_inf,
            "bf16": self.bf16 and self.bf16.to_dict(),
            "fp16": self.fp16 and self.fp16.to_dict(),
        }
