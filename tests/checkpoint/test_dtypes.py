from __future__ import annotations

import pytest
import torch

from graftwork.checkpoint.dtypes import DTYPES, code_of, torch_dtype, torch_form


@pytest.mark.parametrize("code", DTYPES)
def test_the_table_agrees_with_torch(code):
    dtype = DTYPES[code]
    torch_type = torch_dtype(code)
    if torch_type is None:
        assert code in ("F6_E2M3", "F6_E3M2")
        return
    assert code_of(torch_type) == code
    assert torch_type.itemsize * 8 == dtype.bits * dtype.packed
    if dtype.kind == "float":
        real = torch_type.to_real()
        assert real.is_floating_point and real.itemsize == dtype.word_bytes
        word = getattr(torch, f"int{8 * dtype.word_bytes}")
        one, two = torch.tensor([1.0, 2.0]).to(real).view(word).tolist()
        mantissa_bits = (two - one).bit_length() - 1
        assert dtype.exponent_bits == 8 * dtype.word_bytes - 1 - mantissa_bits
    else:
        assert dtype.exponent_bits == 0 and (dtype.word_bytes * 8 == dtype.bits or dtype.bits < 8)


def test_dtypes_that_the_format_lacks():
    assert code_of(torch.complex128) is None


def test_the_form_of_packed_tensors():
    """Two numbers of F4 are one element of torch; six bits it does not have."""
    assert torch_form("F4", (3, 8)) == (torch.float4_e2m1fn_x2, (3, 4))
    assert torch_form("F4", (0,)) == (torch.float4_e2m1fn_x2, (0,))
    assert torch_form("BF16", (3, 7)) == (torch.bfloat16, (3, 7))
    for code, shape in (("F4", (8, 3)), ("F4", ()), ("F6_E2M3", (4,))):
        assert torch_form(code, shape) is None
