"""When and by what evidence SpIEL exchanges the weights that it tunes."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("linear", "cosine")


def _check(policy: str, period: int, rate: float, schedule: str, first_rate: float) -> None:
    if period < 1:
        raise ValueError(f"{policy}: period must be at least 1, got {period}")
    for name, value in (("rate", rate), ("first_rate", first_rate)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{policy}: {name} must be in [0, 1], got {value}")
    if schedule not in SCHEDULES:
        raise ValueError(f"{policy}: schedule must be one of {SCHEDULES}, got {schedule!r}")


def _share(schedule: str, rate: float, step: int, total: int) -> float:
    """The share that is exchanged after `step` of `total` updates."""
    done = min(1.0, step / total)
    return rate * (1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class AccumulatedGradient:
    """SpIEL-AG: grow where the gradient, summed over some updates, is largest.

    In the first `window` updates of each `period`, gradients are summed at as many candidates of a tensor as it has
    tuned weights: those of largest gradient at the beginning. Then a share of the tuned weights, those that moved
    least, is exchanged for candidates; the optimizer takes these up with the moments that their gradients make.

    Parameters
    ----------
    period, window : int
        In updates; window is at most period.
    rate : float
        The share that is exchanged at the beginning of training.
    schedule : str
        "linear": rate · (1 − t/T) after t of T updates; "cosine": rate · (1 + cos(πt/T))/2.
    first_rate : float
        The share that the first exchange takes, since the weights at the start were chosen by chance.
    """

    period: int = 20
    window: int = 5
    rate: float = 0.2
    schedule: str = "linear"
    first_rate: float = 1.0

    def __post_init__(self) -> None:
        _check("AccumulatedGradient", self.period, self.rate, self.schedule, self.first_rate)
        if not 1 <= self.window <= self.period:
            raise ValueError(f"AccumulatedGradient: window must be in [1, period], got {self.window}")

    def watches(self, step: int) -> bool:
        """Whether the update after `step` others is in a window."""
        return step % self.period < self.window

    def exchanges(self, step: int) -> bool:
        """Whether weights are exchanged after `step` updates."""
        return (step - 1) % self.period == self.window - 1

    def share(self, step: int, total: int) -> float:
        """The share of the weights that is exchanged after `step` of `total` updates."""
        return self.first_rate if step == self.window else _share(self.schedule, self.rate, step, total)


@dataclass(frozen=True)
class MomentApproximation:
    """SpIEL-MA: grow where the product of SM3's row and column accumulators is largest. It needs no window.

    Parameters
    ----------
    period, rate, schedule, first_rate :
        As of `AccumulatedGradient`; weights are exchanged after every `period` updates.
    """

    period: int = 20
    rate: float = 0.2
    schedule: str = "linear"
    first_rate: float = 1.0

    def __post_init__(self) -> None:
        _check("MomentApproximation", self.period, self.rate, self.schedule, self.first_rate)

    def watches(self, step: int) -> bool:
        """Never."""
        return False

    def exchanges(self, step: int) -> bool:
        """Whether weights are exchanged after `step` updates."""
        return step % self.period == 0

    def share(self, step: int, total: int) -> float:
        """The share of the weights that is exchanged after `step` of `total` updates."""
        return self.first_rate if step == self.period else _share(self.schedule, self.rate, step, total)


@dataclass(frozen=True)
class Fixed:
    """Tune the weights chosen at the start, and no others."""

    def watches(self, step: int) -> bool:
        """Never."""
        return False

    def exchanges(self, step: int) -> bool:
        """Never."""
        return False

    def share(self, step: int, total: int) -> float:
        """Nothing is exchanged."""
        return 0.0


Policy = AccumulatedGradient | MomentApproximation | Fixed
