"""Training and evaluation of a TinyLM on documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bench.tiny.model import TinyLM


def byte_tokens(documents: Iterable[str]) -> Tensor:
    """The UTF-8 bytes of the documents as one int64 vector; a zero byte ends each document."""
    data = b"".join(document.encode() + b"\0" for document in documents)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def train(
    model: TinyLM,
    tokens: Tensor,
    *,
    steps: int,
    batch: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train in place with AdamW on random windows; returns the loss of every step in nats per byte.

    Parameters
    ----------
    model : TinyLM
        Fresh or trained; a second call with other text fine-tunes it.
    tokens : Tensor
        int64 [n] with n above the model's context, from `byte_tokens`.
    steps, batch, learning_rate : int, int, float
        The rate falls from ``learning_rate`` to a tenth of it along a half cosine; gradients are clipped
        to norm 1.
    seed : int
        Chooses the windows. Equal seeds, threads and machine give equal weights.
    on_step : callable, optional
        Called as ``on_step(step, loss)``.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1), learning_rate / 10)
    generator = torch.Generator().manual_seed(seed)
    windows = _windows(model, tokens)
    losses = []
    model.train()
    for step in range(steps):
        rows = torch.randint(len(windows), (batch,), generator=generator)
        loss = model.loss(windows[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(step, losses[-1])
    model.eval()
    return losses


@torch.no_grad()
def evaluate(model: TinyLM, tokens: Tensor, *, batch: int = 32) -> float:
    """Mean loss in nats per byte over the whole context windows of ``tokens``, read side by side."""
    windows = _windows(model, tokens)[:: model.config.max_position_embeddings]
    parts = windows.split(batch)
    return sum(model.loss(part).item() * len(part) for part in parts) / len(windows)


def _windows(model: TinyLM, tokens: Tensor) -> Tensor:
    """Every window of context + 1 tokens, as a view [n - context, context + 1]."""
    span = model.config.max_position_embeddings + 1
    if len(tokens) < span:
        raise ValueError(f"the text has {len(tokens)} bytes; at least {span} (context + 1) are needed")
    return tokens.unfold(0, span, 1)
