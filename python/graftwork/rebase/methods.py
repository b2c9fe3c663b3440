"""The methods of a rebase, one row each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["METHODS", "Method"]


class Method(NamedTuple):
    """A way to carry a fine-tune over.

    ``does`` is the method that is carried out, ``obeys`` whether a verdict "dont" keeps it from writing.
    """

    title: str
    link: str
    does: str
    obeys: bool


_LINK = "https://arxiv.org/abs/2503.20110"

METHODS = {
    "auto": Method("the difference vector, unless the pre-flight says dont", _LINK, "diff", True),
    "diff": Method("the difference vector, whatever the pre-flight says", _LINK, "diff", False),
}
