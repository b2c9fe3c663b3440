"""Training from a recipe: every task and method, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.adapt import SparseDelta, TrainReport, apply_deltas, compose, train_sparse
from graftwork.checkpoint import open_checkpoint
from graftwork.errors import BaseMismatch
from graftwork.recipe import SparseRecipe
from graftwork.texts.tasks import TASKS
from tests.generators.transformers_models import (
    save_bert,
)

pytest.importorskip("transformers", reason="transformers is not installed (the extra `hf` brings it)")


def told(report: TrainReport) -> dict[str, Any]:
    """A report without what a clock said."""
    found = report.to_dict()
    for part in (found, *found["phases"]):
        del part["seconds"]
    return {key: value for key, value in found.items() if key != "out"}


@pytest.mark.parametrize("method", ["lottery", "spiel"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_method(recipe: Callable[..., SparseRecipe], task: str, method: str) -> None:
    asked = recipe(task, method, accumulate=2, evaluate_every=2)
    report = train_sparse(asked)
    delta = SparseDelta.load(asked.out)
    assert delta.entries == report.tuned == report.chosen - report.unchanged
    assert 0 < report.tuned <= report.chosen == int(0.1 * report.tunable)
    assert report.delta_bytes == asked.out.stat().st_size
    assert report.full == sum(tensor.numel() for tensor in delta.full.values())
    assert (report.texts, report.held_out) == (32, 8)
    kinds = ["full", "sparse"] if method == "lottery" else ["sparse"]
    assert [phase.kind for phase in report.phases] == kinds
    for phase in report.phases:
        assert [row.step for row in phase.evaluations] == [2, 4, 6] and phase.optimizer_bytes > 0
        best = max(phase.evaluations, key=lambda row: row.accuracy if task == "classification" else -row.loss)
        assert phase.after == best and phase.before is not None and phase.before.step == 0
    assert json.loads(Path(f"{asked.out}.json").read_text()) == report.to_dict()
    assert sorted(path.name for path in asked.out.parent.iterdir()) == [
        "delta.safetensors",
        "delta.safetensors.json",
    ]
    with open_checkpoint(asked.model) as base:
        assert {tensor.name for tensor in delta.tensors} <= set(base.tensors)


def test_heads_are_tuned_in_full_and_stored(recipe: Callable[..., SparseRecipe]) -> None:
    report = train_sparse(recipe("classification"))
    delta = SparseDelta.load(report.out)
    heads = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert list(delta.full) == heads and report.labels == ["bad", "good"]
    assert report.cut and "classifier.weight" in report.notes[0]


def test_masked_language_models_have_their_output_embedding_untied(
    recipe: Callable[..., SparseRecipe],
) -> None:
    report = train_sparse(recipe("masked_lm"))
    delta = SparseDelta.load(report.out)
    assert len(delta.changes("bert.embeddings.word_embeddings.weight")[0])
    assert "cls.predictions.decoder.weight" not in {**delta.tied, **delta.full}
    assert all("LayerNorm" not in name for name in [*delta.full, *(t.name for t in delta.tensors)])


def test_a_tied_output_embedding_of_a_causal_model_is_tuned_once(
    recipe: Callable[..., SparseRecipe], tiny_models: Path
) -> None:
    delta = SparseDelta.load(train_sparse(recipe("causal_lm", model=tiny_models / "tied")).out)
    assert delta.tied["lm_head.weight"] == "model.embed_tokens.weight" and not delta.full


@pytest.mark.parametrize("method", ["lottery", "spiel"])
@pytest.mark.parametrize(
    "model, task", [("body", "classification"), ("bert", "classification"), ("llama", "causal_lm")]
)
def test_what_is_exported_is_what_was_trained(
    recipe: Callable[..., SparseRecipe], tiny_models: Path, tmp_path: Path, model: str, task: str, method: str
) -> None:
    asked = recipe(task, method, model=tiny_models / model, evaluate_every=1)
    trained = train_sparse(asked)
    apply_deltas(asked.model, [asked.out], tmp_path / "model", with_full=True)
    still = train_sparse(
        replace(asked, model=tmp_path / "model", out=tmp_path / "still", lr=0.0, head_lr=0.0, steps=1)
    )
    before, after = still.phases[0].before, trained.phases[-1].after
    assert before is not None and after is not None
    assert (before.loss, before.accuracy) == (after.loss, after.accuracy)


def test_sixteen_bit_weights(recipe: Callable[..., SparseRecipe], tmp_path: Path) -> None:
    asked = recipe("causal_lm", dtype="bfloat16", lr=1e-4)
    report = train_sparse(asked)
    delta = SparseDelta.load(asked.out)
    assert {tensor.dtype for tensor in delta.tensors} == {torch.float32}, "that of the folder"
    assert delta.values.abs().max() < 1e-3 and report.tuned
    apply_deltas(asked.model, [asked.out], tmp_path / "model")


def test_start_from_a_language_delta(
    recipe: Callable[..., SparseRecipe], tiny_models: Path, tmp_path: Path
) -> None:
    language = train_sparse(recipe(out=tmp_path / "language", head_lr=0.0))
    apply_deltas(tiny_models / "bert", [language.out], tmp_path / "both")
    asked = recipe("classification", out=tmp_path / "task", start_from=[language.out])
    task = train_sparse(asked)
    direct = train_sparse(recipe("classification", out=tmp_path / "direct", model=tmp_path / "both"))
    assert [phase.evaluations for phase in task.phases] == [phase.evaluations for phase in direct.phases]
    mine, theirs = SparseDelta.load(task.out), SparseDelta.load(direct.out)
    assert torch.equal(mine.support.indices, theirs.support.indices) and torch.equal(
        mine.values, theirs.values
    )
    # The task's delta is one of the base without the language, and adds to it.
    assert compose([mine, SparseDelta.load(language.out)]).base_digest == mine.base_digest
    with pytest.raises(BaseMismatch, match=r"not made against(?s:.*)start_from"):
        train_sparse(replace(asked, out=tmp_path / "other", model=tmp_path / "both"))


def test_patterns_choose_what_is_tuned(recipe: Callable[..., SparseRecipe], tmp_path: Path) -> None:
    chosen = {
        "maskable": ["*.query.weight"],
        "full": ["*.key.weight", "*.key.bias"],
        "frozen": ["*.layer.1.*"],
    }
    for method in ("lottery", "spiel"):
        report = train_sparse(recipe("masked_lm", method, out=tmp_path / method, **chosen))
        delta = SparseDelta.load(report.out)
        attention = "bert.encoder.layer.0.attention.self."
        assert [tensor.name for tensor in delta.tensors] == [f"{attention}query.weight"]
        assert list(delta.full) == [f"{attention}key.bias", f"{attention}key.weight"]
        assert (report.tunable, report.full) == (1024, 1056)


def test_random_weights_need_no_full_phase(recipe: Callable[..., SparseRecipe]) -> None:
    report = train_sparse(recipe(selector="random", k=500, density=None))
    assert [phase.kind for phase in report.phases] == ["sparse"] and report.chosen == 500


def test_without_texts_held_out_nothing_is_evaluated(recipe: Callable[..., SparseRecipe]) -> None:
    report = train_sparse(recipe(held_out=0.0, evaluate_every=2))
    assert report.texts == 40 and not report.held_out
    assert all(phase.before is None and phase.after is None for phase in report.phases)


def test_evaluation_hides_the_same_tokens_every_time(recipe: Callable[..., SparseRecipe]) -> None:
    report = train_sparse(recipe(lr=0.0, evaluate_every=1, full_steps=2, steps=3))
    losses = {row.loss for phase in report.phases for row in phase.evaluations}
    assert len(losses) == 1 and report.tuned == 0
    assert (report.chosen, report.not_chosen) == (0, int(0.1 * report.tunable))


def test_micro_batches_do_not_change_the_loss(recipe: Callable[..., SparseRecipe], tmp_path: Path) -> None:
    one = train_sparse(recipe("causal_lm", out=tmp_path / "one", batch=8))
    two = train_sparse(recipe("causal_lm", out=tmp_path / "two", batch=2, accumulate=4))
    for left, right in zip(one.phases, two.phases, strict=True):
        assert left.train_loss == pytest.approx(right.train_loss, rel=1e-4)


def test_chance_comes_from_the_seed_alone(recipe: Callable[..., SparseRecipe], tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = train_sparse(recipe("classification", out=tmp_path / "first"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = train_sparse(recipe("classification", out=tmp_path / "second"))
    other = train_sparse(recipe("classification", out=tmp_path / "other", seed=1))
    assert first.out.read_bytes() == second.out.read_bytes() != other.out.read_bytes()
    assert told(first) == told(second)


def test_labels_keep_the_order_of_a_model_that_has_them(
    recipe: Callable[..., SparseRecipe], tmp_path: Path
) -> None:
    names = {0: "good", 1: "bad"}
    save_bert(tmp_path / "model", "BertForSequenceClassification", id2label=names)
    report = train_sparse(recipe("classification", model=tmp_path / "model"))
    assert report.labels == ["good", "bad"] and not report.notes
    delta = SparseDelta.load(report.out)
    assert list(delta.full) == ["classifier.bias", "classifier.weight"]
