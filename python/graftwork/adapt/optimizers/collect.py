"""From an optimizer's tuned weights to the delta that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.optimizers.sparse_optimizer import SparseOptimizer
from graftwork.ops.sparse_update import gather_values, restore_values_


@contextmanager
def at_base(optimizer: SparseOptimizer) -> Iterator[None]:
    """The weights that are tuned in part are their bases for the time of a ``with`` block."""
    saved = []
    try:
        with torch.no_grad():
            for arena in optimizer.arenas():
                weights = arena.weights()
                saved.append((arena.support, weights, gather_values(arena.support, weights)))
                restore_values_(arena.support, weights, arena.arrays["base"])
        yield
    finally:
        with torch.no_grad():
            for support, weights, words in saved:
                restore_values_(support, weights, words)


def collect_delta(optimizer: SparseOptimizer, tied: Mapping[str, str] | None = None) -> SparseDelta:
    """The delta of an optimizer whose parameters have names; `tied` are other names of them.

    A weight that did not move is left out. Parameters tuned in full are kept as they are now.
    """
    where: dict[Tensor, str] = {}
    for name, param in optimizer.named():
        if not isinstance(name, str):
            raise ValueError(
                f"{type(optimizer).__name__}.delta: parameters have no names; build the optimizer with "
                f"model.named_parameters() in place of model.parameters()"
            )
        where[param] = name
    changes, base = {}, {}
    for arena in optimizer.arenas():
        moved = arena.support.split(arena.moved())
        for param, state, values in zip(arena.params, arena.states, moved, strict=True):
            kept = values != 0
            changes[where[param]] = state["indices"][kept], values[kept]
            base[where[param]] = param.detach()
    full = {name: p.detach().clone().contiguous() for p, name in where.items() if name not in base}
    ties = {name: first for name, first in (tied or {}).items() if first in base or first in full}
    if not base:
        raise ValueError(f"{type(optimizer).__name__}.delta: all parameters are tuned in full, none in part")
    with at_base(optimizer):
        found = SparseDelta.from_changes(changes, base)
    return SparseDelta(found.tensors, found.support, found.values, full=full, tied=ties)
