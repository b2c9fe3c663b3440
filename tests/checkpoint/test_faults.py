"""Every step of the file layer fails, or the process dies there: the old stays or the new is whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from graftwork.checkpoint.files import (
    AtomicFile,
    Step,
    is_partial,
    observe,
    partial_path,
    remove_tree,
    write_file,
)
from tests.checkpoint.faults import (
    FOLDER,
    Fault,
    at_step,
    killed,
    observers,
    raise_fault,
    raise_io_error,
    raise_no_space,
    steps_of,
    write_folder,
)
from tests.checkpoint.handmade import make_tree, snapshot


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("fault", [raise_fault, raise_no_space, raise_io_error])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_fault_at_any_step_of_a_file_leaves_the_old_or_the_new(tmp_path, fault, old):
    path = tmp_path / "f"
    for count in range(5):
        for when, observer in observers(count, fault):
            path.unlink(missing_ok=True)
            if old is not None:
                path.write_bytes(old)
            with pytest.raises((Fault, OSError)) as caught, observe(**observer):
                write_file(path, b"new")
            renamed = count > 3 or (count == 3 and when == "after")
            assert (path.read_bytes() if path.exists() else None) == (b"new" if renamed else old)
            if isinstance(caught.value, OSError):
                assert caught.value.errno in (errno.ENOSPC, errno.EIO)
                assert caught.value.filename in (str(path), str(partial_path(path)), str(tmp_path))
            write_file(path, b"again")
            assert snapshot(tmp_path) == {"f": b"again"}


def test_a_failed_file_removes_its_partial_one(tmp_path):
    with pytest.raises(OSError), observe(before=at_step(1, raise_no_space)):
        write_file(tmp_path / "f", b"new")
    assert snapshot(tmp_path) == {}


def test_a_disk_that_stays_full_changes_nothing(tmp_path):
    write_file(tmp_path / "f", b"old")

    def no_space(step: Step) -> None:
        if step.kind != "create":
            raise_no_space(step)

    with pytest.raises(OSError, match="No space"), observe(before=no_space):
        write_file(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_of_a_file_leaves_the_old_or_the_new(tmp_path, when):
    path = tmp_path / "f"
    count = 0
    write_file(path, b"old")
    while killed(count, when, lambda: write_file(path, b"new")):
        assert path.read_bytes() in (b"old", b"new")
        assert all(is_partial(name) for name in snapshot(tmp_path) if name != "f")
        write_file(path, b"old")
        assert snapshot(tmp_path) == {"f": b"old"}
        count += 1
    assert count == 5


def test_a_real_full_disk(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space") as caught, AtomicFile(tmp_path / "f") as file:
        os.dup2(os.open(full, os.O_RDWR), file._fd)
        file.write(b"x")
    assert caught.value.filename == str(partial_path(tmp_path / "f"))


def test_a_fault_at_any_step_of_a_folder_leaves_nothing_or_all(tmp_path):
    total = len(steps_of(lambda: write_folder(tmp_path / "dry")))
    remove_tree(tmp_path / "dry")
    target = tmp_path / "out"
    for count in range(total):
        for _, observer in observers(count, raise_no_space):
            with pytest.raises(OSError, match="No space"), observe(**observer):
                write_folder(target)
            assert not target.exists() or snapshot(target) == FOLDER
            assert all(
                is_partial(name.split("/")[0]) for name in snapshot(tmp_path) if not name.startswith("out")
            )
            if target.exists():
                remove_tree(target)
            write_folder(target)
            assert snapshot(target) == FOLDER and names_in(tmp_path) == {"out"}
            remove_tree(target)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_of_a_folder_leaves_nothing_or_all(tmp_path, when):
    target = tmp_path / "out"
    count = 0
    while killed(count, when, lambda: write_folder(target)):
        assert not target.exists() or snapshot(target) == FOLDER
        assert all(is_partial(name) for name in names_in(tmp_path) - {"out"})
        if target.exists():
            remove_tree(target)
        count += 1
    assert count > 15
    assert snapshot(target) == FOLDER and names_in(tmp_path) == {"out"}


def test_a_half_removed_tree_looks_unfinished(tmp_path):
    make_tree(tmp_path, {"t/a": b"x", "t/b": b"x"})
    with pytest.raises(Fault), observe(before=at_step(2, raise_fault)):
        remove_tree(tmp_path / "t")
    assert all(is_partial(name) for name in names_in(tmp_path))
    make_tree(tmp_path, {"t/c": b"x"})
    remove_tree(tmp_path / "t")
    assert snapshot(tmp_path) == {}
