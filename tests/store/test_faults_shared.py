"""Several processes and threads on one store: writers exclude each other, and a reader sees one state of it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from graftwork.checkpoint.files import Step, observe
from graftwork.errors import StoreError
from graftwork.store import Store, open_store, pack
from tests.checkpoint.faults import Fault, at_step, raise_fault, steps_of
from tests.generators.checkpoints import file_hashes
from tests.generators.raw_tensors import moved, write_raw
from tests.store.every_method import every_method

NAMES = ("a", "x", "y")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` and its fine-tunes ``a``, ``x`` and ``y``; ``store`` with ``a``. Not to be changed."""
    folder = tmp_path_factory.mktemp("shared")
    base, tuned = every_method()
    write_raw(folder / "base", base)
    for seed, name in enumerate(NAMES):
        write_raw(folder / name, {key: moved(tensor, 0.5, seed) for key, tensor in tuned.items()})
        (folder / name / "config.json").write_text(f'{{"name": "{name}"}}')
    pack(folder / "base", folder / "a", out=folder / "store", threads=1)
    return folder


@pytest.fixture
def store(models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models / "store", tmp_path / "store")


@contextmanager
def in_child(work: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """Run ``work`` in a child process; gives a function that waits for its exit code (1: it raised)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    codes: list[int] = []

    def wait() -> int:
        if not codes:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return codes[0]

    try:
        yield wait
    finally:
        wait()


@contextmanager
def stopped_at(count: int, work: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """A child process that does ``work`` and stands still before step ``count`` until it is waited for."""
    there, here = os.pipe()
    go, let_go = os.pipe()

    def stand(step: Step) -> None:
        os.write(here, b"x")
        os.read(go, 1)

    def run() -> None:
        with observe(before=at_step(count, stand)):
            work()

    with in_child(run) as wait:
        assert os.read(there, 1) == b"x"

        def go_on() -> int:
            with suppress(OSError):
                os.write(let_go, b"x")
            return wait()

        try:
            yield go_on
        finally:
            go_on()
            for fd in (there, here, go, let_go):
                os.close(fd)


def writers(models: Path, store: Path) -> dict[str, Callable[[], object]]:
    def opened(work: Callable[[Store], object]) -> None:
        with open_store(store, models / "base") as found:
            work(found)

    return {
        "pack": lambda: pack(models / "base", models / "y", out=store),
        "remove": lambda: opened(lambda found: found.remove("a")),
        "gc": lambda: opened(lambda found: found.gc()),
        "squash": lambda: opened(lambda found: found.squash("a")),
    }


# ---- two writers


@pytest.mark.parametrize("moment", [0, 0.3, 0.6, 1])
def test_a_second_writer_is_told_that_there_is_a_first(
    models: Path, store: Path, tmp_path: Path, moment: float
) -> None:
    add: Callable[[], object] = lambda: pack(models / "base", models / "x", out=store, threads=1)  # noqa: E731
    shutil.copytree(store, tmp_path / "counted")
    steps = len(steps_of(lambda: pack(models / "base", models / "x", out=tmp_path / "counted", threads=1)))
    with stopped_at(min(int(moment * steps), steps - 2), add) as go_on:
        before = file_hashes(store)
        for name, work in writers(models, store).items():
            with pytest.raises(StoreError, match="at work") as caught:
                work()
            assert "try again" in str(caught.value), name
            assert file_hashes(store) == before, name
        with open_store(store, models / "base") as opened:  # readers do not mind
            assert [entry.name for entry in opened.entries()] == ["a"]
            opened.checkout("a", tmp_path / "out")
            assert opened.verify(deep=True).ok
        assert go_on() == 0
    assert file_hashes(tmp_path / "out") == file_hashes(models / "a")
    assert file_hashes(store) == file_hashes(tmp_path / "counted")
    writers(models, store)["pack"]()
    with open_store(store, models / "base") as opened:
        assert [entry.name for entry in opened.entries()] == ["a", "x", "y"] and opened.verify(deep=True).ok


def test_a_new_store_has_one_writer(models: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with stopped_at(8, lambda: pack(models / "base", models / "x", out=new, threads=1)) as go_on:
        with pytest.raises(StoreError, match="at work"):
            pack(models / "base", models / "y", out=new)
        with pytest.raises(StoreError, match="not a store"):
            open_store(new)
        assert go_on() == 0
    pack(models / "base", models / "y", out=new)
    with open_store(new, models / "base") as opened:
        assert [entry.name for entry in opened.entries()] == ["x", "y"] and opened.verify(deep=True).ok


def test_many_writers_that_try_again_lose_nothing(models: Path, tmp_path: Path) -> None:
    """Eight processes make one store, each an entry of it."""
    new = tmp_path / "new"

    def add(name: str) -> None:
        while True:
            try:
                pack(models / "base", {name: models / NAMES[len(name) % 3]}, out=new, threads=1)
                return
            except StoreError as error:
                if "at work" not in str(error):
                    raise
                time.sleep(0.005)

    names = sorted("n" * count for count in range(1, 9))
    with ExitStack() as stack:
        children = [stack.enter_context(in_child(lambda name=name: add(name))) for name in names]
        assert [wait() for wait in children] == [0] * 8
    with open_store(new, models / "base") as opened:
        assert [entry.name for entry in opened.entries()] == names and opened.verify(deep=True).ok
        for name in names:
            opened.checkout(name, tmp_path / name)
            assert file_hashes(tmp_path / name) == file_hashes(models / NAMES[len(name) % 3])
        assert opened.gc().files == 0


def test_a_killed_writer_leaves_no_lock(models: Path, store: Path) -> None:
    def die() -> None:
        with observe(before=at_step(5, lambda step: os._exit(9))):
            pack(models / "base", models / "x", out=store, threads=1)

    with in_child(die) as wait:
        assert wait() == 9
    pack(models / "base", models / "x", out=store)
    with open_store(store, models / "base") as opened:
        assert opened.verify(deep=True).ok


# ---- readers beside a writer


def test_gc_waits_for_nobody_who_reads(models: Path, store: Path, tmp_path: Path) -> None:
    """A checkout holds the objects fast: gc is refused, remove is not, and what is read stays whole."""

    def check_out() -> None:
        with open_store(store, models / "base") as opened:
            opened.checkout("a", tmp_path / "out", threads=1)

    with stopped_at(4, check_out) as go_on:
        with open_store(store) as opened:
            opened.remove("a")
            with pytest.raises(StoreError, match="reader or writer is at work"):
                opened.gc()
        assert go_on() == 0
    assert file_hashes(tmp_path / "out") == file_hashes(models / "a")
    with open_store(store) as opened:
        assert opened.gc().files > 0 and not opened.entries()


def churn(models: Path, store: Path, *, collects: bool, rounds: int) -> None:
    """Entry ``b`` is ``x`` and ``y`` by turns, ``c`` comes and goes."""
    for turn in range(rounds):
        pack(models / "base", {"b": models / "xy"[turn % 2]}, out=store, replace=True, threads=1)
        pack(models / "base", {"c": models / "x"}, out=store, threads=1)
        with open_store(store) as opened:
            opened.remove("c")
            if collects:
                with suppress(StoreError):  # a reader is at work
                    opened.gc()


def read(models: Path, store: Path, out: Path) -> None:
    """All that a reader gets is one state of the store: ``b`` is ``x`` or ``y``, in its tensors as in its files."""
    with open_store(store, models / "base") as opened:
        opened.checkout("b", out)
        state = opened.state_dict("b")
        names = [entry.name for entry in opened.entries()]
    found = [name for name in "xy" if file_hashes(out) == file_hashes(models / name)]
    assert len(found) == 1 and names in (["a", "b"], ["a", "b", "c"])
    wanted = load_file(models / found[0] / "model.safetensors")
    assert state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted)
    shutil.rmtree(out)


@pytest.mark.parametrize("readers", ["threads", "processes"])
def test_readers_see_the_store_before_or_after(
    models: Path, store: Path, tmp_path: Path, readers: str
) -> None:
    pack(models / "base", {"b": models / "x"}, out=store)
    stop = tmp_path / "stop"
    done: list[int] = []

    def keep_reading(number: int) -> None:
        times = 0
        while not stop.exists() or times < 3:
            read(models, store, tmp_path / f"out-{number}")
            times += 1
        done.append(number)

    def keep_changing() -> None:
        try:
            churn(models, store, collects=False, rounds=8)
        finally:
            stop.touch()

    if readers == "processes":
        with in_child(keep_changing) as wait:
            keep_reading(0)
            assert wait() == 0
        return
    threads = [threading.Thread(target=keep_reading, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        keep_changing()
    finally:
        for thread in threads:
            thread.join()
    assert sorted(done) == [0, 1]


def test_what_a_reader_meets_when_objects_are_removed(models: Path, store: Path, tmp_path: Path) -> None:
    """It reads the old state or the new, or is told that something is gone or that someone is at work."""
    pack(models / "base", {"b": models / "x"}, out=store)
    told = seen = 0
    with in_child(lambda: churn(models, store, collects=True, rounds=25)) as wait:
        for number in range(40):
            try:
                read(models, store, tmp_path / f"out-{number}")
                seen += 1
            except StoreError as error:
                told += 1
                assert "at work" in str(error) or "open it again" in str(error), error
        assert wait() == 0
    assert seen and seen + told == 40
    with open_store(store, models / "base") as opened:
        assert opened.verify(deep=True).ok


# ---- one process


def test_a_store_that_is_open_shows_what_is_on_disk_after_a_failure(models: Path, store: Path) -> None:
    with open_store(store, models / "base") as opened:
        with observe(before=at_step(0, raise_fault)), pytest.raises(Fault):
            opened.remove("a")
        assert [entry.name for entry in opened.entries()] == ["a"]
        opened.remove("a")
        with observe(before=at_step(2, raise_fault)), pytest.raises(Fault):
            opened.gc()
        assert opened.entries() == [] and opened.gc().files > 0
