"""Entropy-coded sparse differences: bytes equal to the reference's, applied in place and taken back exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.ops import thread_limit
from graftwork.ops.entropy_delta import (
    SPARSE_DTYPES,
    apply_sparse_delta_,
    decode_sparse_delta,
    encode_sparse_delta,
)
from graftwork.reference import sparse_delta as reference
from tests.generators.weights import SIZES, random_words
from tests.ops.test_ordinal_planes import same_bits


def sparse_pair(
    numel: int, dtype: torch.dtype, share: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random words, of which about a share is replaced by others."""
    base, other = random_words((numel,), dtype, seed), random_words((numel,), dtype, seed + 1)
    chosen = torch.rand(numel, generator=torch.Generator().manual_seed(seed)) < share
    signed = {2: torch.int16, 4: torch.int32}[dtype.itemsize]  # torch does not choose among unsigned words
    tuned = torch.where(chosen, other.view(signed), base.view(signed))
    return base, tuned.view(dtype)


def check(base: torch.Tensor, tuned: torch.Tensor, device: str) -> torch.Tensor | None:
    payload = encode_sparse_delta(base.to(device), tuned.to(device), 1.0)
    assert payload is not None
    assert torch.equal(payload.cpu(), reference.encode_sparse_delta(base, tuned, max(1, base.numel())))
    words = base.clone().to(device)
    assert same_bits(apply_sparse_delta_(words, payload), tuned)
    assert same_bits(apply_sparse_delta_(words, payload, reverse=True), base)
    assert same_bits(decode_sparse_delta(words, payload), tuned)
    reference.apply_sparse_delta(words.cpu(), payload.cpu(), False)
    return payload.cpu()


@pytest.mark.parametrize("dtype", SPARSE_DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_sizes(dtype: torch.dtype, share: float, device: str) -> None:
    for numel in SIZES:
        check(*sparse_pair(numel, dtype, share), device)


def test_first_and_last_words_and_several_segments(device: str) -> None:
    base = torch.zeros((1 << 21) + 5, dtype=torch.int16)
    tuned = base.clone()
    tuned[[0, 1, (1 << 20) - 1, 1 << 20, -1]] = torch.tensor([1, -1, 32767, -32768, 5], dtype=torch.int16)
    check(base, tuned, device)


def test_a_step_of_reinforcement_learning_takes_little_more_than_its_entropy() -> None:
    """1 % of the words by one unit in the last place: H(.01) + .01 bits a word are .566 % of the file."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(1 << 20, generator=generator) * 0.02).bfloat16()
    moved = torch.rand(base.shape, generator=generator) < 0.01
    step = torch.randint(0, 2, base.shape, generator=generator, dtype=torch.int16) * 2 - 1
    tuned = (base.view(torch.int16) + step * moved).view(torch.bfloat16)
    payload = encode_sparse_delta(base, tuned)
    assert payload is not None
    assert len(payload) < 0.0060 * base.nbytes


def test_too_many_changes_are_declined() -> None:
    base, tuned = sparse_pair(1000, torch.bfloat16, 0.2)
    assert encode_sparse_delta(base, tuned) is None
    assert encode_sparse_delta(base, tuned, 0.5) is not None


def test_threads_do_not_change_the_bytes() -> None:
    base, tuned = sparse_pair((1 << 21) + 77, torch.bfloat16, 0.01)
    payloads = []
    for threads in (1, 2, 7):
        with thread_limit(threads):
            payload = encode_sparse_delta(base, tuned)
            assert payload is not None
            payloads.append(payload)
            assert same_bits(apply_sparse_delta_(base.clone(), payload), tuned)
    assert all(torch.equal(payload, payloads[0]) for payload in payloads)


def outcome(apply, words: torch.Tensor, payload: torch.Tensor) -> torch.Tensor | None:
    before = words.clone()
    try:
        apply(words, payload, False)
    except ValueError as error:
        assert "payload is malformed" in str(error)
        assert same_bits(words, before)  # untouched
        return None
    return words


def refused(base: torch.Tensor, payload: bytes) -> bool:
    data = torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0).byte()
    native = outcome(apply_sparse_delta_, base.clone(), data)
    restored = torch.empty_like(base)
    try:
        assert same_bits(decode_sparse_delta(base, data, restored), base if native is None else native)
        assert native is not None
    except ValueError:
        assert native is None
    plain = outcome(reference.apply_sparse_delta, base.clone(), data)
    assert (native is None) == (plain is None)
    assert native is None or same_bits(native, plain)
    return native is None


def test_every_truncation_is_refused() -> None:
    base, tuned = sparse_pair(1000, torch.float32, 0.05)
    payload = bytes(encode_sparse_delta(base, tuned).tolist())
    assert all(refused(base, payload[:end]) for end in range(len(payload)))
    assert refused(base, payload + b"\0")
    assert refused(base[: int((base.view(torch.int32) != tuned.view(torch.int32)).nonzero()[-1])], payload)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SPARSE_DTYPES), st.integers(0, 700), st.data())
def test_damage_is_refused_or_applied_alike(dtype: torch.dtype, numel: int, data: st.DataObject) -> None:
    base, tuned = sparse_pair(numel, dtype, 0.1)
    payload = bytearray(encode_sparse_delta(base, tuned, 1.0).tolist())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    refused(base, bytes(payload))


def test_bad_arguments() -> None:
    base = torch.zeros(8)
    payload = encode_sparse_delta(base, base)
    with pytest.raises(TypeError, match=r"base must be one of .*float16"):
        encode_sparse_delta(base.double(), base.double())
    with pytest.raises(ValueError, match=r"max_share must be in \(0, 1\]"):
        encode_sparse_delta(base, base, 0.0)
    with pytest.raises(ValueError, match="tuned must have the shape"):
        encode_sparse_delta(base, base[:4])
    with pytest.raises(TypeError, match="payload must be one of uint8"):
        apply_sparse_delta_(base, payload.float())
    with pytest.raises(ValueError, match="words is written in place and must be contiguous"):
        apply_sparse_delta_(torch.zeros(8, 2)[:, 0], payload)
