"""Differences added to another base, NearSwap."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor

from graftwork.ops.merge import add_diff, elementwise, nearswap
from tests.generators.weights import SIZES, special_words
from tests.ops.merge.merge_arguments import FORMATS, by_the_reference, fine_tunes, same_bits
from tests.tolerances import assert_close

SCALES = (1.0, 0.0, 0.3, -2.0)


def check_add(minuend: Tensor, subtrahend: Tensor, onto: Tensor, scale: float) -> Tensor:
    got = add_diff(minuend, subtrahend, onto, scale)
    with by_the_reference():
        assert same_bits(got, add_diff(minuend, subtrahend, onto, scale))
    return got


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_add_diff(dtype: torch.dtype, scale: float, device: str) -> None:
    for numel in (*SIZES, 300_001):
        if device == "cpu" and numel == 300_001 and scale != 1:
            continue
        base, donors = fine_tunes((numel,), dtype, 2)
        minuend, subtrahend, onto = donors[0].to(device), base.to(device), donors[1].to(device)
        got = check_add(minuend, subtrahend, onto, scale)
        exact = onto.double() + scale * (minuend.double() - subtrahend.double())
        assert float((got.double() - exact).abs().max() if numel else 0) <= 0.1 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_special_words(dtype: torch.dtype) -> None:
    special = special_words(dtype)
    n = len(special)
    three = special.repeat_interleave(n * n), special.repeat_interleave(n).repeat(n), special.repeat(n * n)
    for scale in SCALES:
        check_add(*three, scale)


def test_dtypes_may_differ() -> None:
    base, donors = fine_tunes((1000,), torch.float32, 2)
    for dtype in FORMATS:
        check_add(donors[0], base.bfloat16(), donors[1].to(dtype), 1.0)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_what_must_come_back(dtype: torch.dtype) -> None:
    """A scale of 0: the new base; an unchanged base: the fine-tune, however far its weights are from the base's."""
    old, donors = fine_tunes((4097,), dtype, 2)
    donors[0][:4] = torch.tensor([-0.0, 1e-7, 30000.0, 0.0], dtype=dtype)
    old[:4] = torch.tensor([0.0, 500.0, 1e-7, -0.0], dtype=dtype)
    assert same_bits(add_diff(donors[0], old, donors[1], 0.0), donors[1])
    assert same_bits(add_diff(donors[0], old, old), donors[0])
    assert same_bits(add_diff(old, old, donors[1], 3.0), donors[1])


def test_steps_add_up() -> None:
    """transfer(a) + transfer(b) − target = transfer(a + b), but for the last bit."""
    base, donors = fine_tunes((4097,), torch.float32, 2)
    a, b, both = (add_diff(donors[0], base, donors[1], scale) for scale in (0.25, 0.5, 0.75))
    assert_close("merge_many", a.double() + b.double() - donors[1].double(), both)


def test_add_diff_in_place() -> None:
    base, donors = fine_tunes((4097,), torch.bfloat16, 2)
    wanted = add_diff(donors[0], base, donors[1])
    for place in range(3):
        inputs = [donors[0].clone(), base.clone(), donors[1].clone()]
        assert add_diff(*inputs, out=inputs[place]) is inputs[place]
        assert same_bits(inputs[place], wanted)


def check_swap(base: Tensor, donor: Tensor, t: float, **options: object) -> Tensor:
    results = []
    for native in (True, False):
        residual = torch.zeros(base.shape, device=base.device)
        if native:
            out, counts = nearswap(base, donor, t, residual_out=residual, **options)  # type: ignore[arg-type]
        else:
            with by_the_reference():
                out, counts = nearswap(base, donor, t, residual_out=residual, **options)  # type: ignore[arg-type]
        results.append((out, residual, counts.table))
    assert same_bits(results[0][0], results[1][0])
    assert same_bits(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])
    return results[0][0]


@pytest.mark.parametrize("t", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_nearswap(dtype: torch.dtype, t: float, device: str) -> None:
    for numel in SIZES:
        base, donors = fine_tunes((numel,), dtype, 1)
        base, donor = base.to(device), donors[0].to(device)
        got = check_swap(base, donor, t)
        apart = (donor.double() - base.double()).abs()
        weight = torch.where(apart <= t, 1.0, t / apart)
        exact = weight * donor.double() + (1 - weight) * base.double()
        assert float((got.double() - exact).abs().max() if numel else 0) <= 0.2 * torch.finfo(dtype).eps
        check_swap(base, donor, t, rounding="stochastic", key=(1, 2))
    special = special_words(dtype).to(device)
    pairs = special.repeat(len(special)), special.repeat_interleave(len(special))
    for nonfinite in ("propagate", "zero"):
        check_swap(*pairs, t, nonfinite=nonfinite)


def test_nearswap_takes_what_is_near() -> None:
    base, donor = torch.tensor([1.0, 1.0, 1.0, -0.0]), torch.tensor([1.0, 1.5, 0.0, -0.0])
    out, counts = nearswap(base, donor, 0.5)
    assert same_bits(out, torch.tensor([1.0, 1.5, 0.5, -0.0]))
    assert (counts.changed, counts.lost) == (2, 0)
    nan = torch.tensor([1.0, torch.nan, 1.0, 2.0])
    out, counts = nearswap(base, nan, 0.5, nonfinite="zero")
    assert out.tolist() == [1.0, 1.0, 1.0, 0.5]
    assert (counts.nonfinite, counts.first_nonfinite) == ([1], [1])


def test_bad_arguments() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(
        ValueError, match=r"add_diff: subtrahend must have the shape of minuend, \(4, 2\), got \(8,\)"
    ):
        add_diff(x, x.view(8), x)
    with pytest.raises(TypeError, match=r"onto must be one of float16, bfloat16, float32, got torch.float64"):
        add_diff(x, x, x.double())
    with pytest.raises(ValueError, match=r"scale must be finite in float32, got inf"):
        add_diff(x, x, x, float("inf"))
    memory = torch.zeros(12)
    with pytest.raises(ValueError, match=r"add_diff: out overlaps onto in memory"):
        add_diff(x.view(8), x.view(8), memory[:8], out=memory[4:])
    with pytest.raises(ValueError, match=r"nearswap: t must be at least 0, got -1"):
        nearswap(x, x, -1.0)
    with pytest.raises(ValueError, match=r"base must have the shape of donor\[0\], \(4, 2\), got \(8,\)"):
        nearswap(x.view(8), x, 1.0)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(elementwise, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
