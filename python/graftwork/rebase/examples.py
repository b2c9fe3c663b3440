"""Texts as examples: Hugging Face models tried out on them, one half to choose by, one half held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.errors import CheckpointError, DataError
from graftwork.rebase.evidence import Evaluation, Probe
from graftwork.texts.corpus import Document, Label, read_corpus
from graftwork.texts.hugging_face import (
    load_tokenizer,
    ordered_labels,
    reading_folder,
    transformers_module,
)
from graftwork.texts.tasks import TASKS, Piece, Task

__all__ = ["probe_of_examples"]

BATCH = 16
MAX_TOKENS = 256
FEATURES = 256
"""Pieces whose hidden states the CKA sees."""
_TASKS = {
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "classification",
}


def probe_of_examples(folder: Path, file: Path) -> Probe:
    """A `Probe` of the fine-tune in ``folder`` and the texts in ``file``.

    The model's class, as its configuration names it, says what is predicted: the next token, masked tokens (the same ones
    every time), or the label. Accuracy is the score of a classifier; language models have their loss alone. Texts with
    even numbers choose, those with odd ones are held out.

    Raises
    ------
    MissingExtra
        transformers is not installed.
    CheckpointError
        The folder holds no model whose loss is known.
    DataError
        The file is malformed, or holds fewer than 8 texts.
    """
    name, model = _load(folder)
    tokenizer = load_tokenizer(folder)
    corpus = read_corpus([file], labelled=name == "classification")
    if len(corpus.documents) < 8:
        raise DataError("too few examples", file=file, got=len(corpus.documents), wanted="at least 8 texts")
    labels = ordered_labels(folder, corpus.labels)
    places = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS
    limit = min(places, tokenizer.model_max_length, MAX_TOKENS)
    task = TASKS[name](tokenizer, limit, corpus.documents[0].text, labels)
    _check_labels(model, name, labels, file)
    trial = _Trials(model, task, corpus.documents, scored=name == "classification")
    live = {key: tensor.data for key, tensor in model.state_dict(keep_vars=True).items()}
    return Probe(trial.dev, trial.held_out, trial.features, live)


def _load(folder: Path) -> tuple[str, Any]:
    with transformers_module() as transformers, reading_folder(folder, "a model"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        named = (getattr(config, "architectures", None) or [""])[0]
        task = next((task for ending, task in _TASKS.items() if named.endswith(ending)), None)
        if task is not None and hasattr(transformers, named):
            model = getattr(transformers, named).from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
            return task, model.eval()
    raise CheckpointError(
        "the model's class does not tell what it predicts",
        file=folder / "config.json",
        got=named or "no architecture",
        wanted=f"a class whose name ends in {', '.join(_TASKS)}",
        remedy="pass loss= to graftwork.rebase.transfer",
    )


def _check_labels(model: Any, name: str, labels: Sequence[Label], file: Path) -> None:
    classes = getattr(model.config, "num_labels", len(labels))
    if name == "classification" and len(labels) > classes:
        raise DataError(
            "there are more labels than the model has classes", file=file, got=len(labels), wanted=classes
        )


class _Trials:
    """The texts, cut into pieces once; every call sees the same batches."""

    def __init__(self, model: Any, task: Task, documents: Sequence[Document], *, scored: bool) -> None:
        self._model, self._task, self._scored = model, task, scored
        pieces = task.pieces(documents)
        self._halves = [[piece for part in pieces[half::2] for piece in part] for half in (0, 1)]

    def dev(self, _: Mapping[str, Tensor]) -> Evaluation:
        return self._evaluate(self._halves[0])

    def held_out(self, _: Mapping[str, Tensor]) -> Evaluation:
        return self._evaluate(self._halves[1])

    @torch.no_grad()
    def _evaluate(self, pieces: Sequence[Piece]) -> Evaluation:
        generator = torch.Generator().manual_seed(0)  # the same tokens are masked every time
        loss, right, predicted = 0.0, 0, 0
        for start in range(0, len(pieces), BATCH):
            batch = self._task.batch(pieces[start : start + BATCH], generator)
            if batch.predicted:
                summed, hits = self._task.losses(self._model, batch)
                loss, right, predicted = loss + float(summed), right + hits, predicted + batch.predicted
        count = max(1, predicted)
        return Evaluation(loss / count, right / count if self._scored else None)

    @torch.no_grad()
    def features(self, _: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean hidden state of every piece, by layer."""
        found: dict[str, list[Tensor]] = {}
        pieces = self._halves[0][:FEATURES]
        generator = torch.Generator().manual_seed(0)
        for start in range(0, len(pieces), BATCH):
            batch = self._task.batch(pieces[start : start + BATCH], generator)
            states = self._model(
                input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True
            ).hidden_states
            weights = batch.mask.unsqueeze(-1).float()
            for layer, state in enumerate(states):
                mean = (state.float() * weights).sum(1) / weights.sum(1)
                found.setdefault(f"layer {layer}", []).append(mean)
        return {layer: torch.cat(parts) for layer, parts in found.items()}
