"""The difference of a fine-tune from its base, added to another base: round(new + scale · (tuned − old))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from graftwork.checkpoint.dtypes import code_of, torch_dtype
from graftwork.delta.survival import Survival, SurvivalReport, measure_survival, rounding_key
from graftwork.ops.merge import add_diff, merge_many
from graftwork.rebase.pairing import Carried
from graftwork.rebase.sides import Side
from graftwork.rebase.tiles import Triple, refuse_nonfinite, triples

__all__ = ["Preserve", "Writer", "difference_tile"]

Preserve = Literal["none", "stochastic", "residual"]


class Tile(NamedTuple):
    """A piece of the result: as it is written, and exactly, in float32 (None: it is float32 or wider already)."""

    written: Tensor
    exact: Tensor | None
    start: int


def difference_tile(triple: Triple, scale: float, dtype: torch.dtype | None = None) -> Tensor:
    """The result of one tile in ``dtype``, the new base's by default; in float64 where the new base is."""
    dtype = dtype or triple.new.dtype
    if torch.float64 in (triple.old.dtype, triple.tuned.dtype, triple.new.dtype):
        moved = (triple.tuned.double() - triple.old.double()).mul_(scale)
        moved = torch.where(moved == 0, triple.new.double(), triple.new.double() + moved)
        if scale == 1 and triple.old.dtype == triple.new.dtype:
            moved = torch.where(triple.old == triple.new, triple.tuned.double(), moved)
        return moved.to(dtype)
    return add_diff(triple.tuned, triple.old, triple.new, scale, torch.empty(triple.new.shape, dtype=dtype))


@dataclass
class Writer:
    """Makes the result's tensors tile by tile, and keeps what survives the rounding."""

    old: Side
    tuned: Side
    new: Side
    scale: float
    preserve: Preserve = "none"
    seed: int = 0
    survival: SurvivalReport = field(default_factory=SurvivalReport)

    def check_unchanged(self) -> None:
        """Raise `SourceChanged` if a file of any of the models has changed since it was opened."""
        for side in (self.old, self.tuned, self.new):
            if side.checkpoint is not None:
                side.checkpoint.check_unchanged()

    def dtype_of(self, row: Carried) -> str:
        """The dtype code of a tensor of the result: the new base's, or of what is taken over as it is."""
        meta = self.tuned.meta(row.tuned) if row.action == "tuned" else self.new.meta(row.new)
        if meta is None:
            raise ValueError(f"{row.name!r} comes from nowhere")
        return meta.dtype

    def tiles(self, row: Carried) -> Iterator[Tile]:
        """The tensor, piece by piece; what survives is recorded at the end.

        Raises
        ------
        CheckpointError
            A weight is NaN or infinite.
        """
        dtype = torch_dtype(self.dtype_of(row)) or torch.float32
        lost = Survival()
        count = 0
        for number, triple in enumerate(triples(row, self.old, self.tuned, self.new)):
            tile = self._tile(row, number, triple, dtype)
            lost += _survival(triple, tile, self.preserve)
            count += triple.tuned.numel()
            yield tile
        self.survival.add(row.name, count, code_of(dtype) or str(dtype), lost)

    def _tile(self, row: Carried, number: int, triple: Triple, dtype: torch.dtype) -> Tile:
        written = difference_tile(triple, self.scale, dtype)
        exact = difference_tile(triple, self.scale, torch.float32) if dtype.itemsize < 4 else None
        if not bool(torch.isfinite(written).all()):
            refuse_nonfinite(row, triple, self.old, self.tuned, self.new)
        if self.preserve == "stochastic" and exact is not None and self.scale:
            key = rounding_key(self.seed, f"{row.name}\0{number}")
            written, _ = merge_many(triple.new, [exact], [1.0], rounding="stochastic", key=key, dtype=dtype)
        return Tile(written, exact, triple.start)


def _survival(triple: Triple, tile: Tile, preserve: Preserve) -> Survival:
    if tile.exact is None:
        wanted = tile.written.double() - triple.new.double()
        square = float(wanted.square().sum())
        return Survival(int((wanted != 0).sum()), 0, 0, square, square, square)
    nearest = preserve != "stochastic"  # measured natively then
    return measure_survival(triple.new, tile.exact, tile.written.dtype if nearest else tile.written)
