"""Deltas that the authors of LT-SFT released."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapt import SparseDelta
from graftwork.adapt.deltas.composable_sft import to_row_major
from graftwork.errors import BaseMismatch, CheckpointError
from tests.adapt.deltas import bits


def authors_file(
    path: Path, deltas: dict[str, torch.Tensor], full: dict[str, torch.Tensor], **how: Any
) -> Path:
    """Save dense differences as the authors' code does: column-major, as a first index and steps."""
    diffs = {}
    for name, tensor in deltas.items():
        coordinates = tensor.nonzero()
        strides = np.cumprod([1, *tensor.shape])[:-1]
        flat = (coordinates.numpy() * strides).sum(axis=1)
        order = flat.argsort()
        steps = np.diff(flat[order])
        diffs[name] = {
            "size": tensor.size(),
            "index_steps": [flat[order][0], *steps.tolist()] if len(flat) else [],
            "values": tensor[tuple(coordinates[order].T)],
        }
    path.mkdir()
    torch.save({"diffs": diffs, "abs": full}, path / "pytorch_diff.bin", **how)
    return path


def test_the_worked_example(tmp_path: Path) -> None:
    content = {
        "size": torch.Size([2, 3]),
        "index_steps": [np.int64(1), 1, 3],
        "values": torch.tensor([-0.25, 0.5, 2.0]),
    }
    (tmp_path / "delta").mkdir()
    torch.save({"diffs": {"w": content}, "abs": {}}, tmp_path / "delta" / "pytorch_diff.bin")
    delta = SparseDelta.from_composable_sft(tmp_path / "delta", trust=True)
    model = {"w": torch.zeros(2, 3)}
    with delta.applied(model):
        assert model["w"].tolist() == [[0.0, 0.5, 0.0], [-0.25, 0.0, 2.0]]
    indices, values = delta.changes("w")
    assert indices.tolist() == [1, 3, 5] and values.tolist() == [0.5, -0.25, 2.0]


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_file_of_theirs(how: dict[str, Any], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"bert.a": (7, 5), "bert.b": (11,), "bert.c": (3, 4, 5), "bert.d": (2, 2)}
    dense = {
        name: torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)
        for name, shape in shapes.items()
    }
    dense["bert.d"].zero_()
    head = {"cls.weight": torch.randn(3, 4), "cls.transposed": torch.randn(3, 4).mT}
    folder = authors_file(tmp_path / "delta", dense, head, **how)
    delta = SparseDelta.from_composable_sft(folder, trust=True)
    model = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with delta.applied(model):
        assert bits({n: t + 0.0 for n, t in model.items()}) == bits({n: t + 0.0 for n, t in dense.items()})
    assert bits(delta.full) == bits(head) and delta.base_digest is None
    model = {name.removeprefix("bert."): torch.ones(shape).bfloat16() for name, shape in shapes.items()}
    short = delta.renamed(lambda name: name.removeprefix("bert."))
    with pytest.raises(BaseMismatch, match="dtype"):
        short.apply_(model)
    meant = short.for_base(model)
    assert meant.base_digest is not None and all(t.digest for t in meant.tensors if t.name != "d")
    with meant.applied(model):
        pass
    again = SparseDelta.from_composable_sft(folder / "pytorch_diff.bin", base=dense, trust=True)
    assert again.tensors[0].digest is not None


@given(shape=st.lists(st.integers(1, 5), min_size=0, max_size=4), data=st.data())
def test_column_major_indices(shape: list[int], data: st.DataObject) -> None:
    numel = int(np.prod(shape))
    columns = torch.tensor(data.draw(st.lists(st.integers(0, numel - 1), min_size=1, max_size=9)))
    wanted = (
        np.ravel_multi_index(np.unravel_index(columns.numpy(), shape, order="F"), shape)
        if shape
        else columns.numpy()
    )
    assert to_row_major(columns, tuple(shape)).tolist() == wanted.tolist()


def one(**changes: Any) -> dict[str, Any]:
    diff = {"size": torch.Size([2, 3]), "index_steps": [1, 1], "values": torch.ones(2)} | changes
    return {"diffs": {"w": diff}, "abs": {}}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"diffs": {}},
        {"diffs": {1: {}}, "abs": {}},
        {"diffs": {"w": 3}, "abs": {}},
        {"diffs": {}, "abs": {"h": 3}},
        one(index_steps=[1, 0]),
        one(index_steps=[-1, 2]),
        one(index_steps=[1, 5]),
        one(index_steps=[1, 2**62, 2**62, 2**62, 2**62], values=torch.ones(5)),
        one(index_steps=[1, 2**70]),
        one(index_steps=[1, "x"]),
        one(index_steps=[1]),
        one(values=torch.ones(2).long()),
        one(values=[1.0, 1.0]),
        one(size=torch.Size([0, 3])),
        one(size=None),
    ],
)
def test_content_of_another_form(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_diff.bin")
    with pytest.raises(CheckpointError, match="composable-sft"):
        SparseDelta.from_composable_sft(tmp_path, trust=True)


class Evil:
    """What touches a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.place,)


def test_pickles_are_not_trusted(tmp_path: Path) -> None:
    path, evil = tmp_path / "pytorch_diff.bin", Evil(tmp_path / "touched")
    torch.save(one(), path)
    with pytest.raises(CheckpointError, match="trust=True"):
        SparseDelta.from_composable_sft(tmp_path)
    for content in (pickle.dumps(evil, 2), b"", b"PK\x03\x04 not a zip", pickle.dumps({"diffs": evil}, 2)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="pickle"):
            SparseDelta.from_composable_sft(tmp_path, trust=True)
    torch.save({"diffs": {"w": evil}, "abs": {}}, path)
    with pytest.raises(CheckpointError, match="pickle"):
        SparseDelta.from_composable_sft(tmp_path, trust=True)
    assert not evil.place.exists()
    with pytest.raises(CheckpointError, match="no such file"):
        SparseDelta.from_composable_sft(tmp_path / "nothing", trust=True)
