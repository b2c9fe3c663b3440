"""Tied weights: one tensor under two names, in some of a merge's models or in all."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftwork.compose.donors import Donor

__all__ = ["Ties", "find_output_ties", "untie_config"]


@dataclass(frozen=True, slots=True)
class Ties:
    """``tied`` maps a name that the output leaves out to the one that stands for it; ``untied`` are names that some model
    ties and the output does not."""

    tied: Mapping[str, str] = field(default_factory=dict)
    untied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_output_ties(names: Sequence[str], models: Sequence[Donor]) -> Ties:
    """Which of the output's names are one tensor: those that are one in every model.

    What only some models tie stands alone in the output, so that every model's own head counts: a tied model gives its
    embedding for both.
    """
    tied: dict[str, str] = {}
    untied: list[str] = []
    notes = []
    pairs = sorted({pair for model in models for pair in model.tied.items()})
    known = set(names)
    for other, first in pairs:
        if other not in known or first not in known or other in tied:
            continue
        alone = [model for model in models if model.held(other) != model.held(first)]
        if not alone:
            tied[other] = first
            continue
        untied.append(other)
        together = next(model for model in models if model.held(other) == model.held(first))
        notes.append(
            f"{other} is {first} in {together.name} and a tensor of its own in {alone[0].name}: in the output it stands "
            f"alone, and its configuration says so"
        )
    return Ties(tied, tuple(untied), tuple(notes))


def untie_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that says that the head is a tensor of its own."""
    patched = copy.deepcopy(dict(config))
    text = patched.get("text_config")
    if isinstance(text, dict) and "tie_word_embeddings" in text:
        text["tie_word_embeddings"] = False
    patched["tie_word_embeddings"] = False
    return patched
