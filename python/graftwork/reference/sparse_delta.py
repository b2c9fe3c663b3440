"""Entropy-coded sparse differences in numpy; see :mod:`graftwork.ops.entropy_delta`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graftwork.reference.entropy_delta import (
    add_differences,
    ordinal_differences,
    payload_bytes,
    payload_tensor,
    refuse_if,
)
from graftwork.reference.gap_code import SEGMENT_LOG2, decode_segment, encode_segment
from graftwork.reference.rans import Malformed, join_frame, open_frame


def encode_sparse_delta(base: Tensor, tuned: Tensor, max_changes: int) -> Tensor:
    """The payload of `tuned` against `base`; empty if a segment has more than `max_changes` changes."""
    pieces = zip(
        base.reshape(-1).split(1 << SEGMENT_LOG2), tuned.reshape(-1).split(1 << SEGMENT_LOG2), strict=True
    )
    segments = []
    for b, t in pieces if base.numel() else ():
        differences = ordinal_differences(b, t)
        changed = np.flatnonzero(differences)
        if len(changed) > max_changes:
            return base.new_empty(0, dtype=torch.uint8)
        segments.append(encode_segment(changed, [differences[changed]], [8 * base.itemsize]))
    return payload_tensor(join_frame(SEGMENT_LOG2, segments), base)


def apply_sparse_delta(words: Tensor, payload: Tensor, reverse: bool) -> None:
    """Add the differences to `words`, or take them away; ValueError if the payload is malformed."""
    differences = np.zeros(words.numel(), np.int64)
    try:
        size, segments = open_frame(payload_bytes(payload), words.numel())
        if size != 1 << SEGMENT_LOG2:
            raise Malformed("the segments' size")
        for i, data in enumerate(segments):
            piece = differences[i * size : (i + 1) * size]
            at, (found,) = decode_segment(data, len(piece), [8 * words.itemsize])
            piece[at] = found
    except Malformed:
        refuse_if("apply_sparse_delta_", True)
    words.copy_(add_differences(words, -differences if reverse else differences))


def decode_sparse_delta(base: Tensor, payload: Tensor, tuned: Tensor) -> None:
    """Restore `tuned` from `base`; ValueError if the payload is malformed."""
    tuned.copy_(base)
    apply_sparse_delta(tuned, payload, False)
