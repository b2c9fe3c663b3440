"""A second reader of the store, written from docs/store-format.md alone: it shares no code with the package."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from tests.store.second_reader_codes import ordrans, sparse

LEAF = 1 << 20
WORD = {
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "C64": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
FLOATS = {"F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F16", "BF16", "F32", "C64", "F64"}


def tree(data: bytes) -> str:
    leaves = [hashlib.sha256(data[i : i + LEAF]).digest() for i in range(0, len(data), LEAF)]
    return hashlib.sha256(
        b"graftwork-tree-1" + len(data).to_bytes(8, "little") + b"".join(leaves)
    ).hexdigest()


def safetensors(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: (
            row["dtype"],
            row["shape"],
            data[start + row["data_offsets"][0] : start + row["data_offsets"][1]],
        )
        for name, row in header.items()
    }


def cast(raw: bytes, source: str, target: str) -> bytes:
    if source == "BF16":
        wide = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        wide = np.frombuffer(raw, "<f2" if source == "F16" else "<f4").astype("<f4")
    wide = np.where(np.isnan(wide), np.float32(0), wide)
    if target == "F32":
        return wide.tobytes()
    if target == "F16":
        with np.errstate(over="ignore"):
            return wide.astype("<f2").tobytes()
    bits = wide.view("<u4").astype("<u8")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def position(words: np.ndarray, dtype: str) -> np.ndarray:
    if dtype not in FLOATS:
        return words
    top = words.dtype.type(1 << (8 * words.itemsize - 1))
    return words ^ np.where(words & top, ~words.dtype.type(0), top)


def unposition(places: np.ndarray, dtype: str) -> np.ndarray:
    if dtype not in FLOATS:
        return places
    top = places.dtype.type(1 << (8 * places.itemsize - 1))
    return places ^ np.where(places & top, top, ~places.dtype.type(0))


def join_planes(basis: bytes, payload: bytes, dtype: str) -> bytes:
    width = WORD.get(dtype, 1)
    lengths = np.frombuffer(payload[: 4 * width], "<u4").tolist()
    words, at = np.zeros(len(basis) // width, f"<u{width}"), 4 * width
    for j, length in enumerate(lengths):
        plane = zstandard.ZstdDecompressor().decompress(payload[at : at + length])
        words |= np.frombuffer(plane, "u1").astype(words.dtype) << words.dtype.type(8 * j)
        at += length
    assert at == len(payload)
    one = words.dtype.type(1)
    difference = (words >> one) ^ (words.dtype.type(0) - (words & one))
    base = position(np.frombuffer(basis, words.dtype), dtype)
    return unposition(base + difference, dtype).tobytes()


def add_differences(basis: bytes, differences: list[int], dtype: str) -> bytes:
    base = np.frombuffer(basis, f"<u{WORD[dtype]}")
    wide = position(base, dtype).astype(np.int64) + np.array(differences, np.int64)
    return unposition(wide.astype(base.dtype), dtype).tobytes()


def restore_chunk(method: int, basis: bytes, payload: bytes, dtype: str) -> bytes:
    if method < 2:
        return (basis, payload)[method]
    if method == 2:
        return join_planes(basis, payload, dtype)
    width = WORD[dtype]
    if method == 4:
        return add_differences(basis, sparse(payload, len(basis) // width, width), dtype)
    assert method == 3
    words = np.frombuffer(basis, f"<u{width}").tolist()
    return add_differences(basis, ordrans(payload, words, width, 5 if dtype == "F16" else 8), dtype)


class SecondReader:
    """Restores entries of a store; ``base(name)`` gives the bytes of a tensor of the base."""

    def __init__(self, store: Path, base: Callable[[str], bytes]) -> None:
        self.store = store
        self.base = base
        text = (store / "store.json").read_bytes()
        self.root = json.loads(text)
        assert self.root["format"] == "graftwork-store" and self.root["min_reader"] <= [1, 1]
        rest = {key: value for key, value in self.root.items() if key != "digest"}
        canonical = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
        assert hashlib.sha256(canonical).hexdigest() == self.root["digest"]

    def object(self, digest: str, suffix: str) -> bytes:
        data = (self.store / "objects" / digest[:2] / f"{digest}.{suffix}").read_bytes()
        assert tree(data) == digest
        return data

    def blob(self, reference: dict[str, Any]) -> bytes:
        data = zstandard.ZstdDecompressor().decompress(
            self.object(reference["object"], "zst"), max_output_size=reference["nbytes"]
        )
        assert (len(data), tree(data)) == (reference["nbytes"], reference["digest"])
        return data

    def files(self, name: str) -> dict[str, bytes]:
        """Every file of an entry."""
        entry = self.entry(name)
        return {
            file["path"]: self.with_tensors(file, entry) if file["holds_tensors"] else self.blob(file["blob"])
            for file in entry["files"]
        }

    def entry(self, name: str) -> dict[str, Any]:
        entry = json.loads(self.object(self.root["entries"][name]["manifest"], "json"))
        assert entry["format"] == "graftwork-entry" and entry["min_reader"] <= [1, 1]
        return entry

    def below(self, entry: dict[str, Any]) -> Callable[[str], bytes]:
        """The tensors that an entry is a difference to: the base's, or those of the entry nearest to it."""
        ends = (None, self.root["base"]["digest"])
        if entry["base"] in ends:
            return self.base
        assert entry["min_reader"] >= [1, 1]
        entries = [self.entry(name) for name in sorted(self.root["entries"])]
        level = [other for other in entries if other["base"] in ends]
        for _ in range(15):  # an entry stands on at most 15 others
            found = [other for other in level if other["tensors_digest"] == entry["base"]]
            if found:
                return lambda key: self.tensor(found[0]["tensors"][key], found[0])
            digests = {other["tensors_digest"] for other in level}
            level = [other for other in entries if other["base"] in digests]
        raise AssertionError("a chain that is too long, or leads nowhere")

    def with_tensors(self, file: dict[str, Any], entry: dict[str, Any]) -> bytes:
        head = self.blob(file["blob"])
        out = bytearray(head).ljust(file["nbytes"], b"?")
        header = json.loads(head[8:])
        for name, row in header.items():
            if name != "__metadata__":
                start, stop = (len(head) + offset for offset in row["data_offsets"])
                out[start:stop] = self.tensor(entry["tensors"][name], entry)
        return bytes(out)

    def tensor(self, row: list[Any], entry: dict[str, Any]) -> bytes:
        _, _, digest, delta, key = row
        fields = safetensors(self.object(delta, "safetensors"))
        manifest = json.loads(fields["__manifest__"][2])
        record = manifest["tensors"][key]
        assert record["basis"] is None or manifest["base"] == entry["base"]
        basis = self.basis(record, entry)
        if record["codec"] == "same":
            data = basis
        else:
            data = self.chunks(
                basis, fields[f"{key}::chunks"][2], fields[f"{key}::stream"][2], record["dtype"]
            )
        assert tree(data) == digest == record["digest"]
        return data

    def basis(self, record: dict[str, Any], entry: dict[str, Any]) -> bytes:
        basis = record["basis"]
        if basis is None:
            return bytes(record["nbytes"])
        raw = self.below(entry)(basis["name"])
        assert tree(raw) == basis["digest"]
        if basis["dtype"] != record["dtype"]:
            raw = cast(raw, basis["dtype"], record["dtype"])
        return raw[: basis["nbytes"]].ljust(record["nbytes"], b"\0")

    def chunks(self, basis: bytes, table: bytes, stream: bytes, dtype: str) -> bytes:
        out, at = [], 0
        for index in range(len(table) // 44):
            record = table[44 * index : 44 * index + 44]
            length, crc = int.from_bytes(record[:4], "little"), int.from_bytes(record[8:12], "little")
            payload, own = stream[at : at + length], basis[index * LEAF : (index + 1) * LEAF]
            at += length
            assert zlib.crc32(payload) == crc
            chunk = restore_chunk(record[4], own, payload, dtype)
            assert hashlib.sha256(chunk).digest() == record[12:]
            out.append(chunk)
        assert at == len(stream)
        return b"".join(out)
