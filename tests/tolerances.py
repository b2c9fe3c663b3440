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
    "merge_many": Tolerance(
        2e-6,
        "float32 differences, up to 8 products and their sums, a division and the sum with the base, each off by at most "
        "6e-8 of a number that is no larger than the largest",
    ),
    "merge_gram": Tolerance(1e-12, "as compare_deltas.sums: exact products, summed in another order"),
    "sparsify_norms": Tolerance(1e-12, "as delta_stats.sums"),
    "sddmm": Tolerance(
        4e-6,
        "float32 sums of up to 5000 products in blocks of 32 to 256, 16 lanes each: at most 16 + 4 + 160 additions in a "
        "row, each off by 6e-8 of a partial sum that is about as large as the result's largest",
    ),
    "svd_delta": Tolerance(
        2e-5, "float32 products, QR and LAPACK of matrices up to 320: some hundred roundings of 6e-8 in a row"
    ),
    "gptq.factor": Tolerance(1e-5, "a worked example with five digits"),
    "gptq.hessian": Tolerance(1e-6, "float32 sums of 90 products in four parts, each part scaled anew"),
    "gptq_block.losses": Tolerance(1e-12, "float64 sums of up to 128 squares, as delta_stats.sums"),
    "lowrank_quantize": Tolerance(
        1e-5, "float32 products of up to 120 terms, and lengths of their rows, against float64"
    ),
    "lowrank_dequant_add": Tolerance(
        2e-6, "float32 sums of up to 37 products, with the base among them, and factors that round twice"
    ),
    "lowrank_dequant_add.bfloat16": Tolerance(
        1e-2,
        "both factors of each product are rounded to 8 bits: 2^-8 of the sum of up to 12 magnitudes, which is up to "
        "two and a half times the largest sum",
    ),
    "delta_linear": Tolerance(
        2e-5,
        "float32 sums of up to 1001 products, by blocks; where all codes but a few are at their block's zero (1-bit asym), "
        "the products cancel down to a hundredth of them",
    ),
    "delta_linear.halves": Tolerance(
        1e-3,
        "beyond half a last place of the result: the delta is rounded to bfloat16 or float16 before the base's product, in "
        "float32, starts from it",
    ),
    "delta_quantize.error": Tolerance(
        1e-5, "float32 squares, at most 128 of them added in a row, of errors of which each is rounded once"
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
