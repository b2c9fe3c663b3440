"""The block of GPTQ has the same bits at every ISA level."""

from __future__ import annotations

import pytest

from tests.native.test_isa_levels import WIDEST, lines_by_level

DIGESTS = """
import hashlib, torch
from graftwork.ops import isa_level
import graftwork.ops.quantized_delta
from tests.ops.quantized_delta.gptq_cases import BLOCK_SHAPES, CODES, block_case

print(isa_level())
for scheme, bits in CODES:
    for shape in BLOCK_SHAPES:
        *arguments, losses = block_case(shape, scheme, bits, "cpu")
        found = (*torch.ops.graftwork.gptq_block(*arguments, losses), losses)
        print(*(hashlib.sha256(t.view(-1).view(torch.uint8).numpy()).hexdigest() for t in found))
"""


@pytest.mark.skipif(WIDEST is None, reason="the native core is not built")
def test_every_level_gives_the_same_bits() -> None:
    results = list(lines_by_level(DIGESTS).values())
    assert all(len(digests) == 9 * 7 and digests == results[0] for digests in results)
