"""How far results may be apart, and why. What is not listed here is compared bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    relative: float
    reason: str


TOLERANCES = {
    "delta_stats.sums": Tolerance(
        1e-12,
        "float64 sums of up to 1e6 terms in another order: each addition rounds by at most 1.1e-16 of the partial sum, "
        "and the squares have one sign",
    ),
    "update_survival.sums": Tolerance(
        1e-12,
        "as delta_stats.sums; w·s may cancel, so the difference is measured against the largest of the three sums",
    ),
    "entropy": Tolerance(1e-12, "float64 n·log n of at most 1e5 bins, added in another order"),
}


def assert_close(name: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Require |got - wanted| <= the named tolerance times the largest |wanted|; infinities and NaN at the same places."""
    got, wanted = got.double().cpu(), wanted.double().cpu()
    torch.testing.assert_close(got.isfinite(), wanted.isfinite())
    finite = wanted.isfinite()
    scale = wanted[finite].abs().max().item() if finite.any() else 0.0
    bound = TOLERANCES[name].relative * scale
    torch.testing.assert_close(got, wanted, rtol=0.0, atol=bound, equal_nan=True)
