"""A base and a fine-tune whose store has a chunk of every method, small enough to break it at each of its bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graftwork.delta.codecs import METHODS
from graftwork.store import open_store
from tests.generators.raw_tensors import RawTensor, moved, raw_tensor, write_raw


def every_method() -> tuple[dict[str, RawTensor], dict[str, RawTensor]]:
    """Base and fine-tune; each tensor is named for the method by which ``auto`` stores it."""
    weights, coded = raw_tensor("BF16", (300,), 1), told_by_exponents()
    base = {
        "same": raw_tensor("F16", (9,), 2),
        "same.cast": RawTensor("F32", (4,), np.float32([0.5, -2, 0, 1]).tobytes()),
        "raw": raw_tensor("U8", (40,), 3),
        "ordz": raw_tensor("I64", (30,), 4),
        "ordrans": coded[0],
        "sparse": weights,
    }
    tuned = base | {
        "same.cast": RawTensor("F16", (4,), np.float16([0.5, -2, 0, 1]).tobytes()),
        "raw": raw_tensor("U8", (40,), 5),
        "ordz": moved(base["ordz"], 1, 6, reach=3),
        "ordrans": coded[1],
        "sparse": moved(weights, 0.01, 8),
    }
    return base, tuned


def told_by_exponents() -> tuple[RawTensor, RawTensor]:
    """Words of two exponents in no order, of which one changes: planes of so few words are larger than ``ordrans``."""
    draw = np.random.Generator(np.random.PCG64(7))
    changes = draw.integers(0, 2, 4000)
    base = (0x3E80 + 0x100 * changes + draw.integers(0, 128, 4000)).astype("<u2")
    tuned = (base + changes * draw.integers(-3, 4, 4000)).astype("<u2")
    return RawTensor("BF16", (4000,), base.tobytes()), RawTensor("BF16", (4000,), tuned.tobytes())


def write_every_method(folder: Path) -> None:
    """``base`` and ``tuned``, folders of one file each."""
    for name, tensors in zip(("base", "tuned"), every_method(), strict=True):
        write_raw(folder / name, tensors)


def methods_in(store: Path, name: str) -> set[str]:
    """The methods of an entry's chunks, and ``same`` for tensors that have none."""
    found = set()
    with open_store(store) as opened:
        for tensor in opened.entry(name).tensors.values():
            delta = opened.sources.delta(tensor.object)
            found |= {METHODS[chunk.method].name for chunk in delta.chunks(tensor.key)[0]} or {"same"}
    return found
