"""The store's verbs: what they do, and what they refuse."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from graftwork.checkpoint.files import FolderLock
from graftwork.errors import (
    BaseMismatch,
    BaseRequired,
    CheckpointError,
    GraftworkError,
    StoreError,
    TargetExists,
    VersionTooNew,
)
from graftwork.store import Store, open_store, pack
from graftwork.store.root import WRITER_LOCK, canonical_json
from tests.generators.checkpoints import base_tensors, file_hashes, tuned_tensors, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ``base``, its fine-tunes ``a`` and ``b``, and ``store`` with both."""
    base = base_tensors()
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "a", tuned_tensors(base))
    write_folder(tmp_path / "b", tuned_tensors(base, sigma=1e-2))
    pack(tmp_path / "base", {"a": tmp_path / "a", "b": tmp_path / "b"}, out=tmp_path / "store")
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with open_store(folder / "store", base=folder / "base") as opened:
        yield opened


# ---- what it holds


def test_entries(store: Store, folder: Path) -> None:
    a, b = store.entries()
    assert (a.name, b.name) == ("a", "b")
    assert a.file_bytes == sum(path.stat().st_size for path in (folder / "a").iterdir())
    assert 0 < a.stored_bytes < a.file_bytes and a.tensors == 7 and a.base_digest == store.base_digest


def test_tensor_and_state_dict(store: Store) -> None:
    wanted = tuned_tensors(base_tensors())
    for name, tensor in store.state_dict("a").items():
        assert tensor.dtype is torch.bfloat16 and torch.equal(tensor, wanted[name]), name
    tensor = store.tensor("a", "embed.weight")
    tensor.zero_()
    assert torch.equal(store.tensor("a", "embed.weight"), wanted["embed.weight"]), "tensors own their memory"


def test_load_into(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 4, dtype=torch.bfloat16)
            self.head = nn.Linear(4, 8, bias=False, dtype=torch.bfloat16)
            self.head.weight = self.embed.weight

    base = {"embed.weight": torch.zeros(8, 4, dtype=torch.bfloat16)}
    tuned = {"embed.weight": torch.randn(8, 4).bfloat16()}
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned)
    pack(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "store")
    with open_store(tmp_path / "store", base=tmp_path / "base") as store:
        model = Tied()
        store.load_into(model, "tuned")
        assert torch.equal(model.head.weight, tuned["embed.weight"])
        untied = nn.ModuleDict({"embed": nn.Embedding(8, 4), "extra": nn.Linear(2, 2)})
        before = {name: tensor.clone() for name, tensor in untied.state_dict().items()}
        with pytest.raises(StoreError, match="does not fit") as caught:
            store.load_into(untied, "tuned")
        assert "extra.bias" in str(caught.value) and "model F32" in str(caught.value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in untied.state_dict().items())


def test_with_base_needs_no_base_folder(folder: Path) -> None:
    pack(folder / "base", folder / "a", out=folder / "whole", with_base=True)
    hashes = {name: file_hashes(folder / name) for name in ("base", "a")}
    with open_store(folder / "whole") as store:
        assert store.holds_base and [entry.name for entry in store.entries()] == ["a", "base"]
        for name, wanted in hashes.items():
            store.checkout(name, folder / "out" / name)
            assert file_hashes(folder / "out" / name) == wanted
        assert store.verify(deep=True).restored == 14


def test_a_base_that_joins_later_stands_on_its_own(folder: Path) -> None:
    """Its tensors are in the store already, but as differences to the base itself: those are of no use to it."""
    with open_store(folder / "store") as store:
        assert not store.holds_base
    pack(folder / "base", {"c": folder / "b"}, out=folder / "store", with_base=True)
    wanted = file_hashes(folder / "base")
    with open_store(folder / "store") as store:
        store.checkout("base", folder / "out" / "base")
        store.checkout("a", folder / "out" / "a")
        assert store.verify(deep=True).ok
    assert file_hashes(folder / "out" / "base") == wanted
    assert file_hashes(folder / "out" / "a") == file_hashes(folder / "a")


def test_an_entry_without_a_base_may_not_refer_to_a_difference(folder: Path) -> None:
    """As an earlier writer's fault would leave it: every digest is right, and only the reference is not."""
    from dataclasses import replace

    from graftwork.store.objects import ObjectFolder
    from graftwork.store.root import read_root, write_root

    with open_store(folder / "store") as store:
        entry = replace(store.entry("a"), base=None)
    digest = ObjectFolder(folder / "store" / "objects").put(entry.to_bytes(), "json")
    write_root(folder / "store", read_root(folder / "store").with_entry("a", digest))
    with open_store(folder / "store", base=folder / "base") as store:
        assert any("refers to a difference" in problem for problem in store.verify().problems)
        with pytest.raises(StoreError, match="refers to a difference"):
            store.checkout("a", folder / "out")


def test_a_base_that_was_packed_as_a_fine_tune_is_packed_again_to_be_held(folder: Path) -> None:
    pack(folder / "base", folder / "base", out=folder / "store")
    with open_store(folder / "store") as store:
        assert not store.holds_base
    result = pack(folder / "base", {"a": folder / "a"}, out=folder / "store", with_base=True)
    assert [entry.status for entry in result.entries] == ["replaced", "unchanged"]
    with open_store(folder / "store") as store:
        assert store.holds_base and store.verify(deep=True).restored == 21


# ---- adding


def test_packing_again_changes_nothing(folder: Path) -> None:
    before = file_hashes(folder / "store")
    result = pack(folder / "base", [folder / "a", folder / "b"], out=folder / "store")
    assert [entry.status for entry in result.entries] == ["unchanged", "unchanged"]
    assert file_hashes(folder / "store") == before


def test_other_content_under_a_taken_name(folder: Path) -> None:
    before = file_hashes(folder / "store")
    with pytest.raises(StoreError, match="other content") as caught:
        pack(folder / "base", {"c": folder / "a", "a": folder / "b"}, out=folder / "store")
    assert "--replace" in str(caught.value) and file_hashes(folder / "store") == before
    result = pack(folder / "base", {"a": folder / "b"}, out=folder / "store", replace=True)
    assert result.entries[0].status == "replaced"
    with open_store(folder / "store", base=folder / "base") as store:
        store.checkout("a", folder / "out")
    assert file_hashes(folder / "out") == file_hashes(folder / "b")


def test_a_changed_file_beside_the_tensors_is_other_content(folder: Path) -> None:
    (folder / "a" / "config.json").write_text("{}")
    with pytest.raises(StoreError, match="other content"):
        pack(folder / "base", folder / "a", out=folder / "store")


def test_another_base_is_refused_before_work_starts(folder: Path) -> None:
    wrong = base_tensors()
    wrong["layers.1.attn.weight"][3, 3] += 1
    write_folder(folder / "wrong", wrong)
    before = file_hashes(folder / "store")
    with pytest.raises(BaseMismatch) as caught:
        pack(folder / "wrong", folder / "b", out=folder / "store")
    assert caught.value.tensor == "layers.1.attn.weight" and file_hashes(folder / "store") == before
    with open_store(folder / "store", base=folder / "wrong") as store:
        with pytest.raises(BaseMismatch) as caught:
            store.checkout("a", folder / "out")
        assert caught.value.tensor == "layers.1.attn.weight" and not (folder / "out").exists()
        with pytest.raises(BaseMismatch):
            store.tensor("a", "layers.1.attn.weight")
        assert not store.verify(deep=True).ok


def test_a_wrong_base_is_noticed_where_the_tensor_equals_the_base(folder: Path) -> None:
    wrong = base_tensors()
    wrong["layers.0.norm.weight"] += 1
    write_folder(folder / "wrong", wrong)
    with open_store(folder / "store", base=folder / "wrong") as store, pytest.raises(BaseMismatch):
        store.tensor("a", "layers.0.norm.weight")


# ---- refusals


def test_no_base(folder: Path) -> None:
    with open_store(folder / "store") as store:
        for attempt in (
            lambda: store.checkout("a", folder / "out"),
            lambda: store.tensor("a", "embed.weight"),
        ):
            with pytest.raises(BaseRequired, match="--base"):
                attempt()
        assert store.verify().ok and store.verify(deep=True).notes
    assert not (folder / "out").exists()


def test_unknown_names(store: Store, folder: Path) -> None:
    with pytest.raises(StoreError, match="a, b"):
        store.checkout("c", folder / "out")
    with pytest.raises(StoreError, match="no such tensor"):
        store.tensor("a", "embed")


def test_a_target_that_exists(store: Store, folder: Path) -> None:
    (folder / "out").mkdir()
    store.checkout("a", folder / "out")
    with pytest.raises(TargetExists):
        store.checkout("b", folder / "out")
    assert file_hashes(folder / "out") == file_hashes(folder / "a")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "a\nb"])
def test_unusable_names(folder: Path, name: str) -> None:
    with pytest.raises(StoreError, match="name"):
        pack(folder / "base", {name: folder / "a"}, out=folder / "new")
    assert not (folder / "new").exists()


def test_bad_input_writes_nothing(folder: Path) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "model.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError):
        pack(folder / "base", [folder / "a", folder / "broken"], out=folder / "new")
    with pytest.raises(StoreError, match="codec"):
        pack(folder / "base", folder / "a", out=folder / "new", codec="tiny")
    with pytest.raises(StoreError, match="nothing to pack"):
        pack(folder / "base", [], out=folder / "new")
    with pytest.raises(StoreError, match="one name"):
        pack(folder / "base", [folder / "a", ("a", folder / "b")], out=folder / "new")
    with pytest.raises(StoreError, match="name of a fine-tune"):
        pack(folder / "base", {"base": folder / "a"}, out=folder / "new", with_base=True)
    assert not (folder / "new").exists()


def test_a_place_that_holds_something_else(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"config\.json"):
        pack(folder / "base", folder / "a", out=folder / "b")
    with pytest.raises(StoreError, match="not a store"):
        open_store(folder / "a")


def test_two_writers(folder: Path) -> None:
    with FolderLock(folder / "store" / WRITER_LOCK):
        with pytest.raises(StoreError, match="at work"):
            pack(folder / "base", {"c": folder / "b"}, out=folder / "store")
        with open_store(folder / "store", base=folder / "base") as store:
            store.checkout("a", folder / "out")


# ---- removing


def test_remove_and_gc(folder: Path, store: Store) -> None:
    before = {path for path in (folder / "store").rglob("*") if path.is_file()}
    store.remove("a")
    assert [entry.name for entry in store.entries()] == ["b"]
    report = store.gc()
    after = {path for path in (folder / "store").rglob("*") if path.is_file()}
    assert report.files == len(before - after) > 0 and report.bytes > 0
    store.checkout("b", folder / "out")
    assert file_hashes(folder / "out") == file_hashes(folder / "b") and store.verify(deep=True).ok
    assert store.gc().files == 0
    with pytest.raises(StoreError, match="no such entry"):
        store.remove("a")


def test_gc_keeps_what_another_writer_put_in_an_entry_s_place(folder: Path, store: Store) -> None:
    store.tensor("a", "embed.weight")  # the open store has seen the old entry
    write_folder(folder / "c", tuned_tensors(base_tensors(), sigma=3e-3))
    pack(folder / "base", {"a": folder / "c"}, out=folder / "store", replace=True)
    store.gc()
    with open_store(folder / "store", base=folder / "base") as again:
        assert again.verify(deep=True).ok
        again.checkout("a", folder / "out")
    assert file_hashes(folder / "out") == file_hashes(folder / "c")
    assert store.verify(deep=True).ok


def test_a_damaged_entry_can_be_removed(folder: Path, store: Store) -> None:
    store.objects.find(store.manifest_digest("a"), "json").write_bytes(b"{}")
    with open_store(folder / "store", base=folder / "base") as damaged:
        assert not damaged.verify().ok
        with pytest.raises(GraftworkError):
            damaged.gc()
        damaged.remove("a")
        damaged.gc()
        assert damaged.verify(deep=True).ok
        damaged.checkout("b", folder / "out")
    assert file_hashes(folder / "out") == file_hashes(folder / "b")


def test_a_damaged_entry_is_no_reason_to_refuse_the_others(folder: Path, store: Store) -> None:
    store.objects.find(store.manifest_digest("a"), "json").write_bytes(b"{}")
    with open_store(folder / "store", base=folder / "base") as damaged:
        damaged.checkout("b", folder / "out")
        assert not damaged.holds_base
    assert file_hashes(folder / "out") == file_hashes(folder / "b")


def test_gc_keeps_what_another_entry_shares(folder: Path, store: Store) -> None:
    pack(folder / "base", {"c": folder / "a"}, out=folder / "store")
    store.remove("a")
    with open_store(folder / "store", base=folder / "base") as again:
        again.gc()
        again.checkout("c", folder / "out")
    assert file_hashes(folder / "out") == file_hashes(folder / "a")


# ---- damage


def test_packing_again_does_not_lean_on_a_lost_object(folder: Path, store: Store) -> None:
    for path in store.objects.files():
        if path.suffix == ".safetensors":
            path.unlink()
    pack(folder / "base", {"c": folder / "a"}, out=folder / "store")
    with open_store(folder / "store", base=folder / "base") as again:
        again.checkout("c", folder / "out")
    assert file_hashes(folder / "out") == file_hashes(folder / "a")


def test_missing_and_foreign_files(folder: Path, store: Store) -> None:
    (folder / "store" / "stray.txt").write_text("x")
    assert any("stray.txt" in problem for problem in store.verify().problems)
    (folder / "store" / "stray.txt").unlink()
    (folder / "store" / WRITER_LOCK).write_text("x")
    assert any("lock" in problem for problem in store.verify().problems)
    (folder / "store" / WRITER_LOCK).write_text("")
    for path in [path for path in store.objects.files() if path.suffix == ".safetensors"][:1]:
        path.unlink()
    assert any("missing" in problem for problem in store.verify().problems)


def rewrite_root(folder: Path, **changes: object) -> None:
    """Change the root's content and give it the digest that goes with that."""
    path = folder / "store" / "store.json"
    content = {**json.loads(path.read_text()), **changes}
    del content["digest"]
    content["digest"] = hashlib.sha256(canonical_json(content)).hexdigest()
    path.write_bytes(canonical_json(content) + b"\n")


def test_a_store_of_a_later_minor_version_is_read_but_not_changed(folder: Path) -> None:
    rewrite_root(folder, version=[1, 7], signature="what a later version added")
    before = file_hashes(folder / "store")
    with open_store(folder / "store", base=folder / "base") as store:
        store.checkout("a", folder / "out")
        assert store.verify(deep=True).ok
        with pytest.raises(VersionTooNew, match="only read"):
            store.remove("a")
    with pytest.raises(VersionTooNew, match="only read"):
        pack(folder / "base", {"c": folder / "b"}, out=folder / "store")
    assert file_hashes(folder / "store") == before


def test_places_inside_what_is_read(folder: Path, store: Store) -> None:
    with pytest.raises(StoreError, match="inside a checkpoint"):
        pack(folder / "base", folder / "a", out=folder / "a" / "store")
    with pytest.raises(StoreError, match="inside the store"):
        store.checkout("a", folder / "store" / "out")
    assert not (folder / "a" / "store").exists() and store.verify().ok


def test_a_store_of_a_newer_version(folder: Path) -> None:
    rewrite_root(folder, min_reader=[2, 0])
    with pytest.raises(VersionTooNew, match="upgrade"):
        open_store(folder / "store")
