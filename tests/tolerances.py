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
    "gather_gradients.sum_of_squares": Tolerance(
        1e-12, "as delta_stats.sums: squares of one sign in another order"
    ),
    "sparse_adamw": Tolerance(
        1e-6,
        "100 steps in float32 against float64: a step rounds the value, below 0.2, by at most 1e-8, and itself, at most "
        "1e-3, by a few parts in 1e7",
    ),
    "sparse_sgd": Tolerance(1e-6, "30 steps, as sparse_adamw"),
    "compare_deltas.sums": Tolerance(
        1e-12,
        "as delta_stats.sums; the products may cancel, so the difference is measured against the largest of the sums",
    ),
    "sddmm": Tolerance(
        4e-6,
        "float32 sums of up to 5000 products in blocks of 32 to 256, 16 lanes each: at most 16 + 4 + 160 additions in a "
        "row, each off by 6e-8 of a partial sum that is about as large as the result's largest",
    ),
    "entropy": Tolerance(1e-12, "float64 n·log n of at most 1e5 bins, added in another order"),
    "adapt.steps": Tolerance(
        4e-6,
        "fp32 weights after up to 100 optimizer steps: torch uses FMA and other places for the learning rate, so a step "
        "differs by an ulp of the update, and the sum of weight and update rounds on its own",
    ),
}


def assert_close(name: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Require |got - wanted| <= the named tolerance times the largest |wanted|; infinities and NaN at the same places."""
    got, wanted = got.double().cpu(), wanted.double().cpu()
    torch.testing.assert_close(got.isfinite(), wanted.isfinite())
    finite = wanted.isfinite()
    scale = wanted[finite].abs().max().item() if finite.any() else 0.0
    bound = TOLERANCES[name].relative * scale
    torch.testing.assert_close(got, wanted, rtol=0.0, atol=bound, equal_nan=True)
