"""``STORE:NAME`` where a checkpoint is asked for: the base of another store, and either side of a diff."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from graftwork.checkpoint.files import FolderLock
from graftwork.errors import BaseMismatch, BaseRequired, CheckpointError, ChecksumError, StoreError
from graftwork.store import diff, open_store, pack
from graftwork.store.root import READER_LOCK
from graftwork.store.stored import find_entry
from tests.generators.checkpoints import base_tensors, file_hashes, tuned_tensors, write_folder


def test_an_entry_is_the_base_of_another_store(models: Path, tmp_path: Path) -> None:
    """It is recorded by digest, as its own folder would be: the two stores are equal."""
    entry = f"{models / 'chain'}:b"
    result = pack(entry, models / "c", out=tmp_path / "store", store_base=models / "base")
    pack(models / "b", models / "c", out=tmp_path / "wanted")
    assert file_hashes(tmp_path / "store") == file_hashes(tmp_path / "wanted")
    with open_store(tmp_path / "store", base=models / "b") as store:
        assert store.base_digest == result.base_digest and store.entry("c").min_reader == (1, 0)
        store.checkout("c", tmp_path / "out")
    assert file_hashes(tmp_path / "out") == file_hashes(models / "c")
    again = pack(entry, {"d": models / "a"}, out=tmp_path / "store", store_base=models / "base")
    assert again.entries[0].status == "added"


def test_a_store_holds_a_base_that_came_from_another_store(models: Path, tmp_path: Path) -> None:
    entry = f"{models / 'chain'}:b"
    pack(entry, models / "c", out=tmp_path / "store", store_base=models / "base", with_base=True)
    with open_store(tmp_path / "store") as store:
        assert store.holds_base and [entry.name for entry in store.entries()] == ["b", "c"]
        for name in ("b", "c"):
            store.checkout(name, tmp_path / "out" / name)
            assert file_hashes(tmp_path / "out" / name) == file_hashes(models / name)
        assert store.verify(deep=True).ok
    pack(models / "b", models / "c", out=tmp_path / "wanted", with_base=True)
    assert file_hashes(tmp_path / "store") == file_hashes(tmp_path / "wanted")


def test_a_damaged_file_of_the_other_store_is_not_taken_over(models: Path, tmp_path: Path) -> None:
    chain = shutil.copytree(models / "chain", tmp_path / "chain")
    with open_store(chain) as store:
        file = next(file for file in store.entry("b").files if not file.holds_tensors)
        path = store.objects.find(str(file.blob["object"]), "zst")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ChecksumError):
        pack(f"{chain}:b", models / "c", out=tmp_path / "store", store_base=models / "base", with_base=True)
    assert not (tmp_path / "store" / "store.json").exists()


def test_holding_the_parent_of_a_chain_makes_it_stand_alone(models: Path, tmp_path: Path) -> None:
    chain = shutil.copytree(models / "chain", tmp_path / "chain")
    result = pack(f"{chain}:b", {"d": models / "a"}, out=chain, store_base=models / "base", with_base=True)
    assert [(e.name, e.status) for e in result.entries] == [("b", "replaced"), ("d", "added")]
    with open_store(chain) as store:
        assert [(e.name, e.parent) for e in store.entries()] == [
            ("a", None),
            ("b", None),
            ("c", "b"),
            ("d", "b"),
        ]
        assert store.entry("b").base is None
        for name, folder in (("c", "c"), ("d", "a")):
            store.checkout(name, tmp_path / "out" / name)
            assert file_hashes(tmp_path / "out" / name) == file_hashes(models / folder)


def test_another_stores_entry_is_another_base(models: Path, tmp_path: Path) -> None:
    chain = shutil.copytree(models / "chain", tmp_path / "chain")
    before = file_hashes(chain)
    with pytest.raises(BaseMismatch) as caught:
        pack(f"{models / 'chain'}:b", {"x": models / "c"}, out=chain, store_base=models / "base")
    assert f"{chain}:b" in str(caught.value.remedy), "the store's own entry b is what is meant"
    with pytest.raises(BaseMismatch, match="not the base of the store"):
        pack(models / "b", {"x": models / "c"}, out=chain)
    assert file_hashes(chain) == before


def test_no_one_collects_while_an_entry_is_read(models: Path, tmp_path: Path) -> None:
    chain = shutil.copytree(models / "chain", tmp_path / "chain")

    def collect(stage: str, done: int, total: int) -> None:
        if stage == "pack c" and done == total:
            with open_store(chain) as store, pytest.raises(StoreError, match="at work"):
                store.gc()
            found.append(True)

    found: list[bool] = []
    pack(f"{chain}:b", models / "c", out=tmp_path / "store", store_base=models / "base", progress=collect)
    assert found
    with FolderLock(chain / READER_LOCK):
        pass


# ---- what the words mean


def test_a_path_wins_over_the_name_of_an_entry(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "chain", "chain")
    assert find_entry("chain:b") == (Path("chain"), "b")
    shutil.copytree(models / "a", "chain:b")
    assert find_entry("chain:b") is None
    pack("chain:b", models / "c", out="store")
    with open_store("store", base=models / "a") as store:
        store.checkout("c", "out")


def test_names_and_stores_with_colons(models: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs:2" / "store"
    store.parent.mkdir()
    pack(models / "base", {"x:y": models / "a"}, out=store)
    assert find_entry(f"{store}:x:y") == (store, "x:y")
    pack(f"{store}:x:y", models / "b", out=store, store_base=models / "base")
    with open_store(store, base=models / "base") as opened:
        assert [entry.parent for entry in opened.entries()] == ["x:y", None]
        opened.checkout("b", tmp_path / "out")
    assert find_entry("nowhere:a") is None and find_entry(f"{store}:a/b") is None


@pytest.mark.parametrize(
    ("base", "error", "words"),
    [
        ("{chain}:nobody", StoreError, "a, b, c"),
        ("{models}/a:b", StoreError, "not a store"),
        ("{models}/nowhere:b", CheckpointError, "no such file"),
        ("{chain}:b", BaseRequired, "--base"),
    ],
)
def test_what_is_no_entry(
    models: Path, tmp_path: Path, base: str, error: type[Exception], words: str
) -> None:
    base = base.format(chain=models / "chain", models=models)
    for attempt in (
        lambda: pack(base, models / "c", out=tmp_path / "store"),
        lambda: diff(base, models / "c"),
    ):
        with pytest.raises(error, match=words):
            attempt()
    assert not (tmp_path / "store").exists()


def test_a_base_for_no_store_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such entry"):
        pack(models / "base", models / "a", out=tmp_path / "store", store_base=models / "base")
    with pytest.raises(StoreError, match="no such entry"):
        diff(models / "base", models / "a", store_base=models / "base")
    assert not (tmp_path / "store").exists()


# ---- diff


def test_diff_of_entries_is_that_of_their_folders(models: Path) -> None:
    def facts(a: str | Path, b: str | Path) -> dict[str, object]:
        extra = {"store_base": models / "base"} if ":" in f"{a}{b}" else {}
        found = diff(a, b, **extra).to_dict()
        return {key: value for key, value in found.items() if key not in ("base", "tuned")}

    chain = models / "chain"
    wanted = facts(models / "a", models / "c")
    assert wanted["files"] and wanted["layout"], "the three models differ in config and shards"
    for a, b in ((f"{chain}:a", f"{chain}:c"), (models / "a", f"{chain}:c"), (f"{chain}:a", models / "c")):
        assert facts(a, b) == wanted
    assert diff(f"{chain}:c", models / "c", store_base=models / "base").identical


def test_diff_knows_the_ties_of_an_entry(tmp_path: Path) -> None:
    base = base_tensors()
    write_folder(tmp_path / "base", base)
    tied = {**tuned_tensors(base), "embed_tokens.weight": base["embed.weight"]}
    write_folder(
        tmp_path / "a", tied, config={"tie_word_embeddings": True}, metadata={"head": "embed.weight"}
    )
    write_folder(tmp_path / "odd", base)
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"tie_word_embeddings": "yes"}))
    pack(tmp_path / "base", [tmp_path / "a", tmp_path / "odd"], out=tmp_path / "store")
    for name in ("a", "odd"):
        wanted = diff(tmp_path / "base", tmp_path / name).tuned_tied
        found = diff(
            tmp_path / "base", f"{tmp_path / 'store'}:{name}", store_base=tmp_path / "base"
        ).tuned_tied
        assert found == wanted and len(wanted) == (2 if name == "a" else 0)
