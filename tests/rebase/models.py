"""Small models for the tests: folders of two versions of a base and a fine-tune of the first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.generators.checkpoints import random_tensor, updated, write_folder

State = dict[str, Tensor]


def base_state(dtype: torch.dtype = torch.bfloat16, rows: int = 24) -> State:
    """Two layers, an embedding, a rotary buffer and a buffer of integers."""
    shapes = {
        "model.embed_tokens.weight": (rows, 16),
        "model.layers.0.attn.q.weight": (16, 16),
        "model.layers.0.norm.weight": (16,),
        "model.layers.1.mlp.up.weight": (33, 31),
        "model.layers.1.norm.weight": (16,),
        "lm_head.weight": (rows, 16),
    }
    state = {name: random_tensor(shape, dtype, seed) for seed, (name, shape) in enumerate(shapes.items())}
    state["model.layers.0.attn.rotary_emb.inv_freq"] = torch.linspace(1, 0.1, 8)
    state["model.position_ids"] = torch.arange(12)[None]
    return state


def moved(state: Mapping[str, Tensor], sigma: float, seed: int) -> State:
    """All floating weights moved by Gaussian noise; buffers stay."""
    buffers = ("inv_freq", "position_ids")
    return {
        name: tensor.clone() if name.endswith(buffers) else updated(tensor, sigma, seed + number)
        for number, (name, tensor) in enumerate(state.items())
    }


def tokenizer(tokens: Mapping[str, int]) -> str:
    """The text of a tokenizer.json."""
    return json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": dict(tokens)}}
    )


@dataclass
class Family:
    """Three models on disk, and the states that they hold."""

    root: Path
    old: State
    tuned: State
    new: State

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """Old base, fine-tune, new base."""
        return self.root / "old", self.root / "tuned", self.root / "new"


def write_family(
    root: Path,
    *,
    old: State | None = None,
    tuned: State | None = None,
    new: State | None = None,
    shards: int = 1,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    tokens: Mapping[str, Mapping[str, int]] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Family:
    """Write the three folders; what is not given is a base, a fine-tune of it, and a base that has moved on."""
    old = base_state(dtype) if old is None else old
    tuned = moved(old, 2e-3, 100) if tuned is None else tuned
    new = moved(old, 6e-4, 200) if new is None else new
    for name, state in (("old", old), ("tuned", tuned), ("new", new)):
        folder = write_folder(root / name, state, shards=shards, config=(configs or {}).get(name))
        (folder / "tokenizer.json").unlink()
        if tokens is not None:
            (folder / "tokenizer.json").write_text(tokenizer(tokens[name]))
    (root / "tuned" / "generation_config.json").write_text("{}")
    return Family(root, old, tuned, new)


def exact_sum(old: Tensor, tuned: Tensor, new: Tensor, scale: float = 1.0) -> Tensor:
    """The result in float64, rounded once."""
    return (new.double() + scale * (tuned.double() - old.double())).to(new.dtype)


def read_state(path: Path) -> State:
    """The tensors of a checkpoint."""
    from graftwork.checkpoint import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}
