"""Entropy-coded differences: bytes equal to the reference's, every bit pattern restored, sizes near the entropy."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.ops import thread_limit
from graftwork.ops.entropy_delta import FORMATS, SEGMENTS, decode_ordinal_rans, encode_ordinal_rans
from graftwork.ops.lossless_delta import conditional_entropy_bits, delta_stats
from graftwork.reference import entropy_delta as reference
from graftwork.reference import rans
from tests.generators.weights import LARGE, SIZES, pair, random_words, special_pair
from tests.ops.test_ordinal_planes import same_bits

ALL_SEGMENTS = (None, *SEGMENTS)


def check(
    base: torch.Tensor, tuned: torch.Tensor, device: str, segment: int | None = 1 << 20
) -> torch.Tensor:
    payload = encode_ordinal_rans(base.to(device), tuned.to(device), segment)
    log2 = segment.bit_length() - 1 if segment else 0
    assert torch.equal(payload.cpu(), reference.encode_ordinal_rans(base, tuned, log2))
    assert same_bits(decode_ordinal_rans(base.to(device), payload), tuned)
    restored = torch.empty_like(base)
    reference.decode_ordinal_rans(base, payload.cpu(), restored)
    assert same_bits(restored, tuned)
    return payload.cpu()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("step", [0.0, 1e-5, 1e-3, 1.0])
def test_sizes(dtype: torch.dtype, step: float, device: str) -> None:
    for numel in SIZES:
        check(*pair(numel, dtype, step=step), device)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_random_and_special_patterns(dtype: torch.dtype, device: str) -> None:
    check(random_words((4097,), dtype, 1), random_words((4097,), dtype, 2), device)
    check(*special_pair(dtype), device)


@pytest.mark.parametrize("segment", ALL_SEGMENTS)
def test_several_segments(segment: int | None, device: str) -> None:
    payload = check(*pair(150_001, torch.bfloat16), device, segment)
    if segment:
        assert payload[0] == segment.bit_length() - 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_pattern(dtype: torch.dtype) -> None:
    """Against bases of every sign and kind; the reference is compared elsewhere."""
    tuned = torch.arange(1 << 16).to(torch.uint16).view(dtype)
    for word in (0x0000, 0x8000, 0x3CA4, 0xBCA4, 0x7F80, 0xFFFF):
        base = torch.full((1 << 16,), word, dtype=torch.int32).to(torch.uint16).view(dtype)
        assert same_bits(decode_ordinal_rans(base, encode_ordinal_rans(base, tuned)), tuned)
        assert same_bits(decode_ordinal_rans(tuned, encode_ordinal_rans(tuned, base)), base)


@pytest.mark.parametrize("sigma", [5e-5, 2e-4, 1e-3])
def test_a_fine_tune_ends_within_one_percent_of_the_entropy(sigma: float) -> None:
    """Of the class given the base's exponent, with all tables, states and lengths counted."""
    base, tuned = gaussian(1 << 20, sigma)
    bound = conditional_entropy_bits(delta_stats(base, tuned).histogram) / 8
    assert len(encode_ordinal_rans(base, tuned)) < 1.01 * bound


def test_neighbourhoods_that_change_alike_end_below_that_entropy() -> None:
    """Rows whose updates differ tenfold, as embeddings and experts have them."""
    generator = torch.Generator().manual_seed(0)
    scales = 10 ** torch.rand(1024, 1, generator=generator) * 5e-5
    base, tuned = gaussian(1 << 20, scales)
    bound = conditional_entropy_bits(delta_stats(base, tuned).histogram) / 8
    assert len(encode_ordinal_rans(base, tuned)) < 0.97 * bound


def gaussian(numel: int, sigma: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    base = (torch.randn(1024, numel // 1024, generator=generator) * 0.02).bfloat16()
    update = torch.randn(base.shape, generator=generator) * sigma
    return base, (base.float() + update).bfloat16()


def test_the_best_segment_size_is_no_larger_than_any(device: str) -> None:
    base, tuned = pair(1 << 18, torch.bfloat16)
    half = slice(1 << 17, None)  # exponents that sixteen slots cannot tell apart together with the others
    base[half], tuned[half] = base[half] * 2.0**60, tuned[half] * 2.0**60
    sizes = {segment: len(encode_ordinal_rans(base, tuned, segment)) for segment in ALL_SEGMENTS}
    assert sizes[None] <= min(sizes.values())
    assert sizes[None] < sizes[1 << 20]


def test_threads_do_not_change_the_bytes() -> None:
    base, tuned = pair(LARGE, torch.float32)
    payloads = []
    for threads in (1, 2, 7):
        with thread_limit(threads):
            payloads.append(encode_ordinal_rans(base, tuned, 1 << 16))
            assert same_bits(decode_ordinal_rans(base, payloads[-1]), tuned)
    assert all(torch.equal(payload, payloads[0]) for payload in payloads)


def test_views_and_outputs(device: str) -> None:
    data = torch.randn(40, 60, device=device)
    base, tuned = data.T, data.flip(0).T
    payload = encode_ordinal_rans(base, tuned)
    assert torch.equal(payload, encode_ordinal_rans(base.contiguous(), tuned.contiguous()))
    out = torch.empty(60, 40, device=device)
    assert decode_ordinal_rans(base, payload, out) is out
    assert torch.equal(out, tuned)


def test_the_worked_numbers_of_the_class_code() -> None:
    """0.02 -> 0.0203, -0.02 -> -0.0198, 1e-4 -> -1e-4, equal, +0 -> -0: classes 2, 2, -15, 0, -1."""
    base = torch.tensor([0.02, -0.02, 1e-4, 1.0, 0.0]).bfloat16()
    tuned = torch.tensor([0.0203, -0.0198, -1e-4, 1.0, -0.0]).bfloat16()
    differences = reference.ordinal_differences(base, tuned)
    assert differences.tolist() == [2, 2, -29093, 0, -1]
    assert same_bits(decode_ordinal_rans(base, encode_ordinal_rans(base, tuned)), tuned)


# ---- payloads that are not what they should be ----


def refused(base: torch.Tensor, payload: bytes) -> bool:
    data = torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0).byte()
    outcomes = []
    for decode in (decode_ordinal_rans, lambda b, p, t: reference.decode_ordinal_rans(b, p, t)):
        tuned = torch.zeros_like(base)
        try:
            decode(base, data, tuned)
            outcomes.append(tuned)
        except ValueError as error:
            assert "payload is malformed" in str(error)
            outcomes.append(None)
    assert (outcomes[0] is None) == (outcomes[1] is None)
    if outcomes[0] is not None:
        assert same_bits(outcomes[0], outcomes[1])
    return outcomes[0] is None


def test_every_truncation_is_refused() -> None:
    base, tuned = pair(300, torch.bfloat16, step=1e-3)
    payload = bytes(encode_ordinal_rans(base, tuned).tolist())
    assert all(refused(base, payload[:end]) for end in range(len(payload)))
    assert refused(base, payload + b"\0")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 700), st.data())
def test_damage_is_refused_or_decoded_alike(dtype: torch.dtype, numel: int, data: st.DataObject) -> None:
    """Native code and reference agree on every payload, valid or not; memory is never touched out of bounds."""
    base, tuned = pair(numel, dtype, step=1e-3)
    payload = bytearray(encode_ordinal_rans(base, tuned).tolist())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    refused(base, bytes(payload))


def test_wrong_sizes_are_refused() -> None:
    base, tuned = pair(70_000, torch.bfloat16)
    payload = bytes(encode_ordinal_rans(base, tuned).tolist())
    assert refused(base[:-1], payload)
    assert refused(torch.cat([base, base]), payload)
    lying = bytearray(payload)
    struct.pack_into("<I", lying, 4, 0xFFFFFFFF)
    assert refused(base, bytes(lying))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2), torch.zeros(3)), ValueError, "tuned must have the shape of base"),
        ((torch.zeros(2), torch.zeros(2).half()), TypeError, "tuned must have the dtype of base"),
        ((torch.zeros(2).double(),) * 2, TypeError, "base must be one of float16, bfloat16, float32"),
        (([0.0], torch.zeros(1)), TypeError, "base must be a torch.Tensor"),
        ((torch.zeros(2), torch.zeros(2), 1 << 15), ValueError, "segment must be None or one of 65536"),
    ],
)
def test_bad_arguments_of_encode(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_ordinal_rans(*arguments)


def test_bad_arguments_of_decode() -> None:
    base = torch.zeros(4)
    payload = encode_ordinal_rans(base, base)
    with pytest.raises(TypeError, match="payload must be one of uint8"):
        decode_ordinal_rans(base, payload.int())
    with pytest.raises(ValueError, match="payload must have one dimension"):
        decode_ordinal_rans(base, payload[None])
    with pytest.raises(ValueError, match="tuned must have the shape"):
        decode_ordinal_rans(base, payload, torch.zeros(5))
    with pytest.raises(ValueError, match="overlaps base"):
        decode_ordinal_rans(base, payload, base)


# ---- the coder beneath ----


@given(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=65).filter(any))
def test_frequencies_add_up_and_leave_nothing_out(counts: list[int]) -> None:
    frequency = rans.normalise(counts)
    assert frequency.sum() == rans.TOTAL
    assert all((f > 0) == (count > 0) for f, count in zip(frequency.tolist(), counts, strict=True))
    bits = rans.BitWriter()
    rans.write_table(bits, frequency)
    read = rans.read_table(rans.BitReader(bits.finish()), len(counts))
    assert read.tolist() == frequency.tolist()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000, 1023, 1024, 1025, 99_999, (1 << 20) - 1, 1 << 20])
def test_log_weight_is_n_log2_n(n: int) -> None:
    import math

    wanted = n * math.log2(n) if n else 0.0
    assert rans.log_weight(n) / 2**24 == pytest.approx(wanted, rel=2e-7, abs=1e-6)
