"""What three sets of weights have in common: norms, cosines and correlations, streamed, one tile in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from graftwork.delta.pipeline import Progress
from graftwork.rebase.pairing import Carried, Pairing
from graftwork.rebase.sides import Side
from graftwork.rebase.tiles import Triple, refuse_nonfinite, triples

__all__ = ["TensorStatistics", "measure_pairing", "total"]


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Sums over the elements of a tensor that both bases have; two of them add up.

    Δ = tuned − old, Δbase = new − old, and, where a short fine-tune of the new base is at hand, Δnew = short − new.
    All sums are float64.
    """

    elements: int = 0
    update_square: float = 0.0
    base_update_square: float = 0.0
    update_dot_base: float = 0.0
    old_square: float = 0.0
    new_square: float = 0.0
    old_dot_new: float = 0.0
    old_sum: float = 0.0
    new_sum: float = 0.0
    short_square: float = 0.0
    update_dot_short: float = 0.0

    def __add__(self, other: TensorStatistics) -> TensorStatistics:
        return TensorStatistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def relative_update(self) -> float | None:
        """‖Δ‖ / ‖old‖; None if old is all zeros."""
        return _ratio(self.update_square, self.old_square)

    @property
    def drift(self) -> float | None:
        """‖Δbase‖ / ‖Δ‖; None if nothing was tuned."""
        return _ratio(self.base_update_square, self.update_square)

    @property
    def relative_drift(self) -> float | None:
        """‖Δbase‖ / ‖old‖; None if old is all zeros."""
        return _ratio(self.base_update_square, self.old_square)

    @property
    def cosine(self) -> float | None:
        """Cosine of Δ with Δbase; None if one is zero."""
        return _cosine(self.update_dot_base, self.update_square, self.base_update_square)

    @property
    def short_cosine(self) -> float | None:
        """Cosine of Δ with the short fine-tune's Δ of the new base; None without one."""
        return _cosine(self.update_dot_short, self.update_square, self.short_square)

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation of the bases' weights; None if one is constant.

        About 0 where the bases come from unrelated seeds, or where units have changed places.
        """
        n = max(1, self.elements)
        old = self.old_square - self.old_sum**2 / n
        new = self.new_square - self.new_sum**2 / n
        product = self.old_dot_new - self.old_sum * self.new_sum / n
        small = 1e-12
        if old <= small * self.old_square or new <= small * self.new_square:
            return None
        return _cosine(product, old, new)

    def to_dict(self) -> dict[str, Any]:
        """The measures as JSON-able values."""
        names = ("relative_update", "drift", "relative_drift", "cosine", "short_cosine", "correlation")
        return {"elements": self.elements} | {name: getattr(self, name) for name in names}


def _ratio(square: float, of: float) -> float | None:
    return math.sqrt(square / of) if of else None


def _cosine(dot: float, one: float, other: float) -> float | None:
    if one <= 0 or other <= 0:
        return None
    return max(-1.0, min(1.0, dot / (math.sqrt(one) * math.sqrt(other))))


def total(rows: Iterable[TensorStatistics]) -> TensorStatistics:
    """The sums over several tensors."""
    found = TensorStatistics()
    for row in rows:
        found += row
    return found


def measure_pairing(
    pairing: Pairing,
    old: Side,
    tuned: Side,
    new: Side,
    short: Side | None = None,
    progress: Progress | None = None,
) -> dict[str, TensorStatistics]:
    """The statistics of every tensor that gets a difference, each model read once.

    Raises
    ------
    CheckpointError
        A weight is NaN or infinite.
    """
    rows = pairing.differences
    sizes = {row.name: meta.nbytes if (meta := tuned.meta(row.tuned)) else 0 for row in rows}
    done, whole, found = 0, sum(sizes.values()), {}
    for row in rows:
        found[row.name] = _measure(row, old, tuned, new, short)
        done += sizes[row.name]
        if progress:
            progress("compare", done, whole)
    return found


def _measure(row: Carried, old: Side, tuned: Side, new: Side, short: Side | None) -> TensorStatistics:
    result = TensorStatistics()
    fourth = short.meta(row.new) if short else None
    fits = short is not None and fourth is not None and tuple(fourth.shape) == row.shape and not row.old_rows
    other = short.tensor(fourth.name).reshape(-1) if fits and short and fourth else None
    for triple in triples(row, old, tuned, new):
        tile = TensorStatistics()
        if triple.held is None or bool(triple.held.all()):
            tile = _sums(triple.old, triple.tuned, triple.new)
        elif bool(triple.held.any()):
            tile = _sums(*(part[triple.held] for part in triple[:3]))
        if not all(math.isfinite(getattr(tile, f.name)) for f in fields(tile)):
            refuse_nonfinite(row, triple, old, tuned, new)
        if other is not None:
            tile = _with_short(tile, triple, other[triple.start : triple.start + triple.tuned.numel()])
        result += tile
    return result


def _sums(old: Tensor, tuned: Tensor, new: Tensor) -> TensorStatistics:
    from graftwork.ops.merge import merge_gram

    old, tuned, new = (narrowed(part) for part in (old, tuned, new))
    updates = merge_gram([tuned, new], old).tolist()
    bases = merge_gram([old, new, _ones(old.numel())]).tolist()  # the products with 1 are the sums
    return TensorStatistics(
        elements=old.numel(),
        update_square=updates[0][0],
        base_update_square=updates[1][1],
        update_dot_base=updates[0][1],
        old_square=bases[0][0],
        new_square=bases[1][1],
        old_dot_new=bases[0][1],
        old_sum=bases[0][2],
        new_sum=bases[1][2],
    )


@lru_cache(maxsize=2)
def _ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bfloat16)


def _with_short(tile: TensorStatistics, triple: Triple, short: Tensor) -> TensorStatistics:
    update = triple.tuned.double() - triple.old.double()
    other = short.double() - triple.new.double()
    return replace(
        tile, short_square=float(other.square().sum()), update_dot_short=float((update * other).sum())
    )


def narrowed(tensor: Tensor) -> Tensor:
    """float64 as float32, which the operations read; statistics need no more."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor
