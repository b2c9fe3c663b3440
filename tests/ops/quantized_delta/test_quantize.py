"""Quantisation: the reference's bytes, worked numbers, the table of errors, and blocks that are no usual ones."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.ops import thread_limit
from graftwork.ops.quantized_delta import (
    PackedDelta,
    PackFormat,
    delta_quantize,
    dequant_add,
    dequantize,
    quantize,
)
from graftwork.reference.quantized_delta import quantize as reference
from graftwork.reference.quantized_delta.bits import unpack_bits
from graftwork.reference.quantized_delta.levels import codes_of
from tests.ops.quantized_delta.quantized_cases import CODES, DTYPES, SHAPES, matrices
from tests.tolerances import assert_close

BLOCKS = (8, 64, 96, 2048, 4096, 0, -1)
ROW = torch.tensor([[0.03, -0.01, 0.02, -0.04, 0, 0.01, -0.02, 0.05]])


def by_reference(
    tuned: torch.Tensor, base: torch.Tensor | None, format: PackFormat, iterations: int
) -> tuple[PackedDelta, torch.Tensor]:
    empty = PackedDelta.empty(format, *tuned.shape)
    how = format.bits, format.scheme_number, format.block, iterations
    error, exponent = reference.quantize(tuned, base, *how, empty.codes, empty.scales, empty.zeros)
    made = PackedDelta(format, empty.shape, empty.codes, empty.scales, empty.zeros, int(exponent))
    return made, error


def assert_same(one: PackedDelta, other: PackedDelta) -> None:
    assert torch.equal(one.codes.cpu(), other.codes)
    assert torch.equal(one.scales.cpu(), other.scales)
    assert one.scale_exp == other.scale_exp
    if other.zeros is not None:
        assert torch.equal(one.zeros.cpu(), other.zeros)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scheme", "bits"), CODES)
def test_against_the_reference(scheme: str, bits: int, dtype: torch.dtype, device: str) -> None:
    for shape in SHAPES:
        base, tuned = matrices(shape, dtype)
        for block in (8, 64, 0, -1) if shape[1] < 100 else BLOCKS:
            scale_dtype = DTYPES[block % 3]
            for iterations in (0,) if scheme == "sign" or dtype == torch.float16 else (0, 2):
                format = PackFormat(bits, scheme, block, scale_dtype)
                under = None if block == 96 else base
                pack, error = delta_quantize(
                    tuned.to(device), None if under is None else base.to(device), format, mse_iters=iterations
                )
                wanted, wanted_error = by_reference(tuned, under, format, iterations)
                assert_same(pack, wanted)
                assert_close("delta_quantize.error", error, wanted_error)
                assert error.shape == ()
                assert error.dtype == torch.float64


@pytest.mark.parametrize(
    ("format", "scale", "codes", "squares"),
    [
        (PackFormat(1, "sign", 0, torch.float32), 0.0225, "a5", 8 * 2.4375e-4),
        (PackFormat(4, "sym", 0, torch.float32), 0.05 / 7, "7c2b98f5", None),
        (PackFormat(2, "midrise", 0, torch.float32), 0.025, "27da", 5e-4),
    ],
)
def test_worked_numbers(format: PackFormat, scale: float, codes: str, squares: float | None) -> None:
    pack, error = delta_quantize(ROW, None, format, mse_iters=0)
    assert bytes(pack.codes[0].tolist()).hex() == codes
    assert pack.scales.item() == pytest.approx(scale, rel=1e-6)
    assert error.item() == pytest.approx(
        squares or (dequantize(pack) - ROW).double().square().sum().item(), rel=1e-5
    )
    if format.scheme == "midrise":
        values = [0.0375, -0.0125, 0.0125, -0.0375, 0.0125, 0.0125, -0.0125, 0.0375]
        torch.testing.assert_close(dequantize(pack), torch.tensor([values]), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def normal() -> torch.Tensor:
    """A million numbers of N(0, 1)."""
    return torch.randn(1024, 1024, generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize(
    ("bits", "scheme", "block", "wanted"),
    [
        *((1, "sign", 32, 0.593), (1, "sign", 64, 0.598), (1, "sign", 128, 0.6005)),
        *((2, "sym", 64, 0.717), (2, "asym", 64, 0.457)),
        *((2, "midrise", 32, 0.328), (2, "midrise", 64, 0.336), (2, "midrise", 128, 0.340)),
        *((3, "sym", 64, 0.251), (3, "asym", 64, 0.195), (3, "midrise", 64, 0.182)),
        *((4, "sym", 64, 0.1076), (4, "asym", 64, 0.0911), (4, "midrise", 64, 0.0942)),
        *((4, "sym", 128, 0.1172), (4, "asym", 128, 0.1005), (4, "midrise", 128, 0.0994)),
        *((4, "nf4", 64, 0.0919), (4, "nf4", 128, 0.0955), (8, "sym", 64, 0.0059)),
    ],
)
def test_table_of_errors(normal: torch.Tensor, bits: int, scheme: str, block: int, wanted: float) -> None:
    """‖Δ̂ − Δ‖ / ‖Δ‖ of normal numbers, as measured elsewhere with another sample."""
    pack, error = delta_quantize(normal, None, PackFormat(bits, scheme, block))
    relative = (error / normal.double().square().sum()).sqrt().item()
    assert relative == pytest.approx(wanted, abs=0.001)
    assert_close("delta_quantize.error", error, (dequantize(pack).double() - normal.double()).square().sum())


def test_bounds_of_one_scale_for_all(normal: torch.Tensor) -> None:
    """√(1 − 2/π) for signs; no quantiser of one scale is better than Lloyd's and Max's."""
    squares = normal.double().square().sum()

    def relative(bits: int, scheme: str) -> float:
        return (delta_quantize(normal, None, PackFormat(bits, scheme, -1))[1] / squares).sqrt().item()

    assert relative(1, "sign") == pytest.approx(math.sqrt(1 - 2 / math.pi), abs=0.002)
    for bits, bound in ((1, 0.603), (2, 0.343), (3, 0.186), (4, 0.0975)):
        assert relative(bits, "midrise") >= bound - 0.002


@pytest.mark.parametrize(("scheme", "bits"), [code for code in CODES if code[0] != "sign"])
def test_a_search_is_never_worse(normal: torch.Tensor, scheme: str, bits: int) -> None:
    some, errors = normal[:64, :1000], []
    for iterations in (0, 1, 2, 16):
        pack, _ = delta_quantize(some, None, PackFormat(bits, scheme, 64), mse_iters=iterations)
        errors.append((dequantize(pack).double() - some.double()).square().sum().item())
    assert errors[1] <= errors[0]
    assert errors[2] <= errors[1]
    assert errors[3] <= errors[2]


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("scheme", "bits"), [("sym", 2), ("sym", 3), ("sym", 4), ("sym", 8), ("sign", 1)])
def test_quantising_again_changes_nothing(
    normal: torch.Tensor, scheme: str, bits: int, scale_dtype: torch.dtype
) -> None:
    format = PackFormat(bits, scheme, 64, scale_dtype)
    pack, _ = delta_quantize(normal[:30] * 1e-4, None, format)
    again, error = delta_quantize(dequantize(pack), None, format)
    assert_same(again, pack)
    assert error.item() == 0


@pytest.mark.parametrize(("scheme", "bits"), CODES)
def test_codes_of_what_codes_stand_for(normal: torch.Tensor, scheme: str, bits: int) -> None:
    pack, _ = delta_quantize(normal[:30, :640], None, PackFormat(bits, scheme, 64))
    wide = pack.scale_values().repeat_interleave(64, 1)
    zeros = None if pack.zeros is None else pack.zeros.repeat_interleave(64, 1)
    codes = codes_of(dequantize(pack), wide, bits, pack.format.scheme_number, zeros)
    assert torch.equal(codes, unpack_bits(pack.codes, bits, 640))


def test_differences_on_the_grid_are_exact() -> None:
    levels = torch.randint(-127, 128, (20, 500), generator=torch.Generator().manual_seed(0)).float()
    levels[:, ::64] = 127
    delta = levels * 2.0**-12
    pack, error = delta_quantize(delta, None, PackFormat(8, "sym", 64))
    assert torch.equal(dequantize(pack), delta)
    assert error.item() == 0


@given(
    st.sampled_from(CODES),
    st.integers(1, 70),
    st.sampled_from([8, 16, 64, 0, -1]),
    st.floats(-12, 3),
    st.integers(0, 999),
)
def test_how_far_an_element_moves(
    code: tuple[str, int], columns: int, block: int, size: float, seed: int
) -> None:
    """Half a step at most where nothing is cut off, and the error that is returned is that of the pack."""
    scheme, bits = code
    delta = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed)) * 10**size
    pack, error = delta_quantize(delta, None, PackFormat(bits, scheme, block), mse_iters=0)
    moved = (dequantize(pack).double() - delta.double()).abs()
    assert error.item() == pytest.approx(moved.square().sum().item(), rel=1e-4)
    if scheme in ("sym", "midrise"):
        length = block if block > 0 else columns
        scales = pack.scale_values().double().repeat_interleave(length, 1)[:, :columns]
        assert (moved <= scales * (0.5 + 2.0 ** (bits - 11))).all()


@pytest.mark.parametrize(("scheme", "bits"), CODES)
def test_a_block_of_zeros_has_the_code_of_zero(scheme: str, bits: int) -> None:
    delta = torch.zeros(2, 24)
    delta[0, 8:16] = torch.arange(8) - 3.5
    delta[0, 0] = -0.0
    pack, _ = delta_quantize(delta, None, PackFormat(bits, scheme, 8))
    assert (pack.scales == 0).tolist() == [[True, False, True], [True] * 3]
    codes = unpack_bits(pack.codes, bits, 24)
    zero = {"sign": 0, "sym": 2 ** (bits - 1), "midrise": 2 ** (bits - 1), "asym": 0, "nf4": 7}[scheme]
    assert (codes[0, :8] == zero).all()
    assert (codes[1] == zero).all()
    assert (dequantize(pack)[1] == 0).all()


def test_an_exact_zero_has_the_lower_sign() -> None:
    pack, _ = delta_quantize(torch.tensor([[1.0, 0.0, -0.0, -1.0]]), None, PackFormat(1, "sign", 0))
    assert pack.codes.item() == 0b0001


def test_scales_of_halves_keep_their_power_apart() -> None:
    """Halves of such scales would be subnormal, or 0."""
    delta = torch.randn(40, 640, generator=torch.Generator().manual_seed(2))
    for size in (1e-12, 1e-6, 1e-3, 1.0, 1e6, 1e30):
        pack, error = delta_quantize(delta * size, None, PackFormat(4, "sym", 64))
        wide, wide_error = delta_quantize(delta * size, None, PackFormat(4, "sym", 64, torch.float32))
        assert 2.0**14 <= pack.scales.max().item() <= 2.0**15
        torch.testing.assert_close(pack.scale_values(), wide.scales, rtol=2.0**-11, atol=0)
        if size < 1e15:
            assert error.item() == pytest.approx(wide_error.item(), rel=0.01)


@pytest.mark.parametrize(("scheme", "bits"), CODES)
@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_scales_far_apart_and_subnormal(scheme: str, bits: int, scale_dtype: torch.dtype) -> None:
    """No positive scale is lost, whatever stands beside it."""
    delta = torch.randn(7, 64, generator=torch.Generator().manual_seed(3))
    for row, size in enumerate((1.0, 1e-8, 1e-10, 1e-13, 1e-30, 1e-39, 1e-44)):
        delta[row] *= size
    for part in (delta, delta[3:], delta[5:], delta[6:]):
        for iterations in (0,) if scheme == "sign" else (0, 2):
            format = PackFormat(bits, scheme, 0, scale_dtype)
            pack, error = delta_quantize(part, None, format, mse_iters=iterations)
            assert_same(pack, by_reference(part, None, format, iterations)[0])
            assert (pack.scale_values() > 0).all()
            assert error.isfinite()
            assert dequantize(pack).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("block", [64, 2048, 4096, 0, -1])
def test_what_is_not_finite_is_refused(dtype: torch.dtype, bad: float, block: int, device: str) -> None:
    for format in (PackFormat(1, "sign", block), PackFormat(4, "asym", block)):
        for at in ((0, 0), (2, 4999), (299, 70)):
            for place in (0, 1):
                pair = [torch.zeros(at[0] + 1, 5000, dtype=dtype) for _ in range(2)]
                pair[place][at] = bad
                pair[1 - place][-1, -1] = bad  # comes later, or at the same place
                name, flat = ("base", "tuned")[place], at[0] * 5000 + at[1]
                message = rf"difference at \[{at[0]}, {at[1]}\] \(flat index {flat}\).*{name} is {bad}"
                with pytest.raises(ValueError, match=message):
                    delta_quantize(pair[1].to(device), pair[0].to(device), format)


def test_each_scheme_refuses_what_is_not_finite() -> None:
    for scheme, bits in CODES:
        for iterations in (0,) if scheme == "sign" else (0, 1):
            for block in (64, 0, -1):
                for bad in (math.nan, -math.nan, math.inf, -math.inf):
                    delta = torch.zeros(3, 100)
                    delta[2, 98] = bad
                    with pytest.raises(ValueError, match=r"at \[2, 98\] \(flat index 298\)"):
                        delta_quantize(delta, None, PackFormat(bits, scheme, block), mse_iters=iterations)


def test_a_difference_that_overflows_is_refused() -> None:
    largest = torch.finfo(torch.float32).max
    with pytest.raises(ValueError, match=r"must be finite, got tuned is 3.4.*e\+38, base is -3.4"):
        delta_quantize(torch.tensor([[largest]]), torch.tensor([[-largest]]), PackFormat(4, "sym"))


def test_a_scale_that_its_dtype_cannot_hold_is_refused() -> None:
    largest = torch.full((3, 8), torch.finfo(torch.float32).max)
    largest[:2] = 1
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match="the scale of block 2 is above the largest finite number"):
            delta_quantize(largest, None, PackFormat(1, "sign", 8, dtype))
    pack, _ = delta_quantize(largest, None, PackFormat(1, "sign", 8, torch.float32))
    assert torch.equal(dequantize(pack), largest)


def test_views_outputs_and_inputs_that_stay() -> None:
    base, tuned = matrices((40, 77), torch.bfloat16)
    format = PackFormat(3, "asym", 16)
    wanted, _ = delta_quantize(tuned, base, format)
    strided = torch.stack([base, tuned], 2)
    out = PackedDelta.empty(format, 40, 77)
    copy = strided.clone()
    pack, _ = delta_quantize(strided[:, :, 1], strided[:, :, 0], format, out=out)
    assert pack.codes is out.codes
    assert_same(pack, wanted)
    assert torch.equal(strided, copy)
    parameter = torch.nn.Parameter(tuned.float())
    pack, error = delta_quantize(parameter, base.float(), format)
    assert not error.requires_grad
    assert not pack.scales.requires_grad


def test_threads_do_not_change_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    base, tuned = matrices((300, 5000), torch.bfloat16)
    for scheme, bits in (("sign", 1), ("midrise", 2), ("asym", 3), ("nf4", 4)):
        for block in (64, 0, -1):
            results = []
            for threads in (1, 2, 7):
                with thread_limit(threads):
                    results.append(delta_quantize(tuned, base, PackFormat(bits, scheme, block)))
            for pack, error in results[1:]:
                assert_same(pack, results[0][0])
                assert torch.equal(error, results[0][1])


def test_more_than_two_to_the_31_elements() -> None:
    """The pages of a fresh numpy array are not there until they are touched."""
    rows, columns = (1 << 16) + 1, 1 << 15
    weights = torch.from_numpy(np.zeros((rows, columns), np.int16)).view(torch.bfloat16)
    weights[-1, -8:] = torch.tensor([1.0, -1, 1, 1, -1, -1, -1, 1])
    format = PackFormat(1, "sign", 0)
    pack, error = delta_quantize(weights, None, format)
    assert pack.codes[-1, -1].item() == 0b10001101
    assert not pack.codes[:-1].any()
    assert pack.scale_values()[-1].item() == 8 / columns
    assert error.item() == pytest.approx(8 - 64 / columns, rel=1e-6)
    scales = torch.zeros(rows)
    scales[-1] = columns / 8
    assert dequant_add(weights, [pack], [scales], out=weights) is weights
    assert weights[-1, -9:].tolist() == [-1, 2, -2, 2, 2, -2, -2, -2, 2]
    weights[-1, -1] = math.nan
    with pytest.raises(ValueError, match=f"flat index {rows * columns - 1}"):
        delta_quantize(weights, None, format, out=pack)


SOME = torch.zeros(3, 8)
FORMAT = PackFormat(4, "sym", 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: delta_quantize([1.0], None, FORMAT), TypeError, "tuned must be a torch.Tensor, got list"),
        (lambda: delta_quantize(SOME.double(), None, FORMAT), TypeError, "tuned must be one of float16"),
        (
            lambda: delta_quantize(SOME[0], None, FORMAT),
            ValueError,
            r"tuned must have two dimensions, got shape \(8,\)",
        ),
        (lambda: delta_quantize(SOME, SOME.half(), FORMAT), TypeError, "base must have the dtype of tuned"),
        (lambda: delta_quantize(SOME, SOME[:2], FORMAT), ValueError, "base must have the shape of tuned"),
        (
            lambda: delta_quantize(SOME, SOME.to("meta"), FORMAT),
            ValueError,
            "base must be on the device of tuned",
        ),
        (lambda: delta_quantize(SOME, SOME.to_sparse(), FORMAT), TypeError, "base must be dense"),
        (
            lambda: delta_quantize(SOME, None, FORMAT, mse_iters=-1),
            ValueError,
            r"mse_iters must be in \[0, 16\]",
        ),
        (
            lambda: delta_quantize(SOME, None, FORMAT, mse_iters=True),
            ValueError,
            r"mse_iters must be in \[0, 16\]",
        ),
        (
            lambda: delta_quantize(SOME, None, PackFormat(1, "sign"), mse_iters=2),
            ValueError,
            'mse_iters must be 0 for "sign", whose scale is the best already, got 2',
        ),
        (
            lambda: delta_quantize(SOME, None, FORMAT, out=PackedDelta.empty(FORMAT, 2, 8)),
            ValueError,
            "out must have the format and shape",
        ),
        (
            lambda: delta_quantize(SOME, None, FORMAT, out=PackedDelta.empty(PackFormat(4, "nf4", 8), 3, 8)),
            ValueError,
            "out must have the format and shape",
        ),
        (
            lambda: delta_quantize(SOME, None, FORMAT, out=PackedDelta.empty(FORMAT, 3, 8, "meta")),
            ValueError,
            "out must be on the device of tuned",
        ),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_examples() -> None:
    assert doctest.testmod(quantize, extraglobs={"torch": torch}).failed == 0
