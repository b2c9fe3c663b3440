"""Sparse deltas as vectors: weighted sums, and how much two have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graftwork.adapt.deltas.arrangement import arranged, with_index_dtype
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.tuned_tensor import TunedTensor
from graftwork.errors import BaseMismatch, DeltaError
from graftwork.ops.sparse_update import Support, compare_deltas, merge_deltas


@dataclass(frozen=True, slots=True)
class TensorOverlap:
    """What two deltas have in common: of one tensor, or of all."""

    shared: int
    """Weights that both change."""
    union: int
    """Weights that at least one changes."""
    agreeing: int
    """Weights that both change in the same direction."""
    dot: float
    """Σ of the products of the changes."""
    norms: tuple[float, float]
    """Euclidean norms of the changes of the one and the other."""

    @property
    def jaccard(self) -> float:
        """Shared weights as a share of the union; 0 where that is empty."""
        return self.shared / self.union if self.union else 0.0

    @property
    def agreement(self) -> float:
        """Weights with one direction as a share of the shared ones; 0 where there are none."""
        return self.agreeing / self.shared if self.shared else 0.0

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 0 where one is zero."""
        product = self.norms[0] * self.norms[1]
        return self.dot / product if product else 0.0


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two deltas have in common, in all and by tensor."""

    total: TensorOverlap
    tensors: Mapping[str, TensorOverlap]


def compose(
    deltas: Sequence[SparseDelta], weights: Sequence[float] | None = None, *, check_base: bool = True
) -> SparseDelta:
    """The weighted sum of sparse deltas: Σ weight_i · value_i on the union of their supports.

    Parameters
    ----------
    deltas : sequence of SparseDelta
        At least one; the result is on the device of the first.
    weights : sequence of float, optional
        One for each, finite; 1 by default.
    check_base : bool
        Whether digests and dtypes must agree. False takes the dtype of the first delta that has a tensor, and forgets
        digests that differ.

    Returns
    -------
    SparseDelta
        The products are rounded to fp32 and added in the order of the deltas; for two deltas the order does not matter.
        Sums of 0 are kept. Tensors tuned in full are taken over as they are, without a weight.

    Raises
    ------
    BaseMismatch
        The deltas are for different bases.
    DeltaError
        Shapes differ, two deltas have another tensor in full under one name, or a sum is not finite.

    Examples
    --------
    >>> base = {"w": torch.zeros(4)}
    >>> task = SparseDelta.from_changes({"w": (torch.tensor([0, 2]), torch.tensor([1.0, 1.0]))}, base)
    >>> language = SparseDelta.from_changes({"w": (torch.tensor([2]), torch.tensor([3.0]))}, base)
    >>> [part.tolist() for part in compose([task, language], [1.0, 0.5]).changes("w")]
    [[0, 2], [1.0, 2.5]]
    """
    if not deltas:
        raise ValueError("compose: give at least one delta")
    for delta in deltas:
        if not isinstance(delta, SparseDelta):
            raise TypeError(f"compose: deltas must be SparseDelta, got {type(delta).__name__}")
    factors = [1.0] * len(deltas) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(deltas):
        raise ValueError(f"compose: wanted a weight for each of {len(deltas)} deltas, got {len(factors)}")
    deltas = _with_one_name_each(deltas)
    tensors = _union(deltas, check_base)
    support, values = _aligned(deltas, tensors)
    merged = merge_deltas(support, values, factors) if tensors else (support[0], values[0])
    bases = {delta.base_digest for delta in deltas}
    return SparseDelta(
        tensors,
        *merged,
        full=_full(deltas),
        tied={name: own for delta in deltas for name, own in delta.tied.items()},
        base_digest=bases.pop() if len(bases) == 1 else None,
    )


def overlap(one: SparseDelta, other: SparseDelta) -> Overlap:
    """See `SparseDelta.overlap`."""
    deltas = _with_one_name_each([one, other])
    tensors = _union(deltas, check_base=False)
    if not tensors:
        return Overlap(TensorOverlap(0, 0, 0, 0.0, (0.0, 0.0)), {})
    (a, b), (a_values, b_values) = _aligned(deltas, tensors)
    found = compare_deltas(a, a_values, b, b_values)
    rows = list(zip(*(column.tolist() for column in found), strict=True))
    by_tensor = {tensor.name: _overlap(row) for tensor, row in zip(tensors, rows, strict=True)}
    return Overlap(_overlap([sum(column) for column in zip(*rows, strict=True)]), by_tensor)


def _overlap(row: Sequence[float]) -> TensorOverlap:
    shared, union, agreeing, dot, a_squared, b_squared = row
    norms = math.sqrt(a_squared), math.sqrt(b_squared)
    return TensorOverlap(int(shared), int(union), int(agreeing), dot, norms)


def _with_one_name_each(deltas: Sequence[SparseDelta]) -> list[SparseDelta]:
    """Deltas that call a tensor by one name, where one ties names of which another uses a later one."""
    own: dict[str, str] = {}
    for delta in deltas:
        for alias, name in delta.tied.items():
            own.setdefault(alias, own.get(name, name))
    renamed = []
    for delta in deltas:
        names = {tensor.name: own.get(tensor.name, tensor.name) for tensor in delta.tensors}
        if len({*names.values()}) < len(names):
            raise DeltaError(
                "tensors that one delta ties are apart in another",
                tensor=next(name for name, first in names.items() if name != first),
                remedy="untie them in the model before training, or leave one of them out",
            )
        if any(name != first for name, first in names.items()):
            tied = {**delta.tied, **{name: first for name, first in names.items() if name != first}}
            tied = {name: own.get(first, first) for name, first in tied.items() if name not in names.values()}
            tensors = [replace(tensor, name=names[tensor.name]) for tensor in delta.tensors]
            delta = SparseDelta(
                tensors,
                delta.support,
                delta.values,
                full=delta.full,
                tied=tied,
                base_digest=delta.base_digest,
            )
        renamed.append(delta)
    return renamed


def _union(deltas: Sequence[SparseDelta], check_base: bool) -> list[TunedTensor]:
    """All tensors of the deltas, by name."""
    found: dict[str, TunedTensor] = {}
    digests: dict[str, set[str]] = {}
    for delta in deltas:
        for tensor in delta.tensors:
            known = found.setdefault(tensor.name, tensor)
            if known.shape != tensor.shape:
                raise DeltaError(
                    "a tensor has another shape in another delta",
                    tensor=tensor.name,
                    got=list(tensor.shape),
                    wanted=list(known.shape),
                )
            mine = digests.setdefault(tensor.name, set())
            if tensor.digest is not None:
                mine.add(tensor.digest)
            if check_base and (len(mine) > 1 or known.dtype != tensor.dtype):
                raise BaseMismatch(
                    "the deltas are for different bases",
                    tensor=tensor.name,
                    got=f"{tensor.dtype}, digest {(tensor.digest or 'unknown')[:16]}",
                    wanted=f"{known.dtype}, digest {(known.digest or 'unknown')[:16]}",
                    remedy="make them one base's with for_base(), or pass check_base=False to add them anyhow",
                )
    return [
        replace(found[name], digest=min(digests[name]) if len(digests[name]) == 1 else None)
        for name in sorted(found)
    ]


def _aligned(
    deltas: Sequence[SparseDelta], tensors: Sequence[TunedTensor]
) -> tuple[list[Support], list[Tensor]]:
    """Supports over ``tensors``, with indices of one dtype, and their values, on the device of the first delta."""
    numels = [tensor.numel for tensor in tensors]
    wide = any(delta.support.indices.dtype == torch.int64 for delta in deltas)
    device = deltas[0].values.device
    supports, values = [], []
    for delta in deltas:
        numbers = {tensor.name: number for number, tensor in enumerate(delta.tensors)}
        order = [numbers.get(tensor.name) for tensor in tensors]
        support, mine = arranged(delta.support, delta.values, order, numels)
        supports.append(with_index_dtype(support.to(device), torch.int64 if wide else torch.int32))
        values.append(mine.to(device))
    return supports, values


def _full(deltas: Sequence[SparseDelta]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for delta in deltas:
        for name, tensor in delta.full.items():
            known = found.setdefault(name, tensor)
            same = known.dtype == tensor.dtype and torch.equal(known, tensor.to(known.device))
            if known is not tensor and not same:
                raise DeltaError(
                    "two deltas have another tensor in full under one name",
                    tensor=name,
                    remedy="drop those of one with without_full()",
                )
    return found
