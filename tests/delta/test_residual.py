"""Residuals: the written weights and the residual are the exact result, bit for bit; nothing damaged is taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.delta import residual as module
from graftwork.delta.memory import MemoryFile
from graftwork.delta.residual import RESIDUAL, ResidualFile, ResidualWriter, add_residual
from graftwork.delta.source import CheckpointSource
from graftwork.delta.weights import StateSource
from graftwork.errors import (
    BaseMismatch,
    CheckpointError,
    ChecksumError,
    DeltaError,
    GraftworkError,
    VersionTooNew,
)
from tests.generators.sealed_files import Parts, rewrite

GOLDEN = Path(__file__).parent / "golden" / "residual.safetensors"


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def folder_of(
    root: Path, exact: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16, **more: Tensor
) -> Path:
    """A checkpoint with its residual beside it."""
    written = {name: tensor.to(dtype) for name, tensor in exact.items()}
    config = {"model_type": "any", "dtype": str(dtype).removeprefix("torch.")}
    write_checkpoint(root, written | more, config=config, other_files={"notes.txt": b"kept"})
    (root / RESIDUAL).parent.mkdir()
    with ResidualWriter(root / RESIDUAL, exact) as writer:
        for name, tensor in exact.items():
            writer.add(name, written[name], tensor)
    return root


def words(tensor: Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.int32).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_exact_result_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    exact = {f"t{size}": normal(size, seed=size, scale=1e-2) for size in (1, 31, 33, 1000, 4097)}
    exact |= {"none": torch.empty(0, 4), "one": torch.tensor(1 / 3)}
    folder = folder_of(tmp_path / "model", exact, dtype)
    with open_checkpoint(folder) as checkpoint, ResidualFile(folder / RESIDUAL) as residual:
        assert residual.records.keys() == exact.keys()
        for name, tensor in exact.items():
            found = residual.tensor(name, CheckpointSource(checkpoint))
            assert found.shape == tensor.shape
            assert words(found) == words(tensor)


def test_special_values_come_back_too() -> None:
    values = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        1e-45,
        -1e-40,
        3.4e38,
        1e39,
        70000.0,
        1 + 2**-23,
        -1 - 2**-9,
    ]
    exact = torch.tensor(values)
    exact = torch.cat([exact, torch.tensor([0x7F800001, -1], dtype=torch.int32).view(torch.float32)])
    for dtype in (torch.bfloat16, torch.float16):
        written = exact.to(dtype)
        assert words(restored(written, exact)) == words(exact)


def restored(written: Tensor, exact: Tensor) -> Tensor:
    """Through a file in memory."""
    from graftwork.delta.container import (
        DeltaWriter,
    )  # the writer's own file is on disk; here its parts are enough
    from graftwork.delta.memory import MemoryWriter
    from graftwork.delta.seal import seal_metadata

    target = MemoryWriter()
    writer = ResidualWriter("unused", ["t"], threads=1)
    writer._writer = DeltaWriter(target, None, ["t"], metadata_bytes=1024)
    writer.add("t", written, exact)
    writer._writer.finish(
        lambda manifest: seal_metadata(b"graftwork-residual-1", "residual", module._TEXT, manifest)
    )
    with ResidualFile(MemoryFile(target.getvalue())) as residual:
        return residual.tensor("t", StateSource({"t": written}))


def test_several_chunks_and_any_threads(tmp_path: Path) -> None:
    exact = normal(700_001)
    written = exact.bfloat16()
    files = []
    for threads in (1, 2, 7):
        path = tmp_path / f"{threads}.safetensors"
        with ResidualWriter(path, ["w"], threads=threads) as writer:
            writer.add("w", written, exact)
        files.append(path.read_bytes())
        with ResidualFile(path) as residual:
            assert torch.equal(residual.tensor("w", StateSource({"w": written}), threads=threads), exact)
    assert files[0] == files[1] == files[2]
    assert len(files[0]) < 2.15 * exact.numel()  # two bytes of the four that the exact result has


def test_what_stochastic_rounding_took_comes_back() -> None:
    exact = normal(1000, scale=1e-3)
    up = torch.nextafter(exact.bfloat16(), torch.full((1000,), math.inf, dtype=torch.bfloat16))
    assert words(restored(up, exact)) == words(exact)


def test_add_residual_writes_the_exact_checkpoint(tmp_path: Path) -> None:
    exact = {"up.weight": normal(33, 5), "down.weight": normal(5, 33, seed=1)}
    steps, other = torch.arange(3), normal(4).bfloat16()
    folder = folder_of(tmp_path / "model", exact, steps=steps, other=other)
    add_residual(folder, tmp_path / "exact")
    with open_checkpoint(tmp_path / "exact") as found:
        for name, tensor in exact.items():
            assert words(found.tensor(name)) == words(tensor)
        assert torch.equal(found.tensor("steps"), steps)
        assert torch.equal(found.tensor("other"), other.float())
        assert found.config == {"model_type": "any", "dtype": "float32"}
        assert found.other_files == ("config.json", "notes.txt")
    add_residual(folder, tmp_path / "half", dtype="float16")
    with open_checkpoint(tmp_path / "half") as found:
        assert torch.equal(
            found.tensor("up.weight"), exact["up.weight"].half()
        )  # once, not by way of bfloat16
        assert found.tensors["other"].dtype == "BF16"
    with pytest.raises(FileExistsError):
        add_residual(folder, tmp_path / "half")
    with pytest.raises(ValueError, match="float64"):
        add_residual(folder, tmp_path / "wide", dtype="float64")


def test_add_residual_of_shards(tmp_path: Path) -> None:
    exact = {f"layers.{n}.weight": normal(64, seed=n) for n in range(6)}
    folder = folder_of(tmp_path / "model", exact)
    add_residual(folder, tmp_path / "exact", max_shard_bytes=600)
    with open_checkpoint(tmp_path / "exact") as found:
        assert len(found.headers) == 3
        assert all(torch.equal(found.tensor(name), tensor) for name, tensor in exact.items())
    add_residual_again = tmp_path / "again"
    write_checkpoint(add_residual_again, {"w": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="holds no residual"):
        add_residual(add_residual_again, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    exact = {"w": normal(50)}
    folder = folder_of(tmp_path / "model", exact)
    with ResidualFile(folder / RESIDUAL) as residual:
        written = exact["w"].bfloat16()
        changed = written.clone()
        changed[7] += 1
        with pytest.raises(ChecksumError, match="differs from its digest"):
            residual.tensor("w", StateSource({"w": changed}))
        for wrong in ({"v": written}, {"w": written.half()}, {"w": written[:49]}):
            with pytest.raises(BaseMismatch, match="not those that the residual belongs to"):
                residual.tensor("w", StateSource(wrong))
    shorter = tmp_path / "shorter"
    write_checkpoint(shorter, {"v": written})
    (shorter / "residual").mkdir()
    (shorter / RESIDUAL).write_bytes((folder / RESIDUAL).read_bytes())
    with pytest.raises(BaseMismatch, match="lack a tensor"):
        add_residual(shorter, tmp_path / "never")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), ResidualWriter(path, ["w"]) as writer:
        writer.add("w", torch.zeros(3).bfloat16(), torch.zeros(3))
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["r.safetensors"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3).bfloat16(), torch.zeros(3).double()),
        (torch.zeros(3).bfloat16(), torch.zeros(4)),
    ],
)
def test_tensors_without_a_residual(tmp_path: Path, written: Tensor, exact: Tensor) -> None:
    with (
        pytest.raises(DeltaError, match="can have no residual"),
        ResidualWriter(tmp_path / "r", ["w"]) as writer,
    ):
        writer.add("w", written, exact)
    assert not list(tmp_path.iterdir())


def test_names_are_announced_and_come_once(tmp_path: Path) -> None:
    pair = torch.zeros(3).bfloat16(), torch.zeros(3)
    with ResidualWriter(tmp_path / "r.safetensors", ["w", "never"]) as writer:
        writer.add("w", *pair)
        with pytest.raises(ValueError, match="twice"):
            writer.add("w", *pair)
        with pytest.raises(ValueError, match="not announced"):
            writer.add("v", *pair)
    with ResidualFile(tmp_path / "r.safetensors") as residual:
        assert list(residual.records) == ["w"]
    with pytest.raises(ValueError, match="with"):
        ResidualWriter(tmp_path / "s.safetensors", ["w"]).add("w", *pair)


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    path = tmp_path / "r.safetensors"
    with ResidualWriter(path, ["a", "b"]) as writer:
        for name in ("a", "b"):
            writer.add(name, normal(9).bfloat16(), normal(9))
    return path.read_bytes()


def opened(data: bytes) -> None:
    """Read all of a file."""
    written = {name: normal(9).bfloat16() for name in ("a", "b")}
    with ResidualFile(MemoryFile(data)) as residual:
        for name in residual.records:
            residual.tensor(name, StateSource(written))


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_every_changed_byte_is_refused(data: bytes, flip: int) -> None:
    opened(data)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= flip
        with pytest.raises(GraftworkError):
            opened(bytes(broken))


def test_every_truncation_is_refused(data: bytes) -> None:
    for length in range(0, len(data), 7):
        with pytest.raises(GraftworkError):
            opened(data[:length])


def says(key: str, value: object) -> Callable[[Parts], object]:
    return lambda parts: parts["said"].update({key: value})


def record(key: str, value: object) -> Callable[[Parts], object]:
    return lambda parts: parts["manifest"]["tensors"]["a"].update({key: value})


def basis(key: str, value: object) -> Callable[[Parts], object]:
    return lambda parts: parts["manifest"]["tensors"]["a"]["basis"].update({key: value})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (says("format", "other"), DeltaError, "format"),
        (says("min_reader", [2, 0]), VersionTooNew, "newer graftwork"),
        (record("basis", None), DeltaError, "not an exact result beside a written one"),
        (basis("name", "b"), DeltaError, "not an exact result beside a written one"),
        (basis("dtype", "F32"), DeltaError, "not an exact result beside a written one"),
        (basis("nbytes", 16), DeltaError, "not an exact result beside a written one"),
    ],
)
def test_sealed_nonsense_is_refused(data: bytes, change: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        opened(rewrite(data, "residual", change))


def test_other_delta_files_are_refused() -> None:
    golden = Path(__file__).parents[1] / "adapt" / "golden" / "sparse_delta.safetensors"
    with pytest.raises(DeltaError, match="not a residual"):
        ResidualFile(golden)


def test_the_bytes_of_the_format() -> None:
    """A file of version 1.0, kept: every later version reads it."""
    exact = torch.tensor([0.1, -1.0, 1 / 3, 1e-9, 256.5, 0.0])
    with ResidualFile(GOLDEN) as residual:
        found = residual.tensor("layers.0.weight", StateSource({"layers.0.weight": exact.bfloat16()}))
        assert words(found) == words(exact)
        assert residual.size == GOLDEN.stat().st_size
