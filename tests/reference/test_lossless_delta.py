"""The reference against numbers worked out by hand and against brute force in Python integers."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given

from graftwork.reference import lossless_delta as reference
from graftwork.reference.lossless_delta import EXPONENT_BITS
from tests.generators.weights import pair, special_pair, word_pairs


def bf16(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("base", "tuned", "difference", "column", "exponent"),
    [
        (0.02, 0.0203, 2, 2, 121),
        (-0.02, -0.0198, 2, 2, 121),
        (1e-4, -1e-4, -29093, -15, 113),
        (0.02, 0.02, 0, 0, 121),
        (0.0, -0.0, -1, -1, 0),
    ],
)
def test_worked_numbers(base: float, tuned: float, difference: int, column: int, exponent: int) -> None:
    b, t = bf16(base), bf16(tuned)
    assert (reference.positions(t) - reference.positions(b)).item() == difference
    code = 2 * difference if difference >= 0 else -2 * difference - 1
    assert reference.encode_ordinal_planes(b, t).flatten().tolist() == [code & 0xFF, code >> 8]
    histogram = reference.delta_stats(b, t)[2]
    assert histogram[exponent, 16 + column] == 1
    assert histogram.sum() == 1


def test_positions_order_the_numbers() -> None:
    everything = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    unsigned = reference.positions(everything).long() & 0xFFFF
    ordered = everything[unsigned.argsort()]
    numbers = ordered[~ordered.isnan()].float()
    assert (numbers[1:] >= numbers[:-1]).all()
    assert unsigned.unique().numel() == 1 << 16


@given(word_pairs())
def test_against_python_integers(words: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, tuned = words
    bits = 8 * base.itemsize
    top, every = 1 << (bits - 1), (1 << bits) - 1

    def positions(tensor: torch.Tensor) -> list[int]:
        data = tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []
        patterns = [
            int.from_bytes(bytes(data[i : i + tensor.itemsize]), "little")
            for i in range(0, len(data), tensor.itemsize)
        ]
        return (
            [u ^ (every if u & top else top) for u in patterns] if base.dtype in EXPONENT_BITS else patterns
        )

    differences = [(t - b) & every for b, t in zip(positions(base), positions(tuned), strict=True)]
    signed = [d - (1 << bits) if d & top else d for d in differences]
    codes = [(2 * d if d >= 0 else -2 * d - 1) & every for d in signed]
    planes = reference.encode_ordinal_planes(base, tuned)
    assert planes.tolist() == [[(code >> shift) & 0xFF for code in codes] for shift in range(0, bits, 8)]

    columns = Counter(bits + int(math.copysign(abs(d).bit_length(), d)) for d in signed)
    histogram = reference.delta_stats(base, tuned)[2].sum(0).tolist()
    assert {column: n for column, n in enumerate(histogram) if n} == dict(columns)


def test_stats_in_closed_form() -> None:
    counts, sums, _ = reference.delta_stats(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -2.0, 7.0]))
    assert counts.tolist() == [2, 0, 0, 0, 0]
    assert sums.tolist() == [32.0, 14.0, 54.0, 4.0]


def test_stats_skip_pairs_that_are_not_finite() -> None:
    nan, inf = math.nan, math.inf
    base = torch.tensor([nan, 1.0, inf, -inf, 2.0, nan])
    tuned = torch.tensor([1.0, nan, 1.0, inf, 3.0, nan])
    counts, sums, histogram = reference.delta_stats(base, tuned)
    assert counts.tolist() == [5, 2, 2, 2, 1]
    assert sums.tolist() == [1.0, 4.0, 9.0, 1.0]
    assert histogram.sum() == 6


def test_survival_in_closed_form() -> None:
    """Around 1, bfloat16 has a spacing of 2^-7: 2^-9 is lost, 3·2^-9 grows to 2^-7, 2^-7 survives."""
    base = torch.ones(4)
    wanted = torch.tensor([2.0**-9, 3 * 2.0**-9, 2.0**-7, 0.0])
    counts, sums = reference.update_survival(base, base + wanted, torch.bfloat16)
    assert counts.tolist() == [3, 1, 0]
    assert sums.tolist() == [(1 + 9 + 16) * 2.0**-18, 32 * 2.0**-18, (12 + 16) * 2.0**-18]


def test_survival_of_overflow() -> None:
    """65504 is the largest float16; 65520 and above round to infinity."""
    base = torch.tensor([65504.0, 65504.0, 1e5, math.inf, math.nan])
    tuned = torch.tensor([65519.0, 65520.0, 1.0, 1.0, 1.0])
    counts, sums = reference.update_survival(base, tuned, torch.float16)
    assert counts.tolist() == [3, 3, 1]
    assert sums.tolist() == [15.0**2 + 16.0**2 + 99999.0**2, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(dtype: torch.dtype) -> None:
    for base, tuned in (pair(999, dtype), special_pair(dtype)):
        restored = reference.decode_ordinal_planes(base, reference.encode_ordinal_planes(base, tuned))
        assert torch.equal(restored.view(torch.uint8), tuned.view(torch.uint8))
