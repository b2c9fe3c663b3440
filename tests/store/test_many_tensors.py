"""Checkpoints of very many tensors: they are spread over several delta files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftwork.delta.container import DeltaFile, header_room
from graftwork.store import encode, open_store, pack
from tests.generators.checkpoints import file_hashes
from tests.store.chains import deltas_of
from tests.store.second_reader import SecondReader, safetensors


def write_many(folder: Path, count: int) -> None:
    """``base`` and its fine-tunes ``a`` and ``b`` of ``count`` tensors of eight elements, and two of none.

    A tenth of the tensors stays as it is, a tenth of the others is alike; ``b`` differs from ``a`` in some.
    """
    generator = torch.Generator().manual_seed(1)
    base = torch.randn((count, 8), generator=generator).bfloat16()
    a = (base.float() + 1e-2 * torch.randn((count, 8), generator=generator)).bfloat16()
    a[::10] = base[::10]
    a[5::10] = a[5]
    b = a.clone()
    b[::7] += 1
    for name, rows in (("base", base), ("a", a), ("b", b)):
        tensors = {f"layer.{i:07d}": row.clone() for i, row in enumerate(rows)}
        empty = {f"none.{i}": torch.zeros(0, dtype=torch.bfloat16) for i in range(2)}
        save_file(tensors | empty, folder / f"{name}.safetensors")


def restored(folder: Path, store: Path, name: str) -> bool:
    """Whether a checkout gives the file that was packed; the store is verified too."""
    with open_store(store, base=folder / "base.safetensors") as opened:
        opened.checkout(name, folder / "out" / name)
        report = opened.verify(deep=True)
        assert report.ok, report.problems
    file = f"{name}.safetensors"
    return (folder / "out" / name / file).read_bytes() == (folder / file).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 tensors, and ``whole``, a store of them in one delta file an entry."""
    folder = tmp_path_factory.mktemp("many")
    write_many(folder, 3000)
    base, a, b = (folder / f"{name}.safetensors" for name in ("base", "a", "b"))
    pack(base, [a, b], out=folder / "whole", codec="fast")
    return folder


@pytest.mark.parametrize("limit", ["FILE_TENSORS", "FILE_HEADER_BYTES"])
def test_an_entry_is_spread_over_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    room = header_room("layer.0000000")
    monkeypatch.setattr(encode, limit, 700 if limit == "FILE_TENSORS" else 700 * room + room - 1)
    base, a, b = (folder / f"{name}.safetensors" for name in ("base", "a", "b"))
    store = tmp_path / "store"
    first = pack(base, a, out=store, codec="fast")
    files = deltas_of(store)
    assert len(files) == 5
    for digest in files:
        with DeltaFile(store / "objects" / digest[:2] / f"{digest}.safetensors") as delta:
            assert len(delta.records) <= 700 and delta.base == first.base_digest
    pack(base, b, out=store, codec="fast")
    pack(f"{store}:a", {"c": b}, out=store, codec="fast", store_base=base)
    with open_store(store) as opened, open_store(folder / "whole") as whole:
        assert {t.object for t in opened.entry("a").tensors.values()} == files
        contents = [{entry.name: entry.digest for entry in s.entries()} for s in (opened, whole)]
        assert contents[0] == {**contents[1], "c": contents[1]["b"]}
    (tmp_path / "base.safetensors").symlink_to(base)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").symlink_to(folder / f"{name}.safetensors")
        assert restored(tmp_path, store, name)
    with open_store(store, base=base) as opened:
        opened.squash("c")
        state, wanted = opened.state_dict("c"), load_file(b)
    assert state.keys() == wanted.keys() and all(torch.equal(state[k], v) for k, v in wanted.items())


def test_the_split_is_the_same_every_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FILE_TENSORS", 700)
    sources = (folder / "base.safetensors", [folder / "a.safetensors", folder / "b.safetensors"])
    pack(*sources, out=tmp_path / "one", threads=1)
    pack(*sources, out=tmp_path / "many", threads=5)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "many")


def test_alike_tensors_are_stored_once_across_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FILE_TENSORS", 700)
    result = pack(folder / "base.safetensors", folder / "a.safetensors", out=tmp_path / "store")
    assert result.entries[0].codecs["shared"].tensors == 299
    with open_store(tmp_path / "store") as store:
        tensors = store.entry("a").tensors
        assert len({(t.object, t.key) for name, t in tensors.items() if name.endswith("5")}) == 1


def test_the_second_reader_finds_them(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "FILE_TENSORS", 7)
    for name in ("base", "a"):
        tensors = load_file(folder / f"{name}.safetensors")
        save_file(dict(list(tensors.items())[:40]), tmp_path / f"{name}.safetensors")
    pack(tmp_path / "base.safetensors", tmp_path / "a.safetensors", out=tmp_path / "store")
    base = {k: row[2] for k, row in safetensors((tmp_path / "base.safetensors").read_bytes()).items()}
    files = SecondReader(tmp_path / "store", base.__getitem__).files("a")
    assert files == {"a.safetensors": (tmp_path / "a.safetensors").read_bytes()}


@pytest.mark.slow
def test_two_hundred_thousand(tmp_path: Path) -> None:
    write_many(tmp_path, 200_000)
    base, a, b = (tmp_path / f"{name}.safetensors" for name in ("base", "a", "b"))
    pack(base, a, out=tmp_path / "store")
    pack(f"{tmp_path / 'store'}:a", b, out=tmp_path / "store", store_base=base)
    assert len(deltas_of(tmp_path / "store")) == 6, "three each: a file has at most 100,000 tensors"
    with open_store(tmp_path / "store", base=base) as store:
        store.checkout("b", tmp_path / "out")
    assert (tmp_path / "out" / b.name).read_bytes() == b.read_bytes()
