"""Quantisation of deltas in plain torch; see :mod:`graftwork.ops.quantized_delta.quantize`.

Sums are in float64 (the magnitudes' eight by eight in float32), all else in float32: the native code's sums differ by
some parts in 1e16, so that its scales are the same but in one of some 1e8 blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.reference.quantized_delta.bits import pack_bits
from graftwork.reference.quantized_delta.levels import (
    ASYM,
    MIDRISE,
    NF4,
    SIGN,
    SYM,
    codes_of,
    divided,
    exact_in_float16,
    levels,
    round_scales,
    scale_exponent,
    stored_scales,
)

_RUN, _LANES = 8, 16
#: Fractions of the largest magnitude that the search for a scale tries.
GRID = torch.tensor([0.3 + 0.05 * j for j in range(16)], dtype=torch.float64).float()


def difference(tuned: Tensor, base: Tensor | None, operation: str = "delta_quantize") -> Tensor:
    """tuned − base in float32; refused if it is not finite."""
    delta = tuned.float() if base is None else tuned.float() - base.float()
    bad = (~delta.isfinite()).view(-1).nonzero()
    if bad.numel():
        refuse_nonfinite(operation, int(bad[0]), tuned, base)
    return delta


def refuse_nonfinite(operation: str, index: int, tuned: Tensor, base: Tensor | None) -> None:
    """Raise ValueError if `index` is the flat index of a difference that is not finite; −1 is none."""
    if index < 0:
        return
    at = index // tuned.shape[1], index % tuned.shape[1]
    here = f"tuned is {tuned[at].item()}" + ("" if base is None else f", base is {base[at].item()}")
    raise ValueError(
        f"{operation}: the difference at [{at[0]}, {at[1]}] (flat index {index}) must be finite, got {here}; find where "
        f"the training diverged, or leave the tensor out"
    )


def refuse_scale(operation: str, index: int) -> None:
    """Raise ValueError if `index` is the number of a scale too large for its dtype; −1 is none."""
    if index >= 0:
        raise ValueError(
            f"{operation}: the scale of block {index} is above the largest finite number of its dtype; the weights are "
            f"no trained ones, or take scale_dtype=torch.float16, which keeps a power of two apart"
        )


def quantize(
    tuned: Tensor,
    base: Tensor | None,
    bits: int,
    scheme: int,
    block: int,
    iterations: int,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Fill codes, scales and zeros; returns the sum of squared errors (float64) and the exponent of float16 scales."""
    delta = difference(tuned, base)
    rows, columns = delta.shape
    blocks = _Blocks(delta, block)
    dtype, exponent = scales.dtype, 0
    found = _fit(blocks, bits, scheme, iterations, dtype, None)
    bad = (~found.scales.isfinite()).view(-1).nonzero()
    refuse_scale("delta_quantize", int(bad[0]) if bad.numel() else -1)
    if dtype == torch.float16:
        exponent = scale_exponent(found.scales)
        if not exact_in_float16(found.scales, exponent):
            found = _fit(blocks, bits, scheme, iterations, dtype, exponent)
    stored = stored_scales(found.scales, dtype, exponent)
    scales.copy_(stored.view(scales.shape))
    if zeros is not None and found.zeros is not None:
        zeros.copy_(found.zeros.view(zeros.shape))
    pack_bits(blocks.rows_of(found.codes).reshape(rows, columns), bits, codes)
    return found.errors.sum(), torch.tensor(exponent)


class _Blocks:
    """The differences as [blocks, elements], the last of a row filled up with zeros that are no `real` elements."""

    def __init__(self, delta: Tensor, block: int) -> None:
        self.row_length = delta.shape[1] if block == -1 and delta.numel() else None
        if block == -1:
            delta = delta.reshape(1, -1)
        self.rows, self.columns = rows, columns = delta.shape
        self.length = block if block > 0 else max(columns, 1)
        count = 1 if block == -1 else -(-columns // self.length)
        self.width = count * self.length
        padded = delta.new_zeros(rows, self.width)
        padded[:, :columns] = delta
        real = torch.zeros_like(padded, dtype=torch.bool)
        real[:, :columns] = True
        self.delta, self.real = (x.view(rows * count, self.length) for x in (padded, real))

    def rows_of(self, values: Tensor) -> Tensor:
        """What there is for each real element, row by row."""
        return values.view(self.rows, self.width)[:, : self.columns]


class _Fit:
    """Scales (and zeros) of all blocks, the codes that follow, and each block's sum of squared errors."""

    def __init__(self, blocks: _Blocks, scales: Tensor, zeros: Tensor | None, bits: int, scheme: int) -> None:
        zero = None if zeros is None else zeros[:, None]
        self.scales, self.zeros = scales, zeros
        self.codes = codes_of(blocks.delta, scales[:, None], bits, scheme, zero)
        self.levels = levels(self.codes, bits, scheme, zero) * blocks.real
        self.errors = (blocks.delta - self.levels * scales[:, None]).double().square().sum(1)

    def take(self, other: _Fit) -> None:
        """Where the other has the smaller errors, that."""
        better = other.errors < self.errors
        self.scales = torch.where(better, other.scales, self.scales)
        if self.zeros is not None and other.zeros is not None:
            self.zeros = torch.where(better, other.zeros, self.zeros)
        self.codes = torch.where(better[:, None], other.codes, self.codes)
        self.levels = torch.where(better[:, None], other.levels, self.levels)
        self.errors = torch.where(better, other.errors, self.errors)


def _fit(
    blocks: _Blocks, bits: int, scheme: int, iterations: int, dtype: torch.dtype, exponent: int | None
) -> _Fit:
    delta = blocks.delta
    if scheme == SIGN:
        count = blocks.real.sum(1).clamp(min=1)
        total = _magnitudes(delta, blocks.row_length)
        mean = _not_lost(total, (total / count).float())
        return _Fit(blocks, round_scales(mean, dtype, exponent), None, bits, scheme)
    low, high = delta.clamp(max=0).amin(1), delta.clamp(min=0).amax(1)
    largest = torch.maximum(-low, high)
    reach = {SYM: 2 ** (bits - 1) - 1, MIDRISE: 2 ** (bits - 1), ASYM: 2**bits - 1, NF4: 1}[scheme]

    def trial(part: Tensor | float) -> _Fit:
        whole = high - low if scheme == ASYM else largest
        scales = whole / reach * part
        scales = round_scales(_not_lost(whole, scales), dtype, exponent)
        zeros = _zeros(low * part, scales, bits) if scheme == ASYM else None
        return _Fit(blocks, scales, zeros, bits, scheme)

    if iterations == 0:
        return trial(1.0)
    best = trial(GRID[0].to(delta.device))
    for part in GRID[1:].to(delta.device):
        best.take(trial(part))
    for _ in range(iterations):
        squares = best.levels.double().square().sum(1)
        refit = (delta.double() * best.levels.double()).sum(1) / squares
        refit = torch.where((squares > 0) & (refit > 0), refit, 0.0).float()
        refit = torch.where(refit > 0, round_scales(refit, dtype, exponent), best.scales)
        best.take(_Fit(blocks, refit, best.zeros, bits, scheme))
    return best


def _magnitudes(delta: Tensor, row_length: int | None) -> Tensor:
    """The sum of |Δ| of each block, float64: eight of each of 16 lanes are added in float32. Rows are apart."""
    if row_length is not None:
        delta = delta.reshape(-1, row_length)
    runs = -(-delta.shape[1] // (_RUN * _LANES))
    padded = delta.new_zeros(len(delta), runs * _RUN * _LANES)
    padded[:, : delta.shape[1]] = delta.abs()
    steps = padded.view(len(delta), runs, _RUN, _LANES).unbind(2)
    sums = steps[0].clone()
    for step in steps[1:]:
        sums += step
    totals = sums.double().sum((1, 2))
    return totals if row_length is None else totals.sum().view(1)


def _not_lost(whole: Tensor, scales: Tensor) -> Tensor:
    """A scale of something is not 0."""
    return torch.where((whole > 0) & (scales == 0), 2.0**-149, scales)


def _zeros(low: Tensor, scales: Tensor, bits: int) -> Tensor:
    return divided(-low, scales).round().clamp(0, 2**bits - 1).to(torch.uint8)
