"""Checkpoints whose tensors are made one by one: the same bytes as all at once, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from graftwork.checkpoint import write_checkpoint
from graftwork.checkpoint.dtypes import code_of
from graftwork.checkpoint.writer import Planned, stream_checkpoint
from graftwork.errors import CheckpointError, TargetExists

TENSORS = {
    "b.weight": torch.arange(12.0).view(3, 4),
    "a.bias": torch.arange(5, dtype=torch.int16),
    "none": torch.empty(0, 2),
    "one": torch.tensor(True),
    "c": torch.ones(7, dtype=torch.bfloat16),
}


def plan(tensors: dict[str, Tensor]) -> dict[str, Planned]:
    return {
        name: Planned(str(code_of(tensor.dtype)), tuple(tensor.shape)) for name, tensor in tensors.items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("limit", [None, 20, 60])
def test_the_bytes_are_those_of_all_at_once(tmp_path: Path, limit: int | None) -> None:
    more = {"config": {"a": 1}, "max_shard_bytes": limit}
    write_checkpoint(tmp_path / "whole", TENSORS, **more, other_files={"sub/notes.txt": b"abc"})
    made: list[str] = []

    def make(name: str) -> Tensor:
        made.append(name)
        return TENSORS[name]

    stream_checkpoint(
        tmp_path / "streamed",
        plan(TENSORS),
        make,
        **more,
        other_files={"sub/notes.txt": lambda: (b"a", b"bc")},
    )
    assert contents(tmp_path / "streamed") == contents(tmp_path / "whole")
    assert sorted(made) == sorted(TENSORS)  # each once


def test_a_single_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "whole.safetensors", TENSORS)
    stream_checkpoint(tmp_path / "streamed.safetensors", plan(TENSORS), TENSORS.__getitem__)
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "streamed.safetensors").read_bytes()
    with pytest.raises(TargetExists):
        stream_checkpoint(tmp_path / "whole.safetensors", plan(TENSORS), TENSORS.__getitem__)
    with pytest.raises(ValueError, match="need a folder"):
        stream_checkpoint(tmp_path / "more.safetensors", plan(TENSORS), TENSORS.__getitem__, config={})


@pytest.mark.parametrize("other", [torch.zeros(3, 4, dtype=torch.float16), torch.zeros(4, 3)])
def test_a_tensor_of_another_form_than_planned(tmp_path: Path, other: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"another form than planned(.|\n)*b.weight(.|\n)*F32 \[3, 4\]"):
        stream_checkpoint(tmp_path / "out", plan(TENSORS), (TENSORS | {"b.weight": other}).__getitem__)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(name: str) -> Tensor:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError):
        stream_checkpoint(tmp_path / "out", plan(TENSORS), fail)
    assert not list(tmp_path.iterdir())
