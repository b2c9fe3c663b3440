"""MiniLM as a sentence encoder that can be trained, saved and restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.models.loading import from_folder
from graftwork.checkpoint import open_checkpoint, write_checkpoint

MAX_TOKENS = 64


class SentenceEncoder:
    """Texts to unit vectors: the mean of the last layer's hidden states, normalised.

    Parameters
    ----------
    base : Path
        The pretrained model's folder. Its tokenizer, config and buffers go into every checkpoint that `save`
        writes.

    Dropout stays off, so that a score depends on the weights alone.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.model, self.tokenizer = from_folder(base, "AutoModel")

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text, cut at 64."""
        return self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]

    def embed(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Unit vectors [len(ids), width] of one batch, differentiable."""
        length = max(map(len, ids))
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
        tokens = torch.tensor([[*row, *([0] * (length - len(row)))] for row in ids])
        hidden = self.model(tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        return normalize((hidden.float() * weights).sum(1) / weights.sum(1), dim=-1)

    @torch.no_grad()
    def embed_all(self, ids: Sequence[Sequence[int]], batch: int = 64) -> Tensor:
        """Unit vectors of any number of texts in fp32, computed in batches of similar length."""
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors = torch.empty(len(ids), self.model.config.hidden_size)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            vectors[rows] = self.embed([ids[row] for row in rows])
        return vectors

    def save(self, folder: Path, dtype: torch.dtype, head: Mapping[str, Tensor]) -> None:
        """Write the model and its task head as a Hugging Face folder with the base's other files."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open_checkpoint(self.base) as base:
            trained = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
            buffers = {name: base.tensor(name) for name in base.tensors if name not in trained}
            tensors = {**trained, **buffers, **head}
            write_checkpoint(
                folder,
                {
                    name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                    for name, tensor in tensors.items()
                },
                config={**(base.config or {}), "dtype": str(dtype).removeprefix("torch.")},
                other_files={
                    name: (base.root / name).read_bytes()
                    for name in base.other_files
                    if name != "config.json"
                },
            )

    def restore(self, folder: Path) -> dict[str, Tensor]:
        """Load a folder's weights, widened to fp32, into the model; returns the tensors that are not the model's."""
        with open_checkpoint(folder) as checkpoint:
            own = self.model.state_dict().keys()
            tensors = {name: checkpoint.tensor(name) for name in checkpoint.tensors}
            self.model.load_state_dict({name: tensors[name] for name in own})
            return {name: tensor.float() for name, tensor in tensors.items() if name not in own}
