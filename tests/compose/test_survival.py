"""Update survival: against a reference in fp64, closed forms, and the report that it adds up to."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.delta import survival as module
from graftwork.delta.survival import (
    Survival,
    SurvivalReport,
    keyed,
    measure_survival,
    rounding_key,
    unchanged_share,
)

SIZES = (0, 1, 31, 33, 1000, 4097)
SAVED = (torch.bfloat16, torch.float16, torch.float32)


def normal(size: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def reference(base: Tensor, exact: Tensor, written: Tensor) -> Survival:
    """Element by element, in Python's own floats."""
    found = Survival()
    rounded = base.to(written.dtype)
    for b, e, w, r in zip(*(t.double().tolist() for t in (base, exact, written, rounded)), strict=True):
        if not (math.isfinite(b) and math.isfinite(e)):
            continue
        wanted, saved = e - b, w - r if math.isfinite(w) and math.isfinite(r) else 0.0
        found += Survival(
            int(wanted != 0),
            int(wanted != 0 and saved == 0),
            int(math.isinf(w)),
            wanted**2,
            saved**2,
            wanted * saved,
        )
    return found


def close(one: Survival, other: Survival) -> bool:
    counts = (one.changed, one.lost, one.overflow) == (other.changed, other.lost, other.overflow)
    pairs = (
        (one.wanted_square, other.wanted_square),
        (one.saved_square, other.saved_square),
        (one.dot, other.dot),
    )
    return counts and all(math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-300) for a, b in pairs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("saved", SAVED, ids=str)
@pytest.mark.parametrize("held", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_it_is_the_reference(
    size: int, saved: torch.dtype, held: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TILE", 37)
    base = normal(size, 0).to(held)
    exact = base.float() + normal(size, 1, 1e-3)
    assert close(measure_survival(base, exact, saved), reference(base, exact, exact.to(saved)))
    other = (base.float() + normal(size, 2, 1e-2)).to(saved)
    assert close(measure_survival(base, exact, other), reference(base, exact, other))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_sums_do_not_depend_on_threads(threads: int) -> None:
    base, exact = normal(300_001, 0).bfloat16(), normal(300_001, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = measure_survival(base, exact, torch.bfloat16)
        torch.set_num_threads(1)
        assert found == measure_survival(base, exact, torch.bfloat16)
    finally:
        torch.set_num_threads(before)


def test_numbers_that_are_not_finite_are_left_out_and_overflow_is_counted() -> None:
    base = torch.tensor([1.0, math.inf, 1.0, 1.0, 60000.0])
    exact = torch.tensor([2.0, 1.0, math.nan, -math.inf, 70000.0])
    found = measure_survival(base, exact, torch.float16)
    assert (found.changed, found.lost, found.overflow) == (2, 1, 1)
    assert (found.wanted_square, found.saved_square, found.dot) == (1 + 1e8, 1.0, 1.0)
    assert measure_survival(base, exact, exact.half()) == found


def test_the_closed_form_of_an_update_below_half_a_step() -> None:
    """Around 1 bf16 steps by 2^-7: below 2^-8 an update is lost, above it becomes a whole step."""
    base = torch.ones(8, dtype=torch.bfloat16)
    steps = torch.tensor([0.25, 0.49, 0.51, 1.0, 0.0, 0.25, 0.25, 0.25]) * 2**-7
    found = measure_survival(base, base.float() + steps, torch.bfloat16)
    assert (found.changed, found.lost) == (7, 5)
    assert found.saved_square == 2 * 2**-14
    assert unchanged_share(8, found) == 6 / 8


@pytest.mark.parametrize(
    ("saved", "scale", "unchanged", "cosine"),
    [
        (torch.bfloat16, 1e-3, 0.78, 0.65),
        (torch.float16, 1e-3, 0.23, 0.98),
        (torch.bfloat16, 3e-4, 0.93, 0.38),
    ],
)
def test_a_small_update_of_gaussian_weights_is_mostly_lost(
    saved: torch.dtype, scale: float, unchanged: float, cosine: float
) -> None:
    """Measured elsewhere on such weights: an update of a thousandth of them leaves four elements of five in bf16."""
    base = normal(200_000, 0, 0.02).to(saved)
    report = SurvivalReport()
    report.record("w", base, base.float() + normal(200_000, 1, 0.02 * scale), saved)
    assert report.unchanged_share == pytest.approx(unchanged, abs=0.03)
    assert report.total.cosine == pytest.approx(cosine, abs=0.03)


def test_stochastic_rounding_keeps_the_update_in_expectation() -> None:
    from graftwork.ops.merge import combine

    base = torch.ones(50_000, dtype=torch.bfloat16)
    exact = base.float() + 2**-10
    nearest = measure_survival(base, exact, torch.bfloat16)
    assert nearest.saved_square == 0.0
    written, _ = combine(
        [exact], [1.0], rounding="stochastic", key=rounding_key(0, "w"), dtype=torch.bfloat16
    )
    assert float((written.float() - 1).mean()) == pytest.approx(2**-10, rel=0.03)
    assert measure_survival(base, exact, written).cosine == pytest.approx(8**-0.5, rel=0.03)


def test_the_report_adds_up_in_any_order() -> None:
    rows = {name: Survival(2, 1, 0, 0.1 * n, 0.05, 0.02) for n, name in enumerate("abcde", 1)}
    one, other = SurvivalReport(), SurvivalReport()
    for name, row in rows.items():
        one.add(name, 10, "BF16", row)
    for name, row in reversed(rows.items()):
        other.add(name, 10, "BF16", row)
    assert one.total == other.total
    assert (one.elements, one.total.changed, one.unchanged_share) == (50, 10, 45 / 50)
    assert [row.name for row in one.worst(2)] == ["e", "d"]
    assert SurvivalReport.from_sums(other.sums()) == other
    said = one.to_dict()
    assert said["total"]["lost_share"] == 0.5
    assert said["tensors"]["a"]["dtype"] == "BF16"
    one.record("a", torch.zeros(3), torch.ones(3), torch.float32)
    assert one.tensors["a"].survival == Survival(3, 0, 0, 3.0, 3.0, 3.0)
    assert one.elements == 43


def test_nothing_changed_has_no_measures() -> None:
    base = normal(100, 0).bfloat16()
    report = SurvivalReport()
    report.record("w", base, base.float(), torch.bfloat16)
    assert (report.total.lost_share, report.total.retained_norm, report.total.cosine) == (None, None, None)
    assert report.unchanged_share == 1.0
    assert report.worst() == []
    assert SurvivalReport().unchanged_share is None


@given(st.integers(0, 2**64 - 1), st.text())
def test_keys_are_two_words_and_differ(seed: int, name: str) -> None:
    key = rounding_key(seed, name)
    assert all(0 <= word < 1 << 32 for word in key)
    assert key == rounding_key(seed, name)
    assert key != rounding_key((seed + 1) % 2**64, name)
    assert key != rounding_key(seed, name + "x")
    assert key != keyed(b"another", seed, name.encode())
    assert keyed(b"d", seed, b"ab", b"c") != keyed(b"d", seed, b"a", b"bc")


def test_keys_of_other_machines() -> None:
    """Written down: a key that changed would change the bytes of every merge."""
    assert rounding_key(0, "w") == (155577303, 2551826863)


def test_bad_arguments() -> None:
    base, exact = torch.zeros(3), torch.zeros(3)
    with pytest.raises(TypeError, match="exact must be float32"):
        measure_survival(base, exact.half(), torch.bfloat16)
    with pytest.raises(TypeError, match="base must be a float"):
        measure_survival(base.int(), exact, torch.bfloat16)
    with pytest.raises(ValueError, match=r"shape of base, \(3,\), got \(4,\)"):
        measure_survival(base, torch.zeros(4), torch.bfloat16)
    with pytest.raises(ValueError, match="written must have the shape"):
        measure_survival(base, exact, torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="float dtype"):
        measure_survival(base, exact, torch.int8)
    with pytest.raises(ValueError, match="seed"):
        keyed(b"d", -1)
