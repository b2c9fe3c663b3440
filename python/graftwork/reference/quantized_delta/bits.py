"""Codes of a few bits side by side in bytes, in plain torch; see :mod:`graftwork.ops.quantized_delta.bits`."""

from __future__ import annotations

import torch
from torch import Tensor


def planes_of(bits: int) -> tuple[tuple[int, int], ...]:
    """How a row of codes is cut into planes: (width, lowest bit) of each, in the order of the bytes.

    Three bits are a plane of two and one of one: each of them is packed like codes of that width.
    """
    return ((2, 0), (1, 2)) if bits == 3 else ((bits, 0),)


def plane_bytes(width: int, columns: int) -> int:
    """Bytes of one plane of a row."""
    return (columns * width + 7) // 8


def code_bytes(bits: int, columns: int) -> int:
    """Bytes of the codes of a row, without what aligns the next."""
    return sum(plane_bytes(width, columns) for width, _ in planes_of(bits))


def pack_bits(codes: Tensor, bits: int, packed: Tensor) -> None:
    """Fill uint8 `packed` [rows, row_bytes] with codes [rows, columns]; what is left of a row is zero."""
    rows, columns = codes.shape
    packed.zero_()
    start = 0
    for width, low in planes_of(bits):
        per_byte, nbytes = 8 // width, plane_bytes(width, columns)
        plane = (codes >> low) & (2**width - 1)
        padded = codes.new_zeros(rows, nbytes * per_byte)
        padded[:, :columns] = plane
        shifts = torch.arange(per_byte, dtype=torch.uint8, device=codes.device) * width
        packed[:, start : start + nbytes] = (padded.view(rows, nbytes, per_byte) << shifts).sum(
            -1, dtype=torch.uint8
        )
        start += nbytes


def unpack_bits(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes, uint8 [rows, columns]."""
    rows = packed.shape[0]
    codes = packed.new_zeros(rows, columns)
    start = 0
    for width, low in planes_of(bits):
        per_byte, nbytes = 8 // width, plane_bytes(width, columns)
        shifts = torch.arange(per_byte, dtype=torch.uint8, device=packed.device) * width
        plane = (packed[:, start : start + nbytes, None] >> shifts) & (2**width - 1)
        codes |= plane.reshape(rows, nbytes * per_byte)[:, :columns] << low
        start += nbytes
    return codes
