"""Squash: the same content without a parent, at once or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graftwork.checkpoint.files import FolderLock, Step, observe
from graftwork.errors import StoreError, VersionTooNew
from graftwork.store import EntryReport, encode, open_store, pack, root
from graftwork.store.root import WRITER_LOCK
from tests.checkpoint.faults import (
    Fault,
    killed,
    observers,
    raise_fault,
    raise_io_error,
    raise_no_space,
    steps_of,
)
from tests.generators.checkpoints import file_hashes
from tests.store.chains import NAMES, pack_chain, write_models


@pytest.fixture(scope="module", autouse=True)
def two_files_an_entry() -> Iterator[None]:
    """An entry's seven tensors are spread over two delta files, so that steps between files are there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "FILE_TENSORS", 4)
        yield


@pytest.fixture(scope="module")
def models(two_files_an_entry: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``a``, ``b``, ``c``; ``chain``, a store of them; ``wanted``, it after squash and gc of ``c``."""
    folder = tmp_path_factory.mktemp("squash")
    write_models(folder)
    pack_chain(folder, folder / "chain")
    shutil.copytree(folder / "chain", folder / "wanted")
    squash(folder, folder / "wanted")
    collect(folder / "wanted")
    return folder


@pytest.fixture
def chain(models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models / "chain", tmp_path / "chain")


def squash(models: Path, store: Path, name: str = "c") -> EntryReport:
    with open_store(store) as opened:
        return opened.squash(name, models / "base", threads=1)


def collect(store: Path) -> None:
    with open_store(store) as opened:
        opened.gc()


def contents(store: Path) -> dict[str, str]:
    with open_store(store) as opened:
        return {entry.name: entry.digest for entry in opened.entries()}


def test_the_same_content_without_a_parent(models: Path, chain: Path, tmp_path: Path) -> None:
    before = contents(chain)
    manifests = {name: root.read_root(chain).entries[name] for name in NAMES}
    report = squash(models, chain)
    assert report.status == "squashed" and report.digest == before["c"] and report.stored_bytes > 0
    assert contents(chain) == before
    after = root.read_root(chain).entries
    assert {name for name in NAMES if after[name] != manifests[name]} == {"c"}
    with open_store(chain, base=models / "base") as store:
        assert [entry.parent for entry in store.entries()] == [None, "a", None]
        assert store.entry("c").min_reader == (1, 0)
        store.checkout("c", tmp_path / "out")
        assert store.verify(deep=True).ok
    assert file_hashes(tmp_path / "out") == file_hashes(models / "c")


def test_it_stores_what_packing_against_the_base_stores(models: Path, tmp_path: Path) -> None:
    """Shards and all: ``c`` has three."""
    pack(models / "base", models / "a", out=tmp_path / "direct", threads=1)
    pack(models / "base", models / "b", out=tmp_path / "direct", threads=1)
    pack(models / "base", models / "c", out=tmp_path / "direct", threads=1)
    squashed = shutil.copytree(models / "chain", tmp_path / "squashed")
    for name in ("b", "c"):
        squash(models, squashed, name)
    collect(squashed)
    assert file_hashes(squashed) == file_hashes(tmp_path / "direct")


def test_what_stands_on_it_stays(models: Path, chain: Path, tmp_path: Path) -> None:
    squash(models, chain, "b")
    with open_store(chain, base=models / "base") as store:
        assert [entry.parent for entry in store.entries()] == [None, None, "b"]
        store.remove("a")
        store.gc()
        store.checkout("c", tmp_path / "out")
        assert store.verify(deep=True).ok
    assert file_hashes(tmp_path / "out") == file_hashes(models / "c")


def test_nothing_to_squash(models: Path, chain: Path) -> None:
    squash(models, chain)
    before = file_hashes(chain)
    for name in ("a", "c"):
        report = squash(models, chain, name)
        assert report.status == "unchanged" and report.stored_bytes == 0
    with open_store(chain) as store:
        assert store.squash("a").status == "unchanged", "it asks for no base where there is nothing to do"
    assert file_hashes(chain) == before


def test_refusals(models: Path, chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file_hashes(chain)
    with open_store(chain, base=models / "base") as store:
        with pytest.raises(StoreError, match="a, b, c"):
            store.squash("d")
        with pytest.raises(StoreError, match="codec"):
            store.squash("c", codec="tiny")
        with FolderLock(chain / WRITER_LOCK), pytest.raises(StoreError, match="at work"):
            store.squash("c")
        monkeypatch.setattr(root, "VERSION", (1, 0))
        with pytest.raises(VersionTooNew, match="only read"):
            store.squash("c")
    assert file_hashes(chain) == before


# ---- faults


def check(models: Path, store: Path) -> None:
    """Valid, with the content that it had; a rerun and gc give the bytes of an undisturbed run."""
    with open_store(store, base=models / "base") as opened:
        report = opened.verify(deep=True)
        assert report.ok, report.problems
    assert contents(store) == contents(models / "chain")
    squash(models, store)
    collect(store)
    assert file_hashes(store) == file_hashes(models / "wanted")


def count_steps(models: Path, tmp_path: Path) -> int:
    store = shutil.copytree(models / "chain", tmp_path / "counted")
    return len(steps_of(lambda: squash(models, store)))


@pytest.mark.parametrize(
    "act",
    [
        raise_fault,
        pytest.param(raise_no_space, marks=pytest.mark.slow),
        pytest.param(raise_io_error, marks=pytest.mark.slow),
    ],
)
def test_squash_fails_at_any_step(models: Path, tmp_path: Path, act: Callable[[Step], None]) -> None:
    for count in range(count_steps(models, tmp_path)):
        for when, arguments in observers(count, act):
            store = shutil.copytree(models / "chain", tmp_path / f"{count}{when}")
            with observe(**arguments), pytest.raises((Fault, OSError)):
                squash(models, store)
            check(models, store)
            shutil.rmtree(store)


@pytest.mark.slow
def test_squash_is_killed_at_any_step(models: Path, tmp_path: Path) -> None:
    for count in range(count_steps(models, tmp_path)):
        for when in ("before", "after"):
            store = shutil.copytree(models / "chain", tmp_path / f"{count}{when}")
            assert killed(count, when, lambda store=store: squash(models, store))
            check(models, store)
            shutil.rmtree(store)


@pytest.mark.slow
@pytest.mark.parametrize("act", [raise_fault, None])
def test_packing_on_an_entry_stops_at_any_step(
    models: Path, tmp_path: Path, act: Callable[[Step], None] | None
) -> None:
    """Fails there, or is killed."""

    def add(store: Path) -> None:
        pack(f"{store}:b", models / "c", out=store, store_base=models / "base", threads=1)

    before = pack_chain(models, tmp_path / "before", ("a", "b"))
    counted = shutil.copytree(before, tmp_path / "counted")
    for count in range(len(steps_of(lambda: add(counted)))):
        for when, arguments in observers(count, act or raise_fault):
            store = shutil.copytree(before, tmp_path / f"{count}{when}")
            if act is None:
                assert killed(count, when, lambda store=store: add(store))
            else:
                with observe(**arguments), pytest.raises((Fault, OSError)):
                    add(store)
            with open_store(store, base=models / "base") as opened:
                assert opened.verify(deep=True).ok
            add(store)
            collect(store)
            assert file_hashes(store) == file_hashes(models / "chain")
            shutil.rmtree(store)
