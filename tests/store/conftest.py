"""What several tests of the store start from: a chain of three fine-tunes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwork.store import Store, open_store
from tests.store.chains import pack_chain, write_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, ``a``, ``b``, ``c`` and ``chain``, a store of them; not to be changed."""
    folder = tmp_path_factory.mktemp("chains")
    write_models(folder)
    pack_chain(folder, folder / "chain")
    return folder


@pytest.fixture
def store_path(models: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be changed."""
    return shutil.copytree(models / "chain", tmp_path / "chain")


@pytest.fixture
def store(models: Path, store_path: Path) -> Iterator[Store]:
    with open_store(store_path, base=models / "base") as opened:
        yield opened
