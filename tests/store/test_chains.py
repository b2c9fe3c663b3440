"""Chains: entries that are differences to other entries of their store."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from graftwork.delta.container import DeltaFile
from graftwork.errors import (
    DeltaError,
    StoreError,
)
from graftwork.store import Store, open_store, pack
from tests.generators.checkpoints import base_tensors, file_hashes, random_tensor, updated, write_folder
from tests.store.chains import NAMES, next_tensors, pack_chain, put_manifest
from tests.store.second_reader import SecondReader, safetensors

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
    """And no chunk is decoded twice for it, although each of a wide type needs half of one of a narrow type."""
    names = tuple("abcde"[: len(dtypes)])
    tensors = {
        "w": random_tensor((2500, 1024), torch.bfloat16, 1),
        "v": random_tensor((7, 3), torch.float32, 2),
    }
    write_folder(tmp_path / "base", tensors)
    for number, (name, dtype) in enumerate(zip(names, dtypes, strict=True)):
        tensors = {key: updated(t, 1e-3, number).to(getattr(torch, dtype)) for key, t in tensors.items()}
        grown = tensors["w"].new_full((1 + number, 1024), 0.5)
        tensors = {
            **tensors,
            "w": torch.cat([tensors["w"], grown]),
            f"only.{name}": torch.full((5,), 2.0**number),
        }
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
        assert max(reads.count(read) for read in set(reads)) == 1
        assert opened.verify(deep=True).ok


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
