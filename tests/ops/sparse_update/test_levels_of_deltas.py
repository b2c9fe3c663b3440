"""Sums, comparisons, codes and gradients of sparse deltas have the same bits at every ISA level."""

from __future__ import annotations

import pytest

from tests.native.test_isa_levels import WIDEST, lines_by_level

DIGESTS = """
import hashlib, torch
from graftwork.ops import isa_level
from graftwork.ops.sparse_update import compare_deltas, decode_indices, encode_indices, merge_deltas, sddmm
from graftwork.ops.sparse_update.codec import CODECS
from tests.generators.supports import some_support

print(isa_level())
def record(*tensors):
    print(*(hashlib.sha256(t.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest() for t in tensors))

numels = [0, 1, 70_001, 33, 150_000]
for index in (torch.int32, torch.int64):
    supports = [some_support(numels, density, index, seed) for seed, density in enumerate((0.3, 0.5, 0.01))]
    values = [torch.randn(s.entries, generator=torch.Generator().manual_seed(9)) for s in supports]
    merged, sums = merge_deltas(supports, values, [0.3, -1.7, 2.0])
    record(merged.indices, merged.offsets, sums)
    record(*compare_deltas(supports[0], values[0], supports[1], values[1]))
    indices = supports[2].split(supports[2].indices)[4]
    for name in CODECS:
        data = encode_indices(indices, 150_000, name)[1]
        record(data, decode_indices(name, data, 150_000, len(indices)))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x, dy = (torch.randn(77, size, generator=torch.Generator().manual_seed(size)).to(dtype) for size in (900, 45))
        record(sddmm(x, dy, some_support([900 * 45], 0.2, index).indices))
"""


@pytest.mark.skipif(WIDEST is None, reason="the native core is not built")
def test_every_level_gives_the_same_bits() -> None:
    results = list(lines_by_level(DIGESTS).values())
    assert all(len(digests) == 18 and digests == results[0] for digests in results)
