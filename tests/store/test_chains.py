"""Chains: entries that are differences to other entries of their store."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from graftwork.delta.container import DeltaFile
from graftwork.errors import (
    BaseMismatch,
    BaseRequired,
    ChecksumError,
    DeltaError,
    SourceChanged,
    StoreError,
)
from graftwork.store import Store, chains, open_store, pack
from graftwork.store.entry import EntryManifest
from graftwork.store.objects import ObjectFolder
from graftwork.store.root import read_root, write_root
from tests.generators.checkpoints import base_tensors, file_hashes, random_tensor, updated, write_folder
from tests.store.chains import NAMES, next_tensors, pack_chain, write_models
from tests.store.second_reader import SecondReader, safetensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``a``, ``b``, ``c`` and ``chain``, a store of them; not to be changed."""
    folder = tmp_path_factory.mktemp("chains")
    write_models(folder)
    pack_chain(folder, folder / "chain")
    return folder


@pytest.fixture
def store_path(models: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be changed."""
    return shutil.copytree(models / "chain", tmp_path / "chain")


@pytest.fixture
def store(models: Path, store_path: Path) -> Iterator[Store]:
    with open_store(store_path, base=models / "base") as opened:
        yield opened


def put_manifest(store: Path, name: str, manifest: EntryManifest) -> None:
    """Commit a manifest that no writer would write."""
    digest = ObjectFolder(store / "objects").put(manifest.to_bytes(), "json")
    write_root(store, read_root(store).with_entry(name, digest))


# ---- reading


def test_every_entry_of_a_chain_is_restored(store: Store, models: Path, tmp_path: Path) -> None:
    for name in NAMES:
        store.checkout(name, tmp_path / name)
        assert file_hashes(tmp_path / name) == file_hashes(models / name)
    report = store.verify(deep=True)
    assert report.ok and report.restored == 21, report.problems


def test_entries_tell_their_parents(store: Store) -> None:
    entries = {entry.name: entry for entry in store.entries()}
    assert [(name, entry.parent) for name, entry in entries.items()] == [("a", None), ("b", "a"), ("c", "b")]
    assert entries["a"].base_digest == store.base_digest
    assert entries["c"].base_digest == store.entry("b").tensors_digest


def test_tensors_and_models_of_a_chain(store: Store) -> None:
    wanted = base_tensors()
    for seed in (1, 2, 3):
        wanted = next_tensors(wanted, seed)
    state = store.state_dict("c")
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    model = nn.Module()
    for name, tensor in wanted.items():
        model.register_parameter(name.replace(".", "/"), nn.Parameter(torch.zeros_like(tensor)))
    held = {name: getattr(model, name.replace(".", "/")) for name in wanted}
    model.state_dict = lambda keep_vars: held  # type: ignore[method-assign, misc]
    store.load_into(model, "c")
    assert all(torch.equal(held[name], tensor) for name, tensor in wanted.items())


def test_what_equals_the_parent_takes_no_space(store: Store) -> None:
    entry = store.entry("c")
    codecs = {key: store.sources.source("c").record(key).codec for key in entry.tensors}
    assert {key for key, codec in codecs.items() if codec == "same"} >= {
        "layers.0.attn.weight",
        "layers.0.norm.weight",
    }
    assert "only in the fine-tune" not in entry.facts


def test_the_second_reader_reads_chains(models: Path, tmp_path: Path) -> None:
    store = pack_chain(models, tmp_path / "store", codec="fast")
    base = {k: row[2] for k, row in safetensors((models / "base" / "model.safetensors").read_bytes()).items()}
    reader = SecondReader(store, base.__getitem__)
    for name in NAMES:
        assert reader.files(name) == {path.name: path.read_bytes() for path in (models / name).iterdir()}


def test_threads_share_a_chain(models: Path, tmp_path: Path) -> None:
    base = {"w": random_tensor((1500, 800), torch.bfloat16, 1), **base_tensors()}
    write_folder(tmp_path / "base", base)
    tensors = base
    for seed, name in enumerate(NAMES):
        tensors = next_tensors(tensors, seed)
        write_folder(tmp_path / name, tensors)
    store = pack_chain(tmp_path, tmp_path / "store")
    wanted = file_hashes(tmp_path / "c")
    with open_store(store, base=tmp_path / "base") as opened:
        opened.checkout("c", tmp_path / "out", threads=8)
        assert file_hashes(tmp_path / "out") == wanted
        found: list[bool] = []

        def read() -> None:
            found.extend(torch.equal(opened.tensor("c", key), tensors[key]) for key in ("w", "embed.weight"))

        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 12


def test_bytes_do_not_depend_on_threads(models: Path, tmp_path: Path) -> None:
    pack(models / "base", models / "a", out=tmp_path / "store", threads=5)
    for below, name in (("a", "b"), ("b", "c")):
        base = f"{tmp_path / 'store'}:{below}"
        pack(base, models / name, out=tmp_path / "store", store_base=models / "base", threads=5)
    assert file_hashes(tmp_path / "store") == file_hashes(models / "chain")


@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "float32", "float16"),
        ("bfloat16", "float32", "bfloat16", "float32", "bfloat16"),
    ],
)
def test_casts_and_other_shapes_along_a_chain(
    tmp_path: Path, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no chunk is decoded more than twice for it, although a wide one needs the halves of a narrow one."""
    names = tuple("abcde"[: len(dtypes)])
    tensors = {
        "w": random_tensor((2500, 1024), torch.bfloat16, 1),
        "v": random_tensor((7, 3), torch.float32, 2),
    }
    write_folder(tmp_path / "base", tensors)
    for number, (name, dtype) in enumerate(zip(names, dtypes, strict=True)):
        tensors = {key: updated(t, 1e-3, number).to(getattr(torch, dtype)) for key, t in tensors.items()}
        grown = tensors["w"].new_full((1 + number, 1024), 0.5)
        tensors = {**tensors, "w": torch.cat([tensors["w"], grown]), f"only.{name}": torch.ones(5)}
        write_folder(tmp_path / name, tensors)
    store = pack_chain(tmp_path, tmp_path / "store", names)
    reads: list[tuple[str, str, int]] = []
    read_chunk = DeltaFile.read_chunk

    def counted(self: DeltaFile, name: str, index: int, *rest: object) -> None:
        reads.append((str(self.path), name, index))
        read_chunk(self, name, index, *rest)

    monkeypatch.setattr(DeltaFile, "read_chunk", counted)
    with open_store(store, base=tmp_path / "base") as opened:
        opened.checkout(names[-1], tmp_path / "out", threads=1)
        assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / names[-1])
        assert max(reads.count(read) for read in set(reads)) <= 2
        assert opened.verify(deep=True).ok


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


# ---- who may lean on what


def test_a_difference_to_another_base_is_refused(store: Store, store_path: Path, models: Path) -> None:
    entry = store.entry("b")
    put_manifest(store_path, "b", replace(entry, base=store.base_digest))
    with open_store(store_path, base=models / "base") as opened:
        assert any("another base than its own" in problem for problem in opened.verify().problems)
        with pytest.raises(StoreError, match="another base than its own"):
            opened.tensor("b", "embed.weight")
        with pytest.raises(StoreError, match="another base than its own"):
            opened.checkout("b", models / "out")


def test_a_difference_to_a_tensor_that_the_parent_lacks_is_refused(
    store: Store, store_path: Path, models: Path
) -> None:
    """A parent whose manifest claims a digest that its tensors do not have."""
    entry = store.entry("a")
    others = dict(entry.tensors)
    others["layers.1.norm.weight"] = replace(others["layers.0.norm.weight"], name="layers.1.norm.weight")
    put_manifest(store_path, "a", replace(entry, tensors=others))
    with open_store(store_path, base=models / "base") as opened:
        problems = opened.verify().problems
        assert any("digest of their listing" in problem for problem in problems)
        assert any("lacks a tensor that a delta refers to" in problem for problem in problems)
        with pytest.raises(DeltaError, match="lacks a tensor that a delta refers to"):
            opened.checkout("b", models / "out")


def test_sharing_keeps_to_one_base(models: Path, store_path: Path, tmp_path: Path) -> None:
    """``x`` has a tensor of ``a``, which is a difference to the base and of no use to an entry on ``c``."""
    from safetensors.torch import load_file

    a, c = load_file(models / "a" / "model.safetensors"), next_tensors(base_tensors(), 9)
    write_folder(tmp_path / "x", {**c, "embed.weight": a["embed.weight"], "new": torch.arange(9)})
    pack(f"{store_path}:c", tmp_path / "x", out=store_path, store_base=models / "base")
    pack(f"{store_path}:c", {"y": tmp_path / "x"}, out=store_path, store_base=models / "base")
    pack(models / "base", {"z": tmp_path / "x"}, out=store_path)
    with open_store(store_path, base=models / "base") as opened:
        places = {
            name: {key: tensor.object for key, tensor in opened.entry(name).tensors.items()}
            for name in ("a", "x", "y", "z")
        }
        assert places["x"]["embed.weight"] != places["a"]["embed.weight"] == places["z"]["embed.weight"]
        assert places["x"]["embed.weight"] == places["y"]["embed.weight"], "on the same parent"
        for name in "xyz":
            opened.checkout(name, tmp_path / "out" / name)
            assert file_hashes(tmp_path / "out" / name) == file_hashes(tmp_path / "x")
        assert opened.verify(deep=True).ok


def test_only_entries_of_chains_ask_for_a_newer_reader(store: Store) -> None:
    def document(name: str) -> dict[str, object]:
        return json.loads(store.objects.read(store.manifest_digest(name), "json"))

    assert [document(name)["min_reader"] for name in NAMES] == [[1, 0], [1, 1], [1, 1]]
    assert {tuple(document(name)["version"]) for name in NAMES} == {(1, 1)}
    root = json.loads((store.path / "store.json").read_bytes())
    assert root["min_reader"] == [1, 0] and root["version"] == [1, 1]


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
