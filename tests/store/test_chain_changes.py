"""Limits of chains, and what becomes of a store with them: refusals, damage, removal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from graftwork.errors import (
    BaseMismatch,
    BaseRequired,
    ChecksumError,
    SourceChanged,
    StoreError,
)
from graftwork.store import Store, chains, open_store, pack
from graftwork.store.root import read_root, write_root
from tests.generators.checkpoints import base_tensors, file_hashes, random_tensor, write_folder
from tests.store.chains import next_tensors, pack_chain, put_manifest

# ---- limits


def long_chain(folder: Path, length: int) -> Path:
    """A chain of ``length`` entries, by name ``00``, ``01``, …"""
    tensors = {"w": random_tensor((40, 8), torch.bfloat16, 1)}
    write_folder(folder / "base", tensors)
    names = tuple(f"{number:02d}" for number in range(length))
    for number, name in enumerate(names):
        tensors = next_tensors(tensors, number)
        write_folder(folder / name, tensors)
    return pack_chain(folder, folder / "store", names)


def test_sixteen_entries_are_the_longest_chain(tmp_path: Path) -> None:
    store = long_chain(tmp_path, 16)
    before = file_hashes(store)
    with pytest.raises(StoreError, match="too long") as caught:
        pack(f"{store}:15", {"x": tmp_path / "03"}, out=store, store_base=tmp_path / "base")
    assert "squash STORE 15" in str(caught.value) and file_hashes(store) == before
    with open_store(store, base=tmp_path / "base") as opened:
        assert opened.verify(deep=True).ok
        opened.checkout("15", tmp_path / "out")
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "15")


def test_a_longer_chain_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(chains, "MAX_DEPTH", 100)
        store = long_chain(tmp_path, 17)
    with open_store(store, base=tmp_path / "base") as opened:
        opened.checkout("15", tmp_path / "out")
        for attempt in (lambda: opened.checkout("16", tmp_path / "x"), lambda: opened.tensor("16", "w")):
            with pytest.raises(StoreError, match="too long"):
                attempt()
        assert len(opened.verify().problems) == 1
        opened.squash("15")
        assert opened.verify(deep=True).ok


def test_a_circle_is_not_written(models: Path, store_path: Path, tmp_path: Path) -> None:
    """The entry at the bottom, packed again on top: its tensors would come from its own differences."""
    shutil.copytree(models / "a", tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("new")
    before = file_hashes(store_path)
    with pytest.raises(StoreError, match="cannot be restored") as caught:
        pack(f"{store_path}:c", tmp_path / "a", out=store_path, replace=True, store_base=models / "base")
    assert "each other" in str(caught.value) and file_hashes(store_path) == before


def test_a_circle_is_not_read(store: Store, store_path: Path, models: Path, tmp_path: Path) -> None:
    entry = store.entry("a")
    put_manifest(store_path, "a", replace(entry, base=store.entry("c").tensors_digest))
    with open_store(store_path, base=models / "base") as opened:
        assert [entry.parent for entry in opened.entries()] == [None, None, None]
        with pytest.raises(StoreError, match="cannot be restored"):
            opened.checkout("b", tmp_path / "out")
        problems = opened.verify().problems
        assert len(problems) == 3 and all("each other" in problem for problem in problems)


def test_a_parent_that_is_not_there(store: Store, store_path: Path, models: Path, tmp_path: Path) -> None:
    write_root(store_path, read_root(store_path).without_entry("a"))
    with open_store(store_path, base=models / "base") as opened:
        assert [(entry.name, entry.parent) for entry in opened.entries()] == [("b", None), ("c", None)]
        with pytest.raises(StoreError, match="no such entry"):
            opened.tensor("c", "embed.weight")
        assert len(opened.verify().problems) == 2
        opened.remove("b")  # nothing is lost by it that was not lost before
        with pytest.raises(StoreError, match="cannot be restored"):
            opened.squash("c")


# ---- changing a store with chains


def test_what_others_stand_on_is_not_removed(store: Store, models: Path, tmp_path: Path) -> None:
    before = file_hashes(store.path)
    with pytest.raises(StoreError, match="differences to 'a'") as caught:
        store.remove("a")
    assert caught.value.got == "b" and "squash" in str(caught.value.remedy)
    assert file_hashes(store.path) == before
    store.squash("b")
    store.remove("a")
    assert store.gc().files > 0
    assert store.verify(deep=True).ok
    for name in ("b", "c"):
        store.checkout(name, tmp_path / name)
        assert file_hashes(tmp_path / name) == file_hashes(models / name)
    store.remove("c")
    store.remove("b")


def test_a_twin_stands_in(store: Store, models: Path, tmp_path: Path) -> None:
    """Another entry with the same tensors carries what was packed against the first."""
    pack(models / "base", {"twin": models / "a"}, out=store.path)
    store.remove("a")
    store.gc()
    assert [entry.parent for entry in store.entries()] == ["twin", "b", None]
    store.checkout("c", tmp_path / "c")
    assert file_hashes(tmp_path / "c") == file_hashes(models / "c") and store.verify(deep=True).ok
    with pytest.raises(StoreError, match="differences to 'twin'"):
        store.remove("twin")


def test_an_entry_that_equals_its_parent(models: Path, store: Store, tmp_path: Path) -> None:
    """It has the digest of what it is a difference to, and still stands on the other."""
    result = pack(f"{store.path}:c", {"copy": models / "c"}, out=store.path, store_base=models / "base")
    assert set(result.entries[0].codecs) == {"same"}
    with open_store(store.path, base=models / "base") as opened:
        assert [entry.parent for entry in opened.entries()] == [None, "a", "b", "c"]
        with pytest.raises(StoreError, match="differences to 'c'"):
            opened.remove("c")
        opened.squash("copy")
        opened.remove("c")
        opened.gc()
        opened.checkout("copy", tmp_path / "out")
        assert opened.verify(deep=True).ok
    assert file_hashes(tmp_path / "out") == file_hashes(models / "c")


def test_a_damaged_parent_can_be_removed(store: Store, models: Path) -> None:
    store.objects.find(store.manifest_digest("a"), "json").write_bytes(b"{}")
    with open_store(store.path, base=models / "base") as opened:
        assert len(opened.verify().problems) == 3
        opened.remove("a")
        assert len(opened.verify().problems) == 2


def test_what_others_stand_on_keeps_its_tensors(models: Path, store_path: Path, tmp_path: Path) -> None:
    before = file_hashes(store_path)
    with pytest.raises(StoreError, match="differences to 'a'"):
        pack(models / "base", {"a": models / "c"}, out=store_path, replace=True)
    with pytest.raises(StoreError, match="cannot be restored"):
        pack(f"{store_path}:c", {"c": models / "a"}, out=store_path, replace=True, store_base=models / "base")
    assert file_hashes(store_path) == before
    shutil.copytree(models / "a", tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("new")
    result = pack(models / "base", tmp_path / "a", out=store_path, replace=True)
    assert result.entries[0].status == "replaced", "other files, but the same tensors"
    with open_store(store_path, base=models / "base") as opened:
        assert opened.verify(deep=True).ok


def test_packing_into_a_chain_again_changes_nothing(models: Path, store_path: Path) -> None:
    before = file_hashes(store_path)
    for base in (f"{store_path}:a", models / "base"):
        extra = {"store_base": models / "base"} if ":" in str(base) else {}
        result = pack(base, models / "b", out=store_path, **extra)
        assert result.entries[0].status == "unchanged"
    assert file_hashes(store_path) == before


def test_gc_keeps_what_chains_need(store: Store) -> None:
    before = file_hashes(store.path)
    assert store.gc().files == 0 and file_hashes(store.path) == before


def test_an_entry_that_equals_the_base_is_the_base(models: Path, tmp_path: Path) -> None:
    pack(models / "base", {"copy": models / "base"}, out=tmp_path / "store")
    pack(f"{tmp_path / 'store'}:copy", models / "a", out=tmp_path / "store", store_base=models / "base")
    with open_store(tmp_path / "store", base=models / "base") as opened:
        assert [entry.parent for entry in opened.entries()] == [None, None]
        opened.checkout("a", tmp_path / "out")
    assert file_hashes(tmp_path / "out") == file_hashes(models / "a")


# ---- damage, and bases that are not at hand


def test_damage_below_is_noticed_above(store: Store, models: Path, tmp_path: Path) -> None:
    record = store.entry("a").tensors["embed.weight"]
    path = store.objects.find(record.object, "safetensors")
    data = bytearray(path.read_bytes())
    start = store.sources.delta(record.object).chunks(record.key)[1][0]
    data[start + 40] ^= 1
    path.write_bytes(data)
    with open_store(store.path, base=models / "base") as opened:
        with pytest.raises(ChecksumError):
            opened.checkout("c", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(ChecksumError):
            opened.tensor("c", "embed.weight")
        with pytest.raises(ChecksumError):
            opened.squash("c")
        assert len(opened.verify(deep=True).problems) == 4, "the object, and each entry"


@pytest.mark.parametrize("held", [False, True])
def test_the_base_of_a_chain(models: Path, tmp_path: Path, held: bool) -> None:
    store = tmp_path / "store"
    pack(models / "base", models / "a", out=store, with_base=held)
    if held:
        pack(f"{store}:a", models / "b", out=store)
    else:
        with pytest.raises(BaseRequired, match="--base"):
            pack(f"{store}:a", models / "b", out=store)
        pack(f"{store}:a", models / "b", out=store, store_base=models / "base")
    with open_store(store) as opened:
        if held:
            opened.checkout("b", tmp_path / "out")
            opened.squash("b")
            assert opened.verify(deep=True).ok
            return
        attempts: list[Callable[[], object]] = [
            lambda: opened.checkout("b", tmp_path / "out"),
            lambda: opened.tensor("b", "embed.weight"),
            lambda: opened.squash("b"),
        ]
        for attempt in attempts:
            with pytest.raises(BaseRequired, match="--base"):
                attempt()
        report = opened.verify(deep=True)
        assert report.ok and len(report.notes) == 2
    wrong = base_tensors()
    wrong["layers.0.norm.weight"] += 1
    write_folder(tmp_path / "wrong", wrong)
    before = file_hashes(store)
    with open_store(store, base=tmp_path / "wrong") as opened:
        for attempt in (*attempts[:1], lambda: opened.tensor("b", "layers.0.norm.weight"), attempts[2]):
            with pytest.raises(BaseMismatch):
                attempt()
        assert not opened.verify(deep=True).ok
    with pytest.raises(BaseMismatch):
        pack(f"{store}:a", {"x": models / "c"}, out=store, store_base=tmp_path / "wrong")
    assert file_hashes(store) == before


def test_a_base_that_changes_while_a_chain_is_packed(models: Path, store_path: Path, tmp_path: Path) -> None:
    base = shutil.copytree(models / "base", tmp_path / "base")
    before = {path.name for path in store_path.iterdir()}

    def touch(stage: str, done: int, total: int) -> None:
        if stage.startswith("pack"):
            (base / "config.json").write_text("{}")

    with pytest.raises(SourceChanged):
        pack(f"{store_path}:c", {"x": models / "a"}, out=store_path, store_base=base, progress=touch)
    assert {path.name for path in store_path.iterdir()} == before
    assert "x" not in read_root(store_path).entries
