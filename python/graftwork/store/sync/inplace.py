"""Change chunks in place, change them back, or make them beside the words that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from graftwork.delta.basis import Words, words_of
from graftwork.delta.codecs import method_named
from graftwork.errors import DeltaError
from graftwork.store.sync.payload import Leaf

if TYPE_CHECKING:
    from graftwork.ops.sparse_chunks import SparseChunk

_SPARSE = method_named("sparse").code


class InPlace(Protocol):
    """What every reversible method that changes anything has."""

    def apply_(
        self, chunk: memoryview, payload: memoryview, words: Words, *, reverse: bool = False
    ) -> None: ...


class LeafWork(NamedTuple):
    """A chunk, the words before it, its payload, and where its words go: the same memory if nothing changes."""

    leaf: Leaf
    before: memoryview
    payload: memoryview
    after: memoryview


def is_sparse(leaf: Leaf) -> bool:
    """Whether `apply_sparse_leaves` can change this chunk."""
    return leaf.chunk.method == _SPARSE


def restore_leaves(work: Sequence[LeafWork]) -> None:
    """Fill every ``after`` with the chunk that its ``leaf`` makes of ``before``."""
    sparse = [one for one in work if is_sparse(one.leaf)]
    if sparse:
        from graftwork.ops.sparse_chunks import decode_sparse_chunks

        refuse_from(sparse, decode_sparse_chunks(_chunks(sparse)))
    for leaf, before, payload, after in work:
        if not leaf.changes:
            _check_empty(leaf, payload)
        elif not is_sparse(leaf):
            with _named(leaf):
                leaf.method.decode(before, payload, words_of(leaf.record.dtype), after)


def apply_sparse_leaves(work: Sequence[LeafWork]) -> int:
    """Change chunks that `is_sparse` where they are (``before`` and ``after`` are the same words).

    Returns
    -------
    int
        How many are changed: not all if the next one's payload is malformed, and it and the others are untouched.
    """
    from graftwork.ops.sparse_chunks import apply_sparse_chunks_

    return apply_sparse_chunks_(_chunks(work))


def apply_leaf(leaf: Leaf, chunk: memoryview, payload: memoryview, *, reverse: bool = False) -> None:
    """Turn ``chunk`` from what it was before ``leaf`` into what it is after it; back, if ``reverse``.

    On an exception ``chunk`` holds anything.
    """
    if not leaf.changes:
        _check_empty(leaf, payload)
        return
    with _named(leaf):
        cast(InPlace, leaf.method).apply_(chunk, payload, words_of(leaf.record.dtype), reverse=reverse)


def _chunks(work: Sequence[LeafWork]) -> list[SparseChunk]:
    from graftwork.ops.sparse_chunks import SparseChunk

    chunks = []
    for leaf, before, payload, after in work:
        words = words_of(leaf.record.dtype)
        chunks.append(SparseChunk(before, payload, after, words.nbytes, words.is_float))
    return chunks


def refuse_from(work: Sequence[LeafWork], whole: int) -> None:
    """Raise DeltaError for the first of ``work`` that is not whole, if there is one."""
    if whole < len(work):
        with _named(work[whole].leaf):
            raise DeltaError("a sparse chunk's payload is malformed")


def _check_empty(leaf: Leaf, payload: memoryview) -> None:
    if payload:
        raise DeltaError("a chunk stored as 'same' has a payload", tensor=leaf.record.name, wanted="none")


@contextmanager
def _named(leaf: Leaf) -> Iterator[None]:
    """Errors say which chunk they are about."""
    try:
        yield
    except DeltaError as error:
        raise error.placed(before=f"chunk {leaf.number}: ", tensor=leaf.record.name) from error
