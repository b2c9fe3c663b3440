"""Change a chunk in place, and change it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

from graftwork.delta.basis import Words, words_of
from graftwork.errors import DeltaError
from graftwork.store.sync.payload import Leaf


class InPlace(Protocol):
    """What every reversible method that changes anything has."""

    def apply_(
        self, chunk: memoryview, payload: memoryview, words: Words, *, reverse: bool = False
    ) -> None: ...


def restore_leaf(leaf: Leaf, before: memoryview, payload: memoryview, after: memoryview) -> None:
    """Fill ``after`` with the chunk that ``leaf`` makes of ``before``; they are the same memory if it changes nothing."""
    if not leaf.changes:
        _check_empty(leaf, payload)
        return
    with _named(leaf):
        leaf.method.decode(before, payload, words_of(leaf.record.dtype), after)


def apply_leaf(leaf: Leaf, chunk: memoryview, payload: memoryview, *, reverse: bool = False) -> None:
    """Turn ``chunk`` from what it was before ``leaf`` into what it is after it; back, if ``reverse``.

    On an exception ``chunk`` holds anything.
    """
    if not leaf.changes:
        _check_empty(leaf, payload)
        return
    with _named(leaf):
        cast(InPlace, leaf.method).apply_(chunk, payload, words_of(leaf.record.dtype), reverse=reverse)


def _check_empty(leaf: Leaf, payload: memoryview) -> None:
    if payload:
        raise DeltaError("a chunk stored as 'same' has a payload", tensor=leaf.record.name, wanted="none")


@contextmanager
def _named(leaf: Leaf) -> Iterator[None]:
    """Errors say which chunk they are about."""
    try:
        yield
    except DeltaError as error:
        raise DeltaError(
            f"chunk {leaf.number}: {error.what}", tensor=leaf.record.name, got=error.got, wanted=error.wanted
        ) from error
