"""Update survival: how much of an update is left in weights once they are written in a narrower dtype.

The wanted update is w = exact − base, with the exact result in fp32; the saved one is s = written − round(base), both
over pairs that are finite. An update below half the spacing of the written format around its weight is lost under
rounding to nearest; stochastic rounding keeps it in expectation, and a residual (`graftwork.delta.residual`) exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from graftwork.checkpoint.dtypes import code_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from graftwork.ops.lossless_delta import UpdateSurvival

__all__ = [
    "Survival", "SurvivalReport", "TensorSurvival", "finite", "keyed", "measure_survival", "rounding_key",
    "unchanged_share",
]  # fmt: skip

_TILE = 1 << 20
"""Elements that are widened at a time."""

_ROUNDING = b"graftwork-rounding-1"


@dataclass(frozen=True, slots=True)
class Survival:
    """What is left of an update once it is saved in a narrower dtype, as sums that add up piece by piece.

    ``changed`` elements should differ; ``lost`` of them no longer do; ``overflow`` finite elements of the result become
    infinite. The squares and ``dot`` are sums in fp64 over pairs that are finite.
    """

    changed: int = 0
    lost: int = 0
    overflow: int = 0
    wanted_square: float = 0.0
    saved_square: float = 0.0
    dot: float = 0.0

    def __add__(self, other: Survival) -> Survival:
        return Survival(
            self.changed + other.changed,
            self.lost + other.lost,
            self.overflow + other.overflow,
            self.wanted_square + other.wanted_square,
            self.saved_square + other.saved_square,
            self.dot + other.dot,
        )

    @classmethod
    def of(cls, measured: UpdateSurvival) -> Survival:
        """The sums that ``ops.lossless_delta.update_survival`` measured."""
        return cls(*measured.counts.tolist(), *measured.sums.tolist())

    @property
    def lost_share(self) -> float | None:
        """Share of the changed elements that the rounding takes back, in [0, 1]; None if none changed."""
        return self.lost / self.changed if self.changed else None

    @property
    def retained_norm(self) -> float | None:
        """``||saved update|| / ||update||``; None if there is no update."""
        return math.sqrt(self.saved_square) / math.sqrt(self.wanted_square) if self.wanted_square else None

    @property
    def cosine(self) -> float | None:
        """Cosine between saved and wanted update; 0 if nothing is left, None if there is no update."""
        if not self.wanted_square:
            return None
        if not self.saved_square:
            return 0.0
        return min(1.0, self.dot / self.wanted_square * math.sqrt(self.wanted_square / self.saved_square))

    def to_dict(self) -> dict[str, int | float | None]:
        """JSON-able: counts, ``lost_share``, ``retained_norm`` and ``cosine``."""
        return {
            "changed": self.changed,
            "lost": self.lost,
            "overflow": self.overflow,
            "lost_share": self.lost_share,
            "retained_norm": finite(self.retained_norm),
            "cosine": finite(self.cosine),
        }


@dataclass(frozen=True, slots=True)
class TensorSurvival:
    """One written tensor: its elements, the dtype code that it is written in, and what survived."""

    name: str
    elements: int
    dtype: str
    survival: Survival

    @property
    def unchanged_share(self) -> float | None:
        """Share of all elements without an update, wanted or saved, in [0, 1]; None if there are no elements."""
        return unchanged_share(self.elements, self.survival)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what `Survival.to_dict` says, and the tensor's elements, dtype and ``unchanged_share``."""
        own = {"elements": self.elements, "dtype": self.dtype, "unchanged_share": self.unchanged_share}
        return own | self.survival.to_dict()


def unchanged_share(elements: int, survival: Survival) -> float | None:
    """Share of ``elements`` whose update is not wanted or lost; None if there are no elements."""
    return (elements - survival.changed + survival.lost) / elements if elements else None


@dataclass
class SurvivalReport:
    """Update survival of everything that was written, per tensor and in all.

    Examples
    --------
    >>> import torch
    >>> base = torch.ones(4, dtype=torch.bfloat16)
    >>> report = SurvivalReport()
    >>> report.record("w", base, base.float() + torch.tensor([0.0, 1e-4, 1e-4, 1e-2]), torch.bfloat16)
    >>> report.total.lost_share, report.unchanged_share
    (0.6666666666666666, 0.75)
    """

    tensors: dict[str, TensorSurvival] = field(default_factory=dict)

    def record(self, name: str, base: Tensor, exact: Tensor, written: Tensor | torch.dtype) -> None:
        """Measure a tensor (`measure_survival`) and keep what was found."""
        dtype = written if not hasattr(written, "dtype") else written.dtype
        self.add(name, exact.numel(), code_of(dtype) or str(dtype), measure_survival(base, exact, written))

    def add(self, name: str, elements: int, dtype: str, survival: Survival) -> None:
        """Keep what was measured elsewhere. A second record of a name takes the place of the first."""
        self.tensors[name] = TensorSurvival(name, elements, dtype, survival)

    @property
    def total(self) -> Survival:
        """The sums over all tensors, which are added in the order of their names: any order of records gives the same."""
        return sum((self.tensors[name].survival for name in sorted(self.tensors)), Survival())

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(row.elements for row in self.tensors.values())

    @property
    def unchanged_share(self) -> float | None:
        """Share of all elements without an update, wanted or saved, in [0, 1]; None if there are no elements."""
        return unchanged_share(self.elements, self.total)

    def worst(self, count: int = 8) -> list[TensorSurvival]:
        """The tensors whose saved update points the least the way of the wanted one, worst first."""
        rows = [row for row in self.tensors.values() if row.survival.cosine is not None]
        return sorted(rows, key=lambda row: (row.survival.cosine or 0.0, row.name))[:count]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the measures in all, and by tensor."""
        total = {"elements": self.elements, "unchanged_share": self.unchanged_share} | self.total.to_dict()
        return {"total": total, "tensors": {name: row.to_dict() for name, row in self.tensors.items()}}

    def sums(self) -> dict[str, list[Any]]:
        """JSON-able and exact: what `from_sums` makes the same report of, for work that goes on after a stop."""
        return {
            row.name: [row.elements, row.dtype, list(asdict(row.survival).values())]
            for row in self.tensors.values()
        }

    @classmethod
    def from_sums(cls, sums: dict[str, list[Any]]) -> SurvivalReport:
        """The report whose `sums` these are."""
        report = cls()
        for name, (elements, dtype, values) in sums.items():
            report.add(name, elements, dtype, Survival(*values))
        return report


def measure_survival(base: Tensor, exact: Tensor, written: Tensor | torch.dtype) -> Survival:
    """How much of the update from ``base`` to ``exact`` is left in what is written.

        w = exact − base,   s = written − round(base),   s = 0 where written or round(base) is infinite

    Parameters
    ----------
    base : Tensor
        The weights before the update: any float dtype of 16 bits or more, on the CPU.
    exact : Tensor
        float32, of the shape of ``base``: the result before it is rounded.
    written : Tensor or torch.dtype
        What stands in the file, of the shape of ``base``; or only its dtype, if ``exact`` is rounded to nearest, ties
        to even (the native operation measures it then).

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes are not as above.

    Notes
    -----
    Deterministic: fixed tiles, added in order. No more than a tile is widened at a time.
    """
    import torch

    dtype = written.dtype if isinstance(written, torch.Tensor) else written
    _check(base, exact, written)
    total = Survival()
    flats = [base.detach().reshape(-1), exact.detach().reshape(-1)]
    flats += [written.detach().reshape(-1)] if isinstance(written, torch.Tensor) else []
    for tiles in _tiles(flats):
        if len(tiles) == 2 and dtype in (torch.bfloat16, torch.float16) and base.dtype != torch.float64:
            total += _nearest(tiles[0], tiles[1], dtype)
        else:
            total += _measured(tiles[0], tiles[1], tiles[2] if len(tiles) == 3 else tiles[1].to(dtype))
    return total


def keyed(domain: bytes, seed: int, *parts: bytes) -> tuple[int, int]:
    """A Philox key: two uint32 out of SHA-256 over a domain, a seed and further parts, each with its length.

    Equal arguments give equal keys on every machine; other domains, seeds or parts give unrelated ones.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"a seed must lie in [0, 2^64), got {seed}")
    digest = hashlib.sha256(domain + seed.to_bytes(8, "little"))
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    found = digest.digest()
    return int.from_bytes(found[:4], "little"), int.from_bytes(found[4:8], "little")


def rounding_key(seed: int, name: str) -> tuple[int, int]:
    """The Philox key by which the tensor called ``name`` is rounded stochastically under ``seed``."""
    return keyed(_ROUNDING, seed, name.encode())


def finite(value: Any) -> Any:
    """``value`` as JSON can carry it: None for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check(base: Tensor, exact: Tensor, written: Tensor | torch.dtype) -> None:
    import torch

    wide = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    if base.dtype not in wide:
        raise TypeError(f"measure_survival: base must be a float of 16 bits or more, got {base.dtype}")
    if exact.dtype != torch.float32:
        raise TypeError(f"measure_survival: exact must be float32, got {exact.dtype}")
    if exact.shape != base.shape:
        raise ValueError(
            f"measure_survival: exact must have the shape of base, {tuple(base.shape)}, got {tuple(exact.shape)}"
        )
    if isinstance(written, torch.Tensor) and written.shape != base.shape:
        raise ValueError(
            f"measure_survival: written must have the shape of base, {tuple(base.shape)}, got {tuple(written.shape)}"
        )
    dtype = written.dtype if isinstance(written, torch.Tensor) else written
    if not dtype.is_floating_point:
        raise TypeError(f"measure_survival: written must be of a float dtype, got {dtype}")


def _tiles(flats: list[Tensor]) -> Iterator[list[Tensor]]:
    for start in range(0, flats[0].numel(), _TILE):
        yield [flat[start : start + _TILE] for flat in flats]


def _nearest(base: Tensor, exact: Tensor, dtype: torch.dtype) -> Survival:
    from graftwork.ops.lossless_delta import update_survival

    return Survival.of(update_survival(base.float(), exact, dtype))


def _measured(base: Tensor, exact: Tensor, written: Tensor) -> Survival:
    import torch

    before, after = base.double(), exact.double()
    rounded, saved = base.to(written.dtype).double(), written.double()
    both = before.isfinite() & after.isfinite()
    wanted = torch.where(both, after - before, 0.0)
    kept = torch.where(both & rounded.isfinite() & saved.isfinite(), saved - rounded, 0.0)
    changed = wanted != 0
    return Survival(
        int(changed.sum()),
        int((changed & (kept == 0)).sum()),
        int((both & saved.isinf()).sum()),
        float(wanted.square().sum()),
        float(kept.square().sum()),
        float((wanted * kept).sum()),
    )
