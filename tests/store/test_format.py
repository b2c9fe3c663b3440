"""The format does not drift: golden bytes of every version, and a second reader written from its specification."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import save_file

from graftwork.store import open_store, pack
from tests.generators.checkpoints import base_tensors, file_hashes, random_tensor, tuned_tensors, write_folder
from tests.store.second_reader import SecondReader, safetensors

GOLDEN = Path(__file__).parent / "golden"
ENTRIES = {"store-1.0": ("a", "b"), "store-1.1": ("a", "b", "coded", "next")}


def hand_made(folder: Path) -> None:
    """A base and two fine-tunes whose every bit is written here, with each kind of tensor that the format knows."""
    words = torch.arange(0, 65536, 151, dtype=torch.int32).to(torch.int16)
    base = {
        "embed": (torch.arange(96, dtype=torch.float32) / 64 - 0.7).bfloat16().view(12, 8),
        "every": words.view(torch.bfloat16),
        "norm": torch.ones(8),
        "steps": torch.arange(5),
    }
    a = {
        "embed": torch.cat([base["embed"] * 1.0078125, torch.full((1, 8), -0.0, dtype=torch.bfloat16)]),
        "every": words.flip(0).contiguous().view(torch.bfloat16),
        "norm": base["norm"],
        "steps": base["steps"] + 1,
        "extra": torch.tensor([0.5, float("nan"), -0.0, float("inf")]),
    }
    b = {"embed": base["embed"].float() + 2**-9, "norm": base["norm"].half(), "steps": base["steps"] + 1}
    for name, tensors in (("base", base), ("a", a), ("b", b)):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(f'{{"name": "{name}"}}')

    hand_made_next(folder, base)


def hand_made_next(folder: Path, base: dict[str, torch.Tensor]) -> None:
    """What 1.1 adds: words that need entropy coding, and a fine-tune of a fine-tune; in integers, without any noise."""
    places = torch.arange(40_000, dtype=torch.int64)
    draws = [(places * odd % (1 << 32)) >> 22 for odd in (2654435761, 2246822519, 3266489917, 668265263)]
    bell = sum(draws[1:], draws[0]) - 2046  # bell-shaped, up to 2046
    steps = (draws[1] * draws[2] % 61 - 30) * (draws[3] % 3)
    coded = {
        "dense": (bell.float() * 2**-15).bfloat16(),
        "few": base["every"].repeat(30),
        "every": base["every"],
        "wide": bell[:3000].float() * 2**-17,
    }
    following = {
        **coded,
        "dense": (coded["dense"].view(torch.int16) + steps).short().view(torch.bfloat16),
        "few": (coded["few"].view(torch.int16) + (torch.arange(13_050) % 500 == 3))
        .short()
        .view(torch.bfloat16),
        "wide": (coded["wide"].view(torch.int32) + steps[:3000]).int().view(torch.float32),
    }
    for name, tensors in (("coded", coded), ("next", following)):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")


def pack_hand_made(folder: Path) -> Path:
    hand_made(folder)
    store = folder / "store"
    pack(folder / "base", [folder / "a", folder / "b"], out=store, codec="fast")
    pack(folder / "base", folder / "coded", out=store, codec="auto")
    pack(f"{store}:coded", folder / "next", out=store, codec="small", store_base=folder / "base")
    return store


@pytest.mark.parametrize("golden", ENTRIES)
def test_golden_store_is_read(tmp_path: Path, golden: str) -> None:
    hand_made(tmp_path)
    shutil.copytree(GOLDEN / golden, tmp_path / "golden")
    with open_store(tmp_path / "golden", base=tmp_path / "base") as store:
        for name in ENTRIES[golden]:
            store.checkout(name, tmp_path / "out" / name)
            assert file_hashes(tmp_path / "out" / name) == file_hashes(tmp_path / name)
        assert store.verify(deep=True).ok


def test_a_store_of_version_1_0_is_added_to(tmp_path: Path) -> None:
    """What is there stays as it is, and a chain can stand on it."""
    hand_made(tmp_path)
    store = shutil.copytree(GOLDEN / "store-1.0", tmp_path / "store")
    pack(f"{store}:a", {"c": tmp_path / "b"}, out=store, store_base=tmp_path / "base")
    before, after = file_hashes(GOLDEN / "store-1.0"), file_hashes(store)
    assert {name for name in before if after[name] != before[name]} == {"store.json"}
    with open_store(store, base=tmp_path / "base") as opened:
        assert [entry.parent for entry in opened.entries()] == [None, None, "a"]
        assert opened.verify(deep=True).ok


def test_golden_store_is_written(tmp_path: Path) -> None:
    """Compressed bytes depend on zstd's version: the golden ones are of 1.5.7."""
    assert zstandard.ZSTD_VERSION == (1, 5, 7), "constraints.txt pins a zstandard with zstd 1.5.7"
    store = pack_hand_made(tmp_path)
    assert file_hashes(store) == file_hashes(GOLDEN / "store-1.1")
    assert methods(store) == {*range(5)}


def methods(store: Path) -> set[int]:
    """The methods that the chunks of a store use."""
    found = set()
    for path in store.rglob("*.safetensors"):
        for name, row in safetensors(path.read_bytes()).items():
            if name.endswith("::chunks"):
                found |= set(row[2][4::44])
    return found


def base_bytes(path: Path) -> dict[str, bytes]:
    return {name: row[2] for name, row in safetensors(path.read_bytes()).items()}


@pytest.mark.parametrize("golden", ENTRIES)
def test_second_reader_reads_the_golden_store(tmp_path: Path, golden: str) -> None:
    hand_made(tmp_path)
    reader = SecondReader(GOLDEN / golden, base_bytes(tmp_path / "base" / "model.safetensors").__getitem__)
    for name in ENTRIES[golden]:
        wanted = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert reader.files(name) == wanted


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn]
)
def test_second_reader_reads_what_pack_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    base = {"big": random_tensor((900, 800), dtype, 1), **base_tensors(dtype)}
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned_tensors(base, sigma=1e-3), shards=2)
    pack(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "store", with_base=True)
    reader = SecondReader(tmp_path / "store", base_bytes(tmp_path / "base" / "model.safetensors").__getitem__)
    for name in ("base", "tuned"):
        wanted = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert reader.files(name) == wanted
