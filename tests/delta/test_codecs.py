from __future__ import annotations

import struct

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from graftwork.checkpoint.dtypes import DTYPES
from graftwork.delta.basis import words_of
from graftwork.delta.codecs import CODECS, EFFORTS, METHODS, Method, attempts, method_named
from graftwork.errors import ChecksumError, DeltaError, UnknownCodec
from tests.generators.weights import pair

WORDS = words_of("BF16")
ORDZ = method_named("ordz")


def decode(method: Method, basis: bytes, payload: bytes, dtype: str) -> bytes:
    tuned = bytearray(len(basis))
    reference = bytearray(basis)
    method.decode(memoryview(reference), memoryview(payload), words_of(dtype), memoryview(tuned))
    assert reference == basis, "a decoder must not change its basis"
    return bytes(tuned)


@given(st.sampled_from(sorted(DTYPES)), st.integers(1, 200), st.randoms(use_true_random=False))
def test_ordinal_planes_restore_any_bits(dtype: str, count: int, random) -> None:
    nbytes = count * words_of(dtype).nbytes
    basis, tuned = bytearray(random.randbytes(nbytes)), bytearray(random.randbytes(nbytes))
    parts = ORDZ.encode(memoryview(basis), memoryview(tuned), words_of(dtype), 1)
    assert decode(ORDZ, bytes(basis), b"".join(parts), dtype) == tuned


def test_raw_and_same() -> None:
    basis, tuned = bytearray(b"abcd"), bytearray(b"wxyz")
    raw, same = method_named("raw"), method_named("same")
    assert (
        decode(raw, bytes(basis), b"".join(raw.encode(memoryview(basis), memoryview(tuned), WORDS, 1)), "U8")
        == tuned
    )
    assert decode(same, bytes(basis), b"", "U8") == basis


def frames(*planes: bytes) -> bytes:
    packed = [zstandard.compress(plane, 1) for plane in planes]
    return struct.pack(f"<{len(packed)}I", *map(len, packed)) + b"".join(packed)


# Frames that do not declare their size.
STREAMED = [zstandard.ZstdCompressor(level=1, write_content_size=False).compress(p) for p in (b"ab", b"cd")]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "too short"),
        (b"\0" * 7, "too short"),
        (frames(b"ab", b"cd")[:-1], "do not fill"),
        (frames(b"ab", b"cd") + b"x", "do not fill"),
        (frames(b"abc", b"cd"), "wrong size"),
        (frames(b"ab", bytes(1 << 20)), "wrong size"),
        (struct.pack("<2I", 2, 2) + b"abcd", "zstd"),
        (struct.pack("<2I", 0, 0), "zstd"),
        (struct.pack("<2I", *map(len, STREAMED)) + b"".join(STREAMED), "wrong size"),
    ],
)
def test_malformed_planes_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(DeltaError, match=message):
        decode(ORDZ, b"\0" * 4, payload, "BF16")


def test_every_cut_of_a_payload_is_refused() -> None:
    whole = frames(b"ab" * 40, b"cd" * 40)
    for stop in range(len(whole)):
        with pytest.raises(DeltaError):
            decode(ORDZ, b"\0" * 160, whole[:stop], "BF16")


def test_raw_and_same_refuse_wrong_lengths() -> None:
    with pytest.raises(DeltaError, match="wrong length"):
        decode(method_named("raw"), b"abcd", b"abc", "U8")
    with pytest.raises(DeltaError, match="payload"):
        decode(method_named("same"), b"abcd", b"x", "U8")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "C64"])
def test_ordrans_notices_a_payload_that_does_not_fit_the_base(dtype: str) -> None:
    method, words = method_named("ordrans"), words_of(dtype)
    basis, tuned, other = (
        bytearray(tensor.view(torch.uint8).numpy().tobytes())
        for tensor in (*pair(4096, words.float_dtype), pair(4096, words.float_dtype, seed=1)[0] * 16)
    )
    (payload,) = method.encode(memoryview(basis), memoryview(tuned), words, 1)
    assert decode(method, bytes(basis), bytes(payload), dtype) == tuned
    with pytest.raises(ChecksumError, match="does not fit the base's words"):
        decode(method, bytes(other), bytes(payload), dtype)


@given(st.sampled_from(sorted(DTYPES)), st.integers(1, 200), st.randoms(use_true_random=False))
def test_sparse_restores_any_bits_and_takes_them_back(dtype: str, count: int, random) -> None:
    words, method = words_of(dtype), method_named("sparse")
    if words.nbytes not in (2, 4):
        return
    basis = bytearray(random.randbytes(8 * count * words.nbytes))
    tuned = bytearray(basis)
    tuned[random.randrange(len(tuned))] ^= 0x55
    parts = method.encode(memoryview(basis), memoryview(tuned), words, 1)
    assert parts is not None
    payload = b"".join(parts)
    assert decode(method, bytes(basis), payload, dtype) == tuned
    words_in_place = bytearray(tuned)
    method.apply_(memoryview(words_in_place), memoryview(payload), words, reverse=True)
    assert words_in_place == basis


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I16", "I64", "U8", "F4"])
@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_tries_something_that_suits_the_words(effort: str, dtype: str) -> None:
    words = words_of(dtype)
    assert not attempts(effort, words, 8)  # its own bytes are shorter than any code
    for nbytes in (300, 4096, 1 << 20):
        tried = {attempt.method for attempt in attempts(effort, words, nbytes)}
        assert tried
        assert effort != "fast" or tried == {"ordz"}
        assert "ordrans" not in tried or words.exponent_bits
        assert "sparse" not in tried or words.nbytes in (2, 4)


def test_the_registry_is_consistent() -> None:
    assert [method.code for method in METHODS.values()] == list(METHODS) == [0, 1, 2, 3, 4]
    assert {name for names in CODECS.values() for name in names} == {m.name for m in METHODS.values()}
    with pytest.raises(UnknownCodec, match="gzip"):
        method_named("gzip")
