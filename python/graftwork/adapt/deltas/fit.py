"""How a delta fits on a model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.targets import Target, match_full, match_tensors
from graftwork.delta.tensor_memory import check_apart
from graftwork.delta.weights import state_weights
from graftwork.errors import CheckpointError
from graftwork.ops import _native

LEAVE_OUT = "leave one of them out of the delta"
"""The remedy where two tensors that it changes share memory."""

Place = tuple[str, int, int, torch.dtype]
"""Where a tensor is: device, first and past-the-last address, and as what."""


def place_of(tensor: Tensor) -> Place:
    """Where a tensor is."""
    return (*_native.memory_range(tensor), tensor.dtype)


@dataclass(frozen=True)
class Fit:
    """The model's tensors that a delta changes, by target, and those whose place its full ones take, by its names."""

    targets: list[tuple[Target, Tensor]]
    full: list[tuple[str, Tensor]]

    @property
    def places(self) -> frozenset[Place]:
        """Where the tensors are that are changed."""
        return frozenset(place_of(tensor) for _, tensor in self.targets)


def fit_delta(delta: SparseDelta, model: nn.Module | Mapping[str, Tensor], *, with_full: bool) -> Fit:
    """Find a delta's tensors in a model, and check that they can be written to.

    Raises
    ------
    BaseMismatch
        One is missing, or has another shape or dtype.
    CheckpointError
        One is not contiguous, or overlaps another.
    """
    own = [tensor.name for tensor in delta.tensors]
    weights = state_weights(model, "model", only={*own, *delta.full, *delta.tied})
    tensors = weights.source.tensors
    known = [name for name, _ in model.named_parameters()] if isinstance(model, nn.Module) else list(model)
    targets = [(target, tensors[target.held]) for target in match_tensors(delta, weights, known)]
    full = match_full(delta, weights) if with_full else {}
    for target, tensor in targets:
        if not tensor.is_contiguous():
            raise CheckpointError(
                "a tensor of the model is not contiguous, and indices are row-major",
                file="model",
                tensor=target.held,
                got=f"strides {tensor.stride()}",
                remedy="make it contiguous: parameter.data = parameter.data.contiguous()",
            )
    replaced = [(name, tensors[held]) for held, name in full.items() if tensors[held].numel()]
    written = [*((target.held, tensor) for target, tensor in targets), *replaced]
    check_apart(written, "model", remedy=LEAVE_OUT)
    return Fit(targets, replaced)
