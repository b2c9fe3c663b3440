"""The three models' weights side by side, tile by tile, in the rows of the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from graftwork.errors import CheckpointError
from graftwork.rebase.pairing import Carried
from graftwork.rebase.sides import Side

__all__ = ["TILE", "Triple", "refuse_nonfinite", "triples"]

TILE = 1 << 20
"""Elements of a tile: what is widened to fp32 at a time stays in the cache and a few MiB."""


class Triple(NamedTuple):
    """A tile of one tensor, flat: the old base's, the fine-tune's and the new base's weights.

    ``start`` is its first element in the result's tensor. ``held`` marks the elements that both bases have; None: all.
    """

    old: Tensor
    tuned: Tensor
    new: Tensor
    start: int
    held: Tensor | None = None


def triples(row: Carried, old: Side, tuned: Side, new: Side, tile: int = TILE) -> Iterator[Triple]:
    """The tiles of a tensor that gets a difference; rows that a base lacks are zeros in it."""
    if row.old is None or row.tuned is None or row.new is None:
        raise ValueError(f"{row.name!r} is no difference of three tensors")
    sides = (old.tensor(row.old), tuned.tensor(row.tuned), new.tensor(row.new))
    if all(tuple(side.shape) == row.shape for side in sides) and row.old_rows is row.new_rows is None:
        flat = [side.reshape(-1) for side in sides]
        for start in range(0, flat[1].numel(), tile):
            old_tile, tuned_tile, new_tile = (side[start : start + tile] for side in flat)
            yield Triple(old_tile, tuned_tile, new_tile, start)
        return
    width = sides[1][0].numel() if row.shape and row.shape[0] else 1
    for first in range(0, row.shape[0], max(1, tile // max(1, width))):
        last = min(row.shape[0], first + max(1, tile // max(1, width)))
        before, has_old = _rows(sides[0], row.old_rows, first, last)
        after, has_new = _rows(sides[2], row.new_rows, first, last)
        held = (has_old & has_new).repeat_interleave(width)
        yield Triple(before, sides[1][first:last].reshape(-1), after, first * width, held)


def _rows(tensor: Tensor, places: list[int] | None, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Rows ``[first, last)`` of the result, flat, and which of them the tensor has."""
    if places is None:
        wanted = torch.arange(first, last)
        wanted = torch.where(wanted < tensor.shape[0], wanted, -1)
    else:
        wanted = torch.tensor(places[first:last])
    has = wanted >= 0
    found = torch.zeros((last - first, *tensor.shape[1:]), dtype=tensor.dtype)
    if bool(has.any()):
        found[has] = tensor[wanted[has]]
    return found.reshape(-1), has


def refuse_nonfinite(row: Carried, triple: Triple, old: Side, tuned: Side, new: Side) -> NoReturn:
    """Raise CheckpointError at the first NaN or infinity of a tile, which holds at least one."""
    for side, values in ((old, triple.old), (tuned, triple.tuned), (new, triple.new)):
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            at = int(bad[0])
            raise CheckpointError(
                "a weight is no finite number, and a difference with it would spoil the result",
                file=side.what,
                tensor=row.name,
                got=f"{values[at].item()} at element {triple.start + at} of the {side.role} weights",
                wanted="finite weights",
                remedy="repair the checkpoint, or leave the tensor out",
            )
    raise CheckpointError(
        "the new base with the difference is too large for its dtype",
        file=new.what,
        tensor=row.name,
        got=triple.new.dtype,
        remedy="save the new base in bfloat16 or float32, or use a smaller scale",
    )
