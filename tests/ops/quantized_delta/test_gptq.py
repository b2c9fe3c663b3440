"""GPTQ: the worked numbers, the block against the reference, never worse than rounding to nearest, orders, errors."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor

from graftwork.ops.quantized_delta import (
    GptqFactor,
    PackFormat,
    accumulate_hessian,
    delta_quantize,
    dequantize,
    dequantize_grouped,
    gptq,
    gptq_quantize,
    grouped_order,
)
from graftwork.reference.quantized_delta import gptq as reference
from graftwork.reference.quantized_delta.levels import SCHEMES
from tests.ops.quantized_delta.gptq_cases import BLOCK_SHAPES, CODES, block_case
from tests.ops.quantized_delta.lowrank_cases import hessian_of, some_inputs
from tests.tolerances import assert_close

WORKED = torch.tensor([[2.0, 1.0], [1.0, 2.0]])


def weights_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def error_of(weights: Tensor, made: Tensor, hessian: Tensor) -> float:
    return float(reference.hessian_errors(weights.double() - made.double(), hessian).sum())


def test_the_factor_of_the_worked_example() -> None:
    factor = GptqFactor.of(WORKED, damp=0.0)
    upper = torch.linalg.inv(factor.feedback * factor.diagonal)  # the U of the paper
    assert_close("gptq.factor", upper, torch.tensor([[0.8165, -0.40825], [0.0, 0.70711]]).round(decimals=5))
    assert_close(
        "gptq.factor", (factor.feedback * factor.diagonal).double(), reference.factor(WORKED.double())
    )


def test_the_codes_of_the_worked_example() -> None:
    """Step 1: the second weight becomes 1.525; the error is .755, that of rounding to nearest .855."""
    weights = torch.tensor([[1.45, 1.3]])
    factor = GptqFactor.of(WORKED, damp=0.0)
    losses = torch.zeros(1, dtype=torch.float64)
    arguments = (
        torch.ones(1, 1),
        None,
        torch.zeros(2, dtype=torch.int32),
        factor.diagonal,
        0.0,
        8,
        SCHEMES.index("sym"),
    )
    codes, errors = torch.ops.graftwork.gptq_block(weights, weights, factor.feedback, *arguments, losses)
    assert (codes - 128).tolist() == [[1, 2]]
    second = weights[0, 1] + errors[0, 0] * factor.feedback[0, 1]
    assert float(second) == pytest.approx(1.525, abs=1e-6)
    assert float(losses) == pytest.approx(0.755, abs=1e-6)
    assert error_of(weights, weights - errors, WORKED) == pytest.approx(0.755, abs=1e-6)
    assert error_of(weights, torch.tensor([[1.0, 1.0]]), WORKED) == pytest.approx(0.855, abs=1e-6)


@pytest.mark.parametrize(("scheme", "bits"), CODES)
@pytest.mark.parametrize("shape", BLOCK_SHAPES, ids=str)
def test_the_block_is_that_of_the_reference(
    shape: tuple[int, int], scheme: str, bits: int, device: str
) -> None:
    *arguments, losses = block_case(shape, scheme, bits, device)
    found = torch.ops.graftwork.gptq_block(*arguments, losses)
    expected = torch.full_like(losses, 0.5)
    wanted = reference.gptq_block(*arguments, expected)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert_close("gptq_block.losses", losses, expected)


def test_the_block_reads_views() -> None:
    *arguments, losses = block_case((70, 40), "sym", 4, "cpu")
    wanted = torch.ops.graftwork.gptq_block(*arguments, losses.clone())
    wide = torch.full((70, 100), math.nan)
    wide[:, 30:70] = arguments[0]
    across = arguments[1].mT.contiguous().mT
    found = torch.ops.graftwork.gptq_block(wide[:, 30:70], across, *arguments[2:], losses)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("scheme", "bits"), CODES)
@pytest.mark.parametrize("block", [-1, 0, 8, 32, 128, 200])
def test_never_worse_than_rounding_to_nearest(block: int, scheme: str, bits: int) -> None:
    weights, hessian = weights_of(19, 300), hessian_of(some_inputs(1000, 300))
    format = PackFormat(bits, scheme, block)
    nearest, _ = delta_quantize(weights, None, format)
    pack, g_idx, error = gptq_quantize(weights, hessian, format)
    assert g_idx is None
    mine, theirs = (dequantize(p).double() for p in (pack, nearest))
    rows = [reference.hessian_errors(weights.double() - made, hessian) for made in (mine, theirs)]
    assert bool((rows[0] <= rows[1] * (1 + 1e-5)).all())
    coarse = bits < 3 and scheme != "midrise"  # their errors are so large that passing them on gains little
    assert float(rows[0].sum()) < (1.0 if coarse else 0.9) * float(rows[1].sum())
    assert float(error) == pytest.approx(float(rows[0].sum()), rel=1e-4)
    assert pack.format == format
    assert pack.nbytes == nearest.nbytes
    again, _ = delta_quantize(weights, None, format)
    assert torch.equal(again.scales, nearest.scales)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("block", [0, 32, 128])
def test_act_order(block: int, static: bool) -> None:
    weights, hessian = weights_of(33, 260), hessian_of(some_inputs(900, 260))
    format = PackFormat(3, "midrise", block, torch.bfloat16)
    pack, g_idx, error = gptq_quantize(weights, hessian, format, act_order=True, static_groups=static)
    made = dequantize_grouped(pack, g_idx)
    assert float(error) == pytest.approx(error_of(weights, made, hessian), rel=1e-4)
    assert error_of(weights, made, hessian) < error_of(
        weights, dequantize(delta_quantize(weights, None, format)[0]), hessian
    )
    if static or block == 0:
        assert g_idx is None
        return
    assert g_idx is not None
    order = hessian.diagonal().argsort(descending=True, stable=True)
    assert torch.equal(g_idx[order], (torch.arange(260) // block).int())
    assert torch.equal(made[:, grouped_order(g_idx)], dequantize(pack))


def test_a_diagonal_hessian_gives_rounding_to_nearest() -> None:
    weights = weights_of(40, 200)
    hessian = torch.diag(torch.rand(200, generator=torch.Generator().manual_seed(1)) + 0.01)
    for format in (PackFormat(2, "midrise", 64), PackFormat(4, "asym", 32), PackFormat(1, "sign", 0)):
        nearest, _ = delta_quantize(weights, None, format)
        for order in (False, True):
            found = gptq_quantize(weights, hessian, format, act_order=order)
            assert found.g_idx is None
            assert torch.equal(found.pack.codes, nearest.codes)
            assert torch.equal(found.pack.scales, nearest.scales)
            assert found.pack.scale_exp == nearest.scale_exp
        assert float(found.error) == pytest.approx(error_of(weights, dequantize(nearest), hessian), rel=1e-5)


def test_the_run_over_a_nearly_diagonal_hessian_agrees_too() -> None:
    """The same without the shortcut: an entry far below a rounding makes the columns run."""
    weights = weights_of(40, 200)
    hessian = torch.eye(200)
    hessian[0, 1] = hessian[1, 0] = 1e-30
    for format in (
        PackFormat(2, "midrise", 64, torch.bfloat16),
        PackFormat(4, "asym", 32),
        PackFormat(4, "nf4", 0),
    ):
        nearest, _ = delta_quantize(weights, None, format)
        found = gptq_quantize(weights, hessian, format).pack
        assert torch.equal(found.codes, nearest.codes)
        assert torch.equal(found.scales, nearest.scales)


def test_dead_columns() -> None:
    inputs = some_inputs(500, 96)
    inputs[:, [3, 64]] = 0
    hessian, weights = hessian_of(inputs), weights_of(20, 96)
    for scheme, bits in (("sym", 4), ("asym", 4), ("midrise", 3)):
        format = PackFormat(bits, scheme, 32)
        pack, _, error = gptq_quantize(weights, hessian, format)
        made = dequantize(pack)
        if scheme != "midrise":  # which has no zero
            assert not made[:, [3, 64]].any()
        assert float(error) == pytest.approx(error_of(weights, made, hessian), rel=1e-4)
    factor = GptqFactor.of(hessian)
    assert factor.dead.nonzero().view(-1).tolist() == [3, 64]
    alive = hessian.diagonal()[~factor.dead].double().mean()
    assert factor.damping == pytest.approx(0.01 * float(alive))
    silent = gptq_quantize(weights, torch.zeros(96, 96), PackFormat(4, "sym", 32))
    assert not dequantize(silent.pack).any()
    assert float(silent.error) == 0


def test_one_factor_for_several_matrices() -> None:
    hessian, format = hessian_of(some_inputs(700, 160)), PackFormat(4, "sym", 64)
    factor = GptqFactor.of(hessian, act_order=True)
    for seed in (1, 2):
        weights = weights_of(12, 160, seed)
        mine = gptq_quantize(weights, factor, format)
        alone = gptq_quantize(weights, hessian, format, act_order=True)
        assert torch.equal(mine.pack.codes, alone.pack.codes)
        assert torch.equal(mine.pack.scales, alone.pack.scales)
    with pytest.raises(
        ValueError, match=r"act_order and damp are the factor's own; give them to GptqFactor.of"
    ):
        gptq_quantize(weights, factor, format, damp=0.1)


def test_the_damping_is_raised_until_the_factor_exists() -> None:
    few = hessian_of(some_inputs(3, 80))  # rank 3
    plain = GptqFactor.of(few, damp=0.01)
    assert plain.damping == pytest.approx(0.01 * float(few.diagonal().double().mean()), rel=1e-5)
    slightly = torch.eye(40)
    slightly[0, 1] = slightly[1, 0] = 1.05  # eigenvalue -.05: .0001, .001 and .01 do not do
    assert GptqFactor.of(slightly, damp=1e-4).damping == pytest.approx(0.1)
    with pytest.raises(
        ValueError,
        match=r"gptq_quantize: layers.3.mlp is not positive definite, not with 0.01 times the mean .* larger damp",
    ):
        GptqFactor.of(slightly, damp=1e-5, name="layers.3.mlp")
    wide = GptqFactor.of(slightly.double(), damp=0.1)
    assert wide.feedback.dtype == torch.float32


def test_scales_follow_the_errors_in_any_scale_dtype() -> None:
    weights, hessian = weights_of(16, 256) * 1e-4, hessian_of(some_inputs(900, 256))
    weights[:, 100:] *= 1e-3
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for scheme, bits in (("sym", 4), ("asym", 3)):
            pack, _, error = gptq_quantize(weights, hessian, PackFormat(bits, scheme, 64, dtype))
            pack.check_scales()
            assert float(error) == pytest.approx(error_of(weights, dequantize(pack), hessian), rel=1e-4)


def test_threads_do_not_change_the_block() -> None:
    *arguments, losses = block_case((1000, 100), "midrise", 2, "cpu")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            mine = losses.clone()
            found.append((*torch.ops.graftwork.gptq_block(*arguments, mine), mine))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_dtypes_and_empty_matrices() -> None:
    hessian, format = hessian_of(some_inputs(200, 40)), PackFormat(4, "sym", 8)
    for dtype in (torch.bfloat16, torch.float16):
        weights = weights_of(5, 40).to(dtype)
        mine, same = (gptq_quantize(w, hessian, format).pack for w in (weights, weights.float()))
        assert torch.equal(mine.codes, same.codes)
    assert gptq_quantize(torch.zeros(0, 40), hessian, format).pack.shape == (0, 40)
    assert gptq_quantize(torch.zeros(3, 0), torch.zeros(0, 0), format).pack.shape == (3, 0)
    assert not dequantize(gptq_quantize(torch.zeros(3, 40), hessian, format).pack).any()


def test_the_hessian_is_the_mean_over_all_inputs() -> None:
    inputs = some_inputs(90, 17).to(torch.bfloat16)
    for dtype in (torch.float32, torch.float64):
        hessian, seen = torch.zeros(17, 17, dtype=dtype), 0
        for part in (inputs[:1], inputs[1:41].view(2, 20, 17), inputs[41:41], inputs[41:]):
            seen = accumulate_hessian(hessian, part, seen)
        assert seen == 90
        assert_close("gptq.hessian", hessian, hessian_of(inputs))
    with pytest.raises(ValueError, match=r"accumulate_hessian: hessian must be \[I, I\] for inputs"):
        accumulate_hessian(hessian, inputs[:, :5], 0)
    with pytest.raises(ValueError, match=r"accumulate_hessian: seen must be at least 0, got -1"):
        accumulate_hessian(hessian, inputs, -1)
    with pytest.raises(ValueError, match=r"accumulate_hessian: inputs must be finite"):
        accumulate_hessian(hessian, torch.full((1, 17), math.inf), 0)
    with pytest.raises(TypeError, match=r"accumulate_hessian: hessian must be one of float32, float64"):
        accumulate_hessian(hessian.half(), inputs, 0)


def test_bad_arguments() -> None:
    weights, hessian, format = weights_of(3, 8), torch.eye(8), PackFormat(4, "sym", 8)
    weights[1, 2] = math.nan
    with pytest.raises(
        ValueError, match=r"gptq_quantize: the difference at \[1, 2\] \(flat index 10\).*tuned is nan"
    ):
        gptq_quantize(weights, hessian, format)
    weights = weights_of(3, 8)
    with pytest.raises(
        ValueError, match=r"weights must be \[O, 8\] for a Hessian of 8 inputs, got shape \(8, 3\)"
    ):
        gptq_quantize(weights.mT, hessian, format)
    with pytest.raises(
        TypeError, match=r"weights must be one of float16, bfloat16, float32, got torch.float64"
    ):
        gptq_quantize(weights.double(), hessian, format)
    with pytest.raises(ValueError, match=r"hessian must be square, \[I, I\], got shape \(8, 7\)"):
        gptq_quantize(weights, hessian[:, :7], format)
    with pytest.raises(TypeError, match=r"hessian must be one of float32, float64, got torch.bfloat16"):
        gptq_quantize(weights, hessian.bfloat16(), format)
    with pytest.raises(ValueError, match=r"hessian must be finite"):
        gptq_quantize(weights, hessian * math.nan, format)
    with pytest.raises(ValueError, match=r"hessian must have no negative diagonal, got -1.0"):
        gptq_quantize(weights, -hessian, format)
    with pytest.raises(ValueError, match=r"hessian must be symmetric"):
        gptq_quantize(weights, torch.rand(8, 8).triu() + hessian, format)
    with pytest.raises(ValueError, match=r"gptq_quantize: damp must be at least 0 and finite, got -1"):
        gptq_quantize(weights, hessian, format, damp=-1.0)
    pack = gptq_quantize(weights, hessian, format).pack
    with pytest.raises(ValueError, match=r"g_idx must have one block for each of 8 columns"):
        dequantize_grouped(pack, torch.zeros(7, dtype=torch.int32))


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(gptq, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
