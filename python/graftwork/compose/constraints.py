"""Parameters of a merge that are in range one by one and do not go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "Check", "Fault", "della_linear", "density_and_epsilon", "two_weights", "weights_to_divide_by", "weights_to_normalize",
]  # fmt: skip

Own = Sequence[Mapping[str, bool | int | float | str | None]]
Shared = Mapping[str, bool | int | float | str | None]
_LEAST = 1e-8  # as in the operations


class Fault(NamedTuple):
    """What was found, what was wanted, and the remedy."""

    got: str
    wanted: str
    remedy: str | None = None


Check = Callable[[Own, Shared], Fault | None]


def _weights(own: Own) -> list[float]:
    return [float(row["weight"] or 0.0) for row in own]


def weights_to_divide_by(own: Own, shared: Shared) -> Fault | None:
    """With `normalize`, weights whose sum can be divided by."""
    return _divisible(own, bool(shared["normalize"]), "normalize")


def weights_to_normalize(own: Own, shared: Shared) -> Fault | None:
    """The same with `normalize_weights`."""
    return _divisible(own, bool(shared["normalize_weights"]), "normalize_weights")


def _divisible(own: Own, normalize: bool, switch: str) -> Fault | None:
    total = math.fsum(_weights(own))
    if not normalize or abs(total) >= _LEAST:
        return None
    return Fault(
        f"weights that sum to {total:g}, with {switch}: true",
        "a sum that can be divided by",
        f"set {switch}: false, or other weights",
    )


def density_and_epsilon(own: Own, shared: Shared) -> Fault | None:
    """Probabilities that lie in [0, 1] for every rank."""
    for row in own:
        density, epsilon = float(row["density"] or 0.0), float(row["epsilon"] or 0.0)
        if 0 < density < 1 and not 0 <= density - epsilon <= density + epsilon <= 1:
            return Fault(
                f"density {density:g} and epsilon {epsilon:g}",
                "density ± epsilon in [0, 1]",
                f"set epsilon to at most {min(density, 1 - density):g}",
            )
    return None


def two_weights(own: Own, shared: Shared) -> Fault | None:
    """Two weights of which one is a share of the sum."""
    total = math.fsum(_weights(own))
    if abs(total) < 1e-6:
        return Fault(f"weights that sum to {total:g}", "a sum of which each is a share", "set other weights")
    return None


def della_linear(own: Own, shared: Shared) -> Fault | None:
    """Both of the above."""
    return density_and_epsilon(own, shared) or weights_to_divide_by(own, shared)
