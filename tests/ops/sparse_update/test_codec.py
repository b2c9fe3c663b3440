"""Sorted indices as bytes: golden bytes, the reference's bytes, the shortest code, and what damage does."""

from __future__ import annotations

import doctest
import hashlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftwork.ops import thread_limit
from graftwork.ops.entropy_delta import encode_sparse_delta
from graftwork.ops.sparse_update import codec as module
from graftwork.ops.sparse_update import decode_indices, encode_indices
from graftwork.ops.sparse_update.codec import CODECS
from graftwork.reference.sparse_update import codec as reference
from tests.generators.weights import SIZES


def chosen(numel: int, density: float, dtype: torch.dtype = torch.int64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(numel, generator=generator) < density).nonzero().view(-1).to(dtype)


def bytes_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def check(indices: Tensor, numel: int, device: str = "cpu") -> dict[str, Tensor]:
    """Every code against the reference, there and back."""
    found = {}
    for number, name in enumerate(CODECS):
        if name == "bitmap" and numel > 1 << 24:
            continue
        codec, data = encode_indices(indices.to(device), numel, name)
        assert codec == name
        assert torch.equal(data.cpu(), reference.encode_indices(indices, numel, number))
        for dtype in (torch.int64, torch.int32)[: 1 + (numel < 1 << 31)]:
            restored = decode_indices(name, data, numel, indices.numel(), dtype)
            assert restored.dtype == dtype
            assert torch.equal(restored.cpu(), indices.to(dtype))
            assert torch.equal(
                reference.decode_indices(data.cpu(), number, numel, indices.numel(), dtype), restored.cpu()
            )
        found[name] = data.cpu()
    best, data = encode_indices(indices.to(device), numel)
    assert torch.equal(data.cpu(), found[best])
    assert (len(data), CODECS.index(best)) == min(
        (len(data), CODECS.index(name)) for name, data in found.items()
    )
    return found


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_sizes(dtype: torch.dtype, density: float, device: str) -> None:
    for numel in SIZES:
        indices = chosen(numel, density, dtype)
        check(indices, numel, device)
        check(indices, numel + 9, device)


def test_several_chunks_and_segments() -> None:
    """Odd sizes on both sides of a segment of 2^20, and gaps over whole segments."""
    for numel, density in ((1 << 20, 0.001), ((1 << 20) + 1, 0.04), ((1 << 21) - 1, 0.01)):
        check(chosen(numel, density), numel)
    ends = torch.tensor([0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) - 1, 3 << 20, (5 << 20) + 6])
    check(ends, (5 << 20) + 7)


def test_gaps_of_every_length() -> None:
    """The last index alone, and gaps of one to several bytes."""
    for numel in (1, 128, 129, 1 << 14, (1 << 14) + 1, 1 << 20, (1 << 21) + 1):
        check(torch.tensor([numel - 1]), numel)
    steps = torch.tensor([0, 127, 128, 129, 16383, 16384, 16385, 2097151, 2097152, 2097153]) + 1
    check(steps.cumsum(0) - 1, int(steps.sum()))


@pytest.mark.parametrize("numel", [1 << 31, (1 << 31) + 5, 1 << 33, 1 << 36])
def test_large_tensors(numel: int) -> None:
    found = check(torch.tensor([0, 5, (1 << 31) - 1, numel - 1][: 3 + (numel > 1 << 31)]), numel)
    assert len(found["raw"]) % 8 == 0
    codec, _ = encode_indices(torch.tensor([numel - 1]), 1 << 50)
    assert codec == "varint"  # whose size says that segments are not worth a try


def test_golden_bytes() -> None:
    """What the files of others hold does not change."""
    indices = torch.tensor([0, 1, 5, 133, 300])
    golden = {
        "raw": "000000000100000005000000850000002c010000",
        "bitmap": "23" + "00" * 15 + "20" + "00" * 20 + "10",
        "varint": "0000037fa601",
        "rans": "14000000"
        "24000000"
        "05000000"
        "00000000"  # segments of 2^20, bytes, count, words
        "01c49e093a1300"
        "60cd0407"
        "5306004f"
        "76020077"
        "060500aa"
        "890200004e",  # table, states, bits
    }
    for name, wanted in golden.items():
        assert bytes(encode_indices(indices, 301, name)[1].tolist()).hex() == wanted
    halves = torch.arange(2, 1500) ** 2 // 2
    data = encode_indices(halves, 1_200_000, "rans")[1]
    assert len(data) == 2107
    assert (
        hashlib.sha256(data.numpy()).hexdigest()
        == "4aaeb6115e6862516d46d190cb31671c8b7695cd223a192f04f3af44f5c00603"
    )


def test_rans_is_near_the_entropy() -> None:
    """H(ρ)/ρ is 8.08 bits at 1 %, 6.06 bits at 4 %."""
    for density, bits in ((0.01, 8.2), (0.04, 6.2)):
        indices = chosen(1 << 20, density)
        codec, data = encode_indices(indices, 1 << 20)
        assert codec == "rans"
        assert 8 * len(data) < bits * len(indices)


def test_rans_has_no_differences_but_is_the_code_of_sparse_delta() -> None:
    """A delta whose differences are all alike costs what its gaps do, and a table."""
    indices = chosen(100_000, 0.02)
    base = torch.zeros(100_000, dtype=torch.bfloat16)
    tuned = base.index_fill(0, indices, 1.0)
    payload = encode_sparse_delta(base, tuned)
    difference_bits = len(indices) * 13  # those of 0x3f80 below the leading one
    assert payload is not None
    assert 0 <= len(payload) - len(encode_indices(indices, 100_000, "rans")[1]) - difference_bits // 8 < 24


@pytest.fixture
def seven_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("seven_threads")
@pytest.mark.parametrize("name", CODECS)
def test_threads_do_not_change_the_bytes(name: str) -> None:
    numel = (3 << 20) + 77
    indices = chosen(numel, 0.1, torch.int32)
    codes = []
    for threads in (1, 2, 7):
        with thread_limit(threads):
            codes.append(encode_indices(indices, numel, name)[1])
            restored = decode_indices(name, codes[0], numel, len(indices), torch.int32)
            assert torch.equal(restored, indices)
    assert all(torch.equal(data, codes[0]) for data in codes)


def outcome(decode: object, *arguments: object) -> Tensor | None:
    try:
        return decode(*arguments)  # type: ignore[operator]
    except ValueError as error:
        assert "decode_indices: the payload is malformed" in str(error)
        return None


def refused(name: str, data: Tensor, numel: int, count: int) -> bool:
    """Whether it is, by the native code and the reference alike; what is not is as good as encoded."""
    native = outcome(decode_indices, name, data, numel, count)
    plain = outcome(reference.decode_indices, data, CODECS.index(name), numel, count, torch.int64)
    assert (native is None) == (plain is None)
    if native is None:
        return True
    assert torch.equal(native, plain)
    encode_indices(native, numel, "raw")  # sorted, unique, within the tensor
    return False


@pytest.mark.parametrize("name", CODECS)
def test_every_truncation_is_refused(name: str) -> None:
    indices = chosen(5000, 0.02)
    _, data = encode_indices(indices, 5000, name)
    assert not refused(name, data, 5000, len(indices))
    assert all(refused(name, data[:end], 5000, len(indices)) for end in range(len(data)))
    assert refused(name, torch.cat([data, bytes_of(0)]), 5000, len(indices))
    assert refused(name, data, 5000, len(indices) - 1)
    assert refused(name, data, 5000, len(indices) + 1)
    assert refused(name, data, int(indices[-1]), len(indices))


@pytest.mark.parametrize(
    ("name", "data", "numel", "count"),
    [
        ("raw", (5, 0, 0, 0, 5, 0, 0, 0), 9, 2),  # twice the same
        ("raw", (255, 255, 255, 255), 9, 1),  # -1
        ("raw", (9, 0, 0, 0), 9, 1),
        ("bitmap", (0, 2), 9, 1),  # a bit past the end
        ("bitmap", (1,), 9, 1),
        ("varint", (128, 0), 9, 1),  # longer than it need be
        ("varint", (128, 1), 9, 1),  # past the end
        ("varint", (4, 4), 9, 2),
        ("varint", (255,) * 9 + (1,), 1 << 50, 1),  # more than 63 bits
        ("varint", (255,) * 8 + (127, 0), 1 << 50, 2),
        ("rans", (19, 0, 0, 0, 8, 0, 0, 0) + (0,) * 8, 9, 0),  # segments of another size
        ("rans", (20, 0, 0, 0, 8, 0, 0, 0) + (1,) + (0,) * 7, 9, 1),
        ("rans", (20, 0, 0, 0, 7, 0, 0, 0) + (0,) * 7, 9, 0),
        ("rans", (20, 0, 0, 0, 8, 0, 0, 0) + (255,) * 4 + (0,) * 4, 9, 9),
    ],
)
def test_broken_by_hand(name: str, data: tuple[int, ...], numel: int, count: int) -> None:
    assert refused(name, bytes_of(*data), numel, count)


def test_memory_is_taken_when_the_data_justifies_it() -> None:
    """A count that the data does not have is refused before anything of its size is made."""
    huge = 1 << 50
    for name in CODECS:
        assert outcome(decode_indices, name, bytes_of(1, 2, 3, 4), huge, huge) is None


@settings(max_examples=300)
@given(st.sampled_from(CODECS), st.integers(1, 700), st.data())
def test_damage_is_refused_or_decoded_alike(name: str, numel: int, data: st.DataObject) -> None:
    indices = chosen(numel, data.draw(st.sampled_from([0.02, 0.3, 1.0])), seed=data.draw(st.integers(0, 99)))
    code = encode_indices(indices, numel, name)[1].clone()
    for _ in range(data.draw(st.integers(1, 3)) if len(code) else 0):
        code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))
    refused(name, code, numel, data.draw(st.sampled_from([len(indices), max(0, len(indices) - 1)])))


@given(st.sets(st.integers(0, 1 << 50), max_size=40), st.sampled_from(["raw", "varint", "auto"]))
def test_any_indices(found: set[int], name: str) -> None:
    indices = torch.tensor(sorted(found), dtype=torch.int64)
    numel = 1 << 50 if not found or max(found) < 1 << 50 else None
    if numel is None:
        with pytest.raises(ValueError, match="must be sorted"):
            encode_indices(indices, 1 << 50, name)
        return
    codec, data = encode_indices(indices, numel, name)
    assert torch.equal(decode_indices(codec, data, numel, len(indices)), indices)


def test_views_are_read() -> None:
    indices = torch.arange(0, 100, 3)
    view = indices.repeat_interleave(2)[::2]
    codec, data = encode_indices(view, 100)
    assert torch.equal(data, encode_indices(indices, 100)[1])
    assert torch.equal(decode_indices(codec, data.repeat_interleave(2)[::2], 100, len(indices)), indices)
    unaligned = torch.cat([bytes_of(0), encode_indices(indices, 100, "raw")[1]])[1:]
    assert torch.equal(decode_indices("raw", unaligned, 100, len(indices)), indices)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("indices", [[1, 1], [2, 1], [-1, 3], [3, 10]])
def test_indices_that_are_not_sorted_are_refused(name: str, indices: list[int]) -> None:
    wrong = torch.tensor(indices, dtype=torch.int32)
    for encode in (
        encode_indices,
        lambda *arguments: reference.encode_indices(wrong, 10, CODECS.index(name)),
    ):
        with pytest.raises(
            ValueError,
            match=r"encode_indices: indices must be sorted, without duplicates and in \[0, 10\); sort and",
        ):
            encode(wrong, 10, name)


def test_bad_arguments() -> None:
    indices, data = torch.tensor([1]), bytes_of(1)
    with pytest.raises(
        TypeError, match=r"encode_indices: indices must be one of int32, int64, got torch.float32"
    ):
        encode_indices(indices.float(), 5)
    with pytest.raises(
        ValueError, match=r"encode_indices: indices must have one dimension, got shape \(1, 1\)"
    ):
        encode_indices(indices[None], 5)
    with pytest.raises(ValueError, match=r"encode_indices: numel must be in \[0, 2\^50\], got -1"):
        encode_indices(indices, -1)
    with pytest.raises(
        ValueError, match=r"codec must be one of 'raw', 'bitmap', 'varint', 'rans', or 'auto', got 'zip'"
    ):
        encode_indices(indices, 5, "zip")
    with pytest.raises(ValueError, match=r"decode_indices: codec must be one of .*'rans', got 'auto'"):
        decode_indices("auto", data, 5, 1)
    with pytest.raises(TypeError, match=r"decode_indices: data must be one of uint8, got torch.int64"):
        decode_indices("raw", indices, 5, 1)
    with pytest.raises(ValueError, match=r"decode_indices: data must have one dimension, got shape \(1, 1\)"):
        decode_indices("raw", data[None], 5, 1)
    with pytest.raises(ValueError, match=r"decode_indices: numel must be in \[0, 2\^50\], got"):
        decode_indices("raw", data, (1 << 50) + 1, 1)
    with pytest.raises(ValueError, match=r"decode_indices: count must be in \[0, 5\], got 6"):
        decode_indices("raw", data, 5, 6)
    for dtype, numel in ((torch.int16, 5), (torch.int32, 1 << 31)):
        with pytest.raises(
            TypeError, match=r"dtype must be int64, or int32 for less than 2\^31 elements, got"
        ):
            decode_indices("raw", data, numel, 1, dtype)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
