"""Token strings and their rows: which row of one vocabulary is which of another."""

from __future__ import annotations

from collections.abc import Mapping

from graftwork.checkpoint import Checkpoint
from graftwork.errors import VocabularyMismatch

__all__ = ["read_tokens", "row_map"]


def read_tokens(checkpoint: Checkpoint) -> Mapping[str, int] | None:
    """Token string to row, from the tokenizer files beside a model; None where none can be read.

    A tokenizer that cannot be read is none: rows then keep their places, which a report says.
    """
    from graftwork.compose import read_vocabulary

    def read(name: str) -> bytes | None:
        return checkpoint.read_file(name) if name in checkpoint.other_files else None

    try:
        found = read_vocabulary(read, str(checkpoint.path))
    except VocabularyMismatch:
        return None
    return None if found is None else found.tokens


def row_map(
    wanted: Mapping[str, int] | None, rows: int, held: Mapping[str, int] | None, held_rows: int
) -> list[int] | None:
    """For each of ``rows`` rows the row of the other model that is the same token; −1 for none; None: the same places.

    Without the tokens of both, and for rows beyond both tokenizers (padding), a row is the one at the same place. The
    map is None where it says no more than that rows beyond ``held_rows`` have no counterpart.
    """
    if wanted is None or held is None or wanted == held:
        return None
    found = [row if row < held_rows else -1 for row in range(rows)]
    named = set(held.values())
    for row in range(rows):
        if row in named:
            found[row] = -1  # the other model has another token there, unless it turns out to be the same
    for token, row in wanted.items():
        if row < rows:
            place = held.get(token, -1)
            found[row] = place if place < held_rows else -1
    usual = all(place == (row if row < held_rows else -1) for row, place in enumerate(found))
    return None if usual else found
