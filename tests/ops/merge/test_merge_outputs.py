"""Where a merge goes: outputs in place, residuals, stochastic rounding, counts, and every message at the door."""

from __future__ import annotations

import pytest
import torch

from graftwork.ops.merge import Sparsify, combine, merge_many
from tests.ops.merge.merge_arguments import FORMATS, fine_tunes, same_bits

WEIGHTS = [0.4, 0.3, 0.2]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_out_may_be_an_input(dtype: torch.dtype) -> None:
    rule = Sparsify.magnitude([300] * 3)
    for place in range(4):
        base, donors = fine_tunes((1300,), dtype, 3)
        wanted = merge_many(base, donors, WEIGHTS, sparsify=rule, consensus="sum")[0]
        out = [base, *donors][place]
        got, _ = merge_many(base, donors, WEIGHTS, sparsify=rule, consensus="sum", out=out)
        assert got is out
        assert same_bits(out, wanted)


def test_views_are_read() -> None:
    base, donors = fine_tunes((40, 33), torch.bfloat16, 3)
    wanted = merge_many(base, donors, WEIGHTS)[0]
    got = merge_many(base.t(), [donor.t() for donor in donors], WEIGHTS)[0]
    assert same_bits(got, wanted.t().contiguous())


def test_gradients() -> None:
    base, donors = fine_tunes((5, 7), torch.float32, 2)
    parameter = torch.nn.Parameter(base.clone())
    out, _ = merge_many(parameter, [donor.requires_grad_() for donor in donors], [1.0, 1.0])
    assert not out.requires_grad
    saved = (parameter * parameter).sum()
    with torch.no_grad():
        merge_many(parameter, donors, [1.0, 1.0], out=parameter)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_output_and_residual_are_the_exact_value(dtype: torch.dtype, rounding: str) -> None:
    base, donors = fine_tunes((4097,), dtype, 3, step=1e-4)
    key = (1, 2) if rounding == "stochastic" else None
    exact = merge_many(base, donors, WEIGHTS, dtype=torch.float32)[0]
    residual = torch.empty(4097)
    out, _ = merge_many(base, donors, WEIGHTS, rounding=rounding, key=key, residual_out=residual)
    assert torch.equal(out.float() + residual, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_keeps_small_updates_on_average(dtype: torch.dtype) -> None:
    """A hundredth of the spacing is lost to the nearest, and survives in one of a hundred words at random."""
    spacing = torch.finfo(dtype).eps
    for start, unit in (
        (1.0, spacing),
        (-3.0, 2 * spacing),
        (2.0**-20, 2.0**-24 if dtype == torch.float16 else None),
    ):
        unit = spacing * start if unit is None else unit
        base = torch.full((400_000,), start, dtype=dtype)
        donor = base.float() + 0.01 * unit
        near, counts = merge_many(base, [donor], [1.0])
        assert same_bits(near, base)
        assert (counts.changed, counts.lost) == (0, 400_000)
        out, counts = merge_many(base, [donor], [1.0], rounding="stochastic", key=(5, 6))
        assert abs(counts.changed / 400_000 - 0.01) < 5 * (0.01 / 400_000) ** 0.5
        assert counts.lost == 400_000 - counts.changed
        moved = (out.double() - base.double()) / unit
        assert set(moved.unique().tolist()) == {0.0, 1.0}
    again = merge_many(base, [donor], [1.0], rounding="stochastic", key=(5, 6))[0]
    other = merge_many(base, [donor], [1.0], rounding="stochastic", key=(5, 7))[0]
    assert same_bits(out, again)
    assert not same_bits(out, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_goes_to_a_neighbour(dtype: torch.dtype) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 4, 20_000)
    out = merge_many(None, [values], [1.0], dtype=dtype, rounding="stochastic", key=(1, 1))[0]
    near = values.to(dtype)
    spacing = torch.nextafter(near.abs(), torch.tensor(torch.inf, dtype=dtype)).double() - near.abs().double()
    finite = near.isfinite() & (near.abs() < torch.finfo(dtype).max)
    assert bool(((out.double() - values.double()).abs() < spacing)[finite].all())
    on_grid = merge_many(None, [near[finite]], [1.0], rounding="stochastic", key=(1, 1))[0]
    assert same_bits(on_grid, near[finite])


def test_counts() -> None:
    base = torch.tensor([1.0, float("nan"), 3.0, 60000.0, 1.0, 1.0], dtype=torch.float16)
    donors = [
        torch.tensor([float("inf"), 1.0, 3.0, 65000.0, 1.5, 1.0], dtype=torch.float16),
        torch.tensor([1.0, 1.0, float("nan"), 60000.0, 1.0, 1.0 + 2.0**-20]),
    ]
    out, counts = merge_many(base, donors, [2.0, 1.0])
    assert counts.nonfinite == [1, 1]
    assert counts.first_nonfinite == [0, 2]
    assert (counts.base_nonfinite, counts.first_base_nonfinite) == (1, 1)
    assert (counts.changed, counts.lost, counts.overflowed) == (4, 1, 1)
    assert out.isfinite().tolist() == [False, False, False, False, True, True]
    out, counts = merge_many(base, donors, [2.0, 1.0], nonfinite="zero")
    assert out.tolist() == [1.0, 0.0, 3.0, float("inf"), 2.0, 1.0]
    assert counts.nonfinite == [1, 1]
    clean = merge_many(None, [torch.ones(3)], [1.0])[1]
    assert clean.first_nonfinite == [-1]
    assert (clean.base_nonfinite, clean.first_base_nonfinite, clean.changed, clean.lost) == (0, -1, 0, 0)


def test_first_nonfinite_elements_of_large_tensors() -> None:
    donors = [torch.zeros(300_000), torch.zeros(300_000)]
    donors[1][[299_999, 150_001, 150_000]] = torch.tensor([torch.nan, torch.inf, torch.nan])
    counts = merge_many(None, donors, [1.0, 1.0])[1]
    assert (counts.nonfinite, counts.first_nonfinite) == ([0, 3], [-1, 150_000])


def test_bad_tensors() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(
        ValueError, match=r"merge_many: donors must be a list of at least one tensor, got one tensor"
    ):
        merge_many(x, x, [1.0])
    with pytest.raises(ValueError, match=r"got none"):
        merge_many(x, [], [])
    with pytest.raises(TypeError, match=r"donors\[1\] must be a torch.Tensor, got list"):
        merge_many(x, [x, [0.0]], [1.0, 1.0])  # type: ignore[list-item]
    with pytest.raises(
        TypeError, match=r"base must be one of float16, bfloat16, float32, got torch.int8; cast it"
    ):
        merge_many(x.to(torch.int8), [x], [1.0])
    with pytest.raises(
        ValueError, match=r"donors\[1\] must have the shape of donors\[0\], \(4, 2\), got \(2, 4\)"
    ):
        merge_many(x, [x, x.view(2, 4)], [1.0, 1.0])
    with pytest.raises(TypeError, match=r"out must be one of float16, bfloat16, float32, got torch.float64"):
        merge_many(x, [x], [1.0], out=x.double())
    with pytest.raises(ValueError, match=r"out must have the shape of the inputs, \(4, 2\), got \(8,\)"):
        merge_many(x, [x], [1.0], out=torch.zeros(8))
    with pytest.raises(ValueError, match=r"out is written in place and must be contiguous"):
        merge_many(x, [x], [1.0], out=torch.zeros(2, 4).t())
    memory = torch.zeros(12)
    with pytest.raises(ValueError, match=r"out overlaps donors\[0\] in memory"):
        merge_many(None, [memory[:8]], [1.0], out=memory[4:])
    with pytest.raises(ValueError, match=r"out overlaps base in memory"):
        merge_many(memory[:8], [torch.zeros(8)], [1.0], out=memory[2:10])
    with pytest.raises(TypeError, match=r"dtype must be that of out, torch.float32, got torch.bfloat16"):
        merge_many(x, [x], [1.0], out=x, dtype=torch.bfloat16)
    with pytest.raises(
        TypeError, match=r"dtype must be one of float16, bfloat16, float32, got torch.float64"
    ):
        merge_many(x, [x], [1.0], dtype=torch.float64)
    with pytest.raises(TypeError, match=r"residual_out must be one of float32, got torch.bfloat16"):
        merge_many(x, [x], [1.0], residual_out=x.bfloat16())
    with pytest.raises(ValueError, match=r"residual_out overlaps out in memory"):
        merge_many(None, [x], [1.0], out=memory[:8].view(4, 2), residual_out=memory[4:].view(4, 2))
    with pytest.raises(ValueError, match=r"residual_out overlaps base in memory"):
        merge_many(x, [x.clone()], [1.0], residual_out=x)


def test_bad_numbers() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"weights must be 1, one for each donor, got 2"):
        merge_many(x, [x], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"weights\[0\] must be finite in float32, got 1e\+39"):
        merge_many(x, [x], [1e39])
    with pytest.raises(ValueError, match=r"scale must be finite in float32, got nan"):
        merge_many(x, [x], [1.0], scale=float("nan"))
    with pytest.raises(
        ValueError, match=r"weights sum to 0, which nothing can be divided by; pass normalize=False"
    ):
        merge_many(x, [x, x], [1.0, -1.0], normalize=True)
    with pytest.raises(ValueError, match=r"consensus must be one of none, sum, count, got 'mean'"):
        merge_many(x, [x], [1.0], consensus="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rounding must be one of nearest, stochastic, got 'up'"):
        merge_many(x, [x], [1.0], rounding="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stochastic rounding needs a key"):
        merge_many(x, [x], [1.0], rounding="stochastic")
    with pytest.raises(ValueError, match=r"key is for stochastic rounding"):
        merge_many(x, [x], [1.0], key=(1, 2))
    with pytest.raises(
        ValueError, match=r"key must be two integers in \[0, 2\^32\), a Philox key, got \(-1, 0\)"
    ):
        merge_many(x, [x], [1.0], rounding="stochastic", key=(-1, 0))
    with pytest.raises(TypeError, match=r"sparsify must be a Sparsify, got str"):
        merge_many(x, [x], [1.0], sparsify="magnitude")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sparsify must have one row for each of the 2 donors, got 1"):
        merge_many(x, [x, x], [1.0, 1.0], sparsify=Sparsify.magnitude([1]))
    with pytest.raises(
        ValueError, match=r"sparsify.keep\[0\] must be in \[0, 8\], the tensor's elements, got 9"
    ):
        merge_many(x, [x], [1.0], sparsify=Sparsify.magnitude([9]))
    with pytest.raises(
        ValueError, match=r"coefficients must have shape \(1,\), or \(4, 1\) for each row, got \(2,\)"
    ):
        combine([x], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"combine: coefficients must be finite in float32"):
        combine([x], [float("inf")])


def test_bad_rules() -> None:
    key = (0, 0)
    with pytest.raises(ValueError, match=r"Sparsify.magnitude: keep\[1\] must be at least 0, got -1"):
        Sparsify.magnitude([1, -1])
    with pytest.raises(
        ValueError, match=r"Sparsify.magnitude: rescale must be None or l1, got 'probability'"
    ):
        Sparsify.magnitude([1], rescale="probability")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Sparsify.band: gamma\[0\] must be in \[0, 1\], got 1.5"):
        Sparsify.band([0.5], [1.5])
    with pytest.raises(
        ValueError, match=r"Sparsify.band: gamma must have one entry for each density, 1, got 2"
    ):
        Sparsify.band([0.5], [0.1, 0.1])
    with pytest.raises(ValueError, match=r"Sparsify.random: density\[0\] must be in \[0, 1\], got -0.1"):
        Sparsify.random([-0.1], [key])
    with pytest.raises(ValueError, match=r"Sparsify.random: keys\[0\] must be two integers"):
        Sparsify.random([0.1], [(0, 1 << 32)])
    with pytest.raises(
        ValueError, match=r"Sparsify.random: rescale must be None or probability or l1, got 'l2'"
    ):
        Sparsify.random([0.1], [key], rescale="l2")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"epsilon\[0\] must keep density ± epsilon in \[0, 1\], got density 0.9 and"
    ):
        Sparsify.ranked([0.9], [0.2], [key])
