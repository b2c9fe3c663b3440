"""Singular triples of deltas: the worked numbers, the best error, exact cases, scale, batches, errors."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor

from graftwork.ops.quantized_delta import rank_for_energy, svd, svd_delta
from graftwork.ops.quantized_delta.svd import NEAR_FULL, SingularTriples
from graftwork.reference.quantized_delta import svd as reference
from tests.ops.quantized_delta.lowrank_cases import matrix_of, power_law
from tests.tolerances import assert_close


def product(triples: SingularTriples) -> Tensor:
    left, values, right = (tensor.double() for tensor in triples)
    return left * values @ right.mT


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted.double()).norm() / wanted.double().norm())


def assert_orthonormal(columns: Tensor) -> None:
    assert_close("svd_delta", columns.double().mT @ columns.double(), torch.eye(columns.shape[1]))


def test_the_energy_rule_on_worked_numbers() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])  # squares 16, 4, 1, 1 of 22
    assert [rank_for_energy(values, energy) for energy in (0.7, 0.9, 0.95)] == [1, 2, 3]
    assert [rank_for_energy(values, energy) for energy in (0.0, 16 / 22, 20 / 22, 1.0)] == [0, 1, 2, 4]
    assert rank_for_energy(values[:2], 0.9, 22.0) == 2
    assert rank_for_energy(values[:2], 0.95, 22.0) == 2  # all there are
    assert rank_for_energy(torch.zeros(3), 0.9) == 0
    for energy, rank in ((0.7, 1), (0.9, 2), (0.95, 3), (0.0, 0), (1.0, 4)):
        assert svd_delta(matrix_of(values, 6, 4), None, energy=energy).values.numel() == rank


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (31, 1), (33, 31), (97, 130), (257, 64)], ids=str)
def test_everything_kept_is_the_delta(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base, tuned = (torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(2))
    found = svd_delta(tuned, base, rank=min(shape))
    assert [tensor.dtype for tensor in found] == [torch.float32] * 3
    assert_close("svd_delta", product(found), tuned.double() - base.double())
    assert_close("svd_delta", found.values, reference.svd_delta(tuned, base, None, None)[1])
    assert_orthonormal(found.left)
    assert_orthonormal(found.right)


@pytest.mark.parametrize("rank", [1, 5, 16, 40])
@pytest.mark.parametrize("shape", [(200, 130), (130, 200)], ids=str)
def test_the_range_finder_is_near_the_best(shape: tuple[int, int], rank: int, device: str) -> None:
    delta = matrix_of(power_law(130), *shape).to(device)
    assert rank + 8 <= NEAR_FULL * 130
    found = svd_delta(delta, None, rank=rank)
    best = torch.cat(
        [torch.zeros(rank, dtype=torch.float64), reference.svd_delta(delta, None, None, None)[1].cpu()[rank:]]
    )
    assert float((product(found) - delta).norm()) <= 1.03 * float(best.norm())
    assert_orthonormal(found.left)
    assert_orthonormal(found.right)
    assert bool((found.values.diff() <= 0).all())


@pytest.mark.parametrize("native", [False, True])
def test_a_low_rank_delta_is_found_exactly(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svd, "multiplies_bfloat16", lambda device: native)
    delta = matrix_of(torch.logspace(0, -3, 12), 150, 140)
    for rank in (12, 30):
        assert relative(product(svd_delta(delta, None, rank=rank)), delta) < 1e-5
    for iterations in (0, 1, 3):
        found = svd_delta(delta, None, rank=12, iterations=iterations, oversample=2)
        assert relative(product(found), delta) < 1e-5


def test_iterations_and_oversampling_help() -> None:
    delta = matrix_of(power_law(256), 256, 256)
    errors = [
        float((product(svd_delta(delta, None, rank=20, iterations=n, oversample=k)) - delta).norm())
        for n, k in ((0, 0), (0, 8), (1, 8), (2, 8))
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_the_energy_rule_by_doubling(energy: float) -> None:
    values = torch.cat([torch.logspace(0, -1.2, 110), torch.full((190,), 1e-3)])
    delta = matrix_of(values, 300, 320)
    wanted = rank_for_energy(values, energy)
    found = svd_delta(delta, None, energy=energy)
    assert wanted <= found.values.numel() <= wanted + 1 + wanted // 50
    assert 1 - relative(product(found), delta) ** 2 >= energy - 1e-6
    assert svd_delta(delta, None, energy=energy, rank=7).values.numel() == 7
    assert svd_delta(delta, None, energy=1.0).values.numel() == 300


@pytest.mark.parametrize("power", [-122, -100, -40, 0, 60, 110])
def test_any_scale(power: int) -> None:
    delta = matrix_of(power_law(20), 100, 90).double()
    scaled = (delta * 2.0**power).float()
    wanted = scaled.double() * 2.0**-power
    for found in (svd_delta(scaled, None, rank=20), svd_delta(scaled, None, energy=1 - 1e-9)):
        left, values, right = (tensor.double() for tensor in found)
        assert relative(left * (values * 2.0**-power) @ right.mT, wanted) < 1e-4


def test_zeros_and_empty_matrices() -> None:
    zero = torch.zeros(100, 90)
    for found in (svd_delta(zero, None, rank=5), svd_delta(zero, zero, rank=90)):
        assert not found.values.any()
        assert product(found).count_nonzero() == 0
    assert svd_delta(zero, None, energy=0.9).values.numel() == 0
    for shape in ((0, 5), (5, 0), (0, 0)):
        left, values, right = svd_delta(torch.zeros(shape), None, rank=0)
        assert (left.shape, values.shape, right.shape) == ((shape[0], 0), (0,), (shape[1], 0))
    left, values, right = svd_delta(torch.ones(3, 4), None, rank=0)
    assert (left.shape, values.shape, right.shape) == ((3, 0), (0,), (4, 0))


def test_batches_give_what_single_calls_give() -> None:
    deltas = [matrix_of(power_law(60), 120, 100, seed) for seed in range(3)]
    bases = [torch.ones(120, 100) for _ in deltas]
    for kwargs in ({"rank": 10}, {"rank": 100}, {"energy": 0.7}):
        together = svd_delta(deltas, bases, **kwargs)
        assert isinstance(together, list)
        for found, delta, base in zip(together, deltas, bases, strict=True):
            assert_close("svd_delta", product(found), product(svd_delta(delta, base, **kwargs)))
    assert svd_delta([], None, rank=3) == []


def test_signs_and_repetition() -> None:
    delta = matrix_of(power_law(50), 90, 80)
    first, second = (svd_delta(delta, None, rank=9, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for rank in (9, 80):
        right = svd_delta(delta, None, rank=rank).right
        assert bool((right.gather(0, right.abs().argmax(0, keepdim=True)) > 0).all())
    assert not torch.equal(svd_delta(delta, None, rank=9, seed=4).left, first.left)


def test_views_are_read_in_place() -> None:
    delta = matrix_of(power_law(40), 70, 60)
    kept = delta.clone()
    assert_close("svd_delta", product(svd_delta(delta.mT, None, rank=40)), delta.mT)
    assert_close("svd_delta", product(svd_delta(delta[::2, 1::3], None, rank=20)), delta[::2, 1::3])
    assert torch.equal(delta, kept)
    assert not any(tensor.requires_grad for tensor in svd_delta(delta.requires_grad_(), None, rank=3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    tuned, base = torch.zeros(40, 30), torch.zeros(40, 30)
    tuned[7, 11] = bad
    with pytest.raises(
        ValueError, match=rf"svd_delta: the difference at \[7, 11\] \(flat index 221\).*tuned is {bad}"
    ):
        svd_delta(tuned, base, rank=3)
    with pytest.raises(ValueError, match=rf"flat index 221.*base is {bad}"):
        svd_delta([base, base], [base, tuned], rank=3)


def test_bad_arguments() -> None:
    delta = torch.zeros(4, 5)
    with pytest.raises(ValueError, match=r"svd_delta: rank or energy must be given"):
        svd_delta(delta, None)
    with pytest.raises(
        ValueError, match=r"svd_delta: rank must be at most min\(O, I\) = 4, got 5; rank_for_bpw"
    ):
        svd_delta(delta, None, rank=5)
    with pytest.raises(ValueError, match=r"svd_delta: rank must be at least 0, got -1"):
        svd_delta(delta, None, rank=-1)
    with pytest.raises(TypeError, match=r"svd_delta: oversample must be an int, got float"):
        svd_delta(delta, None, rank=1, oversample=1.5)
    with pytest.raises(ValueError, match=r"svd_delta: iterations must be at least 0, got -2"):
        svd_delta(delta, None, rank=1, iterations=-2)
    for energy in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"svd_delta: energy must be in \[0, 1\], got"):
            svd_delta(delta, None, energy=energy)
    with pytest.raises(ValueError, match=r"rank_for_energy: energy must be in \[0, 1\], got 2"):
        rank_for_energy(torch.ones(2), 2)
    with pytest.raises(
        TypeError, match=r"svd_delta: tuned must be one of float16, bfloat16, float32, got torch.float64"
    ):
        svd_delta(delta.double(), None, rank=1)
    with pytest.raises(
        ValueError, match=r"svd_delta: tuned must be a matrix \[O, I\], got shape \(2, 3, 4\)"
    ):
        svd_delta(torch.zeros(2, 3, 4), None, rank=1)
    with pytest.raises(
        ValueError, match=r"svd_delta: base must have the shape of tuned, \(4, 5\), got \(5, 4\)"
    ):
        svd_delta(delta, delta.mT, rank=1)
    with pytest.raises(
        ValueError, match=r"svd_delta: tuned\[1\] must have the shape and device of tuned\[0\]"
    ):
        svd_delta([delta, delta.mT], None, rank=1)
    with pytest.raises(
        ValueError, match=r"svd_delta: base must have one matrix for each of the 2 of tuned, got 1"
    ):
        svd_delta([delta, delta], [delta], rank=1)
    with pytest.raises(TypeError, match=r"svd_delta: base must be a torch.Tensor as tuned is, got list"):
        svd_delta(delta, [delta], rank=1)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(svd, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
