"""Tensors of more than 2^31 elements. They are holes in sparse files and pages of nothing: little of them is ever there."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
import torch

from graftwork.checkpoint import open_checkpoint
from graftwork.ops.entropy_delta import apply_sparse_delta_, encode_sparse_delta
from graftwork.ops.lossless_delta import decode_ordinal_planes, delta_stats, encode_ordinal_planes
from graftwork.store import open_store, pack
from tests.generators.raw_tensors import raw_header

pytestmark = pytest.mark.slow

BEYOND = (1 << 31) + (1 << 20) + 12
"""Bytes: past what fits into 32 bits with a sign, and not a whole number of chunks."""
PLACES = (0, (1 << 31) - 1, 1 << 31, (1 << 31) + (1 << 20), BEYOND - 1)
"""Where a byte changes: at the edges of the numbers and of the chunks, and at the end."""


def memory_of_machine() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def write_sparse(
    path: Path, dtype: str, shape: tuple[int, ...], nbytes: int, changes: dict[int, int]
) -> Path:
    """A safetensors file of one tensor of zero bytes but for ``changes``."""
    head = raw_header({"w": (dtype, shape, nbytes)})
    with path.open("wb") as file:
        file.write(head)
        for at, value in changes.items():
            file.seek(len(head) + at)
            file.write(bytes([value]))
        file.truncate(len(head) + nbytes)
    return path


@pytest.fixture
def sparse_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros are not written but left out, so that what is checked out takes no room on disk either."""
    pwrite = os.pwrite

    def write_unless_zero(fd: int, data: memoryview, at: int) -> int:
        if len(data) < 1 << 16 or any(data[:64]) or bytes(data).count(0) != len(data):
            return pwrite(fd, data, at)
        if os.fstat(fd).st_size < at + len(data):
            os.ftruncate(fd, at + len(data))
        return len(data)

    monkeypatch.setattr(os, "pwrite", write_unless_zero)


@pytest.mark.parametrize(
    ("dtype", "shape", "codec"), [("F8_E4M3", (4, BEYOND // 4), "auto"), ("BF16", (BEYOND // 2,), "small")]
)
def test_a_tensor_of_more_than_two_to_the_31(
    tmp_path: Path, sparse_writes: None, dtype: str, shape: tuple[int, ...], codec: str
) -> None:
    """Elements, or of BF16 bytes."""
    changes = dict.fromkeys(PLACES, 3)
    base = write_sparse(tmp_path / "base.safetensors", dtype, shape, BEYOND, {PLACES[2]: 1})
    tuned = write_sparse(tmp_path / "tuned.safetensors", dtype, shape, BEYOND, changes)
    result = pack(base, tuned, out=tmp_path / "store", codec=codec)
    assert result.entries[0].file_bytes == tuned.stat().st_size
    assert result.entries[0].stored_bytes < 300_000, "a chunk table of 44 bytes a chunk, and five words"
    with open_store(tmp_path / "store", base=base) as store:
        store.checkout("tuned", tmp_path / "out")
        piece = memoryview(bytearray(1000))
        for start in (PLACES[2] - 500, BEYOND - 1000):
            store.sources.source("tuned").read_into("w", start, piece)
            found = {start + at for at, value in enumerate(piece) if value}
            assert found == {at for at in PLACES if start <= at < start + 1000}
    with open_checkpoint(tmp_path / "out") as restored, open_checkpoint(tuned) as wanted:
        info = restored.tensors["w"]
        assert info == wanted.tensors["w"]
        for at in (*PLACES, 1 << 30):
            byte = memoryview(bytearray(1))
            restored.read_into(info, at, byte)
            assert byte[0] == changes.get(at, 0)
        mapped = restored.tensor("w").view(torch.uint8).reshape(-1)
        assert [int(mapped[at]) for at in PLACES] == [3] * len(PLACES)


def test_more_than_two_to_the_31_packed_elements_as_a_tensor(tmp_path: Path) -> None:
    """Of F4 they take one gigabyte."""
    nbytes = BEYOND // 2
    shape = (2, nbytes)
    base = write_sparse(tmp_path / "base.safetensors", "F4", shape, nbytes, {})
    tuned = write_sparse(tmp_path / "tuned.safetensors", "F4", shape, nbytes, {nbytes - 1: 0x21})
    pack(base, tuned, out=tmp_path / "store")
    with open_store(tmp_path / "store", base=base) as store:
        tensor = store.tensor("tuned", "w")
    assert tuple(tensor.shape) == (2, nbytes // 2)
    data = tensor.view(torch.uint8).reshape(-1)
    assert int(data.count_nonzero()) == 1 and int(data[-1]) == 0x21


# ---- operations


def zeros(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until they are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return torch.frombuffer(mmap.mmap(-1, numel * dtype.itemsize, flags=flags), dtype=dtype)


NUMEL = (1 << 31) + 33


def test_a_sparse_difference_of_more_than_two_to_the_31_words() -> None:
    base, tuned = zeros(NUMEL, torch.int16), zeros(NUMEL, torch.int16)
    places = torch.tensor([5, (1 << 31) - 1, 1 << 31, NUMEL - 1])
    tuned[places] = torch.tensor([1, -2, 3, -(1 << 15)], dtype=torch.int16)
    payload = encode_sparse_delta(base, tuned, max_share=1e-4)
    assert payload is not None and len(payload) < 50_000
    apply_sparse_delta_(base, payload)
    assert torch.equal(base[places], tuned[places]) and int(base[NUMEL - 2]) == 0
    apply_sparse_delta_(base, payload, reverse=True)
    assert not base[places].any()


def test_statistics_of_more_than_two_to_the_31_words() -> None:
    base, tuned = zeros(NUMEL, torch.bfloat16), zeros(NUMEL, torch.bfloat16)
    tuned[-1] = 1.0
    stats = delta_stats(base, tuned)
    assert int(stats.counts[0]) == 1 and float(stats.sums[2]) == 1.0
    assert int(stats.histogram.sum()) == NUMEL


@pytest.mark.skipif(memory_of_machine() < 4 << 30, reason="writes two gigabytes of planes")
def test_planes_of_more_than_two_to_the_31_words() -> None:
    base, tuned = zeros(NUMEL, torch.uint8), zeros(NUMEL, torch.uint8)
    tuned[-1], tuned[1 << 31] = 7, 255
    planes = encode_ordinal_planes(base, tuned, zeros(NUMEL, torch.uint8).view(1, NUMEL))
    assert {at: int(planes[0, at]) for at in (NUMEL - 1, 1 << 31)} == {NUMEL - 1: 14, 1 << 31: 1}
    assert int(planes.count_nonzero()) == 2
    planes = zeros(NUMEL, torch.uint8).view(1, NUMEL)
    planes[0, -1], planes[0, 1 << 31] = 14, 1
    tuned = decode_ordinal_planes(base, planes, zeros(NUMEL, torch.uint8))
    assert {at: int(tuned[at]) for at in (NUMEL - 1, 1 << 31)} == {NUMEL - 1: 7, 1 << 31: 255}
    assert int(tuned.count_nonzero()) == 2
