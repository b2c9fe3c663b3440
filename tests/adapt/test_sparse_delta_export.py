"""Dense checkpoints made of a base and a sparse delta."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftwork.adapt import SparseDelta
from graftwork.checkpoint import open_checkpoint
from graftwork.errors import BaseMismatch, CheckpointError, TargetExists
from tests.adapt.deltas import State, bits, cloned, expected, mixed_state, random_delta, with_head
from tests.generators.checkpoints import write_folder


def read(path: Path) -> State:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder(shards: int, tmp_path: Path) -> None:
    base = mixed_state()
    delta = random_delta(base, 1)
    write_folder(tmp_path / "base", base, shards=shards)
    (tmp_path / "base" / "tokenizer").mkdir()
    (tmp_path / "base" / "tokenizer" / "vocab.txt").write_text("words")
    delta.to_checkpoint(tmp_path / "base", tmp_path / "deep" / "out", scale=0.7)
    assert bits(read(tmp_path / "deep" / "out")) == bits(expected(base, {delta: 0.7}))
    model = cloned(base)
    with delta.applied(model, 0.7):
        assert bits(read(tmp_path / "deep" / "out")) == bits(model)
    for file in (path for path in (tmp_path / "base").rglob("*") if path.is_file()):
        other = tmp_path / "deep" / "out" / file.relative_to(tmp_path / "base")
        was, now = file.read_bytes(), other.read_bytes()
        header = 8 + int.from_bytes(was[:8], "little") if file.suffix == ".safetensors" else len(was)
        assert was[:header] == now[:header] and len(was) == len(now)
    with pytest.raises(TargetExists):
        delta.to_checkpoint(tmp_path / "base", tmp_path / "deep" / "out")


def test_a_file_and_a_checkpoint_that_is_open(tmp_path: Path) -> None:
    base = mixed_state()
    delta = random_delta(base, 1)
    save_file(base, tmp_path / "base.safetensors", metadata={"format": "pt", "by": "us"})
    delta.to_checkpoint(tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    assert bits(load_file(tmp_path / "out.safetensors")) == bits(expected(base, {delta: 1.0}))
    with open_checkpoint(tmp_path / "base.safetensors") as checkpoint:
        delta.to_checkpoint(checkpoint, tmp_path / "again.safetensors")
        assert checkpoint.tensor("scalar").shape == ()
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    with pytest.raises(TargetExists):
        delta.to_checkpoint(tmp_path / "base.safetensors", tmp_path / "out.safetensors")


@pytest.mark.parametrize("shards", [1, 2])
def test_tensors_in_full(shards: int, tmp_path: Path) -> None:
    base = mixed_state()
    full = {"head.weight": torch.randn(3, 5), "steps": torch.arange(9)}
    delta = with_head(base, **full)
    write_folder(tmp_path / "base", base, shards=shards)
    delta.to_checkpoint(tmp_path / "base", tmp_path / "without")
    assert bits(read(tmp_path / "without")) == bits(expected(base, {delta: 1.0}))
    delta.to_checkpoint(tmp_path / "base", tmp_path / "with", with_full=True)
    found = read(tmp_path / "with")
    assert bits(found) == bits({**expected(base, {delta: 1.0}), **full})
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in {**base, **full}.items()}
    if shards > 1:
        index = json.loads((tmp_path / "with" / "model.safetensors.index.json").read_text())
        assert index["weight_map"]["head.weight"] == "model-00002-of-00002.safetensors"
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    embed = SparseDelta(
        delta.tensors, delta.support, delta.values, full={"x": torch.ones(2)}, tied={"steps": "x"}
    )
    embed.to_checkpoint(tmp_path / "base", tmp_path / "tied", with_full=True)
    assert torch.equal(read(tmp_path / "tied")["steps"], torch.ones(2))


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    base = mixed_state()
    delta = random_delta(base, 1)
    other = cloned(base)
    other["layers.1.weight"][0] += 1
    write_folder(tmp_path / "other", other)
    with pytest.raises(BaseMismatch, match="for_base") as caught:
        delta.to_checkpoint(tmp_path / "other", tmp_path / "out")
    assert caught.value.tensor == "layers.1.weight"
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in base.items()}
    write_folder(tmp_path / "half", half)
    with pytest.raises(BaseMismatch, match="dtype"):
        delta.to_checkpoint(tmp_path / "half", tmp_path / "out")
    write_folder(tmp_path / "less", {"steps": base["steps"]})
    with pytest.raises(BaseMismatch, match="lack"):
        delta.to_checkpoint(tmp_path / "less", tmp_path / "out")
    with pytest.raises(CheckpointError):
        delta.to_checkpoint(tmp_path / "nothing" / "model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    delta.to_checkpoint(tmp_path / "half", tmp_path / "out", check_base=False)
    assert bits(read(tmp_path / "out")) == bits(expected(half, {delta: 1.0}))


def test_tied_weights(tmp_path: Path) -> None:
    base = {"model.embed_tokens.weight": torch.randn(6, 4), "model.norm.weight": torch.ones(4)}
    write_folder(tmp_path / "base", base, config={"tie_word_embeddings": True})
    model = {**base, "lm_head.weight": base["model.embed_tokens.weight"]}
    delta = SparseDelta.from_changes({"lm_head.weight": (torch.tensor([3]), torch.ones(1))}, model)
    assert delta.tied == {"model.embed_tokens.weight": "lm_head.weight"}
    delta.to_checkpoint(tmp_path / "base", tmp_path / "out")
    changed = read(tmp_path / "out")["model.embed_tokens.weight"] - base["model.embed_tokens.weight"]
    assert changed.nonzero().tolist() == [[0, 3]]
    tuned = cloned(base)
    tuned["model.embed_tokens.weight"][1, 1] += 1
    again = SparseDelta.from_models(tmp_path / "base", tuned, threads=1)
    assert again.tied == {"lm_head.weight": "model.embed_tokens.weight"} and again.entries == 1
    assert again.base_digest == SparseDelta.from_models(model, model).base_digest
