"""Products with packed deltas have the same bits with AVX2 and AVX-512, and up to 3 bits at every level."""

from __future__ import annotations

import pytest

from tests.native.test_isa_levels import WIDEST, lines_by_level

DIGESTS = """
import hashlib, torch
from graftwork.ops import isa_level
from graftwork.ops.quantized_delta import delta_linear
from tests.ops.quantized_delta.linear_cases import KINDS, low_rank, noise, quantized

print(isa_level())
def record(kind, packs, shape):
    ids = torch.arange(8) % (len(packs) + 1) - 1
    y = delta_linear(noise(8, shape[1]), None, packs, ids)
    print(kind, hashlib.sha256(y.numpy()).hexdigest())

for shape in ((3, 7), (150, 333), (70, 1001)):
    for scheme, bits in KINDS:
        packs = [quantized(*shape, scheme, bits, block, dtype) for block, dtype in (
            (8, torch.float32), (40, torch.float16), (64, torch.bfloat16), (0, torch.float16))]
        record("sums" if bits <= 3 else "products", packs, shape)
    record("products", [low_rank(*shape, bits, 24, seed=1) for bits in (16, 8, 4, 3, 2, 1)], shape)
"""


@pytest.mark.skipif(WIDEST is None, reason="the native core is not built")
def test_levels_agree() -> None:
    results = lines_by_level(DIGESTS)
    assert all(len(digests) == 51 for digests in results.values())
    wide = [digests for level, digests in results.items() if level != "baseline"]
    assert all(digests == wide[0] for digests in wide)
    sums = [[line for line in digests if line.startswith("sums")] for digests in results.values()]
    assert len(sums[0]) == 27
    assert all(digests == sums[0] for digests in sums)
