"""Which texts are trained on and which are held out, and in which order they come."""

from __future__ import annotations

import torch

from graftwork.checkpoint.digest import bytes_digest
from graftwork.errors import DataError


def divide(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers below `count` for training, and those held out: a share by chance, one at least unless it is 0."""
    held = max(1, round(count * share)) if share else 0
    if held >= count:
        raise DataError(
            "too few documents to hold some out",
            got=count,
            wanted=f"at least {held + 1}",
            remedy="held_out: 0",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])


class Order:
    """Endless epochs over `count` things, each in an order of its own; any part of it can be had at once."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._epochs: dict[int, list[int]] = {}

    def take(self, start: int, number: int) -> list[int]:
        """`number` things from place `start`."""
        return [
            self._epoch(place // self._count)[place % self._count] for place in range(start, start + number)
        ]

    def _epoch(self, number: int) -> list[int]:
        if number not in self._epochs:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, "order", number))
            last = {n: order for n, order in self._epochs.items() if n == number - 1}
            self._epochs = {**last, number: torch.randperm(self._count, generator=generator).tolist()}
        return self._epochs[number]


def derived_seed(*parts: object) -> int:
    """A seed that depends on all parts: of one step, say, so that it can be repeated without those before."""
    return int(bytes_digest(repr(parts).encode())[:15], 16)
