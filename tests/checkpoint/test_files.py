from __future__ import annotations

import os
import threading

import pytest

from graftwork.checkpoint.files import (
    AtomicFile,
    AtomicFolder,
    Step,
    is_partial,
    make_folder,
    move_file,
    observe,
    partial_path,
    remove_file,
    remove_tree,
    write_file,
)
from graftwork.errors import TargetExists
from tests.checkpoint.faults import FOLDER, Fault, steps_of, write_folder
from tests.checkpoint.handmade import make_tree, snapshot


def kinds(steps: list[Step]) -> list[str]:
    return [step.kind for step in steps]


def test_write_file_takes_these_steps(tmp_path):
    path = tmp_path / "f"
    steps = steps_of(lambda: write_file(path, b"new"))
    partial = partial_path(path)
    assert steps == [
        ("create", partial),
        ("write", partial),
        ("fsync", partial),
        ("rename", path),
        ("fsync_dir", tmp_path),
    ]
    assert snapshot(tmp_path) == {"f": b"new"}


def test_a_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with AtomicFile(path) as file:
        file.write(b"ne")
        file.write(memoryview(bytearray(b"w")))
        assert path.read_bytes() == b"old" and file.tell() == 3
    assert path.read_bytes() == b"new"


def test_pwrite_and_write_may_be_mixed(tmp_path):
    with AtomicFile(tmp_path / "f") as file:
        file.write(b"headpayload")
        file.pwrite(0, b"HEAD")
        file.write(b"!")
        file.pwrite(14, b"gap")
        assert file.tell() == 12
        file.pwrite(0, b"")
        file.write(memoryview(bytearray()))
    assert (tmp_path / "f").read_bytes() == b"HEADpayload!\0\0gap"


def test_truncate_cuts_the_file(tmp_path):
    with AtomicFile(tmp_path / "f") as file:
        file.write(b"12345")
        file.truncate(2)
    assert (tmp_path / "f").read_bytes() == b"12"


def test_any_contiguous_memory_is_written(tmp_path):
    import numpy as np

    with AtomicFile(tmp_path / "f") as file:
        file.write(memoryview(np.arange(3, dtype=np.int16)))
        file.write(memoryview(np.zeros((0, 2))))
    assert (tmp_path / "f").read_bytes() == bytes([0, 0, 1, 0, 2, 0])


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[:3], at))
    write_file(tmp_path / "f", b"0123456789")
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_without_replace_a_file_is_kept(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(TargetExists, match="exists already"), AtomicFile(path, replace=False):
        pytest.fail("unreachable")
    path.unlink()
    with pytest.raises(TargetExists), AtomicFile(path, replace=False) as file:
        file.write(b"new")
        path.write_bytes(b"another's")
    assert snapshot(tmp_path) == {"f": b"another's"}


def test_an_exception_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(Fault), AtomicFile(path) as file:
        file.write(b"new")
        raise Fault
    assert snapshot(tmp_path) == {"f": b"old"}


def test_writing_outside_the_block_is_an_error(tmp_path):
    file = AtomicFile(tmp_path / "f")
    with pytest.raises(ValueError, match="not open"):
        file.write(b"x")


def test_a_missing_parent_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_file(tmp_path / "no" / "f", b"x")
    assert "no/.f.partial" in caught.value.filename


@pytest.mark.parametrize("path", ["/", "..", "a/.."])
def test_a_path_must_end_in_a_name(path):
    with pytest.raises(ValueError, match="must end in a name"):
        AtomicFile(path)


@pytest.mark.parametrize("writer", [AtomicFile, AtomicFolder])
def test_two_writers_never_share_a_place(tmp_path, writer):
    with writer(tmp_path / "x") as first:
        with pytest.raises(TargetExists, match="another writer"), writer(tmp_path / "x"):
            pytest.fail("unreachable")
        assert partial_path(tmp_path / "x").exists() and first
    assert (tmp_path / "x").exists() and not partial_path(tmp_path / "x").exists()


def test_many_threads_that_write_one_file_leave_one_whole_file(tmp_path):
    contents = [bytes([i]) * 100_000 for i in range(8)]
    refused = []

    def write(content: bytes) -> None:
        for _ in range(5):
            try:
                write_file(tmp_path / "f", content)
            except TargetExists as error:
                refused.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "f").read_bytes() in contents
    assert list(snapshot(tmp_path)) == ["f"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_partial_file_that_is_no_file_is_refused(tmp_path, make):
    make(partial_path(tmp_path / "f"))
    with pytest.raises((TargetExists, IsADirectoryError)):
        write_file(tmp_path / "f", b"x")


def test_a_partial_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_bytes(b"victim")
    partial_path(tmp_path / "f").symlink_to("victim")
    with pytest.raises(OSError):
        write_file(tmp_path / "f", b"x")
    assert (tmp_path / "victim").read_bytes() == b"victim"


def test_a_folder_appears_by_one_rename_after_everything_is_flushed(tmp_path):
    target = tmp_path / "out"
    steps = steps_of(lambda: write_folder(target))
    assert snapshot(target) == FOLDER
    assert snapshot(tmp_path).keys() == {"out", *(f"out/{name}" for name in FOLDER)}
    partial = partial_path(target)
    assert steps[0] == ("mkdir", partial)
    assert steps[-4:] == [
        ("fsync_dir", partial / "sub"),
        ("fsync_dir", partial),
        ("rename", target),
        ("fsync_dir", tmp_path),
    ]
    assert kinds(steps).count("fsync") == 2


def test_an_empty_folder_may_stand_there(tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out")
    assert snapshot(tmp_path / "out") == FOLDER


@pytest.mark.parametrize("occupy", ["file", "full folder", "link", "dangling link"])
def test_a_taken_target_is_refused_and_kept(tmp_path, occupy):
    target = tmp_path / "out"
    if occupy == "file":
        target.write_bytes(b"")
    elif occupy == "full folder":
        make_tree(target, {"x": b"x"})
    elif occupy == "link":
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to("elsewhere")
    else:
        target.symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TargetExists) as caught:
        write_folder(target)
    assert caught.value.file == str(target)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_target_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(TargetExists), AtomicFolder(target) as folder:
        write_file(folder.path / "a", b"a")
        make_tree(target, {"theirs": b"x"})
    assert snapshot(tmp_path) == {"out": None, "out/theirs": b"x"}


def test_an_exception_in_the_block_leaves_no_folder(tmp_path):
    with pytest.raises(Fault), AtomicFolder(tmp_path / "out") as folder:
        make_tree(folder.path, {"deep/er/x": b"x"})
        (folder.path / "link").symlink_to("/")
        raise Fault
    assert snapshot(tmp_path) == {}


def test_what_a_killed_writer_left_is_not_part_of_the_next_folder(tmp_path):
    make_tree(partial_path(tmp_path / "out"), {"old.txt": b"old", "deep/er": b"x"})
    write_folder(tmp_path / "out")
    assert snapshot(tmp_path / "out") == FOLDER


def test_a_partial_folder_that_is_a_file_or_link_is_refused(tmp_path):
    partial_path(tmp_path / "out").write_bytes(b"")
    with pytest.raises(TargetExists, match="partial folder is taken"):
        write_folder(tmp_path / "out")
    (tmp_path / "victim").mkdir()
    partial_path(tmp_path / "out").unlink()
    partial_path(tmp_path / "out").symlink_to("victim")
    with pytest.raises(TargetExists, match="partial folder is taken"):
        write_folder(tmp_path / "out")


def test_make_folder_makes_the_parents_and_may_stand_already(tmp_path):
    steps = steps_of(lambda: make_folder(tmp_path / "a" / "b"))
    assert kinds(steps) == ["mkdir", "fsync_dir", "mkdir", "fsync_dir"]
    assert steps_of(lambda: make_folder(tmp_path / "a" / "b")) == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_move_file(tmp_path):
    make_tree(tmp_path, {"a": b"a", "sub/b": b"b"})
    steps = steps_of(lambda: move_file(tmp_path / "a", tmp_path / "sub" / "b"))
    assert steps == [("rename", tmp_path / "sub" / "b"), ("fsync_dir", tmp_path / "sub")]
    assert snapshot(tmp_path) == {"sub": None, "sub/b": b"a"}


def test_remove_tree_leaves_a_living_writer_alone(tmp_path):
    make_tree(tmp_path, {"t/a": b"x"})
    (tmp_path / "t" / "a").unlink()
    with AtomicFolder(tmp_path / "t") as folder:
        write_file(folder.path / "new", b"new")
        with pytest.raises(TargetExists, match="another writer"):
            remove_tree(tmp_path / "t")
    assert snapshot(tmp_path) == {"t": None, "t/new": b"new"}


def test_what_a_killed_writer_left_is_not_part_of_the_next_file(tmp_path):
    partial_path(tmp_path / "f").write_bytes(b"longer than the new one")
    write_file(tmp_path / "f", b"new")
    assert snapshot(tmp_path) == {"f": b"new"}


def test_remove_file(tmp_path):
    (tmp_path / "f").touch()
    assert steps_of(lambda: remove_file(tmp_path / "f")) == [("remove", tmp_path / "f")]
    with pytest.raises(FileNotFoundError):
        remove_file(tmp_path / "f")


def test_remove_tree_renames_first_and_follows_no_link(tmp_path):
    make_tree(tmp_path, {"t/a/b": b"x", "keep/me": b"x"})
    (tmp_path / "t" / "to_folder").symlink_to(tmp_path / "keep")
    (tmp_path / "t" / "to_file").symlink_to(tmp_path / "keep" / "me")
    steps = steps_of(lambda: remove_tree(tmp_path / "t"))
    assert steps[0].kind == "rename" and is_partial(steps[0].path.name)
    assert snapshot(tmp_path) == {"keep": None, "keep/me": b"x"}


@pytest.mark.parametrize("name", [".x.partial", "..partial"])
def test_names_of_unfinished_writes(name):
    assert is_partial(name)
    assert not is_partial("x.partial") and not is_partial(".x")


def test_observers_nest_and_end_with_their_block(tmp_path):
    outer, inner = [], []
    with observe(before=outer.append):
        write_file(tmp_path / "f", b"")
        with observe(after=inner.append):
            write_file(tmp_path / "f", b"")
    write_file(tmp_path / "f", b"")
    assert len(outer) == 2 * len(inner) == 10


def test_observers_see_every_thread(tmp_path):
    steps = []
    with observe(after=steps.append):
        thread = threading.Thread(target=write_file, args=(tmp_path / "f", b""))
        thread.start()
        thread.join()
    assert len(steps) == 5
