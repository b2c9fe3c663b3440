"""Real text that is on the machine already; the same installation gives the same text in the same order."""

from __future__ import annotations

from bench.corpora.debian import fortunes, manual_pages
from bench.corpora.pairs import Labelled, Pair, Split, docstring_code_pairs, docstring_packages
from bench.corpora.source import PACKAGES, Definition, Module, definitions, modules
from bench.corpora.text import installed_text

__all__ = [
    "PACKAGES",
    "Definition",
    "Labelled",
    "Module",
    "Pair",
    "Split",
    "definitions",
    "docstring_code_pairs",
    "docstring_packages",
    "fortunes",
    "installed_text",
    "manual_pages",
    "modules",
]
