"""The file of a sparse delta: nothing is lost, nothing damaged is taken, and its bytes are those of the format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from graftwork.adapt import SparseDelta, TunedTensor
from graftwork.adapt.deltas import delta_file
from graftwork.adapt.deltas.delta_file import load_delta
from graftwork.checkpoint.files import Step, observe
from graftwork.delta.memory import MemoryFile
from graftwork.errors import ChecksumError, DeltaError, GraftworkError, TargetExists, VersionTooNew
from graftwork.ops.sparse_update import Support
from tests.adapt.deltas import base_state, bits, mixed_state, random_delta, with_head
from tests.generators.sealed_files import Parts
from tests.generators.sealed_files import rewrite as resealed

GOLDEN = Path(__file__).parent / "golden" / "sparse_delta.safetensors"


def same(one: SparseDelta, other: SparseDelta) -> bool:
    return (
        one.tensors == other.tensors
        and torch.equal(one.support.indices, other.support.indices)
        and one.support.indices.dtype == other.support.indices.dtype
        and torch.equal(one.support.offsets, other.support.offsets)
        and bits({"": one.values}) == bits({"": other.values})
        and bits(one.full) == bits(other.full)
        and [t.shape for t in one.full.values()] == [t.shape for t in other.full.values()]
        and one.tied == other.tied
        and one.base_digest == other.base_digest
    )


def saved(delta: SparseDelta, folder: Path, **how: Any) -> bytes:
    path = folder / "delta.safetensors"
    delta.save(path, overwrite=True, **how)
    return path.read_bytes()


def small() -> SparseDelta:
    """A delta with all that one can have, in few bytes."""
    tensors = [
        TunedTensor("a", (4, 5), torch.float32, "0" * 63 + "a"),
        TunedTensor("b", (9,), torch.bfloat16),
        TunedTensor("empty", (0,), torch.float16),
    ]
    support = Support(
        [torch.tensor([0, 7, 19]), torch.tensor([8]), torch.tensor([], dtype=torch.int64)], [20, 9, 0]
    )
    values = torch.tensor([1.0, -0.5, -0.0, 3.0e-39])
    full = {"head": torch.tensor([[1.5], [-2.0]]), "count": torch.tensor(7)}
    return SparseDelta(tensors, support, values, full=full, tied={"c": "a"}, base_digest="f" * 64)


def test_all_of_a_small_one(tmp_path: Path) -> None:
    data = saved(small(), tmp_path)
    assert same(load_delta(MemoryFile(data), threads=1), small())
    assert same(SparseDelta.load(tmp_path / "delta.safetensors"), small())
    with safe_open(tmp_path / "delta.safetensors", "pt") as file:
        assert file.metadata()["format"] == "graftwork-delta"


@given(
    seed=st.integers(0, 99),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.6, 1.0]),
    entries=st.sampled_from([0, 1, 31, 33, 1000, 4097]),
)
def test_any_delta_comes_back(seed: int, density: float, entries: int, tmp_path_factory: Any) -> None:
    base = mixed_state() | {"w": torch.zeros(entries)}
    delta = random_delta(base, seed, density)
    data = saved(delta, tmp_path_factory.mktemp("delta"))
    assert same(load_delta(MemoryFile(data), threads=1), delta)


def test_large_tensors_of_several_chunks(tmp_path: Path) -> None:
    base = {"w": torch.zeros(1000, 4000)}
    delta = random_delta(base, 3, 0.3)
    delta = SparseDelta(
        delta.tensors, delta.support, delta.values, full={"h": torch.randn(1 << 19).bfloat16()}
    )
    data = {threads: saved(delta, tmp_path, threads=threads) for threads in (1, 2, 7)}
    assert len({*data.values()}) == 1, "bytes do not depend on threads"
    for threads in (1, 2):
        assert same(load_delta(MemoryFile(data[1]), threads=threads), delta)
    assert len(data[1]) < 5 * delta.entries + (1 << 20), "indices take about a byte, values less than four"


def test_tensors_of_more_than_2_to_the_31_elements(tmp_path: Path) -> None:
    shape = (3, (1 << 30) + 1)
    support = Support([torch.tensor([5, (1 << 31) + 7, 3 * shape[1] - 1])], [3 * shape[1]])
    delta = SparseDelta([TunedTensor("w", shape, torch.bfloat16)], support, torch.ones(3))
    assert delta.support.indices.dtype == torch.int64
    assert same(load_delta(MemoryFile(saved(delta, tmp_path)), threads=1), delta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_in_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    delta = random_delta({"w": torch.zeros(100_000)}, 1)
    data = saved(delta, tmp_path, values_dtype=dtype)
    found = load_delta(MemoryFile(data), threads=1)
    assert torch.equal(found.values, delta.values.to(dtype).float())
    assert torch.equal(found.support.indices, delta.support.indices)
    assert len(data) < 0.75 * len(saved(delta, tmp_path))
    with pytest.raises(DeltaError, match="cannot be kept"):
        delta.save(tmp_path / "x", values_dtype=torch.float64)
    with pytest.raises(DeltaError, match="cannot be kept"):
        (1e9 * delta).save(tmp_path / "x", values_dtype=torch.float16)
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    small().save(path)
    before = path.read_bytes()
    with pytest.raises(TargetExists):
        small().save(path)
    other = random_delta(base_state(), 1)

    def fail(step: Step) -> None:
        if step.kind == "rename":
            raise OSError(5, "injected")

    with observe(before=fail), pytest.raises(OSError, match="injected"):
        other.save(path, overwrite=True)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]
    other.save(path, overwrite=True)
    assert same(SparseDelta.load(path), other)


def test_the_golden_file(tmp_path: Path) -> None:
    assert saved(small(), tmp_path) == GOLDEN.read_bytes()
    assert same(SparseDelta.load(GOLDEN), small())


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_every_changed_byte_is_refused(flip: int, tmp_path: Path) -> None:
    data = saved(small(), tmp_path)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= flip
        with pytest.raises(GraftworkError):
            load_delta(MemoryFile(broken), threads=1)


def test_every_truncation_and_extension_is_refused(tmp_path: Path) -> None:
    data = saved(small(), tmp_path)
    for stop in range(len(data)):
        with pytest.raises(GraftworkError):
            load_delta(MemoryFile(data[:stop]), threads=1)
    with pytest.raises(GraftworkError):
        load_delta(MemoryFile(data + b"\0"), threads=1)


def test_damage_anywhere_in_a_large_file(tmp_path: Path) -> None:
    data = saved(random_delta({"w": torch.zeros(400_000)}, 1), tmp_path)
    for position in torch.randint(len(data), (60,), generator=torch.Generator().manual_seed(0)).tolist():
        broken = bytearray(data)
        broken[position] ^= 4
        with pytest.raises(GraftworkError):
            load_delta(MemoryFile(broken), threads=1)


rewrite = partial(resealed, kind="sparse")


def test_a_rewritten_file_is_a_file(tmp_path: Path) -> None:
    data = rewrite(saved(small(), tmp_path), change=lambda parts: None)
    assert same(load_delta(MemoryFile(data), threads=1), small())


def said(**changes: Any) -> Callable[[Parts], object]:
    return lambda parts: parts["said"].update(changes)


def row(place: int, value: Any, name: str = "a") -> Callable[[Parts], object]:
    return lambda parts: parts["said"]["tensors"][name].__setitem__(place, value)


def record(name: str, **changes: Any) -> Callable[[Parts], object]:
    return lambda parts: parts["manifest"]["tensors"][name].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["said"].pop("tensors"), "malformed"),
        (said(tensors=[1]), "malformed"),
        (said(format="other"), "another format"),
        (said(base="x"), "base's digest"),
        (said(values="F64"), "unknown dtype"),
        (said(full=["head"]), "not those of the delta"),
        (said(full=["head", "count", "more"]), "not those of the delta"),
        (said(full=[1]), "no text"),
        (said(tied={"c": 1}), "no text"),
        (said(tied={"c": "nobody"}), "tied"),
        (said(tied={"b": "a"}), "one name"),
        (row(0, "I64"), "cannot be tuned"),
        (row(0, "X"), "malformed"),
        (row(1, [4, -5]), "whole numbers"),
        (row(1, [4, 5.0]), "whole numbers"),
        (row(1, [1 << 62, 1 << 62]), "more changes than elements"),
        (row(1, [2]), "more changes than elements"),
        (row(1, [19]), "indices are malformed"),
        (row(2, 2), "another kind"),
        (row(2, 0), "not those of the delta"),
        (row(2, "3"), "whole numbers"),
        (row(3, "zip"), "indices are malformed"),
        (row(3, "raw"), "indices are malformed"),
        (row(3, None), "indices are malformed"),
        (row(4, "digest"), "digest is malformed"),
        (
            record("values/a", basis={"name": "x", "digest": None, "dtype": "F32", "nbytes": 12}),
            "another kind",
        ),
        (record("values/a", codec="ordz"), None),
        (record("values/a", codec="same"), "same"),
        (record("indices/a", dtype="I8"), "another kind"),
        (lambda p: p["manifest"]["tensors"].pop("full/head"), "fields"),
        (lambda p: p["fields"].update({"more::stream": b""}), "fields"),
        (lambda p: p["metadata"].update(more="1"), "not the file of a sparse delta"),
        (lambda p: p["metadata"].update(version="1.9"), "canonical"),
    ],
)
def test_a_sealed_file_is_checked_as_well(
    change: Callable[[Parts], object], message: str | None, tmp_path: Path
) -> None:
    """A seal protects from accidents; whoever makes a file can seal anything."""
    data = rewrite(saved(small(), tmp_path), change=change)
    if message is None:
        assert same(load_delta(MemoryFile(data), threads=1), small())
        return
    with pytest.raises(DeltaError, match=message) as caught:
        load_delta(MemoryFile(data), threads=1)
    assert caught.value.file is not None or message in ("tied", "one name")


def test_what_the_seal_covers(tmp_path: Path) -> None:
    data = saved(small(), tmp_path)
    for change in (
        lambda p: p["metadata"].update(sparse="{}"),
        lambda p: p["manifest"].update(more=1),
    ):
        with pytest.raises(ChecksumError, match="seal"):
            load_delta(MemoryFile(rewrite(data, change=change, seal=False)), threads=1)


def test_a_newer_format(tmp_path: Path) -> None:
    data = saved(small(), tmp_path)
    with pytest.raises(VersionTooNew, match="upgrade"):
        load_delta(MemoryFile(rewrite(data, change=said(min_reader=[1, 1]))), threads=1)
    later = rewrite(data, change=said(version=[1, 7], more="unknown keys are ignored"))
    assert same(load_delta(MemoryFile(later), threads=1), small())


def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros code to next to nothing: they are stored as they are, and files that do otherwise are refused."""
    count = 1 << 19
    support = Support([torch.arange(count)], [count])
    delta = SparseDelta([TunedTensor("w", (count,), torch.float32)], support, torch.zeros(count))
    data = saved(delta, tmp_path)
    assert len(data) > 4 * count
    assert same(load_delta(MemoryFile(data), threads=1), delta)
    monkeypatch.setattr(delta_file, "_LEAST_SHARE", 1 << 30)
    bomb = saved(delta, tmp_path)
    assert len(bomb) < count // 8
    monkeypatch.undo()
    with pytest.raises(DeltaError, match="stored in another way"):
        load_delta(MemoryFile(bomb), threads=1)


def test_other_files_are_no_sparse_deltas(tmp_path: Path) -> None:
    from graftwork.store.sync import encode

    save_file(base_state(), tmp_path / "model.safetensors")
    with pytest.raises(DeltaError, match="no manifest"):
        SparseDelta.load(tmp_path / "model.safetensors")
    payload = encode(base_state(), base_state())
    with pytest.raises(DeltaError, match="not the file of a sparse delta"):
        load_delta(MemoryFile(payload), threads=1)
    with pytest.raises(FileNotFoundError):
        SparseDelta.load(tmp_path / "nothing")
    head = with_head(base_state(), head=torch.ones(3, dtype=torch.float8_e5m2))
    assert same(load_delta(MemoryFile(saved(head, tmp_path)), threads=1), head)
