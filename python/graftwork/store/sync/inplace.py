"""Change a chunk in place, and change it back."""

from __future__ import annotations

from typing import Protocol, cast

from graftwork.delta.basis import Words, words_of
from graftwork.errors import DeltaError
from graftwork.store.sync.payload import Leaf


class InPlace(Protocol):
    """What every reversible method that changes anything has."""

    def apply_(
        self, chunk: memoryview, payload: memoryview, words: Words, *, reverse: bool = False
    ) -> None: ...


def apply_leaf(leaf: Leaf, chunk: memoryview, payload: memoryview, *, reverse: bool = False) -> None:
    """Turn ``chunk`` from what it was before ``leaf`` into what it is after it; back, if ``reverse``.

    On an exception ``chunk`` holds anything.
    """
    if not leaf.changes:
        if payload:
            raise DeltaError("a chunk stored as 'same' has a payload", tensor=leaf.record.name, wanted="none")
        return
    try:
        cast(InPlace, leaf.method).apply_(chunk, payload, words_of(leaf.record.dtype), reverse=reverse)
    except DeltaError as error:
        raise DeltaError(
            f"chunk {leaf.number}: {error.what}", tensor=leaf.record.name, got=error.got, wanted=error.wanted
        ) from error
