"""Small checkpoints for tests: folders as users have them, with every kind of tensor that a store must restore."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 0.02) -> torch.Tensor:
    """Normal weights of any dtype; integers are uniform over a small range."""
    generator = torch.Generator().manual_seed(seed)
    if dtype in INTEGERS:
        return torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator).to(dtype)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def updated(tensor: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    """A float tensor after a Gaussian update; others unchanged."""
    if not tensor.is_floating_point():
        return tensor.clone()
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * sigma
    return (tensor.double() + step).to(tensor.dtype)


def base_tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """A two-layer model's worth of tensors."""
    shapes = {
        "embed.weight": (64, 32),
        "layers.0.attn.weight": (32, 32),
        "layers.0.norm.weight": (32,),
        "layers.1.attn.weight": (33, 31),
        "layers.1.norm.weight": (32,),
        "scalar": (),
        "nothing": (0, 4),
    }
    return {name: random_tensor(shape, dtype, seed) for seed, (name, shape) in enumerate(shapes.items())}


def tuned_tensors(base: Mapping[str, torch.Tensor], sigma: float = 2e-4) -> dict[str, torch.Tensor]:
    """A fine-tune of ``base``: all floats updated but the norms."""
    return {
        name: tensor.clone() if "norm" in name else updated(tensor, sigma, 1000 + seed)
        for seed, (name, tensor) in enumerate(base.items())
    }


def write_folder(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    shards: int = 1,
    config: Mapping[str, object] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A checkpoint folder in the Hugging Face layout, written by the stock library."""
    folder.mkdir(parents=True)
    meta = {"format": "pt", **(metadata or {})}
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata=meta)
    else:
        names = list(tensors)
        weight_map: dict[str, str] = {}
        for index in range(shards):
            file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
            own = names[index::shards]
            save_file({name: tensors[name] for name in own}, folder / file, metadata=meta)
            weight_map |= dict.fromkeys(own, file)
        total = sum(tensor.nbytes for tensor in tensors.values())
        index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (folder / "model.safetensors.index.json").write_text(index_text)
    (folder / "config.json").write_text(json.dumps({"model_type": "test", **(config or {})}))
    (folder / "tokenizer.json").write_text('{"tokens": ["ä", "b"]}\n')
    return folder


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder`` by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
