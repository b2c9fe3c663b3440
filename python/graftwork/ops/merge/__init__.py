"""Merging: several fine-tunes of one base into one, a difference onto another base, in one pass a tensor.

Every operation takes one parameter's tensors. Thresholds, inner products and norms are looked for first; what is
written is one streaming pass, in float32 and rounded once.
"""

from __future__ import annotations

from graftwork.ops.merge.arguments import MergeCounts as MergeCounts
from graftwork.ops.merge.arguments import keep_count as keep_count
from graftwork.ops.merge.elementwise import add_diff as add_diff
from graftwork.ops.merge.elementwise import nearswap as nearswap
from graftwork.ops.merge.gram import merge_gram as merge_gram
from graftwork.ops.merge.merge_many import combine as combine
from graftwork.ops.merge.merge_many import merge_many as merge_many
from graftwork.ops.merge.philox import philox_uniform as philox_uniform
from graftwork.ops.merge.sce import SceResult as SceResult
from graftwork.ops.merge.sce import sce as sce
from graftwork.ops.merge.sparsify import Sparsify as Sparsify
from graftwork.ops.merge.thresholds import Threshold as Threshold
from graftwork.ops.merge.thresholds import magnitude_threshold as magnitude_threshold
from graftwork.ops.merge.thresholds import magnitude_thresholds as magnitude_thresholds

__all__ = [
    "MergeCounts",
    "SceResult",
    "Sparsify",
    "Threshold",
    "add_diff",
    "combine",
    "keep_count",
    "magnitude_threshold",
    "magnitude_thresholds",
    "merge_gram",
    "merge_many",
    "nearswap",
    "philox_uniform",
    "sce",
]
