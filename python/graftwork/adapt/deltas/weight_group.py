"""Weights of one dtype on one device with changes on them, and the words of the base that lie under these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.adapt.deltas.arrangement import extended, with_index_dtype
from graftwork.errors import BaseMismatch
from graftwork.ops import _native
from graftwork.ops.sparse_update import Support, merge_deltas, restore_values_, swap_values_


class Part(NamedTuple):
    """The changes that a delta makes in a group, on its device: over its first tensors."""

    support: Support
    values: Tensor


class Plan(NamedTuple):
    """What shall be on a group: one delta and its scale, or the sum of several; None if nothing."""

    support: Support | None
    values: Tensor | None
    scale: float


class WeightGroup:
    """Tensors of one dtype on one device.

    Whatever is on them, each weight is ``round(base + Σ scale · value)``, and `support` and `base` hold what is needed
    to take it off: the words of the base at all changed weights.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tensors: list[Tensor] = []
        self.support: Support | None = None
        self.base: Tensor | None = None
        self._ranges: list[tuple[str, int, int]] = []
        self._versions: list[int | None] = []
        self._digests: dict[int, tuple[int | None, str]] = {}

    @property
    def numels(self) -> list[int]:
        """Elements of each tensor."""
        return [tensor.numel() for tensor in self.tensors]

    @property
    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """The tensors, with a name of each."""
        return list(zip(self.names, self.tensors, strict=True))

    def add(self, name: str, tensor: Tensor) -> int:
        """Take in another tensor; its number."""
        self.names.append(name)
        self.tensors.append(tensor)
        self._ranges.append(_native.memory_range(tensor))
        self._versions.append(_version(tensor))
        return len(self.tensors) - 1

    def plan(self, parts: Sequence[tuple[Part, float]]) -> Plan:
        """What is on the group when these deltas are; the weights are not touched."""
        if not parts:
            return Plan(None, None, 1.0)
        wide = any(part.support.indices.dtype == torch.int64 for part, _ in parts)
        if self.support is not None:
            wide = wide or self.support.indices.dtype == torch.int64
        dtype = torch.int64 if wide else torch.int32
        supports = [with_index_dtype(extended(part.support, self.numels), dtype) for part, _ in parts]
        if len(parts) == 1:
            return Plan(supports[0], parts[0][0].values, parts[0][1])
        values = [part.values for part, _ in parts]
        return Plan(*merge_deltas(supports, values, [scale for _, scale in parts]), 1.0)

    def become(self, plan: Plan) -> None:
        """Take off what is on, and put the plan on, in one pass."""
        before = self.support
        if before is not None:
            dtype = before.indices.dtype if plan.support is None else plan.support.indices.dtype
            before = with_index_dtype(extended(before, self.numels), dtype)
        if before is None and plan.support is None:
            return
        touched = self._changed(before) | self._changed(plan.support)
        known = {number: self._digests[number][1] for number in touched if self._is_digested(number)}
        base = swap_values_(self.tensors, before, self.base, plan.support, plan.values, plan.scale)
        self.support, self.base = plan.support, None if plan.support is None else base
        self._note(touched)
        self._digests |= {number: (self._versions[number], digest) for number, digest in known.items()}

    def _changed(self, support: Support | None) -> set[int]:
        if support is None:
            return set()
        return set(support.offsets.diff().nonzero().view(-1).tolist())

    def _note(self, touched: set[int]) -> None:
        """Let autograd know of the change, and remember that it was ours."""
        written = [self.tensors[number] for number in touched if not self.tensors[number].is_inference()]
        torch.autograd.graph.increment_version(written)
        for number in touched:
            self._versions[number] = _version(self.tensors[number])

    def check_untouched(self, *, force: bool = False) -> None:
        """Refuse weights under changes that somebody else moved or (unless ``force``) wrote to."""
        for number in sorted(self._changed(self.support)):
            tensor = self.tensors[number]
            if _native.memory_range(tensor) != self._ranges[number]:
                raise BaseMismatch(
                    "a tensor was moved or converted while a delta was applied to it",
                    tensor=self.names[number],
                    remedy="revert deltas before you move or convert the model",
                )
            if not force and _version(tensor) != self._versions[number]:
                raise BaseMismatch(
                    "a tensor was written to while a delta was applied to it",
                    tensor=self.names[number],
                    wanted="weights that change only when deltas come and go",
                    remedy="revert deltas before you train or load the model; with force=True the words of the base "
                    "come back where the delta is, and what was written elsewhere stays",
                )

    def has_moved(self) -> bool:
        """Whether a tensor is not where it was."""
        return [*map(_native.memory_range, self.tensors)] != self._ranges

    def digest_of(self, number: int) -> str:
        """The digest of a tensor's content in the base."""
        if not self._is_digested(number):
            self._digests[number] = _version(self.tensors[number]), _digest(self._in_base(number))
        return self._digests[number][1]

    def _is_digested(self, number: int) -> bool:
        version = _version(self.tensors[number])
        return version is not None and number in self._digests and self._digests[number][0] == version

    def _in_base(self, number: int) -> Tensor:
        tensor = self.tensors[number]
        if number not in self._changed(self.support) or self.support is None or self.base is None:
            return tensor
        start, stop = self.support.offsets[number : number + 2].tolist()
        indices = self.support.indices[start:stop]
        own = Support.trusted(indices, torch.tensor([0, stop - start]), [tensor.numel()])
        copy = tensor.clone()
        restore_values_(own, [copy], self.base[start:stop])
        return copy


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None for one of inference mode, which nobody counts."""
    return None if tensor.is_inference() else tensor._version


def _digest(tensor: Tensor) -> str:
    from graftwork.delta.pipeline import default_threads
    from graftwork.delta.source import describe
    from graftwork.delta.weights import StateSource

    return describe(StateSource({"tensor": tensor}), threads=default_threads()).tensors["tensor"].digest
