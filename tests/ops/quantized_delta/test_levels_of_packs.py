"""Packs, sums and sets have the same bits at every ISA level."""

from __future__ import annotations

import pytest

from tests.native.test_isa_levels import WIDEST, lines_by_level

DIGESTS = """
import hashlib, torch
from graftwork.ops import isa_level
from graftwork.ops.quantized_delta import PackFormat, delta_quantize, dequant_add, dequantize, pack_bits, unpack_bits
from tests.ops.quantized_delta.quantized_cases import CODES, DTYPES, matrices

print(isa_level())
def record(*tensors):
    print(*(hashlib.sha256(t.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest() for t in tensors))

for dtype in DTYPES:
    base, tuned = matrices((70, 4133), dtype)
    base[3] = tuned[3]
    for scheme, bits in CODES:
        for block in (8, 64, 104, 0, -1):
            for iterations in (0,) if scheme == "sign" or block in (8, 104) else (0, 1):
                pack, error = delta_quantize(tuned, base, PackFormat(bits, scheme, block), mse_iters=iterations)
                record(pack.codes, pack.scales, error)
                if pack.zeros is not None:
                    record(pack.zeros)
            record(dequantize(pack), dequant_add(base, [pack], [0.7]), dequant_add(base, [pack, pack], [0.7, -3.0]))
    for rule, least, below in ((0, 1e-3, 0), (1, 0.0, 0), (2, 0.0, 1 << 22)):
        record(torch.ops.graftwork.mark_kept(tuned, base, rule, least, 3, 4, below)[0])
codes = torch.arange(70 * 4133).view(70, 4133).to(torch.uint8)
for bits in (1, 2, 3, 4, 8):
    record(pack_bits(codes, bits), unpack_bits(pack_bits(codes, bits), bits, 4133))
"""


@pytest.mark.skipif(WIDEST is None, reason="the native core is not built")
def test_every_level_gives_the_same_bits() -> None:
    results = list(lines_by_level(DIGESTS).values())
    assert all(len(digests) > 3 * 15 * 5 and digests == results[0] for digests in results)
