"""Asymmetric numeral systems (rANS) with 12-bit probabilities, in numpy: the specification of the native coder.

States are 32-bit numbers from 2^16 on, renormalised by 16 bits: a symbol refills a state at most once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache

import numpy as np

PROBABILITY_BITS = 12
TOTAL = 1 << PROBABILITY_BITS
STATE_LOW = 1 << 16


class Malformed(ValueError):
    """A payload is not what it should be."""


class BitWriter:
    """Bits, least significant first."""

    def __init__(self) -> None:
        self._value, self._count = 0, 0
        self._bytes = bytearray()

    def put(self, value: int, count: int) -> None:
        self._value |= value << self._count
        self._count += count
        if self._count >= 1024:
            whole = self._count // 8
            self._bytes += (self._value & ((1 << 8 * whole) - 1)).to_bytes(whole, "little")
            self._value >>= 8 * whole
            self._count -= 8 * whole

    def finish(self) -> bytes:
        """All bits, padded with zeros to a byte."""
        return bytes(self._bytes) + self._value.to_bytes(-(-self._count // 8), "little")


class BitReader:
    """Bits, least significant first; past the end they are zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def get(self, count: int) -> int:
        byte = self.at >> 3
        word = int.from_bytes(self._data[byte : byte + 8], "little") >> (self.at & 7)
        self.at += count
        return word & ((1 << count) - 1)

    def check_inside(self) -> None:
        if self.at > 8 * len(self._data):
            raise Malformed("bits end early")

    def check_used_up(self) -> None:
        """Everything was read but for fewer than eight bits of padding, which are zero."""
        left = 8 * len(self._data) - self.at
        if not 0 <= left < 8 or (left and self._data[-1] >> (8 - left)):
            raise Malformed("bits are left over or missing")


def normalise(counts: Sequence[int]) -> np.ndarray:
    """Frequencies in proportion to the counts that add up to 2^12, at least one for every symbol that occurs."""
    total = sum(counts)
    if total == 0:
        return np.array([TOTAL] + [0] * (len(counts) - 1), np.int64)
    shares = [(count << PROBABILITY_BITS) // total for count in counts]
    frequency = [max(share, 1) if count else 0 for count, share in zip(counts, shares, strict=True)]

    def best(symbols: list[int], halves: int, sign: int) -> int:
        found = symbols[0]
        for s in symbols[1:]:
            ours, theirs = (
                counts[s] * (2 * frequency[found] + halves),
                counts[found] * (2 * frequency[s] + halves),
            )
            if sign * (ours - theirs) > 0:
                found = s
        return found

    while sum(frequency) < TOTAL:
        frequency[best([s for s, count in enumerate(counts) if count], 1, 1)] += 1
    while sum(frequency) > TOTAL:
        frequency[best([s for s, f in enumerate(frequency) if f > 1], -1, -1)] -= 1
    return np.array(frequency, np.int64)


def write_table(bits: BitWriter, frequency: np.ndarray) -> None:
    """The symbols' range, then of each frequency its bit length and the bits below its leading one."""
    present = np.flatnonzero(frequency)
    low, high = int(present[0]), int(present[-1])
    bits.put(low, 7)
    bits.put(high, 7)
    for f in frequency[low : high + 1].tolist():
        bits.put(f.bit_length(), 4)
        if f > 1:
            bits.put(f & ((1 << (f.bit_length() - 1)) - 1), f.bit_length() - 1)


def read_table(bits: BitReader, symbols: int) -> np.ndarray:
    """The frequencies of a table; Malformed unless they add up to 2^12."""
    frequency = np.zeros(symbols, np.int64)
    low, high = bits.get(7), bits.get(7)
    if not low <= high < symbols:
        raise Malformed("a table's range")
    for s in range(low, high + 1):
        length = bits.get(4)
        if length > PROBABILITY_BITS + 1:
            raise Malformed("a frequency")
        frequency[s] = 0 if length == 0 else 1 << (length - 1) | bits.get(length - 1)
    bits.check_inside()
    if frequency.sum() != TOTAL or not (frequency[low] and frequency[high]):
        raise Malformed("a table's frequencies")
    return frequency


def starts(frequency: np.ndarray) -> np.ndarray:
    """Where each symbol's slots begin."""
    return np.cumsum(frequency, axis=-1) - frequency


_LOG_BITS, _INDEX_BITS = 24, 10


@cache
def _log_table() -> list[int]:
    """log2(1 + i / 2^10) in units of 2^-24, a binary digit a squaring."""
    table = []
    for i in range(1 << _INDEX_BITS):
        y, log = (1 << 31) + (i << (31 - _INDEX_BITS)), 0
        for _ in range(_LOG_BITS):
            y = (y * y) >> 31
            log <<= 1
            if y >= 1 << 32:
                log, y = log | 1, y >> 1
        table.append(log)
    return [*table, 1 << _LOG_BITS]


def log_weight(n: int) -> int:
    """n log2(n) in units of 2^-24 bits, for n < 2^24; between the points of the table a straight line."""
    if n < 2:
        return 0
    whole, rest_bits = n.bit_length() - 1, 23 - _INDEX_BITS
    fraction = (n << (23 - whole)) & ((1 << 23) - 1)
    i, rest = fraction >> rest_bits, fraction & ((1 << rest_bits) - 1)
    table = _log_table()
    log = (whole << _LOG_BITS) + table[i] + ((table[i + 1] - table[i]) * rest >> rest_bits)
    return n * log


class Words:
    """The 16-bit words of a rANS stream."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = np.frombuffer(data, "<u2").astype(np.int64), 0

    def take(self, count: int) -> np.ndarray:
        found = self._data[self._at : self._at + count]
        self._at += count
        return np.pad(found, (0, count - len(found)))

    def check_used_up(self) -> None:
        if self._at != len(self._data):
            raise Malformed("rANS words are left over or missing")


def join_frame(log2_segment: int, segments: list[bytes]) -> bytes:
    """Segments of 2^log2_segment words, each coded on its own, behind their lengths."""
    lengths = struct.pack(f"<{len(segments)}I", *map(len, segments))
    return bytes([log2_segment, 0, 0, 0]) + lengths + b"".join(segments)


def open_frame(payload: bytes, numel: int) -> tuple[int, list[bytes]]:
    """``(words a segment, the segments)``."""
    if len(payload) < 4 or not 16 <= payload[0] <= 20 or any(payload[1:4]):
        raise Malformed("the frame")
    size = 1 << payload[0]
    count = -(-numel // size)
    if len(payload) < 4 + 4 * count:
        raise Malformed("the segments' lengths")
    at, segments = 4 + 4 * count, []
    for length in struct.unpack_from(f"<{count}I", payload, 4):
        segments.append(payload[at : at + length])
        at += length
    if at != len(payload):
        raise Malformed("the segments do not fill the payload")
    return size, segments
