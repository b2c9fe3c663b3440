"""Entropy-coded sparse differences in numpy; see :mod:`graftwork.ops.entropy_delta`."""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from graftwork.reference.entropy_delta import (
    add_differences,
    bit_length,
    ordinal_differences,
    payload_bytes,
    payload_tensor,
    refuse_if,
)
from graftwork.reference.rans import (
    PROBABILITY_BITS,
    STATE_LOW,
    TOTAL,
    BitReader,
    BitWriter,
    Malformed,
    Words,
    join_frame,
    normalise,
    open_frame,
    read_table,
    starts,
    write_table,
)

SEGMENT_LOG2 = 20
_LANES = 4
_GAP_SYMBOLS = SEGMENT_LOG2 + 2


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
        segments.append(_encode_segment(changed, differences[changed], 8 * base.itemsize))
    return payload_tensor(join_frame(SEGMENT_LOG2, segments), base)


def _encode_segment(changed: np.ndarray, differences: np.ndarray, zero: int) -> bytes:
    if not len(changed):
        return bytes(8)
    gaps = np.diff(changed, prepend=-1)
    symbols = [bit_length(gaps), np.sign(differences) * bit_length(np.abs(differences)) + zero]
    frequency = [
        normalise(np.bincount(symbol, minlength=size).tolist())
        for symbol, size in zip(symbols, (_GAP_SYMBOLS, 2 * zero + 1), strict=True)
    ]
    begins = [starts(f) for f in frequency]
    states, stream = [STATE_LOW] * _LANES, []
    for i in reversed(range(2 * len(changed))):
        symbol = int(symbols[i % 2][i // 2])
        x, f = states[i % _LANES], int(frequency[i % 2][symbol])
        if x >> (32 - PROBABILITY_BITS) >= f:
            stream.append(x & 0xFFFF)
            x >>= 16
        states[i % _LANES] = (x // f << PROBABILITY_BITS) + x % f + int(begins[i % 2][symbol])
    head, raw = BitWriter(), BitWriter()
    for table in frequency:
        write_table(head, table)
    for gap, magnitude in zip(gaps.tolist(), np.abs(differences).tolist(), strict=True):
        for value in (gap, magnitude):
            raw.put(value & ((1 << (value.bit_length() - 1)) - 1), value.bit_length() - 1)
    return b"".join(
        (
            struct.pack("<2I", len(changed), len(stream)),
            head.finish(),
            struct.pack(f"<{_LANES}I", *states),
            np.array(stream[::-1], "<u2").tobytes(),
            raw.finish(),
        )
    )


def _decode_segment(data: bytes, zero: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """``(indices, differences)`` of a segment of `size` words."""
    if len(data) < 8:
        raise Malformed("a segment's header")
    count, used = struct.unpack_from("<2I", data)
    if not count:
        if used or len(data) != 8:
            raise Malformed("a segment without changes")
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    head = BitReader(data[8:])
    frequency = [read_table(head, _GAP_SYMBOLS), read_table(head, 2 * zero + 1)]
    if frequency[0][0] or frequency[1][zero]:
        raise Malformed("a gap or a difference of nothing")
    at = 8 + (head.at + 7) // 8
    end = at + 4 * _LANES + 2 * used
    if end > len(data):
        raise Malformed("a segment's words end early")
    states = list(struct.unpack_from(f"<{_LANES}I", data, at))
    stream, raw = Words(data[at + 4 * _LANES : end]), BitReader(data[end:])
    begins = [starts(f) for f in frequency]
    slots = [np.repeat(np.arange(len(f)), f) for f in frequency]
    indices, differences, index = [], [], -1
    for i in range(2 * count):
        x, kind = states[i % _LANES], i % 2
        symbol = int(slots[kind][x & (TOTAL - 1)])
        x = (
            int(frequency[kind][symbol]) * (x >> PROBABILITY_BITS)
            + (x & (TOTAL - 1))
            - int(begins[kind][symbol])
        )
        if x < STATE_LOW:
            x = x << 16 | int(stream.take(1)[0])
        states[i % _LANES] = x
        length = abs(symbol - zero) if kind else symbol
        value = 1 << (length - 1) | raw.get(length - 1)
        if kind:
            differences.append(value if symbol > zero else -value)
            continue
        index += value
        if index >= size:
            raise Malformed("a change past the end")
        indices.append(index)
    stream.check_used_up()
    raw.check_used_up()
    if any(state != STATE_LOW for state in states):
        raise Malformed("the states do not end where they began")
    return np.array(indices), np.array(differences)


def apply_sparse_delta(words: Tensor, payload: Tensor, reverse: bool) -> None:
    """Add the differences to `words`, or take them away; ValueError if the payload is malformed."""
    differences = np.zeros(words.numel(), np.int64)
    try:
        size, segments = open_frame(payload_bytes(payload), words.numel())
        if size != 1 << SEGMENT_LOG2:
            raise Malformed("the segments' size")
        for i, data in enumerate(segments):
            piece = differences[i * size : (i + 1) * size]
            at, found = _decode_segment(data, 8 * words.itemsize, len(piece))
            piece[at] = found
    except Malformed:
        refuse_if("apply_sparse_delta_", True)
    words.copy_(add_differences(words, -differences if reverse else differences))


def decode_sparse_delta(base: Tensor, payload: Tensor, tuned: Tensor) -> None:
    """Restore `tuned` from `base`; ValueError if the payload is malformed."""
    tuned.copy_(base)
    apply_sparse_delta(tuned, payload, False)
