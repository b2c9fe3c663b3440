"""Tied weights: names that a model has and its file leaves out because another tensor is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


def find_ties(
    names: Mapping[str, object], metadata: Mapping[str, str], config: Mapping[str, Any] | None
) -> dict[str, str]:
    """Absent name to present name.

    Two sources are read: the metadata of ``safetensors.torch.save_model`` (removed name to kept name), and a
    ``tie_word_embeddings`` that is true in the configuration, when the head is absent and exactly one tensor
    is an input embedding by its name.
    """
    ties = {absent: kept for absent, kept in metadata.items() if absent not in names and kept in names}
    if _says_tied(config) and not any(name == _HEAD or name.endswith("." + _HEAD) for name in names):
        embeddings = [name for name in names if name.endswith(_EMBEDDINGS)]
        if len(embeddings) == 1:
            ties.setdefault(_HEAD, embeddings[0])
    return ties


def find_tied_copies(names: Mapping[str, object], config: Mapping[str, Any] | None) -> dict[str, str]:
    """Heads that are present although the configuration says that they are the input embedding: head to embedding.

    Loaders take the embedding then, so a head with other bytes contradicts its configuration.
    """
    if not _says_tied(config):
        return {}
    embeddings = [name for name in names if name.endswith(_EMBEDDINGS)]
    heads = [name for name in names if name == _HEAD or name.endswith("." + _HEAD)]
    return dict.fromkeys(heads, embeddings[0]) if len(embeddings) == 1 else {}


def _says_tied(config: Mapping[str, Any] | None) -> bool:
    config = config or {}
    text = config.get("text_config")
    said = config.get(
        "tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None
    )
    return said is True
