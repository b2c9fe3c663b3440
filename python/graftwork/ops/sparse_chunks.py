"""Sparse differences of many chunks in one call, from plain buffers: what a weight sync does at every step.

The payloads are those of :func:`graftwork.ops.entropy_delta.encode_sparse_delta`. A tensor operation costs some tens of
microseconds a call under the interpreter's lock, as much as the work on a chunk; here a call is a table of addresses,
and the lock is released for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.reference import sparse_delta as reference

_DTYPES = {
    (2, False): torch.int16,
    (2, True): torch.float16,
    (4, False): torch.int32,
    (4, True): torch.float32,
}


class SparseChunk(NamedTuple):
    """One chunk on the host, on one thread's time.

    ``payload`` turns the words of `base` into those of `words`, which have as many bytes; to change words in place,
    the two are the same memory. ``word_bytes`` is 2 or 4, ``is_float`` says whether the words are
    ordered as sign and magnitude.
    """

    base: memoryview
    payload: memoryview
    words: memoryview
    word_bytes: int
    is_float: bool


def apply_sparse_chunks_(chunks: Sequence[SparseChunk], *, reverse: bool = False) -> int:
    """Change every chunk's `words` in place, or change them back: the first malformed payload ends it.

    Returns
    -------
    int
        The chunks before the malformed one, or all of them: these are changed, and the others untouched.

    Raises
    ------
    ValueError
        A chunk is not whole aligned words; none is changed.
    """
    rows = _table(chunks)
    if _native.is_there("_core"):
        return _run("apply_sparse_chunks", rows, reverse)
    return _each(chunks, lambda base, payload, words: reference.apply_sparse_delta(words, payload, reverse))


def decode_sparse_chunks(chunks: Sequence[SparseChunk]) -> int:
    """Fill every chunk's `words` from its `base`: the first malformed payload ends it.

    Returns
    -------
    int
        The chunks before the malformed one, or all of them; what the others' `words` hold is undefined.

    Raises
    ------
    ValueError
        A chunk is not whole aligned words, or `base` and `words` differ in size; none is written to.
    """
    rows = _table(chunks)
    if _native.is_there("_core"):
        return _run("decode_sparse_chunks", rows)
    return _each(chunks, reference.decode_sparse_delta)


def _table(chunks: Sequence[SparseChunk]) -> list[tuple[int, int, int, int, int, int, bool]]:
    """The chunks as the native code takes them, checked."""
    rows = []
    for number, (base, payload, words, word_bytes, is_float) in enumerate(chunks):
        nbytes, to = len(words), _native.address(words)
        start = to if base is words else _native.address(base)
        if len(base) != nbytes:
            raise ValueError(
                f"base and words of chunk {number} must have as many bytes, got {len(base)} and {nbytes}"
            )
        if nbytes % word_bytes or start % word_bytes or to % word_bytes:
            raise ValueError(
                f"the words of chunk {number} must be whole, and start at a multiple of {word_bytes}"
            )
        place = _native.address(payload)
        rows.append((start, to, place, len(payload), nbytes // word_bytes, word_bytes, is_float))
    return rows


def _run(name: str, rows: Sequence[tuple[int, ...]], *options: bool) -> int:
    table, whole = torch.tensor(rows, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    _native.query("_core", name, table, whole, len(rows), *options)
    return int(whole)


def _each(chunks: Sequence[SparseChunk], change: Callable[[Tensor, Tensor, Tensor], None]) -> int:
    """By the reference, as far as the payloads are whole."""
    for number, (base, payload, words, word_bytes, is_float) in enumerate(chunks):
        dtype = _DTYPES[word_bytes, is_float]
        code = _tensor(bytearray(payload), torch.uint8)
        try:
            change(_tensor(base, dtype), code, _tensor(words, dtype))
        except ValueError:
            return number
    return len(chunks)


def _tensor(data: bytearray | memoryview, dtype: torch.dtype) -> Tensor:
    """The bytes as a tensor on the same memory; torch refuses to make one of none."""
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
