from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graftwork.recipe import SparseRecipe
from tests.generators.transformers_models import save_bert, save_labelled, save_llama, save_texts

TASKS = {
    "masked_lm": ("bert", "texts.txt"),
    "classification": ("bert", "labelled.jsonl"),
    "causal_lm": ("llama", "texts.txt"),
}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and texts; not to be changed."""
    place = tmp_path_factory.mktemp("training")
    save_bert(place / "bert")
    save_bert(place / "body", "BertModel")
    save_llama(place / "llama")
    save_llama(place / "tied", tied=True)
    save_texts(place / "texts.txt")
    save_labelled(place / "labelled.jsonl")
    return place


@pytest.fixture
def recipe(tiny_models: Path, tmp_path: Path) -> Callable[..., SparseRecipe]:
    """A recipe for the tiny models."""

    def make(task: str = "masked_lm", method: str = "lottery", **changes: Any) -> SparseRecipe:
        model, data = TASKS[task]
        settings = {
            "model": tiny_models / model, "data": tiny_models / data, "task": task, "method": method, "density": 0.1,
            "out": tmp_path / "delta.safetensors", "steps": 6, "batch": 4, "max_tokens": 24, "lr": 3e-3,
            "held_out": 0.2, "warmup": 0.2,
        }  # fmt: skip
        return SparseRecipe(**{**settings, **changes})

    return make


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python's own handler of SIGINT: a test run in the background inherits none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
