"""Small models on disk for merges: folders of a few tensors with a configuration, and helpers to look into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.compose import METHODS, merge

LAYERS = 3
CONFIG = {
    "model_type": "pico",
    "num_hidden_layers": LAYERS,
    "vocab_size": 12,
    "hidden_size": 6,
    "dtype": "float32",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Names as transformers gives them, with odd sizes."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (12, 6),
        "model.norm.weight": (6,),
        "lm_head.weight": (12, 6),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found[prefix + "self_attn.q_proj.weight"] = (6, 6)
        found[prefix + "mlp.up_proj.weight"] = (7, 6)
        found[prefix + "input_layernorm.weight"] = (6,)
    return found


def weights(seed: int = 0, scale: float = 0.5) -> dict[str, Tensor]:
    """A model's weights, fp32."""
    source = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=source) for name, shape in shapes().items()}


def tuned(base: Mapping[str, Tensor], seed: int, sigma: float = 0.05) -> dict[str, Tensor]:
    """A fine-tune."""
    source = torch.Generator().manual_seed(1000 + seed)
    return {
        name: tensor + sigma * torch.randn(tensor.shape, generator=source) for name, tensor in base.items()
    }


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    shards: int | None = None,
    config: Mapping[str, Any] | None = CONFIG,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a model's folder."""
    held = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    folder.parent.mkdir(exist_ok=True)
    write_checkpoint(folder, held, config=config, max_shard_bytes=shards, other_files=files)
    return folder


def family(folder: Path, count: int = 3, **options: Any) -> Path:
    """``base`` and its fine-tunes ``one``, ``two``, ``three``."""
    base = weights()
    save(folder / "base", base, **options)
    for number, name in enumerate(("one", "two", "three")[:count]):
        save(folder / name, tuned(base, number), **options)
    return folder


def recipe(
    folder: Path, method: str = "task_arithmetic", each: Any = None, *, based: bool = True, **more: Any
) -> dict[str, Any]:
    """A recipe for such a family: ``each`` are the parameters of the models."""
    each = [{"weight": 0.5}, {"weight": 0.3}, {"weight": 0.4}] if each is None else each
    models = [
        {"model": str(folder / name), "parameters": row}
        for name, row in zip(("one", "two", "three"), each, strict=False)
    ]
    found: dict[str, Any] = {"merge_method": method, "models": models, **more}
    return found | ({"base_model": str(folder / "base")} if based else {})


def load(folder: Path) -> dict[str, Tensor]:
    """All tensors, copied."""
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one_tensor(folder: Path, values: Mapping[str, Any], *, dtype: torch.dtype = torch.float32) -> Path:
    """Models of one tensor ``up.weight`` each."""
    for name, value in values.items():
        write_checkpoint(folder / name, {"up.weight": torch.as_tensor(value).to(dtype)})
    return folder


EACH: dict[str, Any] = {
    "slerp": [{}], "nearswap": [{}], "sce": [{}] * 3, "karcher": [{}] * 3, "model_stock": [{}] * 3, "passthrough": [{}],
    "nuslerp": [{"weight": 1.0}, {"weight": 2.0}],
    "linear": [{"weight": w} for w in (0.5, 0.3, 0.4)], "multislerp": [{"weight": w} for w in (0.5, 0.3, 0.4)],
    "task_arithmetic": [{"weight": w} for w in (0.5, 0.3, 0.4)],
}  # fmt: skip
SHARED: dict[str, Any] = {"slerp": {"t": 0.4}, "nearswap": {"t": 0.02}, "sce": {"select_topk": 0.5}}


def recipe_of(folder: Path, method: str, **more: Any) -> dict[str, Any]:
    """A recipe of any method for the family of models."""
    each = EACH.get(method, [{"weight": w, "density": 0.6} for w in (0.5, 0.3, 0.4)])
    shared = {"parameters": SHARED[method]} if method in SHARED else {}
    return recipe(folder, method, each, based=METHODS[method].base != "none", **shared, **more)


def change(folder: Path, name: str, by: Callable[[dict[str, Tensor]], object], **options: Any) -> None:
    """Write a model of the family anew, changed."""
    tensors = load(folder / name)
    by(tensors)
    for file in (folder / name).iterdir():
        file.unlink()
    save(folder / name, tensors, **options)


def result(
    folder: Path, method: str, each: Any, shared: Any = None, *, based: bool = True, **more: Any
) -> Tensor:
    models = recipe(folder, method, each, based=based, **more) | ({"parameters": shared} if shared else {})
    merge(models, folder / "out", threads=1)
    return load(folder / "out")["up.weight"]
