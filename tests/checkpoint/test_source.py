from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from graftwork.checkpoint.source import SourceFile
from graftwork.errors import CheckpointError, SourceChanged


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    return path


@pytest.fixture(params=[True, False], ids=["kept open", "opened for each read"])
def source(path, request):
    with SourceFile(path, keep_open=request.param) as source:
        yield source


def test_reading(source):
    assert source.size == 100
    assert source.read(10, 3) == bytes([10, 11, 12])
    buffer = memoryview(bytearray(4)).cast("i")
    source.read_into(96, buffer)
    assert bytes(buffer) == bytes([96, 97, 98, 99])
    source.read_into(100, memoryview(bytearray()))


def test_short_reads_are_continued(source, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:7]], at))
    assert source.read(0, 100) == bytes(range(100))


def test_an_io_error_names_the_file(source, monkeypatch):
    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        source.read(0, 1)
    assert caught.value.filename == str(source.path) and caught.value.errno == 5


def test_a_file_that_became_shorter(source):
    os.truncate(source.path, 50)
    with pytest.raises(SourceChanged) as caught:
        source.read(0, 100)
    assert caught.value.file == str(source.path)


def test_changes_are_noticed(source):
    source.check_unchanged()
    status = source.path.stat()
    os.utime(source.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(SourceChanged, match="changed while it was in use"):
        source.check_unchanged()
    source.path.unlink()
    with pytest.raises(SourceChanged, match="gone"):
        source.check_unchanged()


def test_a_replaced_file_is_noticed_though_size_and_time_agree(source, tmp_path):
    status = source.path.stat()
    other = tmp_path / "other"
    other.write_bytes(bytes(100))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(source.path)
    with pytest.raises(SourceChanged):
        source.check_unchanged()


def test_a_file_opened_for_each_read_must_be_the_same(path, tmp_path):
    with SourceFile(path, keep_open=False) as source:
        (tmp_path / "other").write_bytes(bytes(100))
        (tmp_path / "other").replace(path)
        with pytest.raises(SourceChanged):
            source.read(0, 1)
        path.unlink()
        with pytest.raises(SourceChanged, match="gone") as caught:
            source.read(0, 1)
        assert caught.value.file == str(path)


def test_writing_into_the_map_does_not_reach_the_file(source):
    mapped = source.map()
    mapped[0] = 255
    assert source.path.read_bytes()[0] == 0 and source.read(0, 1) == b"\0"


def test_the_map_outlives_the_source(path):
    with SourceFile(path) as source:
        mapped = source.map()
        assert source.map() is mapped
    assert mapped[99] == 99


def test_no_map_where_memory_is_not_to_be_had(source, monkeypatch):
    import mmap

    def fail(code):
        def fail_with_code(*args, **options):
            raise OSError(code, os.strerror(code))

        return fail_with_code

    monkeypatch.setattr(mmap, "mmap", fail(12))
    assert source.map() is None
    monkeypatch.setattr(mmap, "mmap", fail(13))
    with pytest.raises(PermissionError) as caught:
        source.map()
    assert caught.value.filename == str(source.path)


def test_a_closed_source(source):
    source.close()
    source.close()
    with pytest.raises(ValueError, match="is closed"):
        source.read(0, 1)


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a socket", "a character device"])
def test_what_is_not_a_file_is_refused(tmp_path, monkeypatch, kind):
    path = tmp_path / "f"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("f")
            with pytest.raises((CheckpointError, OSError)):
                SourceFile(path)
        return
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=kind):
        SourceFile(path)


def test_reading_from_many_threads(source):
    wrong = []

    def read() -> None:
        for at in range(90):
            if source.read(at, 10) != bytes(range(at, at + 10)):
                wrong.append(at)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forgotten_file_is_closed(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    (tmp_path / "f").write_bytes(b"abc")
    before = open_files()
    source = SourceFile(tmp_path / "f")
    assert source.read(0, 3) == b"abc"
    del source
    assert open_files() == before
