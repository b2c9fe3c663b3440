"""Small tokenizers of whole words, and folders of models that have one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from graftwork.checkpoint import write_checkpoint

WIDTH = 4


def word_level(words: list[str], special: tuple[str, ...] = ("[UNK]",)) -> bytes:
    """A tokenizer.json of whole words, special tokens first."""
    import tokenizers

    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(list(special))
    return made.to_str().encode()


def table(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def save(
    folder: Path, words: list[str], seed: int, *, rows: int | None = None, tied: bool = True, **files: bytes
) -> Path:
    """A model with a table of a row a token (or more: padding), and one matrix."""
    data = word_level(words)
    count = rows or len(words) + 1
    tensors = {"model.embed_tokens.weight": table(count, seed), "layers.0.up.weight": table(3, seed + 50)}
    if not tied:
        tensors["lm_head.weight"] = table(count, seed + 100)
    config = {"vocab_size": count, "tie_word_embeddings": tied, "hidden_size": WIDTH, "eos_token_id": 1}
    write_checkpoint(folder, tensors, config=config, other_files={"tokenizer.json": data} | files)
    return folder
