"""Many sparse chunks in one call: as the operation on each of them, up to the first malformed payload."""

from __future__ import annotations

import pytest
import torch

from graftwork.ops import _native
from graftwork.ops.entropy_delta import SPARSE_DTYPES, encode_sparse_delta
from graftwork.ops.sparse_chunks import SparseChunk, apply_sparse_chunks_, decode_sparse_chunks
from tests.generators.weights import SIZES
from tests.ops.test_sparse_delta import sparse_pair

SHARES = {17: 0.5, (1 << 20): 0.2, (1 << 20) + 3: 0.01}
"""One segment of few changes, one of more than are kept, and two segments."""


@pytest.fixture(params=["native", "reference"])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reference":
        monkeypatch.setattr(_native, "_missing", lambda module: f"graftwork.{module} is not available (test)")
    return request.param


def raw(tensor: torch.Tensor) -> memoryview:
    return memoryview(bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes()))


def chunk(numel: int, dtype: torch.dtype, share: float, seed: int = 0) -> tuple[SparseChunk, bytes, bytes]:
    """A chunk whose words are the base's, the base's bytes and the fine-tune's."""
    base, tuned = sparse_pair(numel, dtype, share, seed)
    payload = encode_sparse_delta(base, tuned, 1.0)
    assert payload is not None
    words = raw(base)
    made = SparseChunk(words, payload.numpy().data, words, dtype.itemsize, dtype.is_floating_point)
    return made, bytes(raw(base)), bytes(raw(tuned))


@pytest.mark.parametrize("dtype", SPARSE_DTYPES, ids=str)
def test_there_and_back(dtype: torch.dtype, code: str) -> None:
    sizes = [*SIZES, *(SHARES if code == "native" else [17])]
    made = [chunk(numel, dtype, SHARES.get(numel, 0.1), seed) for seed, numel in enumerate(sizes)]
    chunks = [one for one, _, _ in made]
    assert apply_sparse_chunks_(chunks) == len(chunks)
    assert [bytes(one.words) for one in chunks] == [tuned for _, _, tuned in made]
    assert apply_sparse_chunks_(chunks, reverse=True) == len(chunks)
    assert [bytes(one.words) for one in chunks] == [base for _, base, _ in made]
    beside = [one._replace(words=memoryview(bytearray(len(one.words)))) for one in chunks]
    assert decode_sparse_chunks(beside) == len(chunks)
    assert [bytes(one.words) for one in beside] == [tuned for _, _, tuned in made]
    assert [bytes(one.base) for one in beside] == [base for _, base, _ in made]


@pytest.mark.parametrize("cut", [0, 1, 7, -1])
@pytest.mark.parametrize("numel", [100, 1 << 20, (1 << 20) + 3])
def test_the_first_malformed_payload_ends_it(numel: int, cut: int) -> None:
    made = [chunk(numel, torch.bfloat16, SHARES.get(numel, 0.1), seed) for seed in range(3)]
    chunks = [one for one, _, _ in made]
    chunks[1] = chunks[1]._replace(payload=chunks[1].payload[:cut])
    beside = [one._replace(words=memoryview(bytearray(len(one.words)))) for one in chunks]
    assert decode_sparse_chunks(beside) == 1
    assert bytes(beside[0].words) == made[0][2]
    assert apply_sparse_chunks_(chunks) == 1
    assert [bytes(one.words) for one in chunks] == [made[0][2], made[1][1], made[2][1]]


def test_the_reference_ends_at_the_same_place(code: str) -> None:
    chunks = [chunk(100, torch.int32, 0.1, seed)[0] for seed in range(3)]
    chunks[2] = chunks[2]._replace(payload=memoryview(b""))
    assert apply_sparse_chunks_(chunks) == 2


def test_nothing_to_do(code: str) -> None:
    assert apply_sparse_chunks_([]) == decode_sparse_chunks([]) == 0


def test_words_that_cannot_be_taken(code: str) -> None:
    good, base, _ = chunk(100, torch.float32, 0.1)
    odd = memoryview(bytearray(401))
    for words in (odd[1:], odd):
        with pytest.raises(
            ValueError, match="the words of chunk 1 must be whole, and start at a multiple of 4"
        ):
            apply_sparse_chunks_([good, good._replace(base=words, words=words)])
    with pytest.raises(
        ValueError, match="base and words of chunk 1 must have as many bytes, got 400 and 396"
    ):
        decode_sparse_chunks([good, good._replace(words=odd[:396])])
    assert bytes(good.words) == base, "nothing is changed"
