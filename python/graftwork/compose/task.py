"""One tensor of a merge: what goes in, in canonical order, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from graftwork.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from graftwork.ops.merge import MergeCounts
    from graftwork.ops.merge.arguments import Key, Nonfinite, Rounding

__all__ = ["Nonfinites", "Outcome", "Scalar", "TensorTask"]

Scalar = bool | int | float | str
"""What a parameter of a method may be."""


@dataclass
class TensorTask:
    """The tensors of one name, and what a method needs to know to merge them.

    Attributes
    ----------
    name : str
        The output tensor's name.
    base : Tensor or None
        The base's tensor, where the method has a base.
    donors : list of Tensor
        In the order of their contents' digests, so that sums do not depend on the recipe's order. float16, bfloat16 or
        float32, all of one shape.
    own : list of mapping
        Each donor's parameters.
    shared : mapping
        The parameters of the merge.
    keys : list of (int, int)
        Each donor's Philox key, from the seed, the name and the donor's content.
    nonfinite, rounding, rounding_key
        As the operations take them.
    out : Tensor
        Contiguous, to be filled.
    residual : Tensor or None
        float32, to be filled with what rounding takes away.
    """

    name: str
    base: Tensor | None
    donors: list[Tensor]
    own: Sequence[Mapping[str, Scalar | None]]
    shared: Mapping[str, Scalar | None]
    out: Tensor
    keys: list[Key] = field(default_factory=list)
    nonfinite: Nonfinite = "propagate"
    rounding: Rounding = "nearest"
    rounding_key: Key | None = None
    residual: Tensor | None = None

    @property
    def start(self) -> Tensor:
        """The base of a method that has one."""
        if self.base is None:
            raise RecipeError(
                "a method that starts from a base has none", tensor=self.name, remedy="give base_model"
            )
        return self.base

    def numbers(self, name: str) -> list[float]:
        """A parameter that every donor has."""
        return [float(row[name] or 0.0) for row in self.own]

    def number(self, name: str) -> float:
        """A number that is one for the merge."""
        return float(self.shared[name] or 0.0)

    def switch(self, name: str) -> bool:
        """A switch of the merge."""
        return bool(self.shared[name])

    @property
    def writing(self) -> dict[str, Any]:
        """How the operations shall write, as their keywords."""
        return {
            "nonfinite": self.nonfinite,
            "rounding": self.rounding,
            "key": self.rounding_key,
            "out": self.out,
            "residual_out": self.residual,
        }


class Nonfinites(NamedTuple):
    """How many elements of an input are NaN or infinite, and the flat index of the first, or -1."""

    number: int
    first: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a merge met in each donor, and in the base."""

    donors: list[Nonfinites]
    base: Nonfinites

    @classmethod
    def of(cls, counts: MergeCounts) -> Outcome:
        """From an operation that was given the donors and the base."""
        rows = [Nonfinites(*row) for row in zip(counts.nonfinite, counts.first_nonfinite, strict=True)]
        return cls(rows, Nonfinites(counts.base_nonfinite, counts.first_base_nonfinite))

    @classmethod
    def base_first(cls, counts: MergeCounts) -> Outcome:
        """From an operation for which the base was the first of the tensors."""
        first, *rows = (
            Nonfinites(*row) for row in zip(counts.nonfinite, counts.first_nonfinite, strict=True)
        )
        return cls(rows, first)
