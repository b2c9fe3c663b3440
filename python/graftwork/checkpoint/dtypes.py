"""The element types of safetensors: how wide each is, what torch calls it, and how its words are ordered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import torch


class Dtype(NamedTuple):
    """One element type of the safetensors format.

    ``word_bytes`` and ``kind`` say how a payload is compared: as little-endian words of that many bytes that
    are sign-magnitude floats (with ``exponent_bits``) or integers. A complex number is two words; types below
    a byte and types without a sign are compared as integers.
    """

    code: str
    bits: int
    torch_name: str | None
    kind: Literal["float", "integer"] = "integer"
    exponent_bits: int = 0
    word_bytes: int = 1
    packed: int = 1  # elements in one torch element


# In the order of the format's own list, by which its writer sorts tensors.
DTYPES: dict[str, Dtype] = {
    dtype.code: dtype
    for dtype in (
        Dtype("BOOL", 8, "bool"),
        Dtype("F4", 4, "float4_e2m1fn_x2", packed=2),
        Dtype("F6_E2M3", 6, None),
        Dtype("F6_E3M2", 6, None),
        Dtype("U8", 8, "uint8"),
        Dtype("I8", 8, "int8"),
        Dtype("F8_E5M2", 8, "float8_e5m2", "float", 5),
        Dtype("F8_E4M3", 8, "float8_e4m3fn", "float", 4),
        Dtype("F8_E8M0", 8, "float8_e8m0fnu"),
        Dtype("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "float", 4),
        Dtype("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "float", 5),
        Dtype("I16", 16, "int16", word_bytes=2),
        Dtype("U16", 16, "uint16", word_bytes=2),
        Dtype("F16", 16, "float16", "float", 5, 2),
        Dtype("BF16", 16, "bfloat16", "float", 8, 2),
        Dtype("I32", 32, "int32", word_bytes=4),
        Dtype("U32", 32, "uint32", word_bytes=4),
        Dtype("F32", 32, "float32", "float", 8, 4),
        Dtype("C64", 64, "complex64", "float", 8, 4),
        Dtype("F64", 64, "float64", "float", 11, 8),
        Dtype("I64", 64, "int64", word_bytes=8),
        Dtype("U64", 64, "uint64", word_bytes=8),
    )
}

_MAX_BITS = 8 * ((1 << 63) - 1)


def tensor_bits(code: str, shape: Iterable[int]) -> int | None:
    """Size of a tensor in bits; None if the sizes other than zero overflow 63 bits of bytes.

    Takes time in proportion to the length of ``shape``: a product of hostile sizes never grows.
    """
    bits, is_empty = DTYPES[code].bits, False
    for size in shape:
        is_empty |= size == 0
        bits *= size or 1
        if bits > _MAX_BITS:
            return None
    return 0 if is_empty else bits


_CODE_OF = {f"torch.{dtype.torch_name}": code for code, dtype in DTYPES.items() if dtype.torch_name}


def torch_dtype(code: str) -> torch.dtype | None:
    """The torch dtype of a code, or None where this torch has none."""
    import torch

    name = DTYPES[code].torch_name
    return None if name is None else getattr(torch, name, None)


def torch_form(code: str, shape: tuple[int, ...]) -> tuple[torch.dtype, tuple[int, ...]] | None:
    """Dtype and shape of a tensor in torch, or None where torch has no such tensor.

    A type below a byte is packed: its last dimension counts torch's elements, each of several of the format's.
    """
    dtype, packed = torch_dtype(code), DTYPES[code].packed
    if dtype is None or (packed > 1 and (not shape or shape[-1] % packed)):
        return None
    return dtype, shape if packed == 1 else (*shape[:-1], shape[-1] // packed)


def code_of(dtype: torch.dtype) -> str | None:
    """The code of a torch dtype, or None where the format has none."""
    return _CODE_OF.get(str(dtype))
