"""A base and fine-tunes of each other, and a store that holds them as a chain."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from graftwork.store import pack
from graftwork.store.entry import EntryManifest
from graftwork.store.objects import ObjectFolder
from graftwork.store.root import read_root, write_root
from tests.generators.checkpoints import base_tensors, updated, write_folder

NAMES = ("a", "b", "c")


def next_tensors(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The next fine-tune of a row: one layer stays as it is."""
    return {
        name: tensor.clone() if name.startswith("layers.0") else updated(tensor, 2e-4, 100 * seed + number)
        for number, (name, tensor) in enumerate(tensors.items())
    }


def write_models(folder: Path) -> None:
    """``base``; ``a``, a fine-tune of it; ``b``, one of ``a``; ``c``, one of ``b``."""
    tensors = base_tensors()
    write_folder(folder / "base", tensors)
    for seed, name in enumerate(NAMES):
        tensors = next_tensors(tensors, seed + 1)
        write_folder(folder / name, tensors, shards=1 + seed, config={"name": name})


def pack_chain(folder: Path, store: Path, names: tuple[str, ...] = NAMES, codec: str = "auto") -> Path:
    """The store of ``names``, each packed against the one before; the first against the base."""
    base = folder / "base"
    pack(base, folder / names[0], out=store, codec=codec, threads=1)
    for below, name in pairwise(names):
        pack(f"{store}:{below}", folder / name, out=store, codec=codec, store_base=base, threads=1)
    return store


def deltas_of(store: Path) -> set[str]:
    """Names of the delta files."""
    return {path.stem for path in (store / "objects").rglob("*.safetensors")}


def put_manifest(store: Path, name: str, manifest: EntryManifest) -> None:
    """Commit a manifest that no writer would write."""
    digest = ObjectFolder(store / "objects").put(manifest.to_bytes(), "json")
    write_root(store, read_root(store).with_entry(name, digest))
