"""What an adapter carries of a merge, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["LoraExport", "LoraRow"]


@dataclass(frozen=True, slots=True)
class LoraRow:
    """A tensor that the merge changed.

    Attributes
    ----------
    name, shape
    carried : {"factors", "full", "dropped"}
        As A and B, as it is (``modules_to_save``), or not at all.
    rank : int or None
        Of the factors.
    update_norm, error_norm : float
        ``||merged - base||``, and the norm of what the factors, as they are stored, leave of it.
    """

    name: str
    shape: tuple[int, ...]
    carried: Literal["factors", "full", "dropped"]
    rank: int | None
    update_norm: float
    error_norm: float

    @property
    def energy_left(self) -> float:
        """Share of the update's squared norm that is not carried, in [0, 1]."""
        return (self.error_norm / self.update_norm) ** 2 if self.update_norm else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name, "shape": list(self.shape), "carried": self.carried, "rank": self.rank,
            "update_norm": self.update_norm, "error_norm": self.error_norm, "energy_left": self.energy_left,
        }  # fmt: skip


@dataclass(frozen=True)
class LoraExport:
    """What `to_lora` wrote: the folder, a row for every changed tensor, and the adapter's bytes."""

    path: Path
    rows: tuple[LoraRow, ...]
    nbytes: int
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def energy_left(self) -> float:
        """Share of the whole update's squared norm that is not carried."""
        update = sum(row.update_norm**2 for row in self.rows)
        return sum(row.error_norm**2 for row in self.rows) / update if update else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rows = [row.to_dict() for row in self.rows]
        return {
            "path": str(self.path),
            "nbytes": self.nbytes,
            "energy_left": self.energy_left,
            "tensors": rows,
        }
