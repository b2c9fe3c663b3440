"""Deltas from files on a base model, as a dense checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graftwork.adapt.deltas.composition import compose
from graftwork.adapt.deltas.sparse_delta import SparseDelta

__all__ = ["ApplyReport", "apply_deltas"]


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What `apply_deltas` did.

    Attributes
    ----------
    out, base : Path
        What was written, and the base.
    deltas : list of str
        The files, in their order.
    weights : list of float
        The factor of each.
    changed : int
        Weights that at least one delta changes.
    density : float
        Their share of the weights of the deltas' tensors.
    full : list of str
        Tensors that were taken over in full.
    """

    out: Path
    base: Path
    deltas: list[str]
    weights: list[float]
    changed: int
    density: float
    full: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {**asdict(self), "out": str(self.out), "base": str(self.base)}


def apply_deltas(
    base: str | os.PathLike[str],
    deltas: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    with_full: bool = False,
    check_base: bool = True,
) -> ApplyReport:
    """Add the weighted sum of deltas to a base and write the result as a checkpoint of the same files.

    Parameters
    ----------
    base : path
        A folder of safetensors files, or one such file.
    deltas : sequence of path
        What `SparseDelta.save` wrote.
    out : path
        What to make.
    weights : sequence of float, optional
        A factor for each; 1 by default.
    with_full : bool
        Whether the tensors that the first delta has in full, such as its head, are taken over. Those of the others
        never are: LT-SFT adds a language's delta without its head to a task's with its own.
    check_base : bool
        Whether the base must be what the deltas were made against.

    Raises
    ------
    BaseMismatch
        The base is another one, or the deltas are for different ones.
    DeltaError, CheckpointError, TargetExists, OSError
        A delta or the base is malformed; something stands at ``out``; a file cannot be read or written.
    ValueError
        There are no deltas, or not as many weights.
    """
    factors = [1.0] * len(deltas) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(deltas):
        raise ValueError(
            f"apply_deltas: wanted a weight for each of {len(deltas)} deltas, got {len(factors)}"
        )
    loaded = [SparseDelta.load(file) for file in deltas]
    kept = [
        delta if with_full and not number else delta.without_full() for number, delta in enumerate(loaded)
    ]
    total = compose(kept, factors, check_base=check_base)
    total.to_checkpoint(base, out, with_full=with_full, check_base=check_base)
    return ApplyReport(
        out=Path(out),
        base=Path(base),
        deltas=[str(file) for file in deltas],
        weights=factors,
        changed=total.entries,
        density=total.density(),
        full=sorted(total.full),
    )
