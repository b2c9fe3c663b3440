"""What a model learns from texts: causal and masked language modelling, and classification."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from graftwork.errors import DataError, RecipeError
from graftwork.texts.corpus import Document, Label

IGNORED = -100
#: BERT's: the share of tokens that is predicted, and what becomes of those: a mask, another token, or the same.
PREDICTED, MASKED, REPLACED = 0.15, 0.8, 0.1


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that the model sees together, and the number of their class."""

    ids: list[int]
    target: int = IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded pieces; ``targets`` are token ids ``[pieces, tokens]``, or numbers of classes ``[pieces]``."""

    ids: Tensor
    mask: Tensor
    targets: Tensor

    @property
    def predicted(self) -> int:
        """How many tokens or texts are predicted."""
        return int((self.targets != IGNORED).sum())


class Task(ABC):
    """Turns documents into pieces, pieces into batches, and batches into losses.

    Parameters
    ----------
    tokenizer :
        Of transformers.
    max_tokens : int
        The longest piece, with the tokens that the tokenizer puts around a text.
    sample : str
        Some text, to find out what those are.
    labels : sequence
        The classes in their order, if there are any.
    """

    architecture: ClassVar[str]
    mapping: ClassVar[str]

    def __init__(self, tokenizer: Any, max_tokens: int, sample: str, labels: Sequence[Label] = ()) -> None:
        self._number = {label: number for number, label in enumerate(labels)}
        self._tokenizer = tokenizer
        self._prefix, self._suffix = _frame(tokenizer, sample)
        self._room = max_tokens - len(self._prefix) - len(self._suffix)
        if self._room < 1:
            raise RecipeError(
                "wrong value for 'max_tokens'",
                got=max_tokens,
                wanted=f"at least {max_tokens - self._room + 1}",
            )
        filling = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.padding: int = next(token for token in filling if token is not None)
        #: Texts of which the end was left out.
        self.cut = 0

    def pieces(self, documents: Sequence[Document]) -> list[list[Piece]]:
        """The pieces of each document."""
        texts = [document.text for document in documents]
        plain = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for ids, text in zip(plain, texts, strict=True):
            if not ids:
                raise _no_tokens(text)
        return [self._pieces(ids, document) for ids, document in zip(plain, documents, strict=True)]

    def _pieces(self, ids: list[int], document: Document) -> list[Piece]:
        starts = range(0, len(ids), self._room)
        return [Piece(self._framed(ids[start : start + self._room])) for start in starts]

    def _framed(self, ids: list[int]) -> list[int]:
        return [*self._prefix, *ids, *self._suffix]

    def batch(self, pieces: Sequence[Piece], generator: torch.Generator) -> Batch:
        """Some pieces; chance, if there is any, comes from the generator."""
        length = max(len(piece.ids) for piece in pieces)
        ids = torch.full((len(pieces), length), self.padding)
        mask = torch.zeros((len(pieces), length), dtype=torch.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece.ids)] = torch.tensor(piece.ids)
            mask[row, : len(piece.ids)] = 1
        return self._with_targets(ids, mask, pieces, generator)

    @abstractmethod
    def _with_targets(
        self, ids: Tensor, mask: Tensor, pieces: Sequence[Piece], generator: torch.Generator
    ) -> Batch: ...

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """The sum of the cross-entropies of what is predicted, and how much of it the model got right."""
        device = next(model.parameters()).device
        logits = model(input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device)).logits
        predicted, targets = self._predictions(logits, batch.targets.to(device))
        right = (predicted.detach().argmax(-1) == targets).sum()
        return cross_entropy(predicted.float(), targets, reduction="sum"), int(right)

    def _predictions(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and targets of what is predicted alone."""
        chosen = targets != IGNORED
        return logits[chosen], targets[chosen]


class CausalLM(Task):
    """Each token from those before it. A document ends with the tokenizer's end of text."""

    architecture = "AutoModelForCausalLM"
    mapping = "MODEL_FOR_CAUSAL_LM_MAPPING"

    def _pieces(self, ids: list[int], document: Document) -> list[Piece]:
        end = self._tokenizer.eos_token_id
        if end is not None and end not in self._suffix:
            ids = [*ids, end]
        return super()._pieces(ids, document)

    def _with_targets(
        self, ids: Tensor, mask: Tensor, pieces: Sequence[Piece], generator: torch.Generator
    ) -> Batch:
        targets = ids.masked_fill(mask == 0, IGNORED)
        targets[:, 0] = IGNORED
        return Batch(ids, mask, targets)

    def _predictions(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return super()._predictions(logits[:, :-1], targets[:, 1:])


class MaskedLM(Task):
    """Tokens that are hidden, as in BERT: 15 % are predicted; of these 80 % are masked, and 10 % are others."""

    architecture = "AutoModelForMaskedLM"
    mapping = "MODEL_FOR_MASKED_LM_MAPPING"

    def __init__(self, tokenizer: Any, max_tokens: int, sample: str, labels: Sequence[Label] = ()) -> None:
        super().__init__(tokenizer, max_tokens, sample, labels)
        if tokenizer.mask_token_id is None:
            raise RecipeError(
                "wrong value for 'task'",
                got="masked_lm",
                wanted="another task: the tokenizer has no mask token",
            )
        self._special = torch.tensor(sorted({*tokenizer.all_special_ids, *self._prefix, *self._suffix}))

    def _with_targets(
        self, ids: Tensor, mask: Tensor, pieces: Sequence[Piece], generator: torch.Generator
    ) -> Batch:
        chance, kind = torch.rand((2, *ids.shape), generator=generator)
        others = torch.randint(len(self._tokenizer), ids.shape, generator=generator)
        chosen = (chance < PREDICTED) & (mask == 1) & ~torch.isin(ids, self._special)
        targets = ids.masked_fill(~chosen, IGNORED)
        hidden = ids.masked_fill(chosen & (kind < MASKED), self._tokenizer.mask_token_id)
        replaced = chosen & (kind >= MASKED) & (kind < MASKED + REPLACED)
        return Batch(torch.where(replaced, others, hidden), mask, targets)


class Classification(Task):
    """The class of a text; of one that is too long, of its beginning."""

    architecture = "AutoModelForSequenceClassification"
    mapping = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"

    def _pieces(self, ids: list[int], document: Document) -> list[Piece]:
        if document.label is None:
            raise DataError("a text has no label", got=document.text[:40], wanted="a label for every text")
        self.cut += len(ids) > self._room
        return [Piece(self._framed(ids[: self._room]), self._number[document.label])]

    def _with_targets(
        self, ids: Tensor, mask: Tensor, pieces: Sequence[Piece], generator: torch.Generator
    ) -> Batch:
        return Batch(ids, mask, torch.tensor([piece.target for piece in pieces]))


TASKS: dict[str, type[Task]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "classification": Classification,
}


def _frame(tokenizer: Any, sample: str) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before and after a text."""
    plain = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
    framed = tokenizer(sample, verbose=False)["input_ids"]
    for start in range(len(framed) - len(plain) + 1):
        if plain and framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    raise _no_tokens(sample)


def _no_tokens(text: str) -> DataError:
    return DataError(
        "the tokenizer makes nothing of a text", got=f"{text!r:.200}", wanted="at least one token"
    )
