"""What a delta of a set holds of the model, and how a change of the model is taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from graftwork.adapt.deltas.fit import Place
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.weight_group import Part, WeightGroup


@dataclass(eq=False)
class Replacement:
    """Tensors of a model and those that take their place for some time."""

    tensors: list[Tensor]
    others: list[Tensor]
    places: frozenset[Place]
    saved: list[Tensor] = field(default_factory=list)

    def save(self) -> None:
        """Keep what is there; nothing is written."""
        self.saved = [tensor.detach().clone() for tensor in self.tensors]

    def put_on(self) -> None:
        """Write the others' content."""
        _fill(self.tensors, self.others)

    def take_off(self) -> None:
        """Write what was there."""
        _fill(self.tensors, self.saved)


def _fill(tensors: list[Tensor], contents: list[Tensor]) -> None:
    for tensor, content in zip(tensors, contents, strict=True):
        with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
            tensor.copy_(content)


@dataclass(frozen=True, eq=False)
class Member:
    """A delta that is on a model: what it changes in each group of weights, and what it replaces in full."""

    delta: SparseDelta
    scale: float
    parts: dict[WeightGroup, Part]
    places: frozenset[Place]
    full: Replacement | None = None


class Undo:
    """Steps that are taken back, the last first, if the ``with`` block fails."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def add(self, step: Callable[[], None]) -> None:
        """What takes back the step that comes next."""
        self._steps.append(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for step in reversed(self._steps):
                step()
