"""Formats, packs, and codes in bytes."""

from __future__ import annotations

import dataclasses
import doctest
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.ops import thread_limit
from graftwork.ops.quantized_delta import PackedDelta, PackFormat, bits, formats, pack_bits, unpack_bits
from graftwork.ops.quantized_delta.formats import BITS
from graftwork.reference.quantized_delta import bits as reference


def numbers(rows: int, columns: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**width, (rows, columns), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("width", BITS)
@pytest.mark.parametrize("columns", [0, 1, 7, 8, 9, 33, 255, 256, 1000, 4097])
def test_bits_against_the_reference(width: int, columns: int, device: str) -> None:
    codes = numbers(3, columns, width)
    packed = pack_bits(codes.to(device), width).cpu()
    assert packed.shape == (3, PackFormat(width, "midrise", 0).row_bytes(columns))
    wanted = torch.empty_like(packed)
    reference.pack_bits(codes, width, wanted)
    assert torch.equal(packed, wanted)
    assert torch.equal(unpack_bits(packed.to(device), width, columns).cpu(), codes)


@given(st.sampled_from(BITS), st.integers(1, 70), st.data())
def test_where_each_bit_is(width: int, columns: int, data: st.DataObject) -> None:
    """Element j in bits (j·b) mod 8 of byte ⌊j·b / 8⌋, the least significant first; three bits as planes of two and one."""
    codes = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=columns, max_size=columns))
    row = pack_bits(torch.tensor([codes], dtype=torch.uint8), width)[0].tolist()

    def taken(start: int, plane: int, j: int) -> int:
        return row[start + j * plane // 8] >> (j * plane % 8) & (2**plane - 1)

    for j, code in enumerate(codes):
        if width == 3:
            assert taken(0, 2, j) | taken((columns * 2 + 7) // 8, 1, j) << 2 == code
        else:
            assert taken(0, width, j) == code


@pytest.mark.parametrize("width", BITS)
def test_what_is_left_of_a_row_is_zero(width: int) -> None:
    codes = torch.full((2, 301), 2**width - 1, dtype=torch.uint8)
    packed = pack_bits(codes, width, row_align=64)
    assert packed.shape[1] % 64 == 0
    ones = sum(int(byte).bit_count() for byte in packed.view(-1).tolist())
    assert ones == codes.numel() * width


def test_higher_bits_of_a_code_are_not_looked_at() -> None:
    codes = numbers(2, 77, 8)
    for width in BITS:
        assert torch.equal(pack_bits(codes, width), pack_bits(codes & (2**width - 1), width))


def test_views_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    codes = numbers(600, 1400, 3)
    view = codes.t()[5:].t()
    results = []
    for threads in (1, 2, 7):
        with thread_limit(threads):
            packed = pack_bits(view, 3)
            assert torch.equal(unpack_bits(packed, 3, 1395), view)
        results.append(packed)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("format", "columns", "row_bytes"),
    [
        (PackFormat(1, "sign"), 7, 1),
        (PackFormat(1, "sign"), 255, 32),
        (PackFormat(1, "sign"), 256, 32),
        (PackFormat(1, "sign"), 257, 48),
        (PackFormat(3, "asym"), 5, 3),
        (PackFormat(3, "asym"), 4096, 1536),
        (PackFormat(4, "nf4", row_align=64), 10, 64),
        (PackFormat(8, "sym", row_align=1), 301, 301),
        (PackFormat(2, "sym"), 0, 0),
    ],
)
def test_row_bytes(format: PackFormat, columns: int, row_bytes: int) -> None:
    assert format.row_bytes(columns) == row_bytes


def test_sizes() -> None:
    assert PackFormat(3, "midrise", 128, torch.float32).bits_per_weight(4096, 4096) == 3.25
    assert (
        PackFormat(4, "asym", 64).bits_per_weight(4096, 4096) == 4.375
    )  # a scale of two bytes, a zero of one
    assert PackFormat(1, "sign", 0).nbytes(10, 800) == 10 * (112 + 2)
    assert PackFormat(1, "sign", -1).nbytes(10, 800) == 10 * 112 + 2
    assert PackFormat(4, "sym", 64).scale_shape(3, 130) == (3, 3)
    assert PackFormat(4, "sym", 0).scale_shape(3, 0) == (3, 0)
    assert PackFormat(4, "sym", -1).scale_shape(3, 0) == (1, 1)
    assert PackFormat(4, "sym", 64).bits_per_weight(0, 5) == 0
    pack = PackedDelta.empty(PackFormat(4, "asym", 64), 3, 130)
    assert pack.nbytes == sum(field.nbytes for field in (pack.codes, pack.scales, pack.zeros))


def test_rows_are_views() -> None:
    pack = PackedDelta.empty(PackFormat(4, "asym", 64), 5, 130)
    part = pack.rows(1, 4)
    assert part.shape == (3, 130)
    assert part.codes.data_ptr() == pack.codes[1].data_ptr()
    assert part.scales.shape == part.zeros.shape == (3, 3)
    assert PackedDelta.empty(PackFormat(1, "sign", -1), 5, 130).rows(2, 2).scales.shape == (1, 1)
    assert pack.to("cpu").device == torch.device("cpu")


PACK = PackedDelta.empty(PackFormat(4, "sym", 64), 3, 130)
ASYM = PackedDelta.empty(PackFormat(4, "asym", 64, torch.float32), 3, 130)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PackFormat(4, "int4"), ValueError, "scheme must be one of 'sign', 'sym'.*, got 'int4'"),
        (lambda: PackFormat(5, "sym"), ValueError, "'sym' has codes of 2, 3, 4, 8 bits, got 5"),
        (lambda: PackFormat(1, "sym"), ValueError, "'sym' has codes of 2, 3, 4, 8 bits, got 1"),
        (lambda: PackFormat(2, "sign"), ValueError, "'sign' has codes of 1 bits, got 2"),
        (lambda: PackFormat(4, "sym", 12), ValueError, "block must be a multiple of 8, 0 .*, got 12"),
        (lambda: PackFormat(4, "sym", -2), ValueError, "block must be a multiple of 8"),
        (lambda: PackFormat(4, "sym", 8.0), ValueError, "block must be a multiple of 8"),
        (lambda: PackFormat(4, "sym", 8, torch.float64), TypeError, "scale_dtype must be one of float16"),
        (lambda: PackFormat(4, "sym", 8, row_align=3), ValueError, "row_align must be a power of two"),
        (lambda: PackFormat(4, "sym", 8, row_align=8192), ValueError, "from 1 to 4096, or None, got 8192"),
        (
            lambda: dataclasses.replace(PACK, codes=PACK.codes[:2]),
            ValueError,
            r"codes must be contiguous of shape \(3, 65\), got \(2, 65\)",
        ),
        (
            lambda: dataclasses.replace(PACK, codes=PACK.codes.int()),
            TypeError,
            "codes must be one of uint8, got torch.int32",
        ),
        (
            lambda: dataclasses.replace(PACK, scales=PACK.scales.float()),
            TypeError,
            "scales must be one of float16",
        ),
        (
            lambda: dataclasses.replace(PACK, scales=PACK.scales.t().contiguous().t()),
            ValueError,
            "scales must be contiguous",
        ),
        (
            lambda: dataclasses.replace(PACK, scales=PACK.scales.to("meta")),
            ValueError,
            "on the device of codes",
        ),
        (lambda: dataclasses.replace(PACK, zeros=PACK.codes), ValueError, 'zeros go with "asym", and only'),
        (lambda: dataclasses.replace(ASYM, zeros=None), ValueError, 'zeros go with "asym", and only'),
        (lambda: dataclasses.replace(ASYM, zeros=ASYM.zeros[:2]), ValueError, "zeros must be contiguous"),
        (lambda: dataclasses.replace(PACK, scale_exp=114), ValueError, r"must be in \[-120, 113\]"),
        (lambda: dataclasses.replace(ASYM, scale_exp=1), ValueError, r"must be in \[0, 0\] for scales of"),
        (lambda: PACK.rows(2, 4), ValueError, "0 <= start <= stop <= 3, got 2 and 4"),
        (lambda: pack_bits(torch.zeros(3, dtype=torch.uint8), 4), ValueError, "two dimensions"),
        (lambda: pack_bits(torch.zeros(3, 3), 4), TypeError, "pack_bits: codes must be one of uint8"),
        (lambda: pack_bits(PACK.codes, 5), ValueError, "bits must be one of 1, 2, 3, 4, 8, got 5"),
        (
            lambda: unpack_bits(PACK.codes, 4, 131),
            ValueError,
            "131 codes of 4 bits are 66 bytes, got rows of 65",
        ),
        (lambda: unpack_bits(PACK.codes, 4, -1), ValueError, "-1 codes"),
        (lambda: unpack_bits("codes", 4, 1), TypeError, "packed must be a torch.Tensor, got str"),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_damaged_scales_are_found(bad: float) -> None:
    pack = PackedDelta.empty(PackFormat(4, "sym", 64), 3, 130)
    pack.scales.fill_(0.5)
    pack.check_scales()
    pack.scales[1, 2] = bad
    with pytest.raises(
        ValueError, match=f"must be finite and not negative, got {bad} at 5; the pack is damaged"
    ):
        pack.check_scales()


def test_examples() -> None:
    for module in (bits, formats):
        assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
