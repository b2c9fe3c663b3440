"""Checkpoint pairs to measure the store on: synthetic fine-tunes, large sharded ones, and real ones."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.machine import ROOT
from bench.updates import UPDATES

DEMO_OUTPUT = ROOT / "demo" / "output"
SMOLLM2_TUNED = ROOT / "examples" / "output" / "stdlib-source"
BASE_ROWS = {False: 32768, True: 2048}  # of the synthetic base's embedding, by `quick`
SMOLLM2_CASE = "real: SmolLM2, bfloat16"


@dataclass(frozen=True)
class Case:
    """A base and a fine-tune, each a folder with one ``model.safetensors``."""

    name: str
    dtype: str
    base: Path
    tuned: Path

    @property
    def base_file(self) -> Path:
        return self.base / "model.safetensors"

    @property
    def aligned(self) -> bool:
        """Whether both files have the same header: the same tensors at the same offsets."""
        headers = []
        for path in (self.base_file, self.tuned_file):
            with path.open("rb") as file:
                headers.append(file.read(int.from_bytes(file.read(8), "little")))
        return headers[0] == headers[1]

    @property
    def tuned_file(self) -> Path:
        return self.tuned / "model.safetensors"


@contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """A temporary folder under ``parent``, by default in memory where the system has ``/dev/shm``."""
    memory = Path("/dev/shm")
    place = parent or (memory if os.access(memory, os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="graftwork-bench-", dir=place) as name:
        yield Path(name)


def synthetic_cases(folder: Path, *, quick: bool) -> Iterator[Case]:
    """Fine-tunes of one N(0, 0.02^2) bf16 base of 268 MB (quick: 17 MB); each replaces the one before it.

    Each is one of the ``UPDATES``.
    """
    rows = BASE_ROWS[quick]
    shapes = {"embed_tokens.weight": (rows, 1024)}
    shapes |= {f"layers.{index}.mlp.weight": (rows // 8, 1024) for index in range(24)}
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator).mul_(0.02).bfloat16() for name, shape in shapes.items()
    }
    base = _write(folder / "base", weights)
    for name, update in UPDATES.items():
        tuned = {key: update(weight, generator) for key, weight in weights.items()}
        yield Case(name, "bfloat16", base, _write(folder / "tuned", tuned))


def real_cases(output: Path = DEMO_OUTPUT, smollm2_tuned: Path = SMOLLM2_TUNED) -> Iterator[Case]:
    """The fine-tunes that the demo and the example have left, beside their bases; nothing where they have not run.

    The demo's are in ``<output>/<precision>/{base,<name>}``; the example's is one folder, its base in the cache.
    """
    for base in sorted(output.glob("*/base")):
        for tuned in sorted(path for path in base.parent.iterdir() if path != base):
            if (tuned / "model.safetensors").is_file():
                yield Case(f"real: {tuned.name}, {base.parent.name}", base.parent.name, base, tuned)
    if (smollm2_tuned / "model.safetensors").is_file() and (found := smollm2_folder()):
        yield Case(SMOLLM2_CASE, "bfloat16", found, smollm2_tuned)


def smollm2_folder() -> Path | None:
    """SmolLM2 in bf16, or None where it is not installed."""
    from bench.models import smollm2
    from graftwork.errors import MissingExtra

    try:
        return smollm2("bfloat16")
    except MissingExtra:
        return None


def write_small_pair(folder: Path) -> tuple[Path, Path]:
    """A base and a fine-tune of one small tensor."""
    base = torch.linspace(-1, 1, 4096).bfloat16()
    return _write(folder / "base", {"weight": base}), _write(folder / "tuned", {"weight": base * 1.01})


def write_sharded_pair(folder: Path, *, shards: int, tensors_per_shard: int, numel: int) -> tuple[Path, Path]:
    """A base and a fine-tune in bf16, sharded as Hugging Face shards; no two tensors are alike.

    All tensors are rotations of one block of noise, so that writing gigabytes takes no longer than the disk.
    """
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(numel, generator=generator).mul_(0.02)
    update = torch.randn(numel, generator=generator).mul_(2e-4)
    sides = {"base": block.bfloat16(), "tuned": block.add_(update).bfloat16()}
    for side, source in sides.items():
        (folder / side).mkdir()
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            numbers = range(shard * tensors_per_shard, (shard + 1) * tensors_per_shard)
            tensors = {f"layers.{n}.weight": source.roll(4099 * n).view(-1, 1024) for n in numbers}
            save_file(tensors, folder / side / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
        index = {"metadata": {"total_size": 2 * numel * len(weight_map)}, "weight_map": weight_map}
        text = json.dumps(index, indent=2)
        (folder / side / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return folder / "base", folder / "tuned"


def _write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "synthetic"}), encoding="utf-8")
    return folder
