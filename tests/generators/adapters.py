"""Folders of LoRA adapters as peft writes them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.checkpoint import write_checkpoint


def save_adapter(folder: Path, tensors: Mapping[str, Tensor], **settings: Any) -> Path:
    """An adapter; ``tensors`` are named without peft's prefix."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_checkpoint(
        folder / "adapter_model.safetensors",
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
    )
    return folder


def factors(module: str, out: int, width: int, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A and B of a linear module."""
    chance = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, width, generator=chance),
        f"{module}.lora_B.weight": torch.randn(out, rank, generator=chance),
    }
