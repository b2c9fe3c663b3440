"""Running text of the installed libraries for language-model training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bench.corpora.pairs import Split, is_held_out
from bench.corpora.source import PACKAGES, Module, definitions, modules


def installed_text(
    kind: Literal["source", "prose"],
    packages: Sequence[str] = PACKAGES,
    *,
    max_chars: int = 1_000_000,
) -> Split[str]:
    """Documents of one kind, one per source file, at most about ``max_chars`` characters in all.

    Parameters
    ----------
    kind : {"source", "prose"}
        ``source``: the files as they stand. ``prose``: the docstrings of each file's functions.
    packages : sequence of str
        Taken from the first package on until ``max_chars`` is reached.

    Returns
    -------
    Split[str]
        Training and held-out documents from disjoint files, in a fixed order.
    """
    train: list[str] = []
    held_out: list[str] = []
    left = max_chars
    for package in packages:
        for module in modules(package):
            if left <= 0:
                return Split(tuple(train), tuple(held_out))
            document = _document(kind, module)[:left]
            if document:
                left -= len(document)
                (held_out if is_held_out(module) else train).append(document)
    return Split(tuple(train), tuple(held_out))


def _document(kind: str, module: Module) -> str:
    if kind == "source":
        return module.text() or ""
    if kind == "prose":
        return "\n\n".join(definition.docstring for definition in definitions([module]))
    raise ValueError(f"installed_text: kind must be 'source' or 'prose', got {kind!r}")
