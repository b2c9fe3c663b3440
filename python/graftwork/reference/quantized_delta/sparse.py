"""Which differences a sparse delta keeps, in plain torch; see :mod:`graftwork.ops.quantized_delta.sparse`."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.reference.merge.philox import philox_words
from graftwork.reference.quantized_delta.bits import pack_bits
from graftwork.reference.quantized_delta.quantize import difference

#: The rules, in the order of the native code's numbers.
THRESHOLD, TWO_OF_FOUR, DRAWN = range(3)


def mark_kept(
    tuned: Tensor, base: Tensor | None, rule: int, least: float, key0: int, key1: int, below: int
) -> tuple[Tensor, Tensor]:
    """The set as a bitmap, uint8 ``[⌈numel / 8⌉]``, and how many are in it, int64."""
    delta = difference(tuned, base, "sparse_quant")
    if rule == DRAWN:
        kept = _drawn(delta.numel(), key0, key1, below, delta.device)
    elif rule == THRESHOLD:
        kept = delta.abs() >= least
    else:
        kept = _two_of_four(delta.abs())
    return bitmap_of(kept.reshape(-1)), kept.sum().cpu()


def mark_drawn(bitmap: Tensor, numel: int, key0: int, key1: int, below: int) -> None:
    """Fill the bitmap with what the words of the key's stream keep."""
    bitmap.copy_(bitmap_of(_drawn(numel, key0, key1, below, bitmap.device)))


def bitmap_of(kept: Tensor) -> Tensor:
    """Flags, one-dimensional, as bits."""
    packed = torch.empty(1, (len(kept) + 7) // 8, dtype=torch.uint8, device=kept.device)
    pack_bits(kept.to(torch.uint8)[None], 1, packed)
    return packed[0]


def _drawn(numel: int, key0: int, key1: int, below: int, device: torch.device) -> Tensor:
    return (philox_words((key0, key1), 0, numel, device) >> 8) < below


def _two_of_four(magnitudes: Tensor) -> Tensor:
    rows, columns = magnitudes.shape
    padded = torch.nn.functional.pad(magnitudes, (0, -columns % 4), value=-1.0).view(
        rows, (columns + 3) // 4, 4
    )
    first = padded.sort(dim=2, descending=True, stable=True).indices[:, :, :2]
    kept = torch.zeros_like(padded, dtype=torch.bool).scatter_(2, first, True)
    return kept.view(rows, padded.shape[1] * 4)[:, :columns]
