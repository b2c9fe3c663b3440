"""SHA-256 of many ranges: hashlib's, whatever their lengths."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.ops import _native
from graftwork.ops.digest import sha256

EDGES = [0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 1000, 4097, (1 << 20) - 1, 1 << 20]


def made(lengths: list[int], seed: int = 0) -> list[bytes]:
    generator = random.Random(seed)
    return [generator.randbytes(length) for length in lengths]


def wanted(chunks: list[bytes]) -> list[bytes]:
    return [hashlib.sha256(chunk).digest() for chunk in chunks]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_every_length_beside_every_other(count: int) -> None:
    for seed, length in enumerate(EDGES):
        lengths = [*[length] * (count - 1), *random.Random(seed).sample(EDGES, 1)][:count]
        chunks = made(lengths, seed)
        assert sha256(chunks) == wanted(chunks)


@given(st.lists(st.integers(0, 300), max_size=9), st.integers(0, 99))
def test_any_lengths(lengths: list[int], seed: int) -> None:
    chunks = made(lengths, seed)
    assert sha256(chunks) == wanted(chunks)


def test_ranges_may_start_anywhere_and_overlap() -> None:
    data = memoryview(bytearray(made([1000])[0]))
    chunks = [data[start : start + 700] for start in range(0, 20, 3)]
    assert sha256(chunks) == [hashlib.sha256(chunk).digest() for chunk in chunks]


def test_without_the_native_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_missing", lambda module: f"graftwork.{module} is not available (test)")
    chunks = made([100, 200])
    assert sha256(chunks) == wanted(chunks)


def test_the_known_answers() -> None:
    """FIPS 180-4 examples: nothing, `abc`, and a million times `a`."""
    answers = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
    ]
    assert [digest.hex() for digest in sha256([b"", b"abc", b"a" * 1_000_000])] == answers
