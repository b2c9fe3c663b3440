"""What a pack cost and what it lost, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PackSummary", "TensorSummary"]

SPECTRUM_AT = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor: its codec in words, size, and error ‖Δ̂−Δ‖/‖Δ‖.

    ``spectrum`` is, of singular triples, the share of the squared change that the first 1, 2, 4, ... stored ones have.
    """

    name: str
    role: str
    codec: str
    shape: tuple[int, ...]
    nbytes: int
    bits_per_weight: float
    relative_error: float
    max_abs_error: float
    spectrum: dict[int, float] | None = None


@dataclass(frozen=True, slots=True)
class PackSummary:
    """A pack: its tensors, what did not change, what was left out and why, and the sums."""

    tensors: tuple[TensorSummary, ...]
    unchanged: tuple[str, ...]
    left_out: dict[str, str]
    nbytes: int
    weights: int
    squared_error: float
    energy: float

    @property
    def bits_per_weight(self) -> float:
        """Bits of all fields for each weight of the tensors that changed."""
        return 8 * self.nbytes / self.weights if self.weights else 0.0

    @property
    def relative_error(self) -> float:
        """‖Δ̂−Δ‖/‖Δ‖ over all tensors together."""
        return math.sqrt(self.squared_error / self.energy) if self.energy else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **asdict(self),
            "bits_per_weight": self.bits_per_weight,
            "relative_error": self.relative_error,
        }
