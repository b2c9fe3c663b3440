"""Whatever a base and its fine-tune are made of: every file comes back, and threads do not show in what is stored."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftwork.store import Store, open_store, pack
from tests.generators.any_checkpoints import AnyCheckpoint, checkpoint_rows
from tests.generators.checkpoints import file_hashes
from tests.store.second_reader import SecondReader

CODECS = st.sampled_from(["fast", "auto", "small"])
slow_to_draw = [HealthCheck.too_slow, HealthCheck.data_too_large]


@contextmanager
def written(checkpoints: list[AnyCheckpoint]) -> Iterator[Path]:
    """A folder with the checkpoints ``base``, ``tuned``, ``tuned2``, …"""
    folder = Path(tempfile.mkdtemp())
    try:
        for name, checkpoint in zip(("base", "tuned", "tuned2"), checkpoints, strict=False):
            checkpoint.write(folder / name)
        yield folder
    finally:
        shutil.rmtree(folder)


def check_restored(store: Store, folder: Path, *names: str) -> None:
    for name in names:
        store.checkout(name, folder / "out" / name, threads=2)
        assert file_hashes(folder / "out" / name) == file_hashes(folder / name)
    shutil.rmtree(folder / "out")
    report = store.verify(deep=True)
    assert report.ok and not report.notes, (report.problems, report.notes)


def check_pair(pair: list[AnyCheckpoint], codec: str, with_base: bool) -> None:
    with written(pair) as folder:
        stores = []
        for threads in (1, 2, 7):
            store = folder / f"store-{threads}"
            pack(
                folder / "base",
                folder / "tuned",
                out=store,
                codec=codec,
                with_base=with_base,
                threads=threads,
            )
            stores.append(file_hashes(store))
        assert stores[0] == stores[1] == stores[2]
        with open_store(folder / "store-2", base=None if with_base else folder / "base") as opened:
            check_restored(opened, folder, "tuned", *(["base"] if with_base else []))
        again = pack(folder / "base", folder / "tuned", out=folder / "store-2", with_base=with_base)
        assert {entry.status for entry in again.entries} == {"unchanged"}


@settings(max_examples=30, suppress_health_check=slow_to_draw)
@given(checkpoint_rows(), CODECS, st.booleans())
def test_any_pair(pair: list[AnyCheckpoint], codec: str, with_base: bool) -> None:
    check_pair(pair, codec, with_base)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=slow_to_draw)
@given(checkpoint_rows(large=True), CODECS, st.booleans())
def test_any_pair_of_large_tensors_too(pair: list[AnyCheckpoint], codec: str, with_base: bool) -> None:
    check_pair(pair, codec, with_base)


@settings(max_examples=40, suppress_health_check=slow_to_draw)
@given(checkpoint_rows(), CODECS)
def test_a_second_reader_of_any_pair(pair: list[AnyCheckpoint], codec: str) -> None:
    """Written from the specification alone, it restores the same files."""
    with written(pair) as folder:
        pack(folder / "base", folder / "tuned", out=folder / "store", codec=codec)
        reader = SecondReader(folder / "store", lambda name: pair[0].tensors[name].data)
        assert reader.files("tuned") == pair[1].files


@settings(max_examples=20, suppress_health_check=slow_to_draw)
@given(checkpoint_rows(3), CODECS)
def test_any_chain(row: list[AnyCheckpoint], codec: str) -> None:
    """A fine-tune of the fine-tune, stored as a difference to it, and then to the base."""
    with written(row) as folder:
        store, base = folder / "store", folder / "base"
        pack(base, folder / "tuned", out=store, codec=codec)
        pack(f"{store}:tuned", folder / "tuned2", out=store, codec=codec, store_base=base)
        with open_store(store, base=base) as opened:
            check_restored(opened, folder, "tuned", "tuned2")
            opened.squash("tuned2", codec=codec)
            opened.gc()
            check_restored(opened, folder, "tuned", "tuned2")
