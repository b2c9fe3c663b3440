"""The two fine-tuning tasks of the demo, on real text: retrieval and classification.

Each task measures the pretrained model, fine-tunes it, and scores any weights on held-out examples whose source
files training never saw.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.corpora import PACKAGES, Labelled, Pair, Split
from bench.models import training_autocast
from bench.models.encoder import SentenceEncoder

OnStep = Callable[[float], None]
Head = dict[str, Tensor]


class Task(Protocol):
    """What the demo's story needs of a task."""

    name: str
    metric: str
    before: str

    def score(self, head: Mapping[str, Tensor]) -> float:
        """The metric of the encoder's present weights, with the head's, on the held-out examples."""

    def pretrained_head(self) -> Head:
        """The head that goes with the pretrained encoder."""

    def fine_tune(self, head: Head, steps: int, on_step: OnStep) -> None:
        """Train encoder and head in place."""


class Retrieval:
    """Find a docstring's code among all held-out code: InfoNCE on batches of 16 pairs, mean reciprocal rank."""

    name = "retrieval"
    metric = "MRR"
    before = "pretrained, zero-shot"
    batch = 16
    temperature = 0.05
    learning_rate = 2e-5

    def __init__(self, encoder: SentenceEncoder, pairs: Split[Pair], held_out: int) -> None:
        self.encoder = encoder
        self.train = _tokenised_pairs(encoder, pairs.train)
        self.held_out = _tokenised_pairs(encoder, pairs.held_out[:held_out])

    def pretrained_head(self) -> Head:
        return {}

    def fine_tune(self, head: Head, steps: int, on_step: OnStep) -> None:
        optimiser = torch.optim.AdamW(self.encoder.model.parameters(), lr=self.learning_rate, fused=True)
        target = torch.arange(self.batch)
        for rows in _batches(len(self.train), self.batch, steps):
            with training_autocast():
                queries = self.encoder.embed([self.train[row][0] for row in rows])
                documents = self.encoder.embed([self.train[row][1] for row in rows])
            _step(optimiser, cross_entropy(queries @ documents.T / self.temperature, target), on_step)

    def score(self, head: Mapping[str, Tensor]) -> float:
        queries = self.encoder.embed_all([query for query, _ in self.held_out])
        documents = self.encoder.embed_all([document for _, document in self.held_out])
        similarity = queries @ documents.T
        rank = 1 + (similarity > similarity.diag().unsqueeze(1)).sum(1)
        return (1 / rank.double()).mean().item()


class PackageOf:
    """Tell which package a docstring comes from: a linear head on the encoder, cross-entropy, accuracy.

    Before: the best linear head on the frozen encoder, for the same texts; training starts from it.
    """

    name = "package"
    metric = "accuracy"
    before = "pretrained and frozen, linear head fitted"
    batch = 32
    learning_rate = 5e-5
    head_learning_rate = 1e-2
    weight_decay = 1e-3

    def __init__(self, encoder: SentenceEncoder, labelled: Split[Labelled], held_out: int) -> None:
        self.encoder = encoder
        self.train, self.train_labels = _tokenised_labels(encoder, labelled.train)
        # The first held-out examples served to choose the settings above; the score is on the next ones.
        self.held_out, self.labels = _tokenised_labels(encoder, labelled.held_out[held_out : 2 * held_out])

    def pretrained_head(self) -> Head:
        features = self.encoder.embed_all(self.train)
        head = {
            "classifier.weight": torch.zeros(len(PACKAGES), features.shape[1], requires_grad=True),
            "classifier.bias": torch.zeros(len(PACKAGES), requires_grad=True),
        }
        solver = torch.optim.LBFGS(head.values(), max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            penalty = self.weight_decay / 2 * head["classifier.weight"].square().sum()
            total = cross_entropy(_logits(features, head), self.train_labels) + penalty
            total.backward()
            return total

        solver.step(loss)
        return head

    def fine_tune(self, head: Head, steps: int, on_step: OnStep) -> None:
        encoder = {"params": list(self.encoder.model.parameters()), "lr": self.learning_rate}
        linear = {"params": list(head.values()), "lr": self.head_learning_rate}
        optimiser = torch.optim.AdamW([encoder, linear], fused=True)
        for rows in _batches(len(self.train), self.batch, steps):
            with training_autocast():
                features = self.encoder.embed([self.train[row] for row in rows])
            _step(optimiser, cross_entropy(_logits(features, head), self.train_labels[rows]), on_step)

    @torch.no_grad()
    def score(self, head: Mapping[str, Tensor]) -> float:
        guesses = _logits(self.encoder.embed_all(self.held_out), head).argmax(1)
        return (guesses == self.labels).double().mean().item()


@dataclass(frozen=True)
class FineTune:
    """One saved fine-tune: what it was trained for, where it lies, and its score."""

    task: Task
    precision: str
    folder: Path
    before: float
    score: float

    @property
    def name(self) -> str:
        """Its name in the store."""
        return f"{self.task.name}-{self.precision}"

    @property
    def base(self) -> Path:
        """The base in the same precision."""
        return self.folder.parent / "base"


def _logits(features: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    return features @ head["classifier.weight"].T + head["classifier.bias"]


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, on_step: OnStep) -> None:
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    on_step(loss.item())


def _batches(examples: int, batch: int, steps: int) -> Iterator[list[int]]:
    """``steps`` lists of ``batch`` indices: a seeded shuffle, repeated as long as it takes."""
    order = random.Random(0).sample(range(examples), examples)
    for step in range(steps):
        yield [order[index % examples] for index in range(step * batch, (step + 1) * batch)]


def _tokenised_pairs(encoder: SentenceEncoder, pairs: tuple[Pair, ...]) -> list[tuple[list[int], list[int]]]:
    queries = encoder.tokenise([pair.docstring for pair in pairs])
    return list(zip(queries, encoder.tokenise([pair.code for pair in pairs]), strict=True))


def _tokenised_labels(
    encoder: SentenceEncoder, examples: tuple[Labelled, ...]
) -> tuple[list[list[int]], Tensor]:
    labels = torch.tensor([PACKAGES.index(example.package) for example in examples])
    return encoder.tokenise([example.docstring for example in examples]), labels
