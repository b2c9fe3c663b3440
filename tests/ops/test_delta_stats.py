"""delta_stats and update_survival against their references, and the entropies against brute force."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from graftwork.ops import thread_limit
from graftwork.ops.lossless_delta import (
    FORMATS,
    SAVE_DTYPES,
    SURVIVAL_DTYPES,
    WORDS,
    UpdateSurvival,
    conditional_entropy_bits,
    delta_stats,
    order0_entropy_bits,
    update_survival,
)
from graftwork.reference import lossless_delta as reference
from tests.generators.weights import LARGE, SIZES, pair, random_words, special_pair
from tests.tolerances import TOLERANCES, assert_close


def check_stats(base: torch.Tensor, tuned: torch.Tensor, device: str) -> None:
    got = delta_stats(base.to(device), tuned.to(device))
    counts, sums, histogram = reference.delta_stats(base, tuned)
    assert {tensor.device.type for tensor in got} == {device}
    assert got.counts.tolist() == counts.tolist()
    assert torch.equal(got.histogram.cpu(), histogram)
    assert_close("delta_stats.sums", got.sums, sums)


def check_survival(base: torch.Tensor, tuned: torch.Tensor, save: torch.dtype, device: str) -> None:
    got = update_survival(base.to(device), tuned.to(device), save)
    counts, sums = reference.update_survival(base, tuned, save)
    assert got.counts.tolist() == counts.tolist()
    assert_close("update_survival.sums", got.sums, sums)


@pytest.mark.parametrize("dtype", WORDS, ids=str)
def test_stats_of_any_bits(dtype: torch.dtype, device: str) -> None:
    for numel in (*SIZES, LARGE) if dtype in FORMATS else SIZES:
        base = random_words((numel,), dtype, 1)
        check_stats(base, random_words((numel,), dtype, 2), device)
        check_stats(base, base.clone(), device)


@pytest.mark.parametrize("dtype", FORMATS)
def test_stats_of_weights(dtype: torch.dtype, device: str) -> None:
    for step in (0.0, 1e-5, 1e-3, 1.0):
        check_stats(*pair(10_007, dtype, step=step), device)
    check_stats(*special_pair(dtype), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stats_of_every_16_bit_pattern(dtype: torch.dtype, device: str) -> None:
    every = torch.arange(1 << 16).to(torch.uint16).view(dtype)
    check_stats(every, every.view(torch.int16).flip(0).view(dtype), device)
    check_stats(every, torch.full((1 << 16,), 0.02, dtype=dtype), device)


@pytest.mark.parametrize("save", SAVE_DTYPES)
@pytest.mark.parametrize("dtype", SURVIVAL_DTYPES)
def test_survival(dtype: torch.dtype, save: torch.dtype, device: str) -> None:
    for numel in (*SIZES, LARGE) if dtype in FORMATS else SIZES:
        check_survival(*pair(numel, dtype), save, device)
    for scale in (1e-8, 1e-5, 1e3, 1e7):
        base, tuned = pair(4097, dtype, step=1e-3)
        check_survival(base * scale, tuned * scale, save, device)
    check_survival(*special_pair(dtype), save, device)


@pytest.mark.parametrize("save", SAVE_DTYPES)
def test_survival_rounds_ties_to_even(save: torch.dtype, device: str) -> None:
    """Every midpoint of the saved format, its neighbours, and every saved value itself, as float32."""
    values = torch.arange(1 << 15).to(torch.int16).view(save).float()
    values = values[values.isfinite()]
    middle = (values[:-1].double() + values[1:].double()).mul(0.5).float()
    numbers = torch.cat(
        [values, middle, middle.nextafter(values[1:]), middle.nextafter(values[:-1]), -middle]
    )
    check_survival(numbers.roll(1), numbers, save, device)
    check_survival(torch.zeros_like(numbers), numbers, save, device)


@pytest.mark.parametrize("dtype", FORMATS)
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    base, tuned = pair(LARGE, dtype)
    before = torch.get_num_threads()
    stats, survival = [], []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            stats.append(delta_stats(base, tuned))
            survival.append(update_survival(base, tuned, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    with thread_limit(1):
        stats.append(delta_stats(base, tuned))
        survival.append(update_survival(base, tuned, torch.bfloat16))
    for results in (stats, survival):
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_views_are_read_as_they_are(device: str) -> None:
    data = torch.randn(50, 40, device=device)
    base, tuned = data.T[::2, 1::3], data.flip(0).T[::2, 1::3]
    for got, wanted in (
        (delta_stats(base, tuned), delta_stats(base.contiguous(), tuned.contiguous())),
        (
            update_survival(base, tuned, torch.float16),
            update_survival(base.contiguous(), tuned.contiguous(), torch.float16),
        ),
    ):
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_survival_properties() -> None:
    survival = UpdateSurvival(torch.tensor([8, 2, 0]), torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    assert (survival.lost_share, survival.retained_norm, survival.cosine) == (0.25, 0.5, 0.5)
    nothing = update_survival(torch.ones(3), torch.ones(3), torch.bfloat16)
    assert (nothing.lost_share, nothing.retained_norm, nothing.cosine) == (0.0, 1.0, 1.0)
    gone = update_survival(torch.ones(3), torch.ones(3) + 1e-4, torch.bfloat16)
    assert (gone.lost_share, gone.retained_norm, gone.cosine) == (1.0, 0.0, 0.0)


def test_survival_refuses_other_dtypes() -> None:
    ones = torch.ones(3)
    with pytest.raises(
        TypeError, match=r"update_survival: save_dtype must be one of bfloat16, float16, got torch\.int8"
    ):
        update_survival(ones, ones, torch.int8)
    with pytest.raises(
        TypeError, match=r"base must be one of float64, float32, bfloat16, float16, got torch\.int64"
    ):
        update_survival(ones.long(), ones.long(), torch.bfloat16)


def test_entropy_by_hand() -> None:
    """Row 0: classes 0 and 1 twice each, 4 bits. Row 1: class -2 four times, no entropy, one raw bit each."""
    histogram = torch.zeros(2, 17, dtype=torch.int64)
    histogram[0, 8], histogram[0, 9], histogram[1, 6] = 2, 2, 4
    assert conditional_entropy_bits(histogram) == pytest.approx(4 + 4, rel=TOLERANCES["entropy"].relative)
    order0 = 2 * 2 * math.log2(4) + 4 * math.log2(2) + 4
    assert order0_entropy_bits(histogram) == pytest.approx(order0, rel=TOLERANCES["entropy"].relative)
    assert conditional_entropy_bits(torch.zeros(2, 17, dtype=torch.int64)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_entropy_by_brute_force(dtype: torch.dtype) -> None:
    base, tuned = pair(5000, dtype)
    exponents = torch.frexp(base.float())[1].tolist()
    bits = 8 * dtype.itemsize
    columns = reference.classes(reference.positions(tuned) - reference.positions(base), bits).tolist()
    rows = Counter(exponents)
    cells = Counter(zip(exponents, columns, strict=True))
    raw = sum(max(abs(column - bits) - 1, 0) for column in columns)
    wanted = raw - sum(n * math.log2(n / rows[row]) for (row, _), n in cells.items())
    got = conditional_entropy_bits(delta_stats(base, tuned).histogram)
    assert got == pytest.approx(wanted, rel=TOLERANCES["entropy"].relative)
    assert got <= order0_entropy_bits(delta_stats(base, tuned).histogram)
