"""A pretrained sentence encoder with a linear head, trained on labelled texts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.models.encoder import SentenceEncoder
from bench.models.precision import training_autocast

BATCH = 16
SCALE = 16.0  # of unit vectors, so that a head's weights start and stay small


class TextClassifier(nn.Module):
    """Token ids to logits. ``encoder`` holds the pretrained weights, ``head`` the new ones."""

    def __init__(self, sentences: SentenceEncoder, labels: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.labels = sorted(set(labels))
        self.sentences = sentences
        self.encoder = sentences.model
        self.head = nn.Linear(sentences.model.config.hidden_size, len(self.labels))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 0.02, generator=generator)
            self.head.bias.zero_()

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        with training_autocast():
            features = self.sentences.embed(ids)
        return self.head(SCALE * features)

    def targets(self, labels: Sequence[str]) -> Tensor:
        """Class numbers."""
        number = {label: at for at, label in enumerate(self.labels)}
        return torch.tensor([number[label] for label in labels])

    @torch.no_grad()
    def accuracy(self, ids: Sequence[Sequence[int]], targets: Tensor) -> float:
        """Share of texts whose class is guessed."""
        features = self.sentences.embed_all(ids)
        return (self.head(SCALE * features).argmax(1) == targets).double().mean().item()


def batches(count: int, steps: int, seed: int, size: int = BATCH) -> Iterator[list[int]]:
    """``steps`` batches of indices below ``count``: epochs, each in another order."""
    chance, rows = random.Random(seed), list[int]()
    for _ in range(steps):
        if len(rows) < size:
            rows += chance.sample(range(count), count)
        yield rows[:size]
        rows = rows[size:]


def loss_of(
    model: TextClassifier, ids: Sequence[Sequence[int]], targets: Tensor, rows: Sequence[int]
) -> Tensor:
    """Cross-entropy of one batch."""
    return cross_entropy(model([ids[row] for row in rows]).float(), targets[rows])
