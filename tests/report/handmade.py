"""Diffs and pack results made by hand, of any size, without reading a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

from graftwork.store.diff import CheckpointDiff, FileDiff, TensorDiff
from graftwork.store.results import CodecUse, EntryReport, PackResult
from graftwork.store.update_stats import Survival, UpdateStats


def tensor_diff(
    name: str, relative_norm: float = 0.01, *, elements: int = 1000, cosine: float = 0.5
) -> TensorDiff:
    """A changed float32 tensor with the given measures; every second element changed."""
    base_square = float(elements)
    update = relative_norm**2 * base_square
    survival = Survival(elements // 2, elements // 8, 0, update, update, cosine * update)
    stats = UpdateStats(
        elements=elements,
        changed=elements // 2,
        update_square=update,
        base_square=base_square,
        tuned_square=base_square + update,
        max_update=relative_norm,
        entropy_bits=6.5 * elements,
        bf16=survival,
        fp16=survival,
    )
    shape, nbytes = (elements,), 4 * elements
    return TensorDiff(
        name, "changed", "F32", "F32", shape, shape, nbytes, math.ceil(stats.entropy_bits / 8), stats
    )


def lone_tensor(name: str, note: str = "") -> TensorDiff:
    """A tensor that only the fine-tune has."""
    return TensorDiff(name, "only in tuned", None, "F32", None, (8,), 32, 32, None, note)


def checkpoint_diff(
    tensors: Sequence[TensorDiff], files: Sequence[FileDiff] = (), layout: Sequence[str] = ()
) -> CheckpointDiff:
    """A diff of these tensors."""
    total = reduce(add, (t.stats for t in tensors if t.stats), UpdateStats())
    return CheckpointDiff("base", "tuned", tuple(tensors), total, tuple(files), tuple(layout), {}, {})


def transformer(layers: int, modules: int = 12) -> CheckpointDiff:
    """A diff of ``layers`` × ``modules`` tensors, an embedding, and a head that only one side has."""
    names = [
        f"model.layers.{i}.block_with_a_long_name.m{j}.weight" for i in range(layers) for j in range(modules)
    ]
    body = [tensor_diff(name, 0.001 * (1 + i % 97)) for i, name in enumerate(names)]
    return checkpoint_diff([tensor_diff("model.embed.weight", 0.002), *body, lone_tensor("lm_head.weight")])


def pack_result(*names: str) -> PackResult:
    """Entries of 1 MB, stored in 100 kB."""
    codecs = {"ordz": CodecUse(3, 900_000, 99_000), "same": CodecUse(1, 100_000, 0)}
    return PackResult(
        Path("store"),
        "b" * 64,
        tuple(EntryReport(name, "d" * 64, "added", 1_000_000, 100_000, 4, codecs, {}) for name in names),
    )
