"""A small model with an embedding, a normalisation and a head, and phases that train it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from graftwork.adapt import LotterySparseFinetuner, Phase


class Interrupted(Exception):
    pass


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {
            "table": nn.Embedding(12, 6),
            "body": nn.Linear(6, 6),
            "norm": nn.LayerNorm(6),
            "head": nn.Linear(6, 2),
        }
    )


def outputs(net: nn.Module, words: torch.Tensor) -> torch.Tensor:
    return net["head"](net["norm"](torch.tanh(net["body"](net["table"](words)))))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    words = torch.randint(0, 8, (16,), generator=generator)
    return words, words % 2


def train(steps: int, lr: float = 0.02, stop: Callable[[Phase], None] | None = None, **options: Any):
    """A phase of some steps, with a schedule, that goes on where it was interrupted."""

    def run(phase: Phase) -> None:
        optimizer = phase.optimizer(lr, **options)
        scheduler = phase.scheduler(
            lambda made: torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1 - step / steps)
        )
        assert phase.extra.get("seen", -1) == phase.steps - 1
        for step in range(phase.steps, steps):
            if stop is not None:
                stop(phase)
            words, labels = batch(step + 100 * (phase.kind == "sparse") + 1000 * phase.iteration)
            optimizer.zero_grad()
            nn.functional.cross_entropy(outputs(phase.model, words), labels).backward()
            optimizer.step()
            scheduler.step()
            phase.extra["seen"] = step

    return run


def finetuner(net: nn.Module, **options: Any) -> LotterySparseFinetuner:
    return LotterySparseFinetuner(net, **{"k": 20, "full": "head.*", **options})
