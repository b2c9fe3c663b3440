"""Merges, thresholds, inner products and random numbers have the same bits at every ISA level."""

from __future__ import annotations

import pytest

from tests.native.test_isa_levels import WIDEST, lines_by_level

DIGESTS = """
import hashlib, torch
from graftwork.ops import isa_level
from graftwork.ops.merge import add_diff, combine, magnitude_thresholds, merge_gram, merge_many, nearswap, philox_uniform
from graftwork.ops.merge import sce
from tests.generators.weights import special_words
from tests.ops.merge.merge_arguments import FORMATS, fine_tunes, rules

print(isa_level())
def record(*tensors):
    for tensor in tensors:
        print(hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest())

record(philox_uniform((3, 4), 5, 10_001))
for dtype in FORMATS:
    base, donors = fine_tunes((331, 211), dtype, 3)
    special = special_words(dtype)
    for number, tensor in enumerate((base, *donors)):
        tensor.view(-1)[number * 7 : number * 7 + len(special)] = special
    record(torch.tensor(magnitude_thresholds(donors, base, [1, 10_000, 50_000])))
    record(merge_gram([d.nan_to_num(0, 0, 0) for d in donors], base.nan_to_num(0, 0, 0)), merge_gram(donors[:2])[:0])
    for rule in rules(3, base.numel()).values():
        for consensus in ("none", "sum", "count"):
            for key in (None, (1, 2)):
                residual = torch.empty(base.shape)
                out, counts = merge_many(base, donors, [1.0, 0.5, -0.2], sparsify=rule, consensus=consensus, key=key,
                                         normalize=True, rounding="stochastic" if key else "nearest",
                                         residual_out=residual, scale=0.7)
                record(out, residual.nan_to_num(0, 0, 0), counts.table)
    record(add_diff(donors[0], base, donors[1]), add_diff(donors[0], base, donors[1], 0.3))
    record(nearswap(base, donors[0], 1e-3)[0], sce(base, donors, 0.2, nonfinite="zero").out)
    record(combine(donors, torch.linspace(-1, 1, 3 * 331).view(331, 3), base)[0])
"""


@pytest.mark.skipif(WIDEST is None, reason="the native core is not built")
def test_every_level_gives_the_same_bits() -> None:
    results = list(lines_by_level(DIGESTS).values())
    assert all(len(digests) > 400 and digests == results[0] for digests in results)
