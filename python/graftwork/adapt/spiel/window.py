"""Gradients at weights that may be tuned next, summed over the updates of a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork.ops.sparse_update import Support, gather_gradients, topk_abs


@dataclass
class Candidates:
    """Of one tensor: where the candidates are, and in units of updates their gradients' sums.

    ``current`` is the gradient of the update that is being made, over its micro-batches so far.
    """

    indices: Tensor
    current: Tensor
    sums: Tensor
    squares: Tensor
    updates: int = 0
    calls: int = 0

    @classmethod
    def of(cls, indices: Tensor) -> Candidates:
        """No gradients yet."""
        zeros = torch.zeros(len(indices), dtype=torch.float32, device=indices.device)
        return cls(indices, zeros, zeros.clone(), zeros.clone())


class GradientWindow:
    """The candidates of several tensors, by name."""

    def __init__(self) -> None:
        self.held: dict[str, Candidates] = {}

    @torch.no_grad()
    def observe(self, name: str, gradient: Tensor, count: int) -> None:
        """Take note of a micro-batch's dense gradient; the first one says where the `count` candidates are."""
        flat = gradient.detach().contiguous()
        mine = self.held.get(name)
        if mine is None:
            if gradient.isnan().any():
                return  # the step will be refused or skipped; the next gradient chooses
            mine = self.held[name] = Candidates.of(topk_abs([flat], [count])[0])
        support = Support.trusted(mine.indices, torch.tensor([0, len(mine.indices)]), [flat.numel()])
        mine.current += gather_gradients(support, [flat]).compact
        mine.calls += 1

    def close_update(self, scale: float | None) -> None:
        """Add the update's gradients, as the step scaled them, to the sums; None: the step was left out."""
        for name, mine in list(self.held.items()):
            if scale is not None and mine.calls:
                mine.current *= scale
                mine.sums += mine.current
                mine.squares += mine.current * mine.current
                mine.updates += 1
            mine.current.zero_()
            mine.calls = 0
            if not mine.updates:
                del self.held[name]  # what chose these candidates was not used

    def clear(self) -> None:
        """Forget all candidates."""
        self.held = {}

    def state_dict(self) -> dict[str, Any]:
        """Between two updates."""
        return {
            name: {"indices": c.indices, "sums": c.sums, "squares": c.squares, "updates": c.updates}
            for name, c in self.held.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], like: Mapping[str, Tensor]) -> None:
        """Go on with saved candidates; `like` are the tensors, by name."""
        self.held = {}
        for name, saved in state.items():
            param = like[name]
            Support([saved["indices"]], [param.numel()])
            mine = self.held[name] = Candidates.of(saved["indices"].to(param.device, copy=True))
            mine.sums.copy_(saved["sums"])
            mine.squares.copy_(saved["squares"])
            mine.updates = saved["updates"]
