"""Ordinal planes: bytes equal to the reference's, and every bit pattern restored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from graftwork.ops import thread_limit
from graftwork.ops.lossless_delta import WORDS, decode_ordinal_planes, encode_ordinal_planes
from graftwork.reference import lossless_delta as reference
from tests.generators.weights import LARGE, SIZES, pair, random_words, special_pair, word_pairs


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(reference.words(a.cpu()), reference.words(b.cpu()))


def check(base: torch.Tensor, tuned: torch.Tensor, device: str) -> None:
    planes = encode_ordinal_planes(base.to(device), tuned.to(device))
    assert planes.device.type == device
    assert torch.equal(planes.cpu(), reference.encode_ordinal_planes(base, tuned))
    assert same_bits(decode_ordinal_planes(base.to(device), planes), tuned)


@pytest.mark.parametrize("dtype", WORDS, ids=str)
def test_sizes(dtype: torch.dtype, device: str) -> None:
    for numel in SIZES:
        check(random_words((numel,), dtype, 1), random_words((numel,), dtype, 2), device)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_more_than_one_chunk(dtype: torch.dtype, device: str) -> None:
    check(random_words((LARGE,), dtype, 1), random_words((LARGE,), dtype, 2), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int16])
@pytest.mark.parametrize("base", [0x0000, 0x8000, 0x3CA4, 0xBCA4, 0x7F80, 0xFFFF])
def test_every_16_bit_pattern(dtype: torch.dtype, base: int, device: str) -> None:
    tuned = torch.arange(1 << 16).to(torch.uint16).view(dtype)
    check(torch.full((1 << 16,), base, dtype=torch.int32).to(torch.uint16).view(dtype), tuned, device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_special_values(dtype: torch.dtype, device: str) -> None:
    check(*special_pair(dtype), device)


@settings(max_examples=60)
@given(word_pairs())
def test_any_shape_and_dtype(words: tuple[torch.Tensor, torch.Tensor]) -> None:
    check(*words, "cpu")


def test_views_are_read_as_they_are(device: str) -> None:
    data = torch.randn(40, 60, device=device)
    for base, tuned in (
        (data.T, data.flip(0).T),
        (data[::3, 1::7], data[1::3, ::7][:, :9][:13]),
        (data[0].expand(5, 60), data[:5]),
    ):
        base, tuned = base[: tuned.shape[0], : tuned.shape[1]], tuned[: base.shape[0], : base.shape[1]]
        planes = encode_ordinal_planes(base, tuned)
        assert torch.equal(planes, encode_ordinal_planes(base.contiguous(), tuned.contiguous()))
        assert same_bits(decode_ordinal_planes(base, planes), tuned)
        spread = torch.stack([planes, planes], dim=2)[:, :, 0]
        assert same_bits(decode_ordinal_planes(base, spread), tuned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_unaligned_memory(dtype: torch.dtype) -> None:
    """Tensors of a memory-mapped file may start anywhere."""
    raw = bytearray(random_words((2 * 1000 * dtype.itemsize + 1,), torch.uint8).numpy())
    base = torch.frombuffer(raw, dtype=dtype, count=1000, offset=1)
    tuned = torch.frombuffer(raw, dtype=dtype, count=1000, offset=1 + 1000 * dtype.itemsize)
    assert base.data_ptr() % dtype.itemsize
    check(base, tuned, "cpu")
    planes = encode_ordinal_planes(base, tuned)
    with pytest.raises(ValueError, match="tuned must start at a multiple of"):
        decode_ordinal_planes(base, planes, tuned)
    odd = torch.frombuffer(raw, dtype=torch.uint8, count=1000 * dtype.itemsize, offset=1).view(planes.shape)
    assert torch.equal(encode_ordinal_planes(base.clone(), decode_ordinal_planes(base.clone(), odd)), odd)


def test_zero_dimensional(device: str) -> None:
    base, tuned = torch.tensor(1.5, device=device), torch.tensor(-2.0, device=device)
    planes = encode_ordinal_planes(base, tuned)
    assert planes.shape == (4, 1)
    assert decode_ordinal_planes(base, planes).shape == ()


def test_golden_bytes() -> None:
    """A stored format: these bytes never change."""
    base = torch.tensor([0x3CA4, 0xBCA4, 0x38D2, 0x0000, 0x7FC1, 0x3F80], dtype=torch.int32)
    tuned = torch.tensor([0x3CA6, 0xBCA2, 0xB8D2, 0x8000, 0xFFFF, 0x3F80], dtype=torch.int32)
    floats = [tensor.to(torch.uint16).view(torch.bfloat16) for tensor in (base, tuned)]
    assert encode_ordinal_planes(*floats).numpy().tobytes().hex(" ", 6) == "040449017e00 0000e3000000"
    integers = encode_ordinal_planes(base, tuned)
    assert integers.numpy().tobytes().hex(" ", 6) == "040300007c00 000000000000 000001010100 000000000000"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    base, tuned = random_words((LARGE,), dtype, 1), random_words((LARGE,), dtype, 2)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(encode_ordinal_planes(base, tuned))
            assert same_bits(decode_ordinal_planes(base, results[0]), tuned)
    finally:
        torch.set_num_threads(before)
    with thread_limit(1):
        results.append(encode_ordinal_planes(base, tuned))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_given_outputs_are_filled_and_returned(device: str) -> None:
    base, tuned = (tensor.to(device) for tensor in pair(1000, torch.bfloat16))
    planes = torch.empty(2, 1000, dtype=torch.uint8, device=device)
    assert encode_ordinal_planes(base, tuned, planes) is planes
    restored = torch.empty_like(tuned)
    assert decode_ordinal_planes(base, planes, restored) is restored
    assert same_bits(restored, tuned)


def test_writes_stay_inside_the_output(device: str) -> None:
    base, tuned = (tensor.to(device) for tensor in pair(1001, torch.float32))
    room = torch.full((4 * 1001 + 128,), 7, dtype=torch.uint8, device=device)
    encode_ordinal_planes(base, tuned, room[64:-64].view(4, 1001))
    assert (room[:64] == 7).all()
    assert (room[-64:] == 7).all()


BASE = torch.zeros(3, 4, dtype=torch.bfloat16)
TALL = torch.zeros(12, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "base must be a torch.Tensor, got list", ([1.0], BASE)),
        (
            TypeError,
            "tuned must have the dtype of base, torch.bfloat16, got torch.float32",
            (BASE, BASE.float()),
        ),
        (ValueError, r"tuned must have the shape of base, \(3, 4\), got \(4, 3\)", (BASE, BASE.T)),
        (ValueError, "tuned must be on the device of base, cpu, got meta", (BASE, BASE.to("meta"))),
        (TypeError, "got torch.complex64; view complex numbers with", (BASE.to(torch.complex64),) * 2),
        (TypeError, "must be dense, got layout torch.sparse_coo", (BASE.to_sparse(), BASE)),
        (
            TypeError,
            "planes must be one of uint8, got torch.int8",
            (BASE, BASE, torch.zeros(2, 12, dtype=torch.int8)),
        ),
        (
            ValueError,
            r"itemsize, numel\] of base, \(2, 12\), got \(12, 2\)",
            (BASE, BASE, torch.zeros(12, 2, dtype=torch.uint8)),
        ),
        (ValueError, "must be contiguous", (BASE, BASE, torch.zeros(12, 2, dtype=torch.uint8).T)),
        (ValueError, "planes overlaps tuned", (BASE, BASE.clone(), None)),
    ],
)
def test_refused_arguments(error: type[Exception], message: str, arguments: tuple) -> None:
    if len(arguments) == 3 and arguments[2] is None:
        arguments = (*arguments[:2], arguments[1].view(-1).view(torch.uint8).view(2, 12))
    with pytest.raises(error, match=message) as caught:
        encode_ordinal_planes(*arguments)
    assert str(caught.value).startswith("encode_ordinal_planes: ")


def test_decode_refuses_what_it_cannot_use() -> None:
    planes = encode_ordinal_planes(BASE, BASE)
    with pytest.raises(ValueError, match=r"decode_ordinal_planes: planes must have the shape"):
        decode_ordinal_planes(BASE[:2], planes)
    with pytest.raises(TypeError, match="tuned must have the dtype of base"):
        decode_ordinal_planes(BASE, planes, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="written in place and must be contiguous"):
        decode_ordinal_planes(BASE, planes, torch.zeros(4, 3, dtype=torch.bfloat16).T)
    with pytest.raises(ValueError, match="tuned overlaps base"):
        decode_ordinal_planes(BASE, planes, BASE)
