"""Exact thresholds: against sorting, with ties, with samples that mislead, at every number of threads."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor

from graftwork.ops import thread_limit
from graftwork.ops.merge import Threshold, keep_count, magnitude_threshold, magnitude_thresholds, thresholds
from graftwork.reference.merge import sparsify as reference
from tests.generators.weights import SIZES, pair, special_words
from tests.ops.merge.merge_arguments import FORMATS, fine_tunes

LARGE = 300_007  # sampled, and three chunks


def check(donors: list[Tensor], base: Tensor | None, keep: list[int], zero: bool = False) -> None:
    got = torch.ops.graftwork.magnitude_thresholds(donors, base, keep, zero)
    assert torch.equal(got.cpu(), reference.magnitude_thresholds(donors, base, keep, zero).cpu())


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_sizes(dtype: torch.dtype, device: str) -> None:
    for numel in SIZES:
        base, donors = fine_tunes((numel,), dtype, 2, seed=numel)
        base, donors = base.to(device), [donor.to(device) for donor in donors]
        for k in sorted({0, min(1, numel), numel // 25, numel // 2, max(0, numel - 1), numel}):
            check(donors, base, [k, numel - k])
            check(donors, None, [k, numel - k])


@pytest.mark.parametrize("step", [1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_large(dtype: torch.dtype, step: float) -> None:
    """In bfloat16 a small step leaves most weights, and moves the others by one of a few distances."""
    base, donors = fine_tunes((LARGE,), dtype, 5, step=step)
    check(donors, base, [1, LARGE // 1000, LARGE // 5, LARGE // 2, LARGE - 3])
    check([base], None, [LARGE // 10])


def test_the_threshold_says_what_is_kept() -> None:
    base, (tuned,) = fine_tunes((LARGE,), torch.bfloat16, 1, step=1e-3)
    keep = keep_count(0.2, LARGE)
    found = magnitude_threshold(tuned, base, keep)
    magnitude = (tuned.float() - base.float()).abs()
    score = torch.tensor(found.bits, dtype=torch.int32).view(torch.float32)
    kept = (magnitude > score) | (magnitude == score) & (torch.arange(LARGE) < found.cut)
    assert int(kept.sum()) == keep
    assert found.ties == int(((magnitude == score) & kept).sum()) > 1
    assert torch.equal(
        kept.nonzero().view(-1), magnitude.sort(descending=True, stable=True).indices[:keep].sort().values
    )


def test_dtypes_may_differ() -> None:
    base, donors = fine_tunes((5000,), torch.float32, 3)
    check([donors[0].half(), donors[1].bfloat16(), donors[2]], base.bfloat16(), [100, 2000, 3000])


def test_more_donors_than_are_read_together() -> None:
    base, donors = fine_tunes((70_001,), torch.bfloat16, 19, step=1e-3)
    check(donors, base, [number * 3500 for number in range(19)])


def sampled_positions(numel: int) -> Tensor:
    """Where the native code looks first; see sample_streams of csrc/core/merge/thresholds.inl."""
    sampled = 1 << 12
    while 2 * sampled <= numel // 128 and sampled < 1 << 17:
        sampled *= 2
    runs = sampled // 16
    positions = []
    for run in range(runs):
        dice = ((run + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 40
        positions.append(min(numel // runs * run + dice % (numel // runs), numel - 16))
    return (torch.tensor(positions)[:, None] + torch.arange(16)).view(-1).unique()


@pytest.mark.parametrize("low", [0.0, 2.0])
def test_a_sample_that_misleads(low: float) -> None:
    """All that is sampled is smaller, or larger, than all else."""
    x = torch.rand(LARGE, generator=torch.Generator().manual_seed(0)) + 1
    x[sampled_positions(LARGE)] = low + x[sampled_positions(LARGE)] / 4
    check([x, x, x], None, [10, LARGE // 2, LARGE - 10])


def test_rows_of_very_different_size() -> None:
    rows = torch.rand(1000, generator=torch.Generator().manual_seed(0)) ** 200
    x = (rows[:, None] * torch.rand(1000, 300, generator=torch.Generator().manual_seed(1))).view(-1)
    check([x, x, x], None, [1, 3000, 150_000])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_ties(share: float) -> None:
    """Of equal ones the first are kept: the cut is behind the last of them, wherever it is."""
    x = torch.ones(LARGE)
    x[torch.rand(LARGE, generator=torch.Generator().manual_seed(0)) < share] = 2.0
    larger = int((x == 2).sum())
    for keep in (1, larger, larger + 1, larger + 1000, LARGE - 1, LARGE):
        if keep:
            check([x], None, [keep])
    tie = magnitude_threshold(torch.zeros(LARGE), torch.zeros(LARGE), 200_001)
    assert tie == Threshold(0, 200_001, 200_001)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_special_words(dtype: torch.dtype, zero: bool, device: str) -> None:
    """NaN of any payload are alike, and the largest; or count as 0, like all where a word is not finite."""
    special = special_words(dtype).to(device)
    base = torch.zeros_like(special)
    for keep in range(len(special) + 1):
        check([special], None, [keep], zero)
        check([special, base], base.flip(0), [keep, 3], zero)
        check([base], special, [keep], zero)


def test_threads_do_not_change_the_result() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        base, donors = fine_tunes((1_000_001,), torch.bfloat16, 2, step=1e-3)
        results = []
        for threads in (1, 2, 7):
            with thread_limit(threads):
                results.append(magnitude_thresholds(donors, base, [200_000, 500_001]))
        assert results[0] == results[1] == results[2]
    finally:
        torch.set_num_threads(before)


def test_views_and_mapped_memory() -> None:
    base, (tuned,) = fine_tunes((40, 30), torch.bfloat16, 1)
    assert magnitude_threshold(tuned.t(), base.t(), 100) == magnitude_threshold(
        tuned.t().contiguous(), base.t().contiguous(), 100
    )
    data = bytearray(
        b"." + torch.randn(200, generator=torch.Generator().manual_seed(0)).half().numpy().tobytes()
    )
    x = torch.frombuffer(data, dtype=torch.float16, offset=1)
    assert x.data_ptr() % 2 == 1
    check([x], None, [20])


def test_keep_count() -> None:
    assert [keep_count(density, 10) for density in (0.0, 0.01, 0.19, 0.2, 0.95, 1.0)] == [0, 1, 1, 2, 9, 10]
    assert keep_count(0.5, 0) == 0


def test_bad_arguments() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(
        ValueError, match=r"magnitude_thresholds: donors must be a list of at least one tensor, got none"
    ):
        magnitude_thresholds([], x, [])
    with pytest.raises(ValueError, match=r"keep must be 1, one for each donor, got 2"):
        magnitude_thresholds([x], x, [1, 2])
    with pytest.raises(ValueError, match=r"keep\[0\] must be in \[0, 8\], the tensor's elements, got 9"):
        magnitude_thresholds([x], x, [9])
    with pytest.raises(ValueError, match=r"base must have the shape of donors\[0\], \(4, 2\), got \(8,\)"):
        magnitude_threshold(x, x.view(8), 1)
    with pytest.raises(ValueError, match=r"nonfinite must be one of propagate, zero, got 'refuse'"):
        magnitude_thresholds([x], x, [1], nonfinite="refuse")  # type: ignore[arg-type]


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(thresholds, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


def test_unchanged_weights() -> None:
    """More are kept than changed: the first of those that did not make up the number."""
    base, tuned = pair(LARGE, torch.bfloat16)
    changed = int((base != tuned).sum())
    found = magnitude_threshold(tuned, base, changed + 7)
    assert (found.bits, found.ties) == (0, 7)
    check([tuned], base, [changed + 7])
