"""Lossless differences between a base and its fine-tune, in plain torch; see :mod:`graftwork.ops.lossless_delta`."""

from __future__ import annotations

import torch
from torch import Tensor

#: Width of the exponent field of every sign-magnitude float; their words are ordered by :func:`positions`.
EXPONENT_BITS = {
    torch.float64: 11,
    torch.float32: 8,
    torch.bfloat16: 8,
    torch.float16: 5,
    torch.float8_e5m2: 5,
    torch.float8_e5m2fnuz: 5,
    torch.float8_e4m3fn: 4,
    torch.float8_e4m3fnuz: 4,
}
#: Dtypes whose words are compared as integers. float8_e8m0fnu has no sign: its bytes are in order already.
INTEGERS = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.float8_e8m0fnu,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
)
_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def words(tensor: Tensor) -> Tensor:
    """The elements' bits as signed integers of the same width, flat."""
    return tensor.contiguous().view(_SIGNED[tensor.itemsize]).reshape(-1)


def positions(tensor: Tensor) -> Tensor:
    """Each element's place in the order of all bit patterns of its dtype, an unsigned number in a signed word.

    A bijection; integers keep their bits.
    """
    word = words(tensor)
    if tensor.dtype not in EXPONENT_BITS:
        return word
    top = torch.iinfo(word.dtype).min
    return word ^ ((word >> (8 * tensor.itemsize - 1)) | top)


def encode_ordinal_planes(base: Tensor, tuned: Tensor) -> Tensor:
    """Byte planes of zigzag(k(tuned) - k(base)), least significant first: uint8 ``[itemsize, numel]``."""
    bits = 8 * base.itemsize
    difference = positions(tuned) - positions(base)
    code = ((difference << 1) ^ (difference >> (bits - 1))).long()
    return torch.stack([(code >> shift) & 0xFF for shift in range(0, bits, 8)]).to(torch.uint8)


def decode_ordinal_planes(base: Tensor, planes: Tensor, reverse: bool = False) -> Tensor:
    """The tensor whose planes against `base` these are, or (`reverse`) against which those of `base` are."""
    bits = 8 * base.itemsize
    position = positions(base)
    shifts = torch.arange(0, bits, 8, device=base.device).unsqueeze(1)
    code = (planes.long() << shifts).sum(0).to(position.dtype)
    difference = ((code >> 1) & torch.iinfo(code.dtype).max) ^ -(code & 1)
    position = position - difference if reverse else position + difference
    if base.dtype in EXPONENT_BITS:
        position = position ^ (~(position >> (bits - 1)) | torch.iinfo(position.dtype).min)
    return position.view(base.dtype).reshape(base.shape)


def classes(difference: Tensor, bits: int) -> Tensor:
    """``bits + sign(d) * bit_length(|d|)`` of wrapped differences of `bits` bits: the columns of the histogram."""
    powers = [1 << k for k in range(bits - 1)]
    lowest = [-(1 << (bits - 1)), *(1 - 2 * power for power in reversed(powers)), 0, *powers]
    edges = torch.tensor(lowest, dtype=torch.int64, device=difference.device)
    return torch.searchsorted(edges, difference.long(), right=True) - 1


def delta_stats(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, sums and the class histogram per exponent; see :class:`graftwork.ops.lossless_delta.DeltaStats`."""
    bits = 8 * base.itemsize
    b, t = base.reshape(-1).double(), tuned.reshape(-1).double()
    counts = torch.stack(
        [
            (words(base) != words(tuned)).sum(),
            b.isnan().sum(),
            b.isinf().sum(),
            t.isnan().sum(),
            t.isinf().sum(),
        ]
    )
    finite = b.isfinite() & t.isfinite()
    b, t = b[finite], t[finite]
    d = t - b
    largest = torch.cat([d.abs(), d.new_zeros(1)]).amax()
    sums = torch.stack([d.square().sum(), b.square().sum(), t.square().sum(), largest])

    exponent_bits = EXPONENT_BITS.get(base.dtype, 0)
    rows, columns = 1 << exponent_bits, 2 * bits + 1
    row = (words(base).long() >> (bits - 1 - exponent_bits)) & (rows - 1)
    column = classes(positions(tuned) - positions(base), bits)
    histogram = torch.bincount(row * columns + column, minlength=rows * columns)
    return counts, sums, histogram.view(rows, columns)


def update_survival(base: Tensor, tuned: Tensor, save_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Counts and sums of wanted and saved updates; see :class:`graftwork.ops.lossless_delta.UpdateSurvival`."""
    finite = base.isfinite() & tuned.isfinite()
    base, tuned = base[finite], tuned[finite]
    wanted = tuned.double() - base.double()
    saved_base, saved_tuned = base.to(save_dtype).double(), tuned.to(save_dtype).double()
    saved = torch.where(saved_base.isfinite() & saved_tuned.isfinite(), saved_tuned - saved_base, 0.0)
    changed = wanted != 0
    counts = torch.stack([changed.sum(), (changed & (saved == 0)).sum(), saved_tuned.isinf().sum()])
    return counts, torch.stack([wanted.square().sum(), saved.square().sum(), (wanted * saved).sum()])
