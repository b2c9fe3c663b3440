"""Selections of the largest by sorting; see :mod:`graftwork.ops.sparse_update.selection`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def refuse_nan(operation: str, tensor: int) -> None:
    """Raise ValueError if `tensor` is the number of one whose scores have a NaN; −1 is none."""
    if tensor < 0:
        return
    what = f"tensors[{tensor}]"
    if operation == "topk_absdiff":
        what = f"the difference of {what} and bases[{tensor}]"
    raise ValueError(
        f"{operation}: {what} has a NaN, which is neither large nor small; find where the training diverged, or leave "
        f"the tensor out"
    )


def _first_nan(scores: Sequence[Tensor]) -> int:
    return next((number for number, mine in enumerate(scores) if bool(mine.isnan().any())), -1)


def _order(scores: Tensor) -> Tensor:
    """Indices from the largest score to the smallest; equal ones as they stand."""
    return scores.sort(descending=True, stable=True).indices


def topk_absdiff(
    tensors: Sequence[Tensor], bases: Sequence[Tensor], k: int, wide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(threshold, indices of all tensors side by side, how many each tensor has)``."""
    scores = [(a.float() - b.float()).abs().reshape(-1) for a, b in zip(tensors, bases, strict=True)]
    refuse_nan("topk_absdiff", _first_nan(scores))
    everything = torch.cat(scores)
    chosen = _order(everything)[:k].sort().values
    starts = torch.tensor([0, *(len(mine) for mine in scores)], device=chosen.device).cumsum(0)
    owner = torch.searchsorted(starts[1:], chosen, right=True)
    threshold = everything[chosen].min() if k else torch.tensor(float("inf"))
    indices = (chosen - starts[owner]).to(torch.int64 if wide else torch.int32)
    return threshold.cpu(), indices, torch.bincount(owner, minlength=len(scores)).cpu()


def topk_abs(tensors: Sequence[Tensor], ks: Sequence[int], wide: bool) -> Tensor:
    """The indices of all tensors side by side."""
    scores = [tensor.float().abs().reshape(-1) for tensor in tensors]
    refuse_nan("topk_abs", _first_nan(scores))
    chosen = [_order(mine)[:k].sort().values for mine, k in zip(scores, ks, strict=True)]
    return torch.cat(chosen).to(torch.int64 if wide else torch.int32)


def random_subset(numel: int, k: int, generator: torch.Generator | None) -> Tensor:
    """`k` of the numbers below `numel`, sorted; every set is as likely as any other.

    Numbers are drawn until at least `k` are different, then as many as are too many are taken away at random. How many
    are drawn depends on how many there are, not on which: no number is preferred.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    if 2 * k > numel:
        kept = torch.ones(numel, dtype=torch.bool, device=device)
        kept[random_subset(numel, numel - k, generator)] = False
        return kept.nonzero().view(-1)
    dtype = torch.int32 if numel < 1 << 31 else torch.int64
    found = torch.empty(0, dtype=dtype, device=device)
    while len(found) < k:
        missing = k - len(found)
        drawn = torch.randint(
            numel, (missing + missing // 2 + 1,), generator=generator, dtype=dtype, device=device
        )
        found = torch.cat([found, drawn]).sort().values
        found = found[found.diff(prepend=found.new_full((1,), -1)) != 0]
    if len(found) > k:
        kept = torch.ones(len(found), dtype=torch.bool, device=device)
        kept[random_subset(len(found), len(found) - k, generator)] = False
        found = found[kept]
    return found.long()
