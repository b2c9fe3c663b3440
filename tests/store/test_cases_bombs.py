"""Stores that lie about sizes: every lie is met with an error, and before memory is taken for it."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from graftwork.checkpoint.digest import LEAF_BYTES, bytes_digest, leaf_digest, tree_digest
from graftwork.delta.basis import words_of
from graftwork.delta.codecs import method_named
from graftwork.delta.container import DeltaFile
from graftwork.delta.manifest import MAX_PAYLOAD_BYTES, Chunk, pack_table
from graftwork.errors import DeltaError, GraftworkError, StoreError
from graftwork.reference import entropy_delta, sparse_delta
from graftwork.store import open_store, pack
from graftwork.store.entry import EntryManifest, StoredFile, StoredTensor, listing_digest
from graftwork.store.objects import ObjectFolder
from graftwork.store.root import read_root, write_root
from tests.generators.checkpoints import file_hashes
from tests.generators.raw_tensors import moved, raw_header, raw_tensor
from tests.store.every_method import write_every_method

HUGE = 1 << 40
SMALL = 16 << 20
"""What reading may take beside the tensors themselves: buffers of a few chunks for each thread."""


@contextmanager
def little_memory(monkeypatch: pytest.MonkeyPatch, limit: int = SMALL) -> Iterator[None]:
    """At most ``limit`` bytes are held at a time by Python and numpy, and asked of torch at once."""
    make = torch.empty

    def empty(*size: Any, **options: Any) -> torch.Tensor:
        assert np.prod(size if isinstance(size[0], int) else size[0]) <= limit, f"torch.empty{size}"
        return make(*size, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", empty)
        tracemalloc.start()
        try:
            yield
            assert tracemalloc.get_traced_memory()[1] <= limit
        finally:
            tracemalloc.stop()


# ---- stores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_every_method(tmp_path)
    (tmp_path / "tuned" / "config.json").write_text("{}")
    pack(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "store")
    return tmp_path


def put_entry(store: Path, entry: EntryManifest) -> None:
    """Commit a manifest under the name ``tuned``."""
    tensors = ((t.name, t.dtype, t.shape, t.digest) for t in entry.tensors.values())
    entry = replace(entry, tensors_digest=listing_digest(tensors))
    digest = ObjectFolder(store / "objects").put(entry.to_bytes(), "json")
    write_root(store, read_root(store).with_entry("tuned", digest))


def entry_of(store: Path) -> EntryManifest:
    with open_store(store) as opened:
        return opened.entry("tuned")


def put_zst(store: Path, data: bytes, nbytes: int) -> dict[str, object]:
    """An object of the store that says it holds ``nbytes`` bytes."""
    stored = ObjectFolder(store / "objects").put(zstandard.compress(data, 1), "zst")
    return {"object": stored, "digest": bytes_digest(data), "nbytes": nbytes}


def refused_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch, key: str | None = None) -> None:
    """To check out, to look at a tensor and to verify end in errors, and leave nothing."""
    before = file_hashes(folder / "store")
    with open_store(folder / "store", folder / "base") as store, little_memory(monkeypatch):
        with pytest.raises(GraftworkError):
            store.checkout("tuned", folder / "out")
        if key is not None:
            with pytest.raises(GraftworkError):
                store.tensor("tuned", key)
        assert not store.verify(deep=True).ok
    assert not (folder / "out").exists() and file_hashes(folder / "store") == before


def with_file(entry: EntryManifest, name: str, **changes: Any) -> EntryManifest:
    files = [replace(file, **changes) if file.path == name else file for file in entry.files]
    return replace(entry, files=tuple(files))


@pytest.mark.parametrize("codec", ["same", "raw", "ordz"])
def test_a_tensor_that_says_it_is_huge(folder: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """In the entry's manifest, in its file's header and in the delta file: they agree, and nothing bears them out."""
    store, entry = folder / "store", entry_of(folder / "store")
    held = entry.tensors["raw"]
    digest, basis = "0" * 64, {"name": "raw", "digest": "0" * 64, "dtype": "U8", "nbytes": HUGE}
    record = {
        "codec": codec,
        "dtype": "U8",
        "shape": [HUGE],
        "nbytes": HUGE,
        "digest": digest,
        "basis": basis,
    }
    fields = {"raw::stream": b"", "raw::chunks": bytes(44)} if codec != "same" else {}
    delta = write_delta(store, entry.base, {"raw": record}, fields)
    head = raw_header({"raw": ("U8", (HUGE,), HUGE)})
    entry = replace(
        entry,
        tensors={"raw": replace(held, dtype="U8", shape=(HUGE,), digest=digest, object=delta)},
        files=(StoredFile("model.safetensors", len(head) + HUGE, True, put_zst(store, head, len(head))),),
    )
    put_entry(store, entry)
    refused_everywhere(folder, monkeypatch, "raw")


def write_delta(store: Path, base: str | None, records: dict[str, Any], fields: dict[str, bytes]) -> str:
    """A delta file of these records and payload fields, whatever they say; its digest."""
    manifest = {"format": "graftwork-delta", "version": [1, 1], "min_reader": [1, 0], "base": base}
    content = {**fields, "__manifest__": json.dumps({**manifest, "tensors": records}).encode()}
    shapes = {
        name: (len(data) // 44, 44) if name.endswith("::chunks") else (len(data),)
        for name, data in content.items()
    }
    head = raw_header({name: ("U8", shapes[name], len(data)) for name, data in content.items()})
    return ObjectFolder(store / "objects").put(head + b"".join(content.values()), "safetensors")


def test_a_chain_of_tensors_that_say_they_are_huge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry below, which the first is a difference to, agrees with it."""
    store, first = folder / "store", entry_of(folder / "store")
    held = replace(first.tensors["raw"], dtype="U8", shape=(HUGE,), digest="0" * 64)
    identity = {"digest": "0" * 64, "dtype": "U8", "nbytes": HUGE}
    record = {"codec": "same", "shape": [HUGE], "basis": {"name": "raw", **identity}, **identity}
    head = raw_header({"raw": ("U8", (HUGE,), HUGE)})
    files = (StoredFile("model.safetensors", len(head) + HUGE, True, put_zst(store, head, len(head))),)
    other = replace(
        held, name="other", object=write_delta(store, None, {"raw": record | {"basis": None}}, {})
    )

    def put(base: str | None, **tensors: StoredTensor) -> None:
        put_entry(store, replace(first, base=base, tensors=tensors, files=files, min_reader=(1, 1)))

    put(first.base, raw=replace(held, object=write_delta(store, first.base, {"raw": record}, {})))
    below = entry_of(store).tensors_digest
    write_root(store, read_root(store).with_entry("below", read_root(store).entries["tuned"]))
    put(below, raw=replace(held, object=write_delta(store, below, {"raw": record}, {})), other=other)
    refused_everywhere(folder, monkeypatch, "raw")


def test_a_file_that_says_it_is_huge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a header it is refused unread; any other file ends where its bytes do."""
    store, entry = folder / "store", entry_of(folder / "store")
    for name in ("config.json", "model.safetensors"):
        file = next(file for file in entry.files if file.path == name)
        put_entry(store, with_file(entry, name, nbytes=HUGE, blob={**file.blob, "nbytes": HUGE}))
        refused_everywhere(folder, monkeypatch)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_small_object_with_much_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Twelve kilobytes of zstd that hold 120 megabytes, as the manifest says, or more than it says."""
    store, entry, bomb = folder / "store", entry_of(folder / "store"), bytes(120_000_000)
    for said in (len(bomb), 1000):
        put_entry(store, with_file(entry, name, blob=put_zst(store, bomb, said)))
        with open_store(store, folder / "base") as opened, little_memory(monkeypatch):
            if name == "config.json" and said == len(
                bomb
            ):  # it is what it says, and is written piece by piece
                opened.checkout("tuned", folder / "out")
                with pytest.raises(StoreError, match="too large"):
                    pack(
                        f"{store}:tuned", {"x": folder / "base"}, out=folder / "x", store_base=folder / "base"
                    )
            else:
                with pytest.raises(GraftworkError):
                    opened.checkout("tuned", folder / f"out-{said}")
                assert not opened.verify(deep=True).ok


# ---- delta files


def delta_with(
    path: Path, payload: bytes, *, dtype: str = "BF16", numel: int = 300, method: str = "ordz"
) -> Path:
    """A delta file of one chunk with this payload, its checksum right; its leaf is that of zeros."""
    nbytes = numel * words_of(dtype).nbytes
    leaf = leaf_digest(bytes(nbytes))
    chunk = Chunk(len(payload), method_named(method).code, zlib.crc32(payload), leaf)
    record = {
        "codec": "mixed" if words_of(dtype).exponent_bits else "ordz",
        "dtype": dtype,
        "shape": [numel],
        "nbytes": nbytes,
        "digest": tree_digest(nbytes, [leaf]),
        "basis": None,
    }
    store = path / "delta"
    digest = write_delta(store, None, {"w": record}, {"w::stream": payload, "w::chunks": pack_table([chunk])})
    return ObjectFolder(store / "objects").find(digest, "safetensors")


def refused(path: Path, numel: int = 300, width: int = 2) -> DeltaError:
    from graftwork.delta.basis import BasisReader

    with pytest.raises(DeltaError) as caught, DeltaFile(path) as delta:
        delta.read_chunk("w", 0, BasisReader(None), memoryview(bytearray(numel * width)))
    return caught.value


def test_a_payload_larger_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole in a sparse file, so that the file is as large as its table says."""
    path = delta_with(tmp_path, b"")
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    fields = json.loads(whole[8:start])
    tail = whole[start:]
    for length in (MAX_PAYLOAD_BYTES + 1, (1 << 32) - 1):
        chunk = Chunk(length, 2, 0, leaf_digest(bytes(600)))
        table, manifest = pack_table([chunk]), tail[44:]
        head = raw_header(
            {"w::stream": ("U8", (length,), length), "w::chunks": ("U8", (1, 44), 44)}
            | {"__manifest__": ("U8", (len(manifest),), len(manifest))}
        )
        with path.open("wb") as file:
            file.write(head)
            file.seek(len(head) + length)
            file.write(table + manifest)
        with little_memory(monkeypatch):
            assert "larger than any" in str(refused(path))
    assert set(fields) == {"w::stream", "w::chunks", "__manifest__"}


def frame(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**{"level": 1, **options}).compress(data)


def planes(*frames: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") for each in frames) + b"".join(frames)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (planes(frame(bytes(300)), frame(bytes(1 << 26))), "wrong size"),
        (planes(frame(bytes(300)), frame(bytes(1 << 26), write_content_size=False)), "wrong size"),
        (planes(frame(bytes(300)), frame(bytes(299))), "wrong size"),
        (planes(frame(bytes(300)), frame(bytes(0))), "wrong size"),
        (planes(frame(bytes(300)), b""), "zstd"),
        ((1 << 31).to_bytes(4, "little") * 2 + bytes(20), "do not fill"),
        ((0xFFFFFFFF).to_bytes(4, "little") * 2 + bytes(20), "do not fill"),
    ],
)
def test_planes_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: bytes, words: str) -> None:
    path = delta_with(tmp_path, payload)
    with little_memory(monkeypatch, 4 << 20):
        assert words in str(refused(path))


def header_of_frame(content: int, window_log: int) -> bytes:
    """A zstd frame's beginning that declares its content's size (8 bytes) and a window."""
    return b"\x28\xb5\x2f\xfd" + bytes([0b11000000, (window_log - 10) << 3]) + content.to_bytes(8, "little")


@pytest.mark.parametrize("window_log", [10, 27, 28, 31, 40])
def test_a_window_that_is_much_larger_than_what_is_in_it(window_log: int) -> None:
    """One repeated byte in a frame whose window would take up to a terabyte; memory of C is seen by the process alone."""
    repeated = header_of_frame(300, window_log) + (1 | 1 << 1 | 300 << 3).to_bytes(3, "little") + b"\0"
    payload = planes(repeated, repeated)
    before = peak_memory()
    tuned = bytearray(b"x" * 600)
    basis = memoryview(bytearray(600))
    with suppress(DeltaError):  # whether zstd needs a window depends on how it is called
        method_named("ordz").decode(basis, memoryview(payload), words_of("BF16"), memoryview(tuned))
        assert tuned == bytes(600)
    assert peak_memory() - before < SMALL


def peak_memory() -> int:
    text = Path("/proc/self/status").read_text() if Path("/proc/self/status").exists() else "VmHWM: 0 kB"
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM"))


def lies_about(payload: bytes, fields: int) -> Iterator[bytes]:
    """The payload with each of its first ``fields`` numbers of 4, 2 and 1 bytes replaced by extreme ones."""
    for at in range(min(fields, len(payload) - 4)):
        for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(payload)):
            for width in (4, 2, 1):
                lie = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
                yield payload[:at] + lie + payload[at + width :]


Decoder = Callable[[memoryview, memoryview, memoryview], None]


def by_reference(name: str) -> Decoder:
    def decode(basis: memoryview, payload: memoryview, tuned: memoryview) -> None:
        words, code = (
            torch.frombuffer(basis, dtype=torch.bfloat16),
            torch.frombuffer(payload, dtype=torch.uint8),
        )
        target = torch.frombuffer(tuned, dtype=torch.bfloat16)
        if name == "ordrans":
            entropy_delta.decode_ordinal_rans(words, code, target)
        else:
            sparse_delta.apply_sparse_delta(target.copy_(words), code, False)

    return decode


def by_method(name: str) -> Decoder:
    method = method_named(name)
    return lambda basis, payload, tuned: method.decode(basis, payload, words_of("BF16"), tuned)


@pytest.mark.parametrize("name", ["ordrans", "sparse"])
@pytest.mark.parametrize("by", [by_method, by_reference])
def test_entropy_coded_payloads_that_lie(
    monkeypatch: pytest.MonkeyPatch, name: str, by: Callable[[str], Decoder]
) -> None:
    """Lengths and numbers of segments, levels, tables, words and changes: an error, or another result of its size."""
    numel = 1000
    base = raw_tensor("BF16", (numel,), 1)
    tuned = moved(base, 0.05 if name == "sparse" else 1, 2, reach=3)
    basis = memoryview(bytearray(base.data))
    parts = method_named(name).encode(basis, memoryview(bytearray(tuned.data)), words_of("BF16"), 1)
    assert parts is not None
    payload = b"".join(map(bytes, parts))
    decode, refused_times = by(name), 0
    out = memoryview(bytearray(2 * numel))
    decode(basis, memoryview(bytearray(payload)), out)
    assert out == tuned.data
    with little_memory(monkeypatch, 1 << 20):
        for lie in lies_about(payload, 24 if by is by_method else 16):
            try:
                decode(basis, memoryview(bytearray(lie)), out)
            except ValueError:
                refused_times += 1
            assert basis == base.data
    assert refused_times > 100


@pytest.mark.parametrize("name", ["ordz", "ordrans", "sparse"])
def test_a_payload_for_another_number_of_words(name: str) -> None:
    """Of more words ``sparse`` leaves those as they are that its changes do not reach."""
    base = raw_tensor("BF16", (1000,), 1)
    tuned = moved(base, 0.1, 2)
    tuned = tuned._replace(data=tuned.data[:-2] + bytes([tuned.data[-2] ^ 1, tuned.data[-1]]))
    parts = method_named(name).encode(
        memoryview(bytearray(base.data)), memoryview(bytearray(tuned.data)), words_of("BF16"), 1
    )
    assert parts is not None
    payload = memoryview(bytearray(b"".join(map(bytes, parts))))
    for numel in (1, 999, *((1001, LEAF_BYTES // 2) if name != "sparse" else ())):
        basis = memoryview(bytearray(2 * numel))
        with pytest.raises(DeltaError):
            method_named(name).decode(basis, payload, words_of("BF16"), memoryview(bytearray(2 * numel)))
