"""Drop and grow by sorting; see :mod:`graftwork.ops.sparse_update.reselection`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def refuse_nan(name: str | None) -> None:
    """Raise ValueError if an argument has a NaN."""
    if name is not None:
        raise ValueError(
            f"reselect: {name} has a NaN, which is neither large nor small; find where the training diverged"
        )


def refuse_source(outside: bool) -> None:
    """Raise ValueError if a source names an entry that is not there."""
    if outside:
        raise ValueError(
            "take_entries: source names an entry outside old or fresh; pass the arrays of the support and of the "
            "candidates that were given to reselect"
        )


def reselect(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    growth: Tensor,
    candidates: Tensor,
    candidate_offsets: Tensor,
    drops: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """``(indices, source)`` of the new support."""
    refuse_nan("values" if values.isnan().any() else "growth" if growth.isnan().any() else None)
    old, fresh = offsets.tolist(), candidate_offsets.tolist()
    pieces = [
        _reselect_one(
            values, indices, slice(*old[t : t + 2]), growth, candidates, slice(*fresh[t : t + 2]), d
        )
        for t, d in enumerate(drops)
    ]
    return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])


def _reselect_one(
    values: Tensor, indices: Tensor, mine: slice, growth: Tensor, candidates: Tensor, theirs: slice, drop: int
) -> tuple[Tensor, Tensor]:
    active, candidate = indices[mine], candidates[theirs]
    smallest = values[mine].abs().sort(stable=True).indices[:drop]
    dropped = torch.zeros(len(active), dtype=torch.bool, device=active.device)
    dropped[smallest] = True

    place = torch.searchsorted(active, candidate).clamp(max=max(0, len(active) - 1))
    is_active = active[place] == candidate if len(active) else torch.zeros_like(candidate, dtype=torch.bool)
    valid = ~is_active
    valid[is_active] = dropped[place[is_active]]
    score = growth[theirs].abs().where(valid, torch.tensor(-1.0, device=growth.device))
    grown = torch.zeros_like(valid)
    grown[score.sort(descending=True, stable=True).indices[: min(drop, int(valid.sum()))]] = True

    both = grown & is_active
    dropped[place[both]] = False
    grown &= ~both
    gone = smallest[dropped[smallest]][: int(grown.sum())]
    kept = torch.ones_like(dropped)
    kept[gone] = False

    merged = torch.cat([active[kept], candidate[grown]])
    source = torch.cat([kept.nonzero().view(-1) + mine.start, -1 - theirs.start - grown.nonzero().view(-1)])
    order = merged.sort().indices
    return merged[order], source[order]


def take_entries(old: Tensor, source: Tensor, fresh: Tensor) -> Tensor:
    """``old[source]`` where the source is not negative, else ``fresh[-1 - source]``, or the one value of a scalar."""
    kept = source >= 0
    number = torch.where(kept, source, -1 - source)
    beyond = (kept & (number >= old.numel())).any()
    if fresh.dim():
        beyond |= (~kept & (number >= fresh.numel())).any()
    refuse_source(bool(beyond))
    result = torch.empty_like(source, dtype=old.dtype)
    result[kept] = old[number[kept]]
    result[~kept] = fresh[number[~kept]] if fresh.dim() else fresh
    return result
