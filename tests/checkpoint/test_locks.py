from __future__ import annotations

import os
import stat

import pytest

from graftwork.checkpoint.locks import FolderLock
from graftwork.errors import StoreError


def test_a_writer_excludes_writers_and_readers(tmp_path):
    path = tmp_path / "lock"
    with FolderLock(path):
        for shared, others in [(False, "another reader or writer"), (True, "another writer")]:
            with pytest.raises(StoreError, match=others) as caught, FolderLock(path, shared=shared):
                pytest.fail("unreachable")
            assert caught.value.file == str(path)
    with FolderLock(path):
        pass
    assert path.stat().st_size == 0


def test_readers_share(tmp_path):
    path = tmp_path / "lock"
    with FolderLock(path, shared=True), FolderLock(path, shared=True), pytest.raises(StoreError):
        FolderLock(path).__enter__()


def test_a_reader_of_a_read_only_folder_needs_no_lock_file(tmp_path, monkeypatch):
    open_file = os.open

    def read_only(path, flags, mode=0o777):
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return open_file(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    with FolderLock(tmp_path / "lock", shared=True):
        pass
    with pytest.raises(OSError, match="Read-only"), FolderLock(tmp_path / "lock"):
        pytest.fail("unreachable")


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "lock"
    child = os.fork()
    if child == 0:
        FolderLock(path).__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    with FolderLock(path):
        assert stat.S_ISREG(path.stat().st_mode)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").touch()
    (tmp_path / "lock").symlink_to("victim")
    with pytest.raises(OSError), FolderLock(tmp_path / "lock"):
        pytest.fail("unreachable")
