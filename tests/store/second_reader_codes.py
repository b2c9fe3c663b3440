"""The entropy codes of a second reader, written from sections 7 and 8 of docs/store-format.md, one word at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Bits:
    """Bits of a byte string, least significant first."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> int:
        value = int.from_bytes(self.data, "little") >> self.at if len(self.data) < 4096 else self._near()
        self.at += count
        return value & ((1 << count) - 1)

    def _near(self) -> int:
        byte = self.at // 8
        return int.from_bytes(self.data[byte : byte + 12], "little") >> (self.at - 8 * byte)

    def all_used(self) -> bool:
        left = 8 * len(self.data) - self.at
        return 0 <= left < 8 and (left == 0 or self.data[-1] >> (8 - left) == 0)


class Stream:
    """States and 16-bit words."""

    def __init__(self, states: bytes, words: bytes) -> None:
        self.states = [int.from_bytes(states[i : i + 4], "little") for i in range(0, len(states), 4)]
        self.words = [int.from_bytes(words[i : i + 2], "little") for i in range(0, len(words), 2)]
        self.used = 0

    def symbol(self, state: int, table: list[tuple[int, int, int]]) -> int:
        """Take a symbol, but not yet the word that the state may need."""
        x = self.states[state]
        symbol, frequency, first = table[x % 4096]
        self.states[state] = frequency * (x >> 12) + x % 4096 - first
        return symbol

    def refill(self, state: int) -> None:
        if self.states[state] < 1 << 16:
            self.states[state] = (self.states[state] << 16) + self.words[self.used]
            self.used += 1

    def all_used(self) -> bool:
        return self.used == len(self.words) and all(state == 1 << 16 for state in self.states)


def read_slots(bits: Bits) -> list[tuple[int, int, int]]:
    """A table as (symbol, frequency, first slot) of every slot."""
    slots: list[tuple[int, int, int]] = []
    low, high = bits.take(7), bits.take(7)
    for symbol in range(low, high + 1):
        length = bits.take(4)
        frequency = (1 << (length - 1)) + bits.take(length - 1) if length else 0
        slots += [(symbol, frequency, len(slots))] * frequency
    assert len(slots) == 4096
    return slots


def segments(payload: bytes, words: int) -> list[tuple[int, bytes]]:
    """(words, bytes) of every segment."""
    assert 16 <= payload[0] <= 20
    assert payload[1:4] == b"\0\0\0"
    size, found = 1 << payload[0], []
    count = -(-words // size)
    at = 4 + 4 * count
    for i in range(count):
        length = int.from_bytes(payload[4 + 4 * i : 8 + 4 * i], "little")
        found.append((min(size, words - i * size), payload[at : at + length]))
        at += length
    assert at == len(payload)
    return found


def leading(length: int, bits: Bits) -> int:
    """A number of `length` bits whose leading one is not written."""
    return (1 << (length - 1)) + bits.take(length - 1) if length else 0


def ordrans(payload: bytes, basis: list[int], width: int, exponent_bits: int) -> list[int]:
    """The ordinal differences of method 3, signed."""
    differences: list[int] = []
    for count, data in segments(payload, len(basis)):
        differences += _ordrans_segment(
            data, basis[len(differences) : len(differences) + count], width, exponent_bits
        )
    return differences


def _ordrans_segment(data: bytes, basis: list[int], width: int, exponent_bits: int) -> list[int]:
    levels, tables, first = 1 << data[0], data[1], data[2]
    at = 8 + 2 * (levels - 1)
    thresholds = [int.from_bytes(data[i : i + 2], "little") for i in range(8, at, 2)]
    bits = Bits(data[at : at + 4000])
    numbers = [[bits.take(4) for _ in range(levels)] for _ in range(16)]
    slots = [read_slots(bits) for _ in range(tables)]
    at += -(-bits.at // 8)
    end = at + 128 + 2 * int.from_bytes(data[4:8], "little")
    stream, raw = Stream(data[at : at + 128], data[at + 128 : end]), Bits(data[end:])
    differences: list[int] = []
    activity = 0
    for begin in range(0, len(basis), 32):
        group = basis[begin : begin + 32]
        level = sum(threshold <= activity for threshold in thresholds)
        classes = []
        for lane, word in enumerate(group):
            exponent = word >> (8 * width - 1 - exponent_bits) & ((1 << exponent_bits) - 1)
            table = slots[numbers[min(max(exponent - first, 0), 15)][level]]
            classes.append(stream.symbol(lane, table) - 8 * width)
        for lane in range(len(group)):
            stream.refill(lane)
        activity = sum(map(abs, classes))
        differences += [leading(abs(c), raw) * (-1 if c < 0 else 1) for c in classes]
    assert stream.all_used()
    assert raw.all_used()
    return differences


def sparse(payload: bytes, words: int, width: int) -> list[int]:
    """The ordinal differences of method 4, signed, zeros included."""
    differences: list[int] = []
    assert payload[0] == 20
    for count, data in segments(payload, words):
        found = [0] * count
        changes, coded = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        if changes:
            bits = Bits(data[8:1000])
            gaps, classes = read_slots(bits), read_slots(bits)
            at = 8 + -(-bits.at // 8)
            end = at + 16 + 2 * coded
            stream, raw = Stream(data[at : at + 16], data[at + 16 : end]), Bits(data[end:])
            index = -1
            for i in range(changes):
                length = stream.symbol(2 * i % 4, gaps)
                stream.refill(2 * i % 4)
                c = stream.symbol((2 * i + 1) % 4, classes) - 8 * width
                stream.refill((2 * i + 1) % 4)
                index += leading(length, raw)
                found[index] = leading(abs(c), raw) * (-1 if c < 0 else 1)
            assert stream.all_used()
            assert raw.all_used()
        differences += found
    return differences
