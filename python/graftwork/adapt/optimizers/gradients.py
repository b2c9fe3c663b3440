"""The gradients at tuned weights: read from dense ones, kept, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.adapt.optimizers.arena import KEPT, NOT_HELD, SNAPSHOT, Arena
from graftwork.ops.sparse_update import gather_gradients


@dataclass
class Tally:
    """Gradients in sum: the squares in float64, how many are NaN or infinite, and the first parameter with such."""

    squares: float = 0.0
    nonfinite: int = 0
    first: Tensor | None = None

    def __iadd__(self, other: Tally) -> Tally:
        self.squares += other.squares
        self.nonfinite += other.nonfinite
        if self.first is None:
            self.first = other.first
        return self


def dense_gradients(params: Sequence[Tensor]) -> list[Tensor]:
    """The parameters' gradients as the operations read them."""
    gradients = []
    for param in params:
        if param.grad is None:
            raise ValueError("a parameter has no gradient; call backward() before the step")
        if param.grad.layout is not torch.strided:
            raise TypeError(
                f"a gradient has layout {param.grad.layout}, wanted a dense one; build the embedding with sparse=False"
            )
        gradients.append(param.grad.detach().contiguous())
    return gradients


def take_gradient(arena: Arena, place: int) -> None:
    """Keep a parameter's gradient at its tuned weights, add it to what is kept, and free the dense one."""
    param = arena.params[place]
    if param.grad is None:
        return
    support, part = arena.cut(place, place + 1), arena.buffer()[arena.entries(place, place + 1)]
    if arena.held[place] == KEPT:
        part += gather_gradients(support, dense_gradients([param])).compact
    else:
        gather_gradients(support, dense_gradients([param]), out=part)
    arena.held[place] = KEPT
    param.grad = None


def gather_dense(arena: Arena) -> list[tuple[int, int, float, int]]:
    """Gather the dense gradients that are not held yet; of each run: first, last, sum of squares, not finite."""
    for place, param in enumerate(arena.params):
        if arena.held[place] == KEPT and param.grad is not None:
            take_gradient(arena, place)
    fresh = [
        True if held == NOT_HELD and param.grad is not None else None
        for held, param in zip(arena.held, arena.params, strict=True)
    ]
    sums = []
    for first, last in arena.spans(fresh):
        out = arena.buffer()[arena.entries(first, last)]
        dense = dense_gradients(arena.params[first:last])
        found = gather_gradients(arena.cut(first, last), dense, out=out)
        arena.held[first:last] = [SNAPSHOT] * (last - first)
        sums.append((first, last, float(found.sum_of_squares), int(found.nonfinite)))
    return sums


def measure(arena: Arena) -> Tally:
    """Gather what is not held yet, and measure all that is."""
    before = [held or None for held in arena.held]
    sums = gather_dense(arena)
    for first, last in arena.spans(before):
        part = arena.buffer()[arena.entries(first, last)]
        sums.append((first, last, *_sums(part)))
    tally = Tally()
    for first, last, squares, nonfinite in sums:
        bad = first
        while nonfinite and bad < last - 1 and _finite(arena, bad):
            bad += 1
        tally += Tally(squares, nonfinite, arena.params[bad] if nonfinite else None)
    return tally


def _finite(arena: Arena, place: int) -> bool:
    return bool(arena.buffer()[arena.entries(place, place + 1)].isfinite().all())


def _sums(gradient: Tensor) -> tuple[float, int]:
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    return norm * norm, 0 if norm < float("inf") else int((~gradient.isfinite()).sum())


def measure_full(params: Sequence[Tensor]) -> Tally:
    """Measure the dense gradients of parameters that are tuned in full."""
    tally = Tally()
    for param, gradient in zip(params, dense_gradients(params), strict=True):
        squares, nonfinite = _sums(gradient)
        tally += Tally(squares, nonfinite, param if nonfinite else None)
    return tally


def scaled(gradients: list[Tensor], scale: float) -> list[Tensor]:
    """The gradients times `scale`, which stay as they are themselves."""
    return gradients if scale == 1.0 else list(torch._foreach_mul(gradients, scale))
