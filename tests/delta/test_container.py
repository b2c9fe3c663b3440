from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from graftwork.checkpoint.digest import LEAF_BYTES, bytes_digest, tree_digest
from graftwork.checkpoint.files import AtomicFile
from graftwork.delta.basis import Basis, BasisReader
from graftwork.delta.container import MANIFEST, DeltaFile, DeltaWriter
from graftwork.delta.encoder import ChunkEncoder, ChunkJob, codec_of
from graftwork.delta.manifest import CHUNK_RECORD_BYTES, TensorRecord
from graftwork.delta.source import leaf_ranges
from graftwork.errors import ChecksumError, DeltaError, GraftworkError, UnknownCodec, VersionTooNew
from tests.delta.test_basis import MemorySource
from tests.generators.checkpoints import random_tensor, updated


def write_delta(
    path: Path, base: torch.Tensor, tuned: torch.Tensor, name: str = "w", effort: str = "fast"
) -> bytes:
    """A delta file of one float tensor against its base; the tensor's bytes."""
    code = {torch.bfloat16: "BF16", torch.float32: "F32"}[tuned.dtype]
    data = tuned.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    base_digest = bytes_digest(base.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    basis = Basis(name, base_digest, code, len(data))
    encode = ChunkEncoder(BasisReader(MemorySource(**{name: base})), MemorySource(**{name: tuned}), effort)
    with AtomicFile(path) as file:
        writer = DeltaWriter(file, "1" * 64, [name])
        chunks = []
        for offset, length in leaf_ranges(len(data)):
            chunk, parts = encode(ChunkJob(name, code, offset, length, basis, None))
            writer.write_payload(parts)
            chunks.append(chunk)
        digest = tree_digest(len(data), (chunk.leaf for chunk in chunks))
        record = TensorRecord(name, code, tuple(tuned.shape), len(data), digest, codec_of(chunks), basis)
        writer.finish_tensor(record, chunks)
        writer.finish()
    return data


def restore(path: Path, base: torch.Tensor, name: str = "w") -> bytes:
    with DeltaFile(path) as delta:
        record = delta.records[name]
        out = bytearray(record.nbytes)
        reader = BasisReader(MemorySource(**{name: base}))
        for index, (offset, length) in enumerate(leaf_ranges(record.nbytes)):
            delta.read_chunk(name, index, reader, memoryview(out)[offset : offset + length])
        return bytes(out)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    base = random_tensor((40, 30), torch.bfloat16, 1)
    return base, updated(base, 2e-4, 2)


@pytest.mark.parametrize("numel", [1, 31, 4097, LEAF_BYTES // 2, LEAF_BYTES // 2 + 1, LEAF_BYTES + 5])
def test_a_tensor_comes_back_whatever_its_number_of_chunks(tmp_path: Path, numel: int) -> None:
    base = random_tensor((numel,), torch.bfloat16, 3)
    data = write_delta(tmp_path / "d", base, updated(base, 1e-3, 4))
    assert restore(tmp_path / "d", base) == data


def test_the_stock_reader_opens_it(tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    write_delta(tmp_path / "d", *pair)
    with safe_open(tmp_path / "d", "pt") as file:
        assert sorted(file.keys()) == [MANIFEST, "w::chunks", "w::stream"]
        assert file.get_tensor("w::chunks").shape == (1, CHUNK_RECORD_BYTES)
        assert json.loads(bytes(file.get_tensor(MANIFEST).numpy()))["tensors"]["w"]["codec"] == "ordz"
    (header,) = struct.unpack("<Q", (tmp_path / "d").read_bytes()[:8])
    assert (8 + header) % 256 == 0


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    for name in ("a", "b"):
        write_delta(tmp_path / name, *pair)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("effort", "message"), [("fast", "restored chunk"), ("auto", "chunk 0: the payload does not fit")]
)
def test_another_base_is_refused(
    tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor], effort: str, message: str
) -> None:
    base, tuned = pair
    write_delta(tmp_path / "d", base, tuned, effort=effort)
    with pytest.raises(ChecksumError, match=message) as caught:
        restore(tmp_path / "d", base + 1)
    assert caught.value.tensor == "w" and caught.value.file == str(tmp_path / "d")


def test_names_are_data(tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    name = 'we"ird::stream/../\\ä\n'
    data = write_delta(tmp_path / "d", *pair, name=name)
    assert restore(tmp_path / "d", pair[0], name) == data


def test_no_changed_byte_goes_unnoticed_or_crashes(
    tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Every byte but the header's padding is either refused or does not change what is restored."""
    data = write_delta(tmp_path / "d", *pair)
    whole = (tmp_path / "d").read_bytes()
    for position in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[position] ^= 0x55
        (tmp_path / "broken").write_bytes(broken)
        try:
            assert restore(tmp_path / "broken", pair[0]) == data
        except (GraftworkError, KeyError):
            continue


def test_every_truncation_is_refused(tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    write_delta(tmp_path / "d", *pair)
    whole = (tmp_path / "d").read_bytes()
    for stop in range(0, len(whole), 11):
        (tmp_path / "cut").write_bytes(whole[:stop])
        with pytest.raises(GraftworkError):
            restore(tmp_path / "cut", pair[0])


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a delta file with its manifest changed."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    start, stop = header[MANIFEST]["data_offsets"]
    payload = whole[8 + length :]
    manifest = json.loads(payload[start:stop])
    change(manifest)
    data = json.dumps(manifest).encode()
    header[MANIFEST].update(shape=[len(data)], data_offsets=[start, start + len(data)])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload[:start] + data)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(format="other"), DeltaError, "another format"),
        (lambda m: m.update(min_reader=[2, 0]), VersionTooNew, "newer"),
        (lambda m: m.update(base="x"), DeltaError, "base"),
        (lambda m: m.pop("tensors"), DeltaError, "malformed"),
        (lambda m: m.update(tensors=[1]), DeltaError, "malformed"),
        (lambda m: m["tensors"]["w"].update(codec="zip"), UnknownCodec, "codec"),
        (lambda m: m["tensors"]["w"].update(codec="raw"), DeltaError, "another method"),
        (lambda m: m["tensors"]["w"].update(codec="same"), DeltaError, "same"),
        (lambda m: m["tensors"]["w"].update(dtype="BF17"), DeltaError, "dtype"),
        (lambda m: m["tensors"]["w"].update(shape=[-40, -30]), DeltaError, "whole numbers"),
        (lambda m: m["tensors"]["w"].update(shape=[40.0, 30]), DeltaError, "whole numbers"),
        (lambda m: m["tensors"]["w"].update(shape=[40, 31]), DeltaError, "size"),
        (lambda m: m["tensors"]["w"].update(shape=[1 << 40], nbytes=2 << 40), DeltaError, "wrong size"),
        (lambda m: m["tensors"]["w"].update(digest="0" * 63), DeltaError, "digest"),
        (lambda m: m["tensors"]["w"].update(digest="0" * 64), ChecksumError, "add up"),
        (lambda m: m["tensors"]["w"]["basis"].update(nbytes=1 << 40), DeltaError, "basis"),
        (lambda m: m["tensors"]["w"].update(basis={}), DeltaError, "malformed"),
        (lambda m: m["tensors"].update(v=m["tensors"]["w"]), DeltaError, "missing"),
    ],
)
def test_a_manifest_is_held_to_its_bounds(
    tmp_path: Path,
    pair: tuple[torch.Tensor, torch.Tensor],
    change: Callable[[dict[str, Any]], None],
    error: type[Exception],
    message: str,
) -> None:
    write_delta(tmp_path / "d", *pair)
    edit(tmp_path / "d", change)
    with pytest.raises(error, match=message), DeltaFile(tmp_path / "d") as delta:
        for name in delta.records:
            delta.chunks(name)


def test_unknown_extra_keys_are_ignored(tmp_path: Path, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    data = write_delta(tmp_path / "d", *pair)
    edit(tmp_path / "d", lambda m: (m.update(later=1), m["tensors"]["w"].update(later=2)))
    assert restore(tmp_path / "d", pair[0]) == data


def test_more_tensors_than_a_header_holds_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    names = (f"layer.{number:040d}" for number in range(300_000))
    with pytest.raises(DeltaError, match="no room"), AtomicFile(tmp_path / "d") as file:
        DeltaWriter(file, None, names)
    assert not list(tmp_path.iterdir())


def test_a_plain_checkpoint_is_no_delta(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "d")
    with pytest.raises(DeltaError, match="no manifest"):
        DeltaFile(tmp_path / "d")
