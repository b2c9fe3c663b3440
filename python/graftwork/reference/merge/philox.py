"""Philox4x32-10 (Salmon et al. 2011): random numbers that are a function of a key and a position."""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox_blocks(key: tuple[int, int], counters: Tensor) -> Tensor:
    """The four words of each block: int64 ``[blocks, 4]``, below 2^32, for counters int64 ``[blocks, 4]``."""
    key0, key1 = key
    c0, c1, c2, c3 = counters.unbind(1)
    for _ in range(10):
        # int64 products wrap modulo 2^64, which leaves both halves as they are.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (second >> 32 & _LOW) ^ c1 ^ key0, second & _LOW
        c2, c3 = (first >> 32 & _LOW) ^ c3 ^ key1, first & _LOW
        key0, key1 = key0 + _STEPS[0] & _LOW, key1 + _STEPS[1] & _LOW
    return torch.stack([c0, c1, c2, c3], 1)


def philox_words(key: tuple[int, int], start: int, count: int, device: torch.device) -> Tensor:
    """The words of the positions from `start` on: int64 ``[count]``, below 2^32.

    Position i is word i mod 4 of the block whose counter is ⌊i / 4⌋, a 64-bit number in the two low words.
    """
    block = torch.arange(start // 4, (start + count + 3) // 4, device=device)
    zero = torch.zeros_like(block)
    words = philox_blocks(key, torch.stack([block & _LOW, block >> 32, zero, zero], 1))
    return words.view(-1)[start % 4 :][:count]


def philox_uniform(out: Tensor, key0: int, key1: int, start: int) -> None:
    """Fill `out` with the upper 24 bits of its positions' words, as numbers in [0, 1)."""
    words = philox_words((key0, key1), start, out.numel(), out.device)
    out.copy_(((words >> 8).float() * 2.0**-24).view(out.shape))
