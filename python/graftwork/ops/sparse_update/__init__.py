"""Sparse masked updates: train, select, merge and switch a few weights of many tensors in one pass.

An operation takes a :class:`Support`, which says where the tuned weights are, and arrays with one entry for each.
"""

from __future__ import annotations

from graftwork.ops.sparse_update.codec import decode_indices as decode_indices
from graftwork.ops.sparse_update.codec import encode_indices as encode_indices
from graftwork.ops.sparse_update.gradient import linear_gradient as linear_gradient
from graftwork.ops.sparse_update.gradient import sddmm as sddmm
from graftwork.ops.sparse_update.merge import Comparison as Comparison
from graftwork.ops.sparse_update.merge import compare_deltas as compare_deltas
from graftwork.ops.sparse_update.merge import merge_deltas as merge_deltas
from graftwork.ops.sparse_update.reselection import Reselection as Reselection
from graftwork.ops.sparse_update.reselection import reselect as reselect
from graftwork.ops.sparse_update.reselection import take_entries as take_entries
from graftwork.ops.sparse_update.selection import random_support as random_support
from graftwork.ops.sparse_update.selection import topk_abs as topk_abs
from graftwork.ops.sparse_update.selection import topk_absdiff as topk_absdiff
from graftwork.ops.sparse_update.step import sparse_adamw_ as sparse_adamw_
from graftwork.ops.sparse_update.step import sparse_sgd_ as sparse_sgd_
from graftwork.ops.sparse_update.step import sparse_sm3_ as sparse_sm3_
from graftwork.ops.sparse_update.support import Support as Support
from graftwork.ops.sparse_update.swap import swap_values_ as swap_values_
from graftwork.ops.sparse_update.values import Gathered as Gathered
from graftwork.ops.sparse_update.values import gather_gradients as gather_gradients
from graftwork.ops.sparse_update.values import gather_values as gather_values
from graftwork.ops.sparse_update.values import restore_values_ as restore_values_
from graftwork.ops.sparse_update.values import write_values_ as write_values_

__all__ = [
    "Comparison",
    "Gathered",
    "Reselection",
    "Support",
    "compare_deltas",
    "decode_indices",
    "encode_indices",
    "gather_gradients",
    "gather_values",
    "linear_gradient",
    "merge_deltas",
    "random_support",
    "reselect",
    "restore_values_",
    "sddmm",
    "sparse_adamw_",
    "sparse_sgd_",
    "sparse_sm3_",
    "swap_values_",
    "take_entries",
    "topk_abs",
    "topk_absdiff",
    "write_values_",
]
