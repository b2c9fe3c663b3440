"""Recipes, models and places that training refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.adapt import train_sparse
from graftwork.errors import CheckpointError, DataError, MissingExtra, RecipeError, TargetExists
from graftwork.recipe import ExchangePolicy, SparseRecipe, load_recipe
from tests.generators.transformers_models import (
    save_bert,
    save_tokenizer,
)

pytest.importorskip("transformers", reason="transformers is not installed (the extra `hf` brings it)")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"density": None}, ["'k'", "one of k and density"]),
        ({"k": 5}, ["'k'", "density: 0.1"]),
        ({"steps": 0}, ["'steps'", "got: 0", "at least 1"]),
        ({"held_out": 1.0}, ["'held_out'", "[0, 1)"]),
        ({"density": 1.5}, ["'density'", "(0, 1]"]),
        ({"lr": float("inf")}, ["'lr'", "inf"]),
        ({"max_norm": 0.0}, ["'max_norm'", "null"]),
        ({"l1": [0.1]}, ["'l1'", "two numbers"]),
        ({"data": []}, ["'data'", "at least one file"]),
        ({"policy": ExchangePolicy()}, ["'policy'", "method lottery", "remove it"]),
        ({"method": "spiel", "iterations": 2}, ["'iterations'", "method spiel"]),
        ({"selector": "random", "full_steps": 5}, ["'full_steps'", "no full phase"]),
    ],
)
def test_values_that_contradict_each_other(
    recipe: Callable[..., SparseRecipe], changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "policy, word",
    [
        ({"kind": "fixed", "period": 3}, "policy.period"),
        ({"kind": "moment_approximation", "window": 3}, "policy.window"),
        ({"rate": 2.0}, "policy.rate"),
        ({"window": 0}, "policy.window"),
    ],
)
def test_policies_that_contradict_themselves(policy: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        ExchangePolicy(**policy)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_tokens": 33}, ["'max_tokens'", "at most 32"]),
        ({"max_tokens": 2}, ["'max_tokens'", "at least 3"]),
        ({"maskable": ["bert.encodr.*"]}, ["maskable", "bert.encodr.*", "is 'bert.encoder"]),
        ({"k": 10**9, "density": None}, ["k must be in"]),
        ({"task": "causal_lm", "model": "t5"}, ["'task'", "causal_lm", "type t5"]),
        ({"task": "masked_lm", "model": "llama"}, ["'task'", "masked_lm", "no mask token"]),
        ({"method": "spiel", "maskable": ["*.bias"]}, ["maskable", "Linear"]),
        ({"method": "spiel", "policy": ExchangePolicy(period=2, window=3)}, ["window must be in"]),
        ({"device": "cuda"}, ["'device'", "no GPU"]),
    ],
)  # fmt: skip
def test_recipes_that_do_not_suit_the_model(
    recipe: Callable[..., SparseRecipe], tiny_models: Path, tmp_path: Path, changes: dict[str, Any], words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if changes.get("model") == "t5":
        (tiny_models / "t5").mkdir(exist_ok=True)
        save_tokenizer(tiny_models / "t5")
        (tiny_models / "t5" / "config.json").write_text('{"model_type": "t5"}')
        (tiny_models / "t5" / "model.safetensors").write_bytes(
            (tiny_models / "bert" / "model.safetensors").read_bytes()
        )
    if "model" in changes:
        changes = changes | {"model": tiny_models / changes["model"]}
    with pytest.raises(RecipeError) as caught:
        train_sparse(recipe(**changes))
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_errors_name_the_recipe(
    recipe: Callable[..., SparseRecipe], tiny_models: Path, tmp_path: Path
) -> None:
    file = tmp_path / "task.yaml"
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(recipe()).items()}
    file.write_text(json.dumps(asked | {"max_tokens": 100}))
    with pytest.raises(RecipeError, match=r"task\.yaml"):
        train_sparse(file)
    file.write_text(json.dumps(asked | {"policy": {"kind": "fixed", "rate": 0.5}, "method": "spiel"}))
    with pytest.raises(RecipeError, match=r"policy.rate(?s:.*)task.yaml"):
        load_recipe(file, SparseRecipe)
    file.write_text(json.dumps(asked | {"stesp": 3}))
    with pytest.raises(RecipeError, match="did you mean 'steps'"):
        train_sparse(file)


def test_the_example_is_a_recipe() -> None:
    example = load_recipe(Path(__file__).parents[2] / "examples" / "sparse_finetuning.yaml", SparseRecipe)
    assert example.task == "classification" and example.method == "lottery"


def test_models_that_cannot_be_read(
    recipe: Callable[..., SparseRecipe], tiny_models: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        train_sparse(recipe(model=tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no tokenizer(?s:.*)save_pretrained"):
        train_sparse(recipe(model=tmp_path / "empty"))
    save_tokenizer(tmp_path / "empty")
    with pytest.raises((CheckpointError, OSError)):
        train_sparse(recipe(model=tmp_path / "empty"))


def test_a_causal_model_without_its_head_is_refused(
    recipe: Callable[..., SparseRecipe], tmp_path: Path
) -> None:
    save_bert(tmp_path / "body", "BertModel", is_decoder=True)
    with pytest.raises(CheckpointError, match="lacks weights"):
        train_sparse(recipe("causal_lm", model=tmp_path / "body"))


def test_a_folder_without_the_body_is_refused(recipe: Callable[..., SparseRecipe], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_bert(tmp_path / "bert")
    save_file({"other": torch.zeros(2)}, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks all weights"):
        train_sparse(recipe(model=tmp_path / "bert"))


def test_a_model_without_a_mask_token_is_refused(recipe: Callable[..., SparseRecipe], tmp_path: Path) -> None:
    save_bert(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert", mask=False)
    with pytest.raises(RecipeError, match="no mask token"):
        train_sparse(recipe(model=tmp_path / "bert"))


def test_a_missing_extra_is_named(
    recipe: Callable[..., SparseRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"graftwork\[hf\]"):
        train_sparse(recipe())


def test_nothing_is_overwritten(recipe: Callable[..., SparseRecipe]) -> None:
    asked = recipe()
    for path in (asked.out, Path(f"{asked.out}.json")):
        path.write_text("mine")
        with pytest.raises(TargetExists, match=path.name):
            train_sparse(asked)
        assert path.read_text() == "mine"
        path.unlink()


@pytest.mark.parametrize("method", ["lottery", "spiel"])
def test_divergence_is_said_plainly(recipe: Callable[..., SparseRecipe], method: str) -> None:
    with pytest.raises(RecipeError, match=r"diverged in the (full|sparse) phase(?s:.*)lower 'lr'"):
        train_sparse(recipe("causal_lm", method, lr=1e30, warmup=0.0, max_norm=None))


def test_texts_without_tokens_and_too_few_texts(recipe: Callable[..., SparseRecipe], tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("the cat")
    with pytest.raises(DataError, match=r"too few documents(?s:.*)held_out: 0"):
        train_sparse(recipe(data=tmp_path / "few.txt"))
    (tmp_path / "blank.jsonl").write_text('{"text": "the cat"}\n{"text": "\\u0000"}\n')
    report = train_sparse(recipe(data=[tmp_path / "few.txt", tmp_path / "blank.jsonl"], held_out=0.4))
    assert (report.texts, report.held_out) == (2, 1)
