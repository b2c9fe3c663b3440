"""Mutations of inputs: of the bytes of any, and of the values of those that hold JSON, which stays JSON.

libFuzzer knows the first kind by itself; where it is not there, `Mutator` takes its place.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

#: What takes the place of a value: the edges of its kind, and other kinds.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30),
    *(
        0.5,
        -0.0,
        1e300,
        float("inf"),
        float("-inf"),
        float("nan"),
        "",
        "a",
        "\0",
        "\ud800",
        "é",
        "/",
        "..",
        "0" * 64,
    ),
    *(
        "U8",
        "BF16",
        "F32",
        "F4",
        "I64",
        "same",
        "raw",
        "ordz",
        [],
        {},
        [0],
        [[]],
        [1, 0],
        [2, 0],
        {"": 0},
        {"a": None},
    ),
)
_MAX_NODES = 4096

_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, (1 << 64) - 1)


class Mutator:
    """Makes inputs from other inputs and from whole tokens; the seed fixes the sequence."""

    def __init__(self, inputs: Sequence[bytes], tokens: Sequence[bytes], seed: int, max_len: int) -> None:
        self._inputs = list(inputs) or [b""]
        self._tokens = tokens
        self._random = random.Random(seed)
        self._max_len = max_len

    def next(self) -> bytes:
        """The next input: one of the start inputs after one to eight changes."""
        start = self._random.choice(self._inputs)
        if self._random.random() < 0.5 and (changed := json_mutated(start, self._random)) is not None:
            return changed[: self._max_len]
        data = bytearray(start)
        for _ in range(self._random.randint(1, 8)):
            self._change(data)
        return bytes(data[: self._max_len])

    def _change(self, data: bytearray) -> None:
        pick = self._random
        at = pick.randint(0, len(data))
        stop = min(len(data), at + pick.randint(1, 1 << pick.randint(0, 6)))
        match pick.randint(0, 7):
            case 0 if at < len(data):
                data[at] ^= 1 << pick.randint(0, 7)
            case 1 if at < len(data):
                data[at] = pick.randint(0, 255)
            case 2:
                del data[at:stop]
            case 3:
                data[at:at] = pick.choice(self._tokens)
            case 4:
                data[at:stop] = pick.choice(self._tokens)
            case 5:
                to = pick.randint(0, len(data))
                data[to:to] = data[at:stop]
            case 6:
                other = pick.choice(self._inputs)
                data[at:] = other[pick.randint(0, len(other)) :]
            case _:
                width = 1 << pick.randint(0, 3)
                number = pick.choice(_EDGES) if pick.random() < 0.5 else stop + pick.randint(-16, 16)
                data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")


def json_mutated(data: bytes, pick: random.Random) -> bytes | None:
    """``data`` with one to four changes to the values of the first JSON object in it; None if it holds none."""
    start = data.find(b"{")
    if start < 0:
        return None
    text = data[start:].decode("latin-1")
    try:
        document, stop = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    try:
        for _ in range(pick.randint(1, 4)):
            document = _change_value(document, pick)
        changed = json.dumps(document, separators=(",", ":"))
    except (ValueError, RecursionError):  # too deep, or a number of too many digits to be written
        return None
    return data[:start] + changed.encode() + text[stop:].encode("latin-1")


def _change_value(document: Any, pick: random.Random) -> Any:
    """The document after one change at a random place: another value, a lost, doubled or renamed one."""
    places: list[tuple[Any, Any]] = []
    pending = [document] if isinstance(document, dict | list) else []
    while pending and len(places) < _MAX_NODES:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        pending += [node[key] for key in keys if isinstance(node[key], dict | list)]
    if not places:
        return copy.deepcopy(pick.choice(ODD_VALUES))
    node, key = pick.choice(places)
    match pick.randint(0, 5):
        case 0 if isinstance(node, dict):
            node[str(pick.choice(ODD_VALUES))] = node.pop(key)
        case 1:
            del node[key]
        case 2 if isinstance(node, list):
            node[key:key] = [copy.deepcopy(node[key]) for _ in range(pick.randint(1, 3))]
        case 3:
            other, at = pick.choice(places)
            if at in other if isinstance(other, dict) else at < len(other):
                node[key] = copy.deepcopy(other[at])
        case 4 if isinstance(node[key], int | float):
            node[key] += pick.choice((-1, 1, -2, 2, 8, 1 << 20))
        case _:
            node[key] = copy.deepcopy(pick.choice(ODD_VALUES))
    return document
