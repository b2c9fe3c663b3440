"""Packs back to numbers: the reference's bits, one rounding, rows and bases that must not change."""

from __future__ import annotations

import doctest
import importlib
import math
from collections.abc import Callable

import pytest
import torch

from graftwork.ops import thread_limit
from graftwork.ops.quantized_delta import PackedDelta, PackFormat, delta_quantize, dequant_add, dequantize
from graftwork.reference.quantized_delta import dequantize as reference
from tests.generators.weights import special_words
from tests.ops.quantized_delta.quantized_cases import CODES, DTYPES, SHAPES, matrices
from tests.ops.test_ordinal_planes import same_bits


def by_reference(
    base: torch.Tensor | None, packs: list[PackedDelta], factors: list[torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    out = torch.empty(packs[0].shape, dtype=dtype)
    nothing = torch.empty(0, dtype=torch.uint8)
    numbers = [
        number
        for pack in packs
        for number in (pack.format.bits, pack.format.scheme_number, pack.format.block, pack.scale_exp)
    ]
    zeros = [nothing if pack.zeros is None else pack.zeros for pack in packs]
    codes, scales = [pack.codes for pack in packs], [pack.scales for pack in packs]
    reference.dequant_add(out, base, False, codes, scales, zeros, numbers, factors)
    return out


def packed(tuned: torch.Tensor, base: torch.Tensor, scheme: str, bits: int, block: int) -> PackedDelta:
    format = PackFormat(bits, scheme, block, DTYPES[block % 3])
    return delta_quantize(tuned, base, format, mse_iters=0)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scheme", "bits"), CODES)
def test_against_the_reference(scheme: str, bits: int, dtype: torch.dtype, device: str) -> None:
    for shape in SHAPES:
        base, tuned = matrices(shape, dtype)
        rows = torch.randn(shape[0], generator=torch.Generator().manual_seed(1))
        rows[:1] = 0
        for block in (8, 64, 96, 4096, 0, -1):
            pack = packed(tuned, base, scheme, bits, block)
            there = pack.to(device)
            assert same_bits(
                dequantize(there, dtype).cpu(), by_reference(None, [pack], [torch.ones(1)], dtype)
            )
            one = dequant_add(base.to(device), [there], [0.3]).cpu()
            assert same_bits(one, by_reference(base, [pack], [torch.tensor([0.3])], dtype))
            for result in DTYPES:
                out = torch.empty(shape, dtype=result, device=device)
                dequant_add(base.to(device), [there, there], [rows.to(device), -1.7], out=out)
                factors = [rows, torch.tensor([-1.7])]
                assert same_bits(out.cpu(), by_reference(base, [pack, pack], factors, result))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packs_of_many_formats_at_once(dtype: torch.dtype, device: str) -> None:
    base, _ = matrices((31, 700), dtype)
    packs = [
        delta_quantize(matrices((31, 700), torch.float32, seed)[1], None, PackFormat(bits, scheme, block))[0]
        for seed, (scheme, bits) in enumerate(CODES)
        for block in (64, 0)
    ]
    scales = [0.1 * (number - 7) for number in range(len(packs))]
    got = dequant_add(base.to(device), [pack.to(device) for pack in packs], scales)
    wanted = by_reference(base, packs, [torch.tensor([scale]) for scale in scales], dtype)
    assert same_bits(got.cpu(), wanted)
    exact = base.double() + sum(s * dequantize(p).double() for s, p in zip(scales, packs, strict=True))
    places = {torch.float32: 2.0**-18, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    torch.testing.assert_close(got.cpu().double(), exact, rtol=places, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_factor_of_zero_leaves_every_bit(dtype: torch.dtype, device: str) -> None:
    """Also −0, and NaN with its payload."""
    words = special_words(dtype)
    base = words.repeat(3, 20)
    pack, _ = delta_quantize(torch.randn(base.shape), None, PackFormat(2, "midrise", 8))
    there, pack = base.to(device), pack.to(device)
    assert same_bits(dequant_add(there, [pack, pack], [0.0, -0.0]).cpu(), base)
    assert same_bits(dequant_add(there, [], []).cpu(), base)
    rows = torch.tensor([0.0, 1.0, 0.0], device=device)
    got = dequant_add(there, [pack], [rows]).cpu()
    assert same_bits(got[::2].contiguous(), base[::2].contiguous())
    wanted = (base[1].float() + dequantize(pack)[1].cpu()).to(dtype)
    torch.testing.assert_close(got[1], wanted, rtol=0, atol=0, equal_nan=True)
    assert same_bits(dequant_add(there, [pack], [rows], out=there).cpu(), got)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [37, 1000])
def test_a_nan_of_the_base_stays_one(dtype: torch.dtype, columns: int, device: str) -> None:
    base, tuned = matrices((5, columns), dtype)
    pack, _ = delta_quantize(tuned, base, PackFormat(4, "sym", 64))
    base[1, 3], base[2, -1], base[3, 30] = math.nan, math.inf, -math.inf
    got = dequant_add(base.to(device), [pack.to(device)], [1.0]).cpu()
    wanted = by_reference(base, [pack], [torch.ones(1)], dtype)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
    assert got[1, 3].isnan()
    assert got.isfinite().sum() == got.numel() - 3


def test_the_sum_is_rounded_once_and_to_nearest_even() -> None:
    """Sums half-way between words of 16 bits, and past the largest."""
    pack = PackedDelta(
        PackFormat(1, "sign", 0, torch.float32),
        (2, 4),
        torch.tensor([[0b1111], [0b1111]], dtype=torch.uint8),
        torch.tensor([[2.0**-8], [2.0**120]]),
    )
    base = torch.tensor([[1.0, 1 + 2**-7, 1 + 2**-6, -1], [3.3895e38, -3.3895e38, 1, 0]]).bfloat16()
    got = dequant_add(base, [pack], [1.0])
    assert torch.equal(got, (base.float() + pack.scales).bfloat16())
    assert got[0, 0] == 1
    assert got[0, 1] == 1 + 2**-6
    assert got[1, 0] == math.inf


def test_mounting_in_any_order_and_taking_off() -> None:
    base, tuned = matrices((20, 300), torch.float32)
    one, other = packed(tuned, base, "sign", 1, 64), packed(tuned.flip(1), base, "nf4", 4, 64)
    forth = dequant_add(base, [one, other], [1.0, 0.5])
    back = dequant_add(base, [other, one], [0.5, 1.0])
    torch.testing.assert_close(forth, back, rtol=0, atol=1e-7)
    kept = base.clone()
    mounted = dequant_add(base, [one], [1.0])
    assert torch.equal(base, kept)
    assert not torch.equal(mounted, base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_results(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written past the caches; rows begin anywhere in a line. The threads share no line's bytes."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    shape = (1111, 4099)
    base, tuned = matrices(shape, dtype)
    pack, _ = delta_quantize(tuned, base, PackFormat(4, "asym", 64))
    wanted = by_reference(base, [pack], [torch.ones(1)], dtype)
    twice = by_reference(base, [pack, pack], [torch.ones(1)] * 2, dtype)
    room = torch.empty(base.numel() + 1, dtype=dtype)
    for threads in (1, 2, 7):
        with thread_limit(threads):
            for out in (room[:-1].view(shape), room[1:].view(shape)):
                assert same_bits(dequant_add(base, [pack], [1.0], out=out), wanted)
            assert same_bits(dequant_add(base, [pack, pack], [1.0, 1.0]), twice)
            assert same_bits(dequant_add(base.clone(), [pack], [1.0]), wanted)
            own = base.clone()
            assert dequant_add(own, [pack], [1.0], out=own) is own
            assert same_bits(own, wanted)


def test_outputs() -> None:
    base, tuned = matrices((5, 13), torch.bfloat16)
    pack, _ = delta_quantize(tuned, base, PackFormat(8, "sym", 0))
    out = torch.empty(5, 13, dtype=torch.float16)
    assert dequantize(pack, out=out) is out
    assert same_bits(out, dequantize(pack, torch.float16))
    parameter = torch.nn.Parameter(base.float())
    version = parameter._version
    with torch.no_grad():
        result = dequant_add(parameter, [pack], [1.0], out=parameter)
    assert result is parameter
    assert parameter._version > version
    strided = torch.stack([base, tuned], 2)[:, :, 0]
    assert same_bits(dequant_add(strided, [pack], [1.0]), dequant_add(base, [pack], [1.0]))


BASE = torch.zeros(3, 8)
PACK = delta_quantize(torch.ones(3, 8), None, PackFormat(4, "sym", 8))[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dequantize(BASE), TypeError, "dequantize: pack must be a PackedDelta, got Tensor"),
        (
            lambda: dequantize(PACK, torch.float64),
            TypeError,
            "dtype must be one of float16, bfloat16, float32",
        ),
        (lambda: dequantize(PACK, out=BASE.double()), TypeError, "out must be one of float16"),
        (lambda: dequantize(PACK, out=BASE[:2]), ValueError, r"out must have the shape of pack, \(3, 8\)"),
        (lambda: dequantize(PACK, out=torch.zeros(8, 3).t()), ValueError, "out is written in place"),
        (lambda: dequant_add(BASE[0], [PACK], [1.0]), ValueError, "base must have two dimensions"),
        (
            lambda: dequant_add(BASE, [PACK], []),
            ValueError,
            "scales must be 1 numbers, one for each pack, got 0",
        ),
        (
            lambda: dequant_add(BASE, [BASE], [1.0]),
            TypeError,
            r"packs\[0\] must be a PackedDelta, got Tensor",
        ),
        (
            lambda: dequant_add(BASE[:2], [PACK], [1.0]),
            ValueError,
            r"packs\[0\] must have the shape of base, \(2, 8\), got \(3, 8\)",
        ),
        (
            lambda: dequant_add(BASE.to("meta"), [PACK], [1.0]),
            ValueError,
            r"packs\[0\].codes must be on the device of base",
        ),
        (lambda: dequant_add(BASE, [PACK], [math.nan]), ValueError, r"scales\[0\] must be finite, got nan"),
        (lambda: dequant_add(BASE, [PACK], [math.inf]), ValueError, r"scales\[0\] must be finite, got inf"),
        (
            lambda: dequant_add(BASE, [PACK], [torch.tensor([1.0, math.nan, 0.0])]),
            ValueError,
            r"scales\[0\] must be finite",
        ),
        (
            lambda: dequant_add(BASE, [PACK], [torch.ones(2)]),
            ValueError,
            r"scales\[0\] must be a number or have one for each of 3 rows, got shape \(2,\)",
        ),
        (
            lambda: dequant_add(BASE, [PACK], [torch.ones(3).half()]),
            TypeError,
            r"scales\[0\] must be one of float32",
        ),
        (
            lambda: dequant_add(BASE, [PACK], [1.0], out=BASE.double()),
            TypeError,
            "out must be one of float16",
        ),
        (
            lambda: dequant_add(BASE, [PACK], [1.0], out=BASE[:2]),
            ValueError,
            "out must have the shape of base",
        ),
        (
            lambda: dequant_add(torch.zeros(48)[:24].view(3, 8), [PACK], [1.0], out=torch.zeros(8, 3).t()),
            ValueError,
            "out is written in place and must be contiguous",
        ),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_overlapping_memory_is_refused() -> None:
    room = torch.zeros(32)
    with pytest.raises(ValueError, match="out overlaps base in memory"):
        dequant_add(room[:24].view(3, 8), [PACK], [1.0], out=room[8:].view(3, 8))
    with pytest.raises(ValueError, match="out overlaps base in memory; pass base itself"):
        dequant_add(room[:24].view(8, 3).t(), [PACK], [1.0], out=room[:24].view(3, 8))
    half = room.view(torch.float16)[:24].view(3, 8)
    with pytest.raises(ValueError, match="out overlaps base in memory"):
        dequant_add(room[:24].view(3, 8), [PACK], [1.0], out=half)


def test_examples() -> None:
    module = importlib.import_module("graftwork.ops.quantized_delta.dequantize")  # a function has its name
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
