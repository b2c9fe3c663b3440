"""Entropy-coded lossless differences in numpy; see :mod:`graftwork.ops.entropy_delta`.

The same bytes as the native code, and the specification of how an encoder chooses its tables.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from graftwork.reference.lossless_delta import EXPONENT_BITS, positions, words
from graftwork.reference.rans import (
    PROBABILITY_BITS,
    STATE_LOW,
    TOTAL,
    BitReader,
    BitWriter,
    Malformed,
    Words,
    join_frame,
    log_weight,
    normalise,
    open_frame,
    read_table,
    starts,
    write_table,
)

LANES = 32
SLOTS = 16  # exponents that are told apart
MAX_TABLES = 16
MAX_LEVELS = 8
_UNIT = 24


def refuse_if(operation: str, malformed: bool) -> None:
    """Raise what a malformed payload raises."""
    if malformed:
        raise ValueError(
            f"{operation}: the payload is malformed, or was made for a tensor of another size; get it from its source again"
        )


# ---- what the two codes share ----


def ordinal_differences(base: Tensor, tuned: Tensor) -> np.ndarray:
    """Ordinal differences as signed 64-bit numbers."""
    return (positions(tuned) - positions(base)).long().cpu().numpy()


def bit_length(values: np.ndarray) -> np.ndarray:
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def add_differences(base: Tensor, differences: np.ndarray) -> Tensor:
    """The tensor that lies these differences away from `base`."""
    position = positions(base)
    position = position + torch.from_numpy(differences).to(position.device).to(position.dtype)
    if base.dtype in EXPONENT_BITS:
        bits = 8 * base.itemsize
        position = position ^ (~(position >> (bits - 1)) | torch.iinfo(position.dtype).min)
    return position.view(base.dtype).reshape(base.shape)


def payload_tensor(payload: bytes, like: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(like.device)


def payload_bytes(payload: Tensor) -> bytes:
    return payload.cpu().numpy().tobytes()


# ---- ordinal_rans ----


@dataclass
class _Model:
    """What a segment's header says."""

    first_exponent: int
    thresholds: list[int]
    table_of: np.ndarray  # [level, exponent slot]
    frequency: np.ndarray  # [table, symbol]
    used_words: int = 0

    def tables(self, exponents: np.ndarray, activity: int) -> np.ndarray:
        """The table of each word of a group, from its base's exponent and the activity of the group before."""
        level = sum(threshold <= activity for threshold in self.thresholds)
        found: np.ndarray = self.table_of[level][np.clip(exponents - self.first_exponent, 0, SLOTS - 1)]
        return found

    def to_bytes(self) -> bytes:
        levels = len(self.table_of)
        bits = BitWriter()
        for x in range(SLOTS):
            for q in range(levels):
                bits.put(int(self.table_of[q, x]), 4)
        for frequency in self.frequency:
            write_table(bits, frequency)
        head = struct.pack(
            "<BBBBI", levels.bit_length() - 1, len(self.frequency), self.first_exponent, 0, self.used_words
        )
        return head + struct.pack(f"<{levels - 1}H", *self.thresholds) + bits.finish()


def _parse_model(data: bytes, symbols: int) -> tuple[_Model, int]:
    """``(model, its bytes)``."""
    if len(data) < 8 or data[0] > 3 or not 1 <= data[1] <= MAX_TABLES or data[3]:
        raise Malformed("a segment's header")
    levels, tables = 1 << data[0], data[1]
    at = 8 + 2 * (levels - 1)
    if len(data) < at:
        raise Malformed("a segment's thresholds")
    thresholds = list(struct.unpack_from(f"<{levels - 1}H", data, 8))
    if thresholds != sorted(thresholds):
        raise Malformed("a segment's thresholds")
    bits = BitReader(data[at:])
    table_of = np.array([[bits.get(4) for _ in range(levels)] for _ in range(SLOTS)]).T
    if table_of.max() >= tables:
        raise Malformed("a context's table")
    frequency = np.stack([read_table(bits, symbols) for _ in range(tables)])
    model = _Model(data[2], thresholds, table_of, frequency, struct.unpack_from("<I", data, 4)[0])
    return model, at + (bits.at + 7) // 8


@dataclass
class _Group:
    """Contexts that share a table."""

    counts: list[int]
    contexts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def cost(self) -> int:
        """Of its symbols and of its table, in units of 2^-24 bits."""
        total = sum(self.counts)
        present = [s for s, count in enumerate(self.counts) if count]
        shares = [(self.counts[s] << PROBABILITY_BITS) // total for s in present]
        table = 14 + 4 * (present[-1] - present[0] + 1)
        table += sum(share.bit_length() - 1 for share in shares if share > 1)
        return log_weight(total) - sum(map(log_weight, self.counts)) + (table << _UNIT)


def _choose_tables(counts: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """``(bits, table of each context, frequencies)`` for counts ``[level, slot, symbol]``.

    Contexts are ordered by their mean |class|; neighbours are joined while that saves bits or they are too many.
    """
    levels, slots, symbols = counts.shape
    sizes = np.abs(np.arange(symbols) - symbols // 2)
    rows = [(q, x) for q in range(levels) for x in range(slots) if counts[q, x].any()]
    rows.sort(key=lambda at: Fraction(int(counts[at] @ sizes), int(counts[at].sum())))
    groups = [_Group(counts[at].tolist(), [at]) for at in rows]
    costs = [group.cost for group in groups]

    def joined(i: int) -> _Group:
        one, other = groups[i], groups[i + 1]
        return _Group(
            [a + b for a, b in zip(one.counts, other.counts, strict=True)], one.contexts + other.contexts
        )

    savings = [costs[i] + costs[i + 1] - joined(i).cost for i in range(len(groups) - 1)]
    while savings:
        best = max(savings)
        if best <= 0 and len(groups) <= MAX_TABLES:
            break
        i = savings.index(best)
        groups[i : i + 2] = [joined(i)]
        costs[i : i + 2] = [groups[i].cost]
        del savings[i]
        for j in (i - 1, i):
            if 0 <= j < len(savings):
                savings[j] = costs[j] + costs[j + 1] - joined(j).cost
    number = {at: t for t, group in enumerate(groups) for at in group.contexts}
    table_of, last = np.zeros((levels, slots), np.int64), 0
    for q in range(levels):
        for x in range(slots):
            last = number.get((q, x), last)
            table_of[q, x] = last
    fixed = 8 * (8 + 2 * (levels - 1)) + 4 * slots * levels
    return (sum(costs) >> _UNIT) + fixed, table_of, np.stack([normalise(group.counts) for group in groups])


def _first_exponent(exponents: np.ndarray, size: int) -> int:
    """The first of sixteen exponents that most words have, judged from every 16th; of equal ones the last."""
    seen = np.bincount(exponents[::16], minlength=size)
    inside = np.convolve(seen, np.ones(SLOTS, np.int64))[:size]
    first = int(size - 1 - np.argmax(inside[::-1])) - SLOTS + 1
    while first > 0 and seen[first + SLOTS - 1] == 0:
        first -= 1
    return max(first, 0)


def _exponents(base: Tensor) -> np.ndarray:
    bits = EXPONENT_BITS[base.dtype]
    field_ = words(base).long() >> (8 * base.itemsize - 1 - bits)
    found: np.ndarray = (field_ & ((1 << bits) - 1)).cpu().numpy()
    return found


def _choose_model(exponents: np.ndarray, classes: np.ndarray, base: Tensor) -> tuple[_Model, int]:
    """``(model, bits)`` of a segment: eight levels of activity or none, whichever costs less."""
    symbols, zero = 16 * base.itemsize + 1, 8 * base.itemsize
    first = _first_exponent(exponents, 1 << EXPONENT_BITS[base.dtype])
    groups = -(-len(classes) // LANES)
    activity = np.add.reduceat(np.abs(classes), np.arange(0, len(classes), LANES))
    below = np.cumsum(np.bincount(activity, minlength=LANES * 32 + 1))
    thresholds = [
        min(int(np.searchsorted(MAX_LEVELS * below, i * groups)) + 1, LANES * 32)
        for i in range(1, MAX_LEVELS)
    ]
    before = np.concatenate([[0], activity[:-1]])
    level = (before[:, None] >= np.array(thresholds)).sum(1)
    counts = np.zeros((MAX_LEVELS, SLOTS, symbols), np.int64)
    slots = np.clip(exponents - first, 0, SLOTS - 1)
    np.add.at(counts, (np.repeat(level, LANES)[: len(classes)], slots, classes + zero), 1)
    alone_bits, alone_tables, alone = _choose_tables(counts.sum(0, keepdims=True))
    bits, table_of, frequency = _choose_tables(counts)
    if bits < alone_bits:
        return _Model(first, thresholds, table_of, frequency), bits
    return _Model(first, [], alone_tables, alone), alone_bits


def _encode_segment(base: Tensor, tuned: Tensor) -> bytes:
    differences, exponents = ordinal_differences(base, tuned), _exponents(base)
    lengths = bit_length(np.abs(differences))
    classes = np.sign(differences) * lengths
    model, _ = _choose_model(exponents, classes, base)
    begins = starts(model.frequency)
    states = np.full(LANES, STATE_LOW, np.int64)
    stream: list[np.ndarray] = []
    edges = list(range(0, len(classes), LANES))
    activities = [0] + [int(np.abs(classes[i : i + LANES]).sum()) for i in edges[:-1]]
    for i, activity in zip(reversed(edges), reversed(activities), strict=True):
        symbols = classes[i : i + LANES] + 8 * base.itemsize
        tables = model.tables(exponents[i : i + LANES], activity)
        f, s, x = model.frequency[tables, symbols], begins[tables, symbols], states[: len(symbols)]
        full = (x >> (32 - PROBABILITY_BITS)) >= f
        stream.append(x[full] & 0xFFFF)
        x = np.where(full, x >> 16, x)
        states[: len(symbols)] = (x // f << PROBABILITY_BITS) + x % f + s
    coded = np.concatenate(stream[::-1]).astype("<u2")
    model.used_words = len(coded)
    raw = BitWriter()
    for magnitude, length in zip(np.abs(differences).tolist(), lengths.tolist(), strict=True):
        if length > 1:
            raw.put(magnitude & ((1 << (length - 1)) - 1), length - 1)
    return model.to_bytes() + states.astype("<u4").tobytes() + coded.tobytes() + raw.finish()


def _decode_segment(base: Tensor, data: bytes) -> Tensor:
    symbols, zero = 16 * base.itemsize + 1, 8 * base.itemsize
    model, at = _parse_model(data, symbols)
    end = at + 4 * LANES + 2 * model.used_words
    if end > len(data):
        raise Malformed("a segment's words end early")
    states = np.frombuffer(data, "<u4", LANES, at).astype(np.int64)
    stream, raw = Words(data[at + 4 * LANES : end]), BitReader(data[end:])
    begins = starts(model.frequency)
    slots = np.stack([np.repeat(np.arange(symbols), frequency) for frequency in model.frequency])
    exponents, classes = _exponents(base), np.zeros(base.numel(), np.int64)
    activity = 0
    for i in range(0, len(classes), LANES):
        tables = model.tables(exponents[i : i + LANES], activity)
        x = states[: len(tables)]
        symbol = slots[tables, x & (TOTAL - 1)]
        x = (
            model.frequency[tables, symbol] * (x >> PROBABILITY_BITS)
            + (x & (TOTAL - 1))
            - begins[tables, symbol]
        )
        empty = x < STATE_LOW
        x[empty] = x[empty] << 16 | stream.take(int(empty.sum()))
        states[: len(tables)] = x
        classes[i : i + LANES] = symbol - zero
        activity = int(np.abs(symbol - zero).sum())
    magnitudes = [
        1 << (length - 1) | raw.get(length - 1) if length else 0 for length in np.abs(classes).tolist()
    ]
    stream.check_used_up()
    raw.check_used_up()
    if (states != STATE_LOW).any():
        raise Malformed("the states do not end where they began")
    return add_differences(base, np.sign(classes) * np.array(magnitudes, np.int64))


def encode_ordinal_rans(base: Tensor, tuned: Tensor, log2_segment: int) -> Tensor:
    """The payload of `tuned` against `base`; log2_segment 0: large segments, halved for as long as that pays."""
    base, tuned = base.reshape(-1), tuned.reshape(-1)
    log2_segment = log2_segment or _cheapest_segment(base, tuned)
    pieces = zip(base.split(1 << log2_segment), tuned.split(1 << log2_segment), strict=True)
    segments = [_encode_segment(b, t) for b, t in pieces] if base.numel() else []
    return payload_tensor(join_frame(log2_segment, segments), base)


def _cheapest_segment(base: Tensor, tuned: Tensor) -> int:
    best = max(log2 for log2 in range(16, 21) if log2 == 16 or 1 << (log2 - 1) < base.numel())
    least = _cost(base, tuned, best) if best > 16 else 0
    while best > 16 and (halved := _cost(base, tuned, best - 1)) < least:
        best, least = best - 1, halved
    return best


def _cost(base: Tensor, tuned: Tensor, log2_segment: int) -> int:
    bits = 0
    for b, t in zip(base.split(1 << log2_segment), tuned.split(1 << log2_segment), strict=True):
        differences = ordinal_differences(b, t)
        classes = np.sign(differences) * bit_length(np.abs(differences))
        bits += _choose_model(_exponents(b), classes, b)[1] + 8 * (4 * LANES + 4)
    return bits


def decode_ordinal_rans(base: Tensor, payload: Tensor, tuned: Tensor) -> None:
    """Restore `tuned`; ValueError if the payload is malformed."""
    try:
        size, segments = open_frame(payload_bytes(payload), base.numel())
        pieces = zip(base.reshape(-1).split(size), segments, strict=True) if base.numel() else ()
        parts = [_decode_segment(piece, data) for piece, data in pieces]
    except Malformed:
        refuse_if("decode_ordinal_rans", True)
    if parts:
        tuned.copy_(torch.cat(parts).view(base.shape))
