"""A pack or checkout that fails or is killed at any step leaves what was there, and running it again finishes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from graftwork.checkpoint.files import Step, observe
from graftwork.errors import SourceChanged
from graftwork.store import open_store, pack
from tests.checkpoint.faults import (
    Fault,
    killed,
    observers,
    raise_fault,
    raise_io_error,
    raise_no_space,
    steps_of,
)
from tests.generators.checkpoints import base_tensors, file_hashes, tuned_tensors, write_folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``a``, ``b``, a ``store`` of ``a``, and the ``wanted`` store of both."""
    folder = tmp_path_factory.mktemp("faults")
    base = {name: tensor for name, tensor in base_tensors().items() if "layers.1" not in name}
    write_folder(folder / "base", base)
    write_folder(folder / "a", tuned_tensors(base))
    write_folder(folder / "b", tuned_tensors(base, sigma=1e-2))
    pack(folder / "base", folder / "a", out=folder / "store", threads=1)
    shutil.copytree(folder / "store", folder / "wanted")
    pack(folder / "base", folder / "b", out=folder / "wanted", threads=1)
    return folder


def add(world: Path, store: Path) -> Callable[[], object]:
    return lambda: pack(world / "base", world / "b", out=store, threads=1)


def check(world: Path, store: Path) -> None:
    """The store is the one before or the one after; then a rerun and gc give the bytes of an undisturbed run."""
    with open_store(store, base=world / "base") as opened:
        assert [entry.name for entry in opened.entries()] in (["a"], ["a", "b"])
        report = opened.verify(deep=True)
        assert report.ok, report.problems
    add(world, store)()
    with open_store(store) as opened:
        opened.gc()
    assert file_hashes(store) == file_hashes(world / "wanted")


def count_steps(world: Path, tmp_path: Path) -> int:
    shutil.copytree(world / "store", tmp_path / "counted")
    return len(steps_of(add(world, tmp_path / "counted")))


@pytest.mark.parametrize(
    "act",
    [
        raise_fault,
        pytest.param(raise_no_space, marks=pytest.mark.slow),
        pytest.param(raise_io_error, marks=pytest.mark.slow),
    ],
)
def test_pack_fails_at_any_step(world: Path, tmp_path: Path, act: Callable[[Step], None]) -> None:
    for count in range(count_steps(world, tmp_path)):
        for when, arguments in observers(count, act):
            store = tmp_path / f"{count}{when}"
            shutil.copytree(world / "store", store)
            with observe(**arguments), pytest.raises((Fault, OSError)):
                add(world, store)()
            check(world, store)
            shutil.rmtree(store)


@pytest.mark.slow
def test_pack_is_killed_at_any_step(world: Path, tmp_path: Path) -> None:
    for count in range(count_steps(world, tmp_path)):
        for when in ("before", "after"):
            store = tmp_path / f"{count}{when}"
            shutil.copytree(world / "store", store)
            assert killed(count, when, add(world, store))
            check(world, store)
            shutil.rmtree(store)


def test_checkout_fails_at_any_step(world: Path, tmp_path: Path) -> None:
    def checkout(out: Path) -> None:
        with open_store(world / "wanted", base=world / "base") as store:
            store.checkout("b", out, threads=1)

    for count in range(len(steps_of(lambda: checkout(tmp_path / "counted")))):
        for when, arguments in observers(count, raise_fault):
            out = tmp_path / f"{count}{when}"
            with observe(**arguments), pytest.raises(Fault):
                checkout(out)
            if out.exists():
                assert file_hashes(out) == file_hashes(world / "b"), (
                    "it failed after the folder took its place"
                )
            else:
                checkout(out)
                assert file_hashes(out) == file_hashes(world / "b")
    assert file_hashes(world / "wanted")


def test_a_new_store_that_fails_is_finished_by_the_next_run(world: Path, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    pack(world / "base", world / "b", out=wanted, threads=1)
    for count in range(0, len(steps_of(add(world, tmp_path / "counted"))), 3):
        for when, arguments in observers(count, raise_fault):
            store = tmp_path / f"{count}{when}"
            with observe(**arguments), pytest.raises(Fault):
                add(world, store)()
            add(world, store)()
            with open_store(store) as opened:
                opened.gc()
            assert file_hashes(store) == file_hashes(wanted)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_source_that_changes_while_it_is_read(world: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(world / "b", tmp_path / "b")
    shutil.copytree(world / "store", tmp_path / "store")
    before = file_hashes(tmp_path / "store")

    def touch(step: Step) -> None:
        path = tmp_path / "b" / file
        path.write_bytes(path.read_bytes() + b" ")

    _, arguments = next(observers(3, touch))
    with observe(**arguments), pytest.raises(SourceChanged) as caught:
        pack(world / "base", tmp_path / "b", out=tmp_path / "store", threads=1)
    assert str(caught.value.file).endswith(file)
    with open_store(tmp_path / "store") as opened:
        opened.gc()
    assert file_hashes(tmp_path / "store") == before
