"""``verify --deep`` notices any change of any byte of a store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwork.delta.codecs import METHODS
from graftwork.errors import GraftworkError
from graftwork.store import open_store, pack
from tests.store.every_method import methods_in, write_every_method

_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """``base``, ``tuned`` and ``store``, which has chunks of every method; in memory, where there is a place for it."""
    name = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None))
    write_every_method(name)
    pack(name / "base", name / "tuned", out=name / "store", codec="auto")
    yield name
    shutil.rmtree(name)


def is_intact(folder: Path) -> bool:
    try:
        with open_store(folder / "store", base=folder / "base") as store:
            return store.verify(deep=True).ok
    except GraftworkError:
        return False


def test_the_store_has_every_method(folder: Path) -> None:
    assert methods_in(folder / "store", "tuned") == {method.name for method in METHODS.values()}
    assert is_intact(folder)


def test_every_changed_byte_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exhaustive: every byte of every file. On one thread: so small a store is read faster than threads start."""
    monkeypatch.setattr("graftwork.store.verify.default_threads", lambda: 1)
    for path in sorted((folder / "store").rglob("*")):
        if path.is_dir():
            continue
        whole = path.read_bytes()
        for position in range(len(whole)):
            broken = bytearray(whole)
            broken[position] ^= 1 << (position % 8)
            path.write_bytes(broken)
            assert not is_intact(folder), (path, position)
        path.write_bytes(whole)
    assert is_intact(folder)


def test_every_lost_or_added_byte_is_found(folder: Path) -> None:
    for path in sorted((folder / "store").rglob("*")):
        if path.is_dir():
            continue
        whole = path.read_bytes()
        for broken in (whole[:-1], whole[1:], whole[: len(whole) // 2], b"", whole + b"\0", b"\0" + whole):
            if broken != whole:
                path.write_bytes(broken)
                assert not is_intact(folder), (path, len(broken))
        path.unlink()
        assert not is_intact(folder) or path.name.endswith(".lock"), path
        path.write_bytes(whole)
    assert is_intact(folder)
