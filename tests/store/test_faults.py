"""Whatever changes a store or restores an entry may fail or be killed at any step: what was there stays, and a rerun
finishes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from graftwork.checkpoint.files import Step, observe
from graftwork.delta.codecs import METHODS
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
from tests.generators.checkpoints import file_hashes
from tests.generators.raw_tensors import moved, write_raw
from tests.store.every_method import every_method, methods_in

ACTS = [
    raise_fault,
    pytest.param(raise_no_space, marks=pytest.mark.slow),
    pytest.param(raise_io_error, marks=pytest.mark.slow),
]


class Change(NamedTuple):
    """Something that is done to a store, and to which of the stores of ``world``."""

    before: str
    run: Callable[[Path, Path], object]


def pack_b(codec: str, name: str = "b") -> Callable[[Path, Path], object]:
    return lambda world, store: pack(
        world / "base", {name: world / "b"}, out=store, codec=codec, replace=name != "b", threads=1
    )


def remove_a(world: Path, store: Path) -> None:
    with open_store(store) as opened:
        if "a" in opened.root.entries:  # a rerun of what had failed after it was done
            opened.remove("a")


def collect(world: Path, store: Path) -> None:
    with open_store(store) as opened:
        opened.gc()


CHANGES = {
    "pack": Change("one", pack_b("auto")),
    "pack small": Change("one", pack_b("small")),
    "replace": Change("one", pack_b("auto", "a")),
    "remove": Change("two", remove_a),
    "gc": Change("full", collect),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``a`` and ``b``; the stores ``one`` of ``a``, ``two`` of both, and ``full`` with what ``a`` left."""
    folder = tmp_path_factory.mktemp("faults")
    base, a = every_method()
    b = a | {name: moved(a[name], 0.5, 9, reach=5) for name in ("ordz", "ordrans", "raw")}
    for name, tensors in (("base", base), ("a", a), ("b", b)):
        write_raw(folder / name, tensors)
        (folder / name / "config.json").write_text(f'{{"name": "{name}"}}')
    pack(folder / "base", folder / "a", out=folder / "one", threads=1)
    shutil.copytree(folder / "one", folder / "two")
    pack_b("auto")(folder, folder / "two")
    assert methods_in(folder / "two", "b") == {method.name for method in METHODS.values()}
    shutil.copytree(folder / "two", folder / "full")
    remove_a(folder, folder / "full")
    (folder / "full" / ".store.json.partial").write_text("left by a killed writer")
    return folder


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "pack small")) for name in CHANGES]
)
def change(request: pytest.FixtureRequest) -> Change:
    return CHANGES[request.param]


class Outcome(NamedTuple):
    """The store after an undisturbed change and gc, and how many steps the change takes."""

    files: dict[str, str]
    entries: dict[str, str]
    steps: int


def entries_of(store: Path) -> dict[str, str]:
    with open_store(store) as opened:
        return {entry.name: entry.digest for entry in opened.entries()}


def undisturbed(change: Change, world: Path, store: Path) -> Outcome:
    shutil.copytree(world / change.before, store)
    steps = len(steps_of(lambda: change.run(world, store)))
    collect(world, store)
    return Outcome(file_hashes(store), entries_of(store), steps)


def check(change: Change, world: Path, store: Path, wanted: Outcome) -> None:
    """The store is the one before or the one after; then a rerun and gc give the bytes of an undisturbed run."""
    assert entries_of(store) in (entries_of(world / change.before), wanted.entries)
    with open_store(store, base=world / "base") as opened:
        report = opened.verify(deep=True)
        assert report.ok, report.problems
    change.run(world, store)
    collect(world, store)
    assert file_hashes(store) == wanted.files


@pytest.mark.parametrize("act", ACTS)
def test_a_change_fails_at_any_step(
    world: Path, tmp_path: Path, change: Change, act: Callable[[Step], None]
) -> None:
    wanted = undisturbed(change, world, tmp_path / "wanted")
    assert wanted.steps >= 3
    for count in range(wanted.steps):
        for when, arguments in observers(count, act):
            store = tmp_path / f"{count}{when}"
            shutil.copytree(world / change.before, store)
            with observe(**arguments), pytest.raises((Fault, OSError)):
                change.run(world, store)
            check(change, world, store, wanted)
            shutil.rmtree(store)


@pytest.mark.slow
def test_a_change_is_killed_at_any_step(world: Path, tmp_path: Path, change: Change) -> None:
    wanted = undisturbed(change, world, tmp_path / "wanted")
    for count in range(wanted.steps):
        for when in ("before", "after"):
            store = tmp_path / f"{count}{when}"
            shutil.copytree(world / change.before, store)
            assert killed(count, when, lambda store=store: change.run(world, store))
            check(change, world, store, wanted)
            shutil.rmtree(store)


@pytest.mark.parametrize("codec", ["auto", pytest.param("small", marks=pytest.mark.slow)])
def test_a_new_store_that_fails_is_finished_by_the_next_run(world: Path, tmp_path: Path, codec: str) -> None:
    add, wanted = pack_b(codec), tmp_path / "wanted"
    add(world, wanted)
    for count in range(len(steps_of(lambda: add(world, tmp_path / "counted")))):
        for when, arguments in observers(count, raise_fault):
            store = tmp_path / f"{count}{when}"
            with observe(**arguments), pytest.raises(Fault):
                add(world, store)
            add(world, store)
            collect(world, store)
            assert file_hashes(store) == file_hashes(wanted)


def test_a_disk_that_stays_full(world: Path, tmp_path: Path, change: Change) -> None:
    """Nothing can be made or written any more, from any step on; to remove is still possible."""

    def full(step: Step) -> None:
        if step.kind in ("mkdir", "create", "write"):
            raise_no_space(step)

    wanted = undisturbed(change, world, tmp_path / "wanted")
    for count in range(0, wanted.steps, 3):
        store, left = tmp_path / f"{count}", iter(range(count))
        shutil.copytree(world / change.before, store)
        needs_room = False

        def from_then_on(step: Step, left=left) -> None:
            nonlocal needs_room
            if next(left, None) is None:
                needs_room |= step.kind in ("mkdir", "create", "write")
                full(step)

        try:
            with observe(before=from_then_on):
                change.run(world, store)
        except OSError as error:
            assert error.filename is not None and needs_room
        else:
            assert not needs_room
        check(change, world, store, wanted)


# ---- checkout


def checkout(world: Path, out: Path) -> None:
    with open_store(world / "two", base=world / "base") as store:
        store.checkout("b", out, threads=1)


def check_checkout(world: Path, out: Path) -> None:
    """There is nothing, or everything; what a killed one left is cleared by the next."""
    if not out.exists():
        checkout(world, out)
    assert file_hashes(out) == file_hashes(world / "b")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("act", ACTS)
def test_checkout_fails_at_any_step(world: Path, tmp_path: Path, act: Callable[[Step], None]) -> None:
    before = file_hashes(world / "two")
    for count in range(len(steps_of(lambda: checkout(world, tmp_path / "counted")))):
        for when, arguments in observers(count, act):
            folder = tmp_path / f"{count}{when}"
            folder.mkdir()
            with observe(**arguments), pytest.raises((Fault, OSError)):
                checkout(world, folder / "out")
            check_checkout(world, folder / "out")
    assert file_hashes(world / "two") == before


@pytest.mark.slow
def test_checkout_is_killed_at_any_step(world: Path, tmp_path: Path) -> None:
    for count in range(len(steps_of(lambda: checkout(world, tmp_path / "counted")))):
        for when in ("before", "after"):
            folder = tmp_path / f"{count}{when}"
            folder.mkdir()
            assert killed(count, when, lambda folder=folder: checkout(world, folder / "out"))
            check_checkout(world, folder / "out")
