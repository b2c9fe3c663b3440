"""Codes of a few bits in bytes.

GPU: on copies on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.quantized_delta.formats import BITS, PackFormat
from graftwork.ops.sparse_update import _arena
from graftwork.reference.quantized_delta import bits as reference
from graftwork.reference.quantized_delta.bits import code_bytes as code_bytes


def pack_bits(codes: Tensor, bits: int, row_align: int | None = None) -> Tensor:
    """Put codes of a few bits side by side in bytes.

    Parameters
    ----------
    codes : Tensor
        uint8 ``[O, I]``, each below 2^bits: higher bits are not looked at.
    bits : int
        1, 2, 3, 4 or 8.
    row_align : int, optional
        As :class:`PackFormat`.

    Returns
    -------
    Tensor
        uint8 ``[O, row_bytes]``, the layout of :class:`PackFormat`; what is left of a row is zero.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic.

    Examples
    --------
    >>> pack_bits(torch.tensor([[12, 7, 11, 2]], dtype=torch.uint8), 4).tolist()
    [[124, 43]]
    """
    _check_codes("pack_bits", "codes", codes, bits)
    layout = PackFormat(bits, "midrise", 0, row_align=row_align)
    packed = codes.new_empty(codes.shape[0], layout.row_bytes(codes.shape[1]))
    torch.ops.graftwork.pack_bits(codes, bits, packed)
    return packed


def unpack_bits(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Take apart what :func:`pack_bits` put together.

    Parameters
    ----------
    packed : Tensor
        uint8 ``[O, row_bytes]``, rows of at least the bytes of the codes.
    bits : int
        1, 2, 3, 4 or 8.
    columns : int
        Codes of a row.

    Returns
    -------
    Tensor
        uint8 ``[O, columns]``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic.

    Examples
    --------
    >>> unpack_bits(torch.tensor([[124, 43]], dtype=torch.uint8), 4, 4).tolist()
    [[12, 7, 11, 2]]
    """
    _check_codes("unpack_bits", "packed", packed, bits)
    if columns < 0 or packed.shape[1] < code_bytes(bits, columns):
        raise ValueError(
            f"unpack_bits: {columns} codes of {bits} bits are {code_bytes(bits, max(columns, 0))} bytes, got rows of "
            f"{packed.shape[1]}"
        )
    return torch.ops.graftwork.unpack_bits(packed, bits, columns)


def _check_codes(operation: str, name: str, value: Tensor, bits: int) -> None:
    _checks.check_tensor(operation, name, value)
    _checks.check_dtype(operation, name, value, (torch.uint8,), "codes are bytes")
    if value.dim() != 2:
        raise ValueError(f"{operation}: {name} must have two dimensions, got shape {tuple(value.shape)}")
    if bits not in BITS:
        raise ValueError(f"{operation}: bits must be one of {', '.join(map(str, BITS))}, got {bits!r}")


def _pack_native(codes: Tensor, bits: int, packed: Tensor) -> None:
    codes = codes.contiguous()
    rows, columns = codes.shape
    _native.call("pack_bits", codes, rows, columns, bits, packed, packed.shape[1], like=codes)


def _unpack_native(packed: Tensor, bits: int, columns: int) -> Tensor:
    packed = packed.contiguous()
    rows, row_bytes = packed.shape
    codes = packed.new_empty(rows, columns)
    _native.call("unpack_bits", packed, row_bytes, rows, columns, bits, codes, like=codes)
    return codes


_native.register(
    "pack_bits",
    "(Tensor codes, int bits, Tensor(a!) packed) -> ()",
    reference=reference.pack_bits,
    fake=lambda codes, bits, packed: None,
    cpu=_native.Route("_core", (torch.uint8,), _pack_native),
    cuda=_native.Route("_core", (torch.uint8,), _arena.on_host_copies(_pack_native, 2)),
)
_native.register(
    "unpack_bits",
    "(Tensor packed, int bits, int columns) -> Tensor",
    reference=reference.unpack_bits,
    fake=lambda packed, bits, columns: packed.new_empty(packed.shape[0], columns),
    cpu=_native.Route("_core", (torch.uint8,), _unpack_native),
    cuda=_native.Route("_core", (torch.uint8,), _arena.on_host_copies(_unpack_native)),
)
