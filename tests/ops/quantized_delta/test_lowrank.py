"""Low-rank packs: budgets, storage, V then U, what is added to a base."""

from __future__ import annotations

import doctest
import math
from importlib import import_module

import pytest
import torch
from torch import Tensor

from graftwork.ops.quantized_delta import (
    FACTOR_FORMATS,
    GptqFactor,
    LowRankGroup,
    LowRankPack,
    PackFormat,
    delta_quantize,
    dequantize,
    lowrank_quantize,
    rank_for_bpw,
    resolve_groups,
    svd_delta,
)
from graftwork.reference.quantized_delta import lowrank as reference
from graftwork.reference.quantized_delta.gptq import hessian_errors
from tests.ops.quantized_delta.lowrank_cases import hessian_of, matrix_of, power_law, some_inputs
from tests.tolerances import assert_close

#: Of Delta-CoMe and of GraftLLM's script.
DELTA_COME = [(2, 8), (32, 3), (968, 2)]
GRAFT_ATTENTION, GRAFT_MLP = [(20, 8), (180, 4), (800, 2)], [(20, 8), (180, 4), (1200, 2)]


def dense(pack: LowRankPack) -> Tensor:
    left, values, right = pack.factors()
    return reference.dense([(left, values, right)], *pack.shape)


def relative(pack: LowRankPack, delta: Tensor, hessian: Tensor | None = None) -> float:
    errors, wide = delta.double() - dense(pack), delta.double()
    if hessian is None:
        return float(errors.norm() / wide.norm())
    return float((hessian_errors(errors, hessian).sum() / hessian_errors(wide, hessian).sum()).sqrt())


@pytest.mark.parametrize(
    ("groups", "shape", "bpw"),
    [
        (DELTA_COME, (4096, 4096), 1.000),
        ([*DELTA_COME[:2], (1428, 2)], (11008, 4096), 0.994),
        (GRAFT_ATTENTION, (4096, 4096), 1.21),
        (GRAFT_MLP, (14336, 4096), 1.03),
        (GRAFT_ATTENTION, (1024, 4096), 3.03),
    ],
)
def test_bits_per_weight_of_the_papers(
    groups: list[tuple[int, int]], shape: tuple[int, int], bpw: float
) -> None:
    total = reference.bits_total(groups, *shape)
    assert total / (shape[0] * shape[1]) == pytest.approx(bpw, abs=0.005)
    rank = sum(count for count, _ in groups)
    assert rank_for_bpw(shape, total / (shape[0] * shape[1]), groups, codes_only=True) == min(rank, *shape)


@pytest.mark.parametrize("codes_only", [False, True])
@pytest.mark.parametrize("bpw", [0.0, 0.1, 0.5, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("shape", [(4096, 4096), (1024, 4096), (100, 31), (1, 1)], ids=str)
def test_the_rank_is_the_largest_within_the_budget(
    shape: tuple[int, int], bpw: float, codes_only: bool
) -> None:
    groups = [(2, 8), (5, 3), (None, 2)]
    rank = rank_for_bpw(shape, bpw, groups, codes_only=codes_only)
    assert 0 <= rank <= min(shape)

    def bits(rank: int) -> int:
        chosen = resolve_groups(groups, rank)
        if codes_only:
            return reference.bits_total([(count, width) for _, count, width in chosen], *shape)
        rows = [FACTOR_FORMATS[width].nbytes(count, side) for _, count, width in chosen for side in shape]
        return 8 * (sum(rows) + 4 * rank)

    assert bits(rank) <= bpw * shape[0] * shape[1]
    assert rank == min(shape) or bits(rank + 1) > bpw * shape[0] * shape[1]


def test_the_budget_is_what_is_stored() -> None:
    delta = matrix_of(power_law(200), 300, 260)
    formats = {2: PackFormat(2, "midrise", 64, torch.float16), 8: PackFormat(8, "asym", 32)}
    for groups in ([(2, 8), (4, 3), (None, 2)], [(1, 16), (3, 4), (None, 1)]):
        for chosen in (None, formats):
            rank = rank_for_bpw((300, 260), 1.5, groups, formats=chosen)
            pack = lowrank_quantize(*svd_delta(delta, None, rank=rank), groups, formats=chosen)
            assert pack.rank == rank
            assert 1.5 * 0.95 < pack.bits_per_weight <= 1.5
    assert rank_for_bpw((300, 260), 1.5, [(3, 8), (9, 0)]) == 3
    assert rank_for_bpw((300, 260), 1.5, [(3, 8), (9, 0), (2, 2)]) == 14


def test_groups() -> None:
    assert resolve_groups([(2, 8), (32, 3), (None, 2)], 100) == [(0, 2, 8), (2, 32, 3), (34, 66, 2)]
    assert resolve_groups([(2, 8), (32, 3)], 100) == [(0, 2, 8), (2, 32, 3)]
    assert resolve_groups([(2, 8), (32, 3), (None, 2)], 3) == [(0, 2, 8), (2, 1, 3)]
    assert resolve_groups([(2, 0), (0, 3), (None, 2)], 5) == [(2, 3, 2)]
    assert resolve_groups([], 5) == resolve_groups([(None, 0)], 5) == resolve_groups([(None, 4)], 0) == []
    with pytest.raises(ValueError, match=r"groups\[1\] must have bits of 16, 8, 4, 3, 2, 1, 0, got 5"):
        resolve_groups([(2, 8), (None, 5)], 9)
    with pytest.raises(ValueError, match=r"groups\[0\] must have a number of triples; only the last"):
        resolve_groups([(None, 8), (2, 2)], 9)
    with pytest.raises(ValueError, match=r"groups\[0\] must have a number of triples of at least 0, got -1"):
        resolve_groups([(-1, 8)], 9)
    with pytest.raises(ValueError, match=r"rank_for_bpw: bpw must be at least 0, got nan"):
        rank_for_bpw((3, 3), math.nan, [(None, 2)])
    with pytest.raises(ValueError, match=r"rank_for_bpw: shape must not be negative"):
        rank_for_bpw((-3, 3), 1.0, [(None, 2)])
    with pytest.raises(ValueError, match=r"formats\[2\] must have codes of 2 bits, got 4"):
        rank_for_bpw((3, 3), 1.0, [(None, 2)], formats={2: PackFormat(4, "sym", 8)})


@pytest.mark.parametrize("quantizer", ["rtn", "mse", "gptq"])
@pytest.mark.parametrize("shape", [(60, 60), (33, 90), (90, 31), (1, 7)], ids=str)
def test_all_energy_in_16_bits_is_the_delta(shape: tuple[int, int], quantizer: str) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    pack = lowrank_quantize(*svd_delta(delta, None, energy=1.0), [(None, 16)], quantizer=quantizer)
    assert pack.groups[0].bits == 16
    assert relative(pack, delta) < 1e-3


def test_rank_zero_is_nothing() -> None:
    triples = svd_delta(torch.ones(5, 4), None, rank=2)
    for pack in (
        lowrank_quantize(*triples, [(None, 0)]),
        lowrank_quantize(*svd_delta(torch.ones(5, 4), None, rank=0), [(None, 8)]),
        lowrank_quantize(*svd_delta(torch.zeros(0, 4), None, rank=0), [(None, 8)]),
    ):
        assert (pack.rank, pack.nbytes, pack.bits_per_weight, pack.groups) == (0, 0, 0.0, ())
        assert not dense(pack).any()


def test_a_group_in_the_middle_may_be_left_out() -> None:
    delta = matrix_of(torch.tensor([8.0, 4.0, 2.0, 1.0]), 50, 40)
    pack = lowrank_quantize(*svd_delta(delta, None, rank=4), [(1, 16), (2, 0), (None, 16)])
    assert [(group.start, group.count) for group in pack.groups] == [(0, 1), (3, 1)]
    assert relative(pack, delta) == pytest.approx(math.sqrt(20 / 85), rel=1e-3)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_more_bits_and_better_quantizers_err_less(bits: int) -> None:
    delta = matrix_of(power_law(64), 256, 200)
    triples = svd_delta(delta, None, rank=64)
    errors = {
        q: relative(lowrank_quantize(*triples, [(None, bits)], quantizer=q), delta)
        for q in ("rtn", "mse", "gptq")
    }
    assert errors["mse"] <= errors["rtn"] * 1.02
    assert errors["gptq"] <= errors["mse"] * 1.01
    if bits < 8:
        wider = lowrank_quantize(*triples, [(None, {4: 8, 3: 4, 2: 3, 1: 2}[bits])])
        assert relative(wider, delta) < errors["mse"]
    plain = lowrank_quantize(*triples, [(None, bits)], refit=False)
    assert relative(lowrank_quantize(*triples, [(None, bits)]), delta) < relative(plain, delta) * (
        1.0 if bits < 8 else 1.02
    )


def test_without_refit_the_factors_are_quantised_as_they_are() -> None:
    triples = svd_delta(matrix_of(power_law(20), 150, 140), None, rank=20)
    pack = lowrank_quantize(*triples, [(3, 8), (None, 2)], refit=False)
    for group in pack.groups:
        part = slice(group.start, group.start + group.count)
        for factor, side in ((group.left, triples.left), (group.right, triples.right)):
            wanted, _ = delta_quantize(
                side[:, part].mT.contiguous(), None, FACTOR_FORMATS[group.bits], mse_iters=2
            )
            assert torch.equal(factor.codes, wanted.codes)
            assert torch.equal(factor.scales, wanted.scales)
        assert torch.equal(group.values, triples.values[part])


@pytest.mark.parametrize("hessian", [False, True])
def test_u_is_fitted_to_the_v_that_came_out(hessian: bool) -> None:
    delta = matrix_of(power_law(90), 120, 100)
    left, values, right = svd_delta(delta, None, rank=90)
    seen = hessian_of(some_inputs(400, 100)) if hessian else None
    formats = {2: PackFormat(2, "midrise", 32, torch.float32), 8: PackFormat(8, "sym", 8, torch.float32)}
    pack = lowrank_quantize(left, values, right, [(30, 2)], formats=formats, hessian=seen, damp=0.0)
    kept = dequantize(pack.groups[0].right)
    wanted = reference.fitted_left(left, values, right, kept, seen)
    assert_close("lowrank_quantize", pack.groups[0].values, wanted.norm(dim=0))
    found = dequantize(pack.groups[0].left).double() * pack.groups[0].values.double()[:, None]
    assert float((found.mT - wanted).norm() / wanted.norm()) < 0.5  # two bits of it
    best = left.double() * values.double() @ right.double().mT - wanted @ kept.double()
    inner = torch.eye(100, dtype=torch.float64) if seen is None else seen.double()
    assert float((best @ inner @ kept.double().mT).abs().max()) < 1e-6  # nothing of V̂ is left in the error


def test_gptq_sees_the_inputs() -> None:
    delta, hessian = matrix_of(power_law(128), 128, 160), hessian_of(some_inputs(900, 160))
    triples = svd_delta(delta, None, rank=40)
    groups = [(2, 8), (8, 3), (None, 2)]
    plain, seen, quantised = (
        relative(lowrank_quantize(*triples, groups, **kwargs), delta, hessian)
        for kwargs in ({}, {"hessian": hessian}, {"hessian": hessian, "quantizer": "gptq"})
    )
    assert quantised < seen < plain
    factor = GptqFactor.of(hessian, act_order=True)
    once, again = (
        lowrank_quantize(*triples, groups, quantizer="gptq", hessian=hessian, factor=given)
        for given in (None, factor)
    )
    assert all(torch.equal(a, b) for a, b in zip(once.factors(), again.factors(), strict=True))


def test_triples_without_a_value() -> None:
    """A delta of lower rank than asked for: the rest has no length, and no direction matters."""
    delta = matrix_of(torch.tensor([2.0, 1.0]), 40, 30)
    triples = svd_delta(delta, None, rank=6)
    for quantizer in ("rtn", "mse", "gptq"):
        for refit in (False, True):
            pack = lowrank_quantize(*triples, [(2, 16), (None, 4)], quantizer=quantizer, refit=refit)
            assert relative(pack, delta) < 1e-3
    zero = lowrank_quantize(*svd_delta(torch.zeros(40, 30), None, rank=3), [(None, 2)], quantizer="gptq")
    assert not dense(zero).any()


def test_scale_does_not_matter() -> None:
    delta = matrix_of(power_law(30), 80, 70)
    errors = [
        relative(
            lowrank_quantize(*svd_delta(delta * scale, None, rank=30), [(None, 3)], quantizer="gptq"),
            delta * scale,
        )
        for scale in (1.0, 2.0**-30, 2.0**20)
    ]
    assert errors[1:] == pytest.approx(errors[:1] * 2, rel=1e-3)


def test_packs_say_what_is_wrong() -> None:
    pack = lowrank_quantize(*svd_delta(torch.ones(50, 40), None, rank=3), [(1, 16), (None, 4)])
    first, second = pack.groups
    with pytest.raises(ValueError, match=r"LowRankPack: groups\[0\] must be of a matrix of shape \(50, 41\)"):
        LowRankPack((50, 41), pack.groups)
    with pytest.raises(ValueError, match=r"LowRankPack: groups\[1\] must start at triple 3 or later, got 0"):
        LowRankPack((50, 40), (second, first))
    with pytest.raises(TypeError, match=r"LowRankGroup: values must be one of float32"):
        LowRankGroup(0, first.left, first.right, first.values.half())
    with pytest.raises(ValueError, match=r"LowRankGroup: left must have a row for each of 1 triples"):
        LowRankGroup(0, second.left, first.right, first.values)
    with pytest.raises(TypeError, match=r"LowRankGroup: right must be one of float16, got torch.float32"):
        LowRankGroup(0, first.left, first.right.float(), first.values)
    with pytest.raises(TypeError, match=r"LowRankGroup: left must be a PackedDelta or float16, got str"):
        LowRankGroup(0, "u", first.right, first.values)
    with pytest.raises(ValueError, match=r"start at least 0"):
        LowRankGroup(-1, first.left, first.right, first.values)


def test_bad_arguments() -> None:
    left, values, right = svd_delta(torch.ones(5, 4), None, rank=2)
    with pytest.raises(
        ValueError, match=r"lowrank_quantize: quantizer must be one of 'rtn', 'mse', 'gptq', got 'best'"
    ):
        lowrank_quantize(left, values, right, [(None, 4)], quantizer="best")
    with pytest.raises(
        ValueError, match=r"must be \[O, r\], \[r\] and \[I, r\], got \(5, 2\), \(2,\) and \(2, 4\)"
    ):
        lowrank_quantize(left, values, right.mT, [(None, 4)])
    with pytest.raises(
        TypeError, match=r"lowrank_quantize: values must be one of float32, got torch.float64"
    ):
        lowrank_quantize(left, values.double(), right, [(None, 4)])
    with pytest.raises(ValueError, match=r"lowrank_quantize: right must be finite; decompose with svd_delta"):
        lowrank_quantize(left, values, right * math.nan, [(None, 4)])
    with pytest.raises(ValueError, match=r"lowrank_quantize: hessian must be \[4, 4\], got \(5, 5\)"):
        lowrank_quantize(left, values, right, [(None, 4)], hessian=torch.eye(5))


@pytest.mark.parametrize("module", ["lowrank", "lowrank_quantize", "lowrank_add"])
def test_examples_in_docstrings(module: str) -> None:
    found = import_module(f"graftwork.ops.quantized_delta.{module}")
    result = doctest.testmod(found, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
