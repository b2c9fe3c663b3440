"""Positions by their gaps, and what stands at each, entropy coded, in numpy; see :mod:`graftwork.ops.entropy_delta`.

A row of numbers is coded for every position: its distance from the one before, and what else there is. A number's sign
and bit length are a symbol of its column's rANS table, four interleaved states; the bits below the leading one follow
as they are. No number is zero.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from graftwork.reference.entropy_delta import bit_length
from graftwork.reference.rans import (
    PROBABILITY_BITS,
    STATE_LOW,
    TOTAL,
    BitReader,
    BitWriter,
    Malformed,
    Words,
    normalise,
    read_table,
    starts,
    write_table,
)

SEGMENT_LOG2 = 20
_LANES = 4
_GAP_SYMBOLS = SEGMENT_LOG2 + 2


def _columns(zeros: Sequence[int]) -> tuple[list[int], list[int]]:
    """The symbol of zero and the number of symbols of each column; of the gaps, which have no sign, the first."""
    return [0, *zeros], [_GAP_SYMBOLS, *(2 * zero + 1 for zero in zeros)]


def encode_segment(
    positions: np.ndarray, rest: Sequence[np.ndarray] = (), zeros: Sequence[int] = ()
) -> bytes:
    """A segment of ascending positions, and a column of numbers, each with the bits that its largest has."""
    count = len(positions)
    if not count:
        return bytes(8)
    numbers = [np.diff(positions, prepend=-1), *rest]
    zero_of, sizes = _columns(zeros)
    symbols = [
        np.sign(column) * bit_length(np.abs(column)) + zero
        for column, zero in zip(numbers, zero_of, strict=True)
    ]
    frequency = [
        normalise(np.bincount(symbol, minlength=many).tolist())
        for symbol, many in zip(symbols, sizes, strict=True)
    ]
    begins, parts = [starts(f) for f in frequency], len(numbers)
    states, stream = [STATE_LOW] * _LANES, []
    for i in reversed(range(parts * count)):
        part = i % parts
        symbol = int(symbols[part][i // parts])
        x, f = states[i % _LANES], int(frequency[part][symbol])
        if x >> (32 - PROBABILITY_BITS) >= f:
            stream.append(x & 0xFFFF)
            x >>= 16
        states[i % _LANES] = (x // f << PROBABILITY_BITS) + x % f + int(begins[part][symbol])
    head, raw = BitWriter(), BitWriter()
    for table in frequency:
        write_table(head, table)
    for row in np.abs(np.stack(numbers, 1)).tolist():
        for value in row:
            raw.put(value & ((1 << (value.bit_length() - 1)) - 1), value.bit_length() - 1)
    return b"".join(
        (
            struct.pack("<2I", count, len(stream)),
            head.finish(),
            struct.pack(f"<{_LANES}I", *states),
            np.array(stream[::-1], "<u2").tobytes(),
            raw.finish(),
        )
    )


def decode_segment(data: bytes, size: int, zeros: Sequence[int] = ()) -> tuple[np.ndarray, list[np.ndarray]]:
    """``(positions, the other columns)`` of a segment of `size` positions."""
    if len(data) < 8:
        raise Malformed("a segment's header")
    count, used = struct.unpack_from("<2I", data)
    if not count:
        if used or len(data) != 8:
            raise Malformed("a segment without changes")
        return np.zeros(0, np.int64), [np.zeros(0, np.int64) for _ in zeros]
    head = BitReader(data[8:])
    zero_of, sizes = _columns(zeros)
    frequency = [read_table(head, many) for many in sizes]
    if any(table[zero] for table, zero in zip(frequency, zero_of, strict=True)):
        raise Malformed("a gap or a difference of nothing")
    at = 8 + (head.at + 7) // 8
    end = at + 4 * _LANES + 2 * used
    if end > len(data):
        raise Malformed("a segment's words end early")
    states = list(struct.unpack_from(f"<{_LANES}I", data, at))
    stream, raw = Words(data[at + 4 * _LANES : end]), BitReader(data[end:])
    begins = [starts(f) for f in frequency]
    slots = [np.repeat(np.arange(len(f)), f) for f in frequency]
    columns: list[list[int]] = [[] for _ in sizes]
    index = -1
    for i in range(len(sizes) * count):
        x, part = states[i % _LANES], i % len(sizes)
        symbol = int(slots[part][x & (TOTAL - 1)])
        x = (
            int(frequency[part][symbol]) * (x >> PROBABILITY_BITS)
            + (x & (TOTAL - 1))
            - int(begins[part][symbol])
        )
        if x < STATE_LOW:
            x = x << 16 | int(stream.take(1)[0])
        states[i % _LANES] = x
        length = abs(symbol - zero_of[part])
        value = 1 << (length - 1) | raw.get(length - 1)
        if part == 0:
            index += value
            if index >= size:
                raise Malformed("a change past the end")
        columns[part].append(index if part == 0 else value if symbol > zero_of[part] else -value)
    stream.check_used_up()
    raw.check_used_up()
    if any(state != STATE_LOW for state in states):
        raise Malformed("the states do not end where they began")
    positions, *rest = (np.array(column) for column in columns)
    return positions, rest
