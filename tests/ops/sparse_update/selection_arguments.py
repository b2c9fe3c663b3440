"""Arguments of the operations that select weights, for tests that run over all that is registered."""

from __future__ import annotations

import torch

from graftwork.ops.sparse_update import random_support
from tests.generators.weights import pair

SELECTION_OPERATIONS = ("topk_absdiff", "topk_abs", "reselect", "take_entries")


def selection_arguments(name: str, dtype: torch.dtype, device: str, requires_grad: bool = False) -> tuple:
    base, tuned = (tensor.to(device).requires_grad_(requires_grad) for tensor in pair(37, dtype))
    generator = torch.Generator().manual_seed(0)
    support, candidates = (random_support([37, 5], [9, 2], generator).to(device) for _ in range(2))
    values, growth = (
        torch.randn(11, generator=generator, device="cpu").to(device).requires_grad_(requires_grad)
        for _ in range(2)
    )
    mine, theirs = (
        (values, support.indices, support.offsets),
        (growth, candidates.indices, candidates.offsets),
    )
    return {
        "topk_absdiff": ([tuned, base], [base, base], 11, False),
        "topk_abs": ([tuned, base], [4, 3], True),
        "reselect": (*mine, *theirs, [3, 1]),
        "take_entries": (tuned, torch.tensor([0, 36, -1, -37], device=device), base),
    }[name]
