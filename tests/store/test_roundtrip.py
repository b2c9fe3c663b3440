"""What goes into a store comes out of it, byte for byte, whatever it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from graftwork.store import open_store, pack
from tests.generators.checkpoints import (
    FLOATS,
    INTEGERS,
    base_tensors,
    file_hashes,
    random_tensor,
    tuned_tensors,
    updated,
    write_folder,
)


def roundtrip(tmp_path: Path, base: Path, *tuned: Path, codec: str = "auto") -> None:
    """Pack, check everything out, compare every file; verify deep; and drop all again."""
    store = tmp_path / "store"
    pack(base, list(tuned), out=store, codec=codec)
    with open_store(store, base=base) as opened:
        for path in tuned:
            name = path.name.removesuffix(".safetensors")
            opened.checkout(name, tmp_path / "restored" / name)
            wanted = file_hashes(path) if path.is_dir() else {path.name: file_hashes(path.parent)[path.name]}
            assert file_hashes(tmp_path / "restored" / name) == wanted
        report = opened.verify(deep=True)
        assert report.ok, report.problems


@pytest.mark.parametrize("codec", ["fast", "auto", "small"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_fine_tunes_of_one_base(tmp_path: Path, codec: str, dtype: torch.dtype) -> None:
    base = base_tensors(dtype)
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "a", tuned_tensors(base))
    write_folder(tmp_path / "b", tuned_tensors(base, sigma=1e-2), shards=3)
    roundtrip(tmp_path, tmp_path / "base", tmp_path / "a", tmp_path / "b", codec=codec)


def test_every_dtype(tmp_path: Path) -> None:
    base = {
        str(dtype): random_tensor((17, 5), dtype, seed) for seed, dtype in enumerate((*FLOATS, *INTEGERS))
    }
    base["complex"] = torch.randn(7, dtype=torch.complex64)
    tuned = {name: updated(tensor, 1e-2, 5) for name, tensor in base.items()}
    tuned["torch.int64"] = base["torch.int64"] + 3
    tuned["complex"] = base["complex"] * 1.001
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    roundtrip(tmp_path, tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")


def test_dtype_changes_grown_and_shrunken_vocabularies_and_one_sided_tensors(tmp_path: Path) -> None:
    base = base_tensors(torch.float32)
    tuned = {name: t.bfloat16() for name, t in tuned_tensors(base).items()}
    tuned["embed.weight"] = torch.cat([tuned["embed.weight"], torch.zeros(3, 32, dtype=torch.bfloat16)])
    tuned["layers.1.attn.weight"] = tuned["layers.1.attn.weight"][:20].clone()
    tuned["layers.0.attn.weight"] = tuned["layers.0.attn.weight"].view(16, 64)
    tuned["new.weight"] = random_tensor((9, 9), torch.bfloat16, 77)
    del tuned["layers.0.norm.weight"]
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned)
    roundtrip(tmp_path, tmp_path / "base", tmp_path / "tuned")
    result = pack(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "store")
    facts = result.entries[0].facts
    assert facts["only in the fine-tune"] == ["new.weight"]
    assert facts["only in the base"] == ["layers.0.norm.weight"]
    assert facts["not comparable"] == ["layers.0.attn.weight: BF16 [16, 64], base F32 [32, 32]"]
    assert facts["rows differ"] == [
        "embed.weight: BF16 [67, 32], base F32 [64, 32]",
        "layers.1.attn.weight: BF16 [20, 31], base F32 [33, 31]",
    ]
    assert "layers.1.norm.weight: F32 to BF16" in facts["base cast"]


def test_special_values(tmp_path: Path) -> None:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    base = {"every": bits.view(torch.bfloat16), "zeros": torch.zeros(100), "ones": torch.ones(100)}
    tuned = {
        "every": bits.flip(0).contiguous().view(torch.bfloat16),
        "zeros": -torch.zeros(100),
        "ones": torch.full((100,), float("nan")),
    }
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned)
    roundtrip(tmp_path, tmp_path / "base", tmp_path / "tuned")


def test_tied_weights(tmp_path: Path) -> None:
    base = base_tensors()
    write_folder(tmp_path / "base", base, config={"tie_word_embeddings": True})
    tuned = tuned_tensors(base)
    write_folder(
        tmp_path / "tied", tuned, config={"tie_word_embeddings": True}, metadata={"head": "embed.weight"}
    )
    write_folder(tmp_path / "untied", {**tuned, "lm_head.weight": tuned["embed.weight"].clone()})
    roundtrip(tmp_path, tmp_path / "base", tmp_path / "tied", tmp_path / "untied")
    result = pack(tmp_path / "base", tmp_path / "tied", out=tmp_path / "other")
    assert "head = embed.weight" in result.entries[0].facts["tied"]


def test_layouts_do_not_matter_to_payloads(tmp_path: Path) -> None:
    base = base_tensors()
    tuned = tuned_tensors(base)
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "one", tuned)
    write_folder(tmp_path / "three", tuned, shards=3)
    result = pack(tmp_path / "base", [tmp_path / "one", tmp_path / "three"], out=tmp_path / "store")
    assert set(result.entries[1].codecs) == {"same", "shared"}, "the second entry's tensors are there already"
    roundtrip(tmp_path / "again", tmp_path / "base", tmp_path / "one", tmp_path / "three")


def test_any_files_beside_the_tensors(tmp_path: Path) -> None:
    base = base_tensors()
    write_folder(tmp_path / "base", base)
    folder = write_folder(tmp_path / "tuned", tuned_tensors(base))
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "notes ä.txt").write_text("hello")
    (folder / "empty").write_bytes(b"")
    (folder / "optimizer.pt").write_bytes(bytes(range(256)) * 9000)
    (folder / ".hidden").write_text("kept")
    roundtrip(tmp_path, tmp_path / "base", folder)


def test_a_header_in_an_unusual_spelling_comes_back_as_it_was(tmp_path: Path) -> None:
    header = {
        "w": {"shape": [2], "data_offsets": [0, 8], "dtype": "F32"},
        "__metadata__": {"z": "1", "a": 'ä"'},
    }
    text = json.dumps(header, indent=3).encode() + b" " * 13
    (tmp_path / "odd.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0\1\2\3\4\5\6\7")
    save_file({"w": torch.zeros(2)}, tmp_path / "base.safetensors")
    roundtrip(tmp_path, tmp_path / "base.safetensors", tmp_path / "odd.safetensors")


def test_tensors_that_start_anywhere_in_a_file(tmp_path: Path) -> None:
    """Small tensors are restored together, and words keep their alignment in memory whatever it is in the file."""
    sizes = {
        "a": ("U8", 3),
        "b": ("F32", 1000),
        "c": ("U8", 1),
        "d": ("F64", 40),
        "e": ("BF16", 77),
        "f": ("I32", 9),
    }
    width = {"U8": 1, "BF16": 2, "F32": 4, "I32": 4, "F64": 8}
    for number, name in enumerate(("base", "tuned")):
        header, at = {}, 0
        for key, (dtype, count) in sizes.items():
            nbytes = count * width[dtype]
            header[key] = {"dtype": dtype, "shape": [count], "data_offsets": [at, at + nbytes]}
            at += nbytes
        text = json.dumps(header).encode()
        payload = bytes((i * 7 + (i % 4 == 0) * number) % 120 for i in range(at))
        (tmp_path / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + payload)
    roundtrip(tmp_path, tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")


def test_a_fine_tune_equal_to_its_base_takes_no_payload(tmp_path: Path) -> None:
    write_folder(tmp_path / "base", base_tensors())
    write_folder(tmp_path / "copy", base_tensors())
    result = pack(tmp_path / "base", tmp_path / "copy", out=tmp_path / "store")
    assert set(result.entries[0].codecs) == {"same"}
    roundtrip(tmp_path / "again", tmp_path / "base", tmp_path / "copy")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bytes_do_not_depend_on_threads(tmp_path: Path, threads: int) -> None:
    base = {"w": random_tensor((1500, 800), torch.bfloat16, 1), **base_tensors()}
    write_folder(tmp_path / "base", base)
    write_folder(tmp_path / "tuned", tuned_tensors(base))
    pack(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "one", threads=1)
    pack(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "many", threads=threads)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "many")


def test_a_store_says_nothing_of_where_it_was_made(tmp_path: Path) -> None:
    base = base_tensors()
    for place in ("here", "there"):
        write_folder(tmp_path / place / "base", base)
        write_folder(tmp_path / place / "tuned", tuned_tensors(base))
        pack(tmp_path / place / "base", tmp_path / place / "tuned", out=tmp_path / place / "store")
    assert file_hashes(tmp_path / "here" / "store") == file_hashes(tmp_path / "there" / "store")
    for path in (tmp_path / "here" / "store").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from((*FLOATS, *INTEGERS)), st.lists(st.integers(0, 9), max_size=3)), max_size=5
    ),
    st.integers(0, 2**16),
)
def test_any_dtypes_and_shapes(tmp_path_factory: pytest.TempPathFactory, specs: list, seed: int) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    base = {f"t{i}": random_tensor(tuple(shape), dtype, seed + i) for i, (dtype, shape) in enumerate(specs)}
    tuned = {name: updated(tensor, 1e-2, seed) for name, tensor in base.items() if seed % 7 or name != "t0"}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    roundtrip(tmp_path, tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    shutil.rmtree(tmp_path)
