"""Two versions of language models and of MiniLM, with a fine-tune of the first: pairs for the verdict of a rebase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from bench.corpora import installed_text, manual_pages
from bench.corpora.labelled import LabelledText, fortune_topics
from bench.models import minilm
from bench.models.encoder import SentenceEncoder
from bench.rebase_digits import Weights, copied
from bench.tiny import TinyConfig, TinyLM, byte_tokens, evaluate, train
from bench.tiny.classifier import TextClassifier, batches, loss_of
from bench.tiny.masked_lm import MaskedLM, windows

LM_STEPS, LM_MORE, LM_TUNED, LM_BATCH = 200, 80, 100, 8
TUNED_STEPS, MORE_STEPS = 90, 60
TUNED_RATE, HEAD_RATE = 3e-4, 1e-2


@cache
def _pages(locale: str) -> dict[str, str]:
    """Reading them takes seconds."""
    return manual_pages(locale)


def permuted_units(weights: Mapping[str, Tensor], parts: Mapping[str, str], seed: int) -> Weights:
    """The same function with the hidden units of every feed-forward layer in another order.

    ``parts`` maps the ending of a name whose rows are units to ``rows``, of one whose columns are to ``columns``.
    """
    found = {name: tensor.clone() for name, tensor in weights.items()}
    orders: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        ending = next((ending for ending in parts if name.endswith(ending)), None)
        if ending is None:
            continue
        side = parts[ending]
        layer = name.split("layer")[1].split(".")[1]
        count = tensor.shape[0 if side == "rows" else 1]
        generator = torch.Generator().manual_seed(seed + int(layer))
        order = orders.setdefault(layer, torch.randperm(count, generator=generator))
        found[name] = tensor[order] if side == "rows" else tensor[:, order]
    return found


@dataclass
class ByteModels:
    """A byte-level language model of English manual pages, its fine-tune on Python sources, and second versions."""

    quick: bool

    @cached_property
    def _texts(self) -> dict[str, Tensor]:
        sources = installed_text("source", max_chars=400_000)
        german, english = _pages("de"), _pages("")
        return {
            "english": byte_tokens(list(english.values())[:250]),
            "german": byte_tokens(list(german.values())[:120]),
            "python": byte_tokens(sources.train),
            "dev": byte_tokens(sources.held_out)[: 300 if self.quick else 4_000],
            "test": byte_tokens(sources.held_out)[4_000 : 4_300 if self.quick else 16_000],
        }

    def _trained(
        self, weights: Mapping[str, Tensor] | None, text: str, steps: int, rate: float, seed: int = 0
    ) -> Weights:
        model = TinyLM(TinyConfig(num_hidden_layers=3), seed=seed)
        if weights is not None:
            model.load_state_dict(dict(weights))
        steps = 2 if self.quick else steps
        train(model, self._texts[text], steps=steps, batch=LM_BATCH, learning_rate=rate, seed=seed)
        return copied(model)

    @cached_property
    def old(self) -> Weights:
        """The old base."""
        return self._trained(None, "english", LM_STEPS, 3e-3)

    @cached_property
    def tuned(self) -> Weights:
        """Its fine-tune."""
        return self._trained(self.old, "python", LM_TUNED, 1e-3, 1)

    def loss(self, weights: Mapping[str, Tensor], part: str) -> float:
        """Nats per byte of held-out sources."""
        model = TinyLM(TinyConfig(num_hidden_layers=3))
        model.load_state_dict(dict(weights))
        return evaluate(model, self._texts[part])

    def news(self) -> Iterator[tuple[str, bool, Weights]]:
        """Second versions: a name, whether it descends from the old base, and its weights."""
        yield "continued", True, self._trained(self.old, "english", LM_MORE, 3e-4, 2)
        yield "continued at 1e-3", True, self._trained(self.old, "english", LM_MORE, 1e-3, 2)
        yield "continued at 1e-2", True, self._trained(self.old, "english", LM_MORE, 1e-2, 2)
        yield "continued on German", True, self._trained(self.old, "german", LM_MORE, 1e-3, 3)
        yield "the fine-tune's own data", True, self._trained(self.old, "python", LM_MORE, 1e-3, 4)
        generator = torch.Generator().manual_seed(5)
        yield (
            "noise of 0.3",
            True,
            {
                name: tensor
                + 0.3 * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
                for name, tensor in self.old.items()
            },
        )
        yield "another seed", False, self._trained(None, "english", LM_STEPS, 3e-3, 9)
        ends = {"gate_proj.weight": "rows", "up_proj.weight": "rows", "down_proj.weight": "columns"}
        yield "units in another order", False, permuted_units(self.old, ends, 6)


@dataclass
class Classifiers:
    """MiniLM, its fine-tune on sayings of twelve topics, and second versions trained on manual pages."""

    quick: bool

    def __post_init__(self) -> None:
        self.sentences = SentenceEncoder(minilm())
        self.old = copied(self.sentences.model)
        split = fortune_topics()
        self.labels = sorted({text.label for text in split.train})
        number = {label: at for at, label in enumerate(self.labels)}
        few = 32 if self.quick else None

        def texts(part: list[LabelledText]) -> tuple[list[list[int]], Tensor]:
            return self.sentences.tokenise([t.text for t in part]), torch.tensor(
                [number[t.label] for t in part]
            )

        self.train_set = texts(list(split.train)[:few])
        held_out = list(split.held_out)
        parts = held_out[: few or 200], held_out[200 : 200 + (few or 600)]
        self.dev_set, self.test_set = (texts(part) for part in parts)

    def _model(self, weights: Mapping[str, Tensor]) -> TextClassifier:
        encoder = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
        self.sentences.model.load_state_dict(encoder)
        model = TextClassifier(self.sentences, self.labels, 0)
        heads = {name.removeprefix("head."): t for name, t in weights.items() if name.startswith("head.")}
        if heads:
            model.head.load_state_dict(heads)
        return model

    def finetune(self, start: Mapping[str, Tensor], steps: int = TUNED_STEPS, seed: int = 0) -> Weights:
        """The task, learnt from these weights; a head that they have is kept."""
        model = self._model(start)
        steps = 2 if self.quick else steps
        for param in model.parameters():
            param.requires_grad_(True)
        groups = [
            {"params": list(model.encoder.parameters()), "lr": TUNED_RATE},
            {"params": list(model.head.parameters()), "lr": HEAD_RATE},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for rows in batches(len(self.train_set[0]), steps, seed):
            optimizer.zero_grad()
            loss_of(model, *self.train_set, rows).backward()
            optimizer.step()
            schedule.step()
        return self._weights(model)

    def _weights(self, model: TextClassifier) -> Weights:
        heads = {f"head.{name}": t.detach().clone() for name, t in model.head.state_dict().items()}
        return {**copied(model.encoder), **heads}

    @cached_property
    def tuned(self) -> Weights:
        """The fine-tune of the old base."""
        return self.finetune(self.old)

    def accuracy(self, weights: Mapping[str, Tensor], part: tuple[list[list[int]], Tensor]) -> float:
        """Percent of the texts whose topic is guessed."""
        return 100 * self._model(weights).accuracy(*part)

    def continued(self, rate: float, locale: str = "", steps: int = MORE_STEPS) -> Weights:
        """The old base after masked language modelling on manual pages."""
        self.sentences.model.load_state_dict(self.old)
        model = MaskedLM(self.sentences)
        for param in model.parameters():
            param.requires_grad_(True)
        pages = sorted(_pages(locale).values(), key=len)[-(8 if self.quick else 300) :]
        ids = windows(self.sentences, pages)
        generator = torch.Generator().manual_seed(0)
        steps = 2 if self.quick else steps
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for rows in batches(len(ids), steps, 0):
            optimizer.zero_grad()
            model.loss([ids[row] for row in rows], generator).backward()
            optimizer.step()
            schedule.step()
        return copied(self.sentences.model)

    def news(self) -> Iterator[tuple[str, bool, Weights]]:
        """Second versions: a name, whether it descends from the old base, and its weights."""
        yield "continued", True, self.continued(1e-4)
        yield "continued at 1e-3", True, self.continued(1e-3)
        generator = torch.Generator().manual_seed(5)
        yield (
            "noise of 0.1",
            True,
            {
                name: tensor
                + 0.1 * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
                if tensor.is_floating_point()
                else tensor
                for name, tensor in self.old.items()
            },
        )
        ends = {
            "intermediate.dense.weight": "rows", "intermediate.dense.bias": "rows", "output.dense.weight": "columns",
        }  # fmt: skip
        feed = {name: t for name, t in self.old.items() if "attention" not in name}
        moved = permuted_units(feed, ends, 6)
        yield "units in another order", False, {**self.old, **moved}
        yield (
            "other weights of the same size",
            False,
            {
                name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view(tensor.shape)
                if tensor.ndim > 1 and tensor.is_floating_point()
                else tensor
                for name, tensor in self.old.items()
            },
        )
