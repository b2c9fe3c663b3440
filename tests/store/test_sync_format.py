"""The wire form does not drift: golden bytes, and what docs/weight-sync.md says of them, read without the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from graftwork.store.sync import apply_, encode
from tests.store.second_reader import safetensors
from tests.store.sync_cases import State, bits, cloned

GOLDEN = Path(__file__).parent / "golden" / "sync-1.safetensors"


def versions() -> tuple[State, State]:
    """Two versions whose every bit is written here; ``tied`` is ``w``."""
    w = (torch.arange(4096, dtype=torch.float32) / 4096 - 0.5).bfloat16()
    before = {"w": w, "same": torch.arange(5), "tied": w, "none": torch.zeros(0, 3)}
    after = cloned(before)
    after["w"].view(torch.int16)[7::131] += 1
    after["w"].view(torch.int16)[11::500] -= 300
    return before, {**after, "tied": after["w"]}


def test_the_golden_payload_is_applied() -> None:
    before, after = versions()
    target = cloned(before)
    report = apply_(target, GOLDEN, expect_parent="ä")
    assert bits(target) == bits(after)
    assert (report.version, report.parent, report.changed_chunks) == ("2", "ä", 1)


def test_the_golden_payload_is_written() -> None:
    assert encode(*versions(), version="2", parent="ä") == GOLDEN.read_bytes()


def test_the_golden_payload_is_what_the_documentation_says() -> None:
    data = GOLDEN.read_bytes()
    after = bits(versions()[1])
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert data[8:start] == json.dumps(header, separators=(",", ":")).encode().ljust(start - 8)
    assert next(iter(header)) == "__metadata__"
    assert list(header["__metadata__"]) == ["format", "version", "sync", "seal"]
    sync, fields = header["__metadata__"]["sync"], safetensors(data)
    assert json.loads(sync) == {"parent": "ä", "tied": {"tied": "w"}, "version": "2"}
    manifest = fields["__manifest__"][2]
    sealed = b"graftwork-sync-1" + len(sync).to_bytes(8, "little") + sync.encode() + manifest
    assert hashlib.sha256(sealed).hexdigest() == header["__metadata__"]["seal"]
    records = json.loads(manifest)["tensors"]
    assert json.loads(manifest)["base"] is None and list(records) == ["none", "same", "w"]
    assert set(fields) == {f"{name}::{part}" for name in records for part in ("stream", "chunks")} | {
        "__manifest__"
    }
    for name, record in records.items():
        assert record["basis"] == {
            "digest": None, "dtype": record["dtype"], "name": name, "nbytes": record["nbytes"]
        }  # fmt: skip
        table, stream = fields[f"{name}::chunks"][2], fields[f"{name}::stream"][2]
        assert len(table) == (44 if record["nbytes"] else 0)
        if table:
            assert table[4] == (4 if name == "w" else 0) and table[5:8] == bytes(3)
            assert int.from_bytes(table[:4], "little") == len(stream)
            assert table[12:] == hashlib.sha256(after[name]).digest()
