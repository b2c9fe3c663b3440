"""Two labelled data sets from the docstrings of the installed libraries.

Training and held-out examples never share a source file, and no text occurs twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from bench.corpora.source import PACKAGES, Definition, Module, definitions, modules

FILES_PER_PACKAGE = 240
MAX_FILE_BYTES = 60_000  # larger files are slow to parse and add little that is different
MAX_PER_FILE = 8
Example = TypeVar("Example")


@dataclass(frozen=True, slots=True)
class Split(Generic[Example]):
    """Training and held-out examples from disjoint source files."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


class Pair(NamedTuple):
    """A docstring's first paragraph and the source code that it documents."""

    docstring: str
    code: str


class Labelled(NamedTuple):
    """A docstring's first paragraph and the package that it comes from."""

    docstring: str
    package: str


def docstring_code_pairs(
    packages: Sequence[str] = PACKAGES, *, files_per_package: int = FILES_PER_PACKAGE
) -> Split[Pair]:
    """Docstrings with their code, for retrieval: given the docstring, find the code among all others.

    The packages are interleaved, so that any first part of the examples is a fair sample of all.
    """
    return _split(packages, files_per_package, lambda d: Pair(d.summary, d.code))


def docstring_packages(
    packages: Sequence[str] = PACKAGES, *, files_per_package: int = FILES_PER_PACKAGE
) -> Split[Labelled]:
    """Docstrings with the package they come from, for classification; ordered as the pairs are.

    A docstring that names any of the packages is left out: it would give the answer away.
    """
    names = [name.lower() for name in packages]

    def example(d: Definition) -> Labelled | None:
        told = any(name in d.summary.lower() for name in names)
        return None if told else Labelled(d.summary, d.module.package)

    return _split(packages, files_per_package, example)


def is_held_out(module: Module) -> bool:
    """Whether a file belongs to the held-out fifth."""
    return module.key % 5 == 0


def _split(
    packages: Sequence[str], files_per_package: int, example: Callable[[Definition], Example | None]
) -> Split[Example]:
    def part(held_out: bool) -> tuple[Example, ...]:
        columns = [
            [made for d in column if is_held_out(d.module) == held_out and (made := example(d)) is not None]
            for column in _usable_definitions(tuple(packages), files_per_package)
        ]
        return tuple(_interleave(columns))

    return Split(train=part(False), held_out=part(True))


@lru_cache(maxsize=2)
def _usable_definitions(packages: tuple[str, ...], files_per_package: int) -> list[list[Definition]]:
    """One column of distinct usable definitions per package; parsing is the cost, so it is done once."""
    seen: set[str] = set()
    columns = []
    for package in packages:
        small = (m for m in modules(package) if m.path.stat().st_size <= MAX_FILE_BYTES)
        files = islice(small, files_per_package)
        columns.append(
            [d for module in files for d in islice(_distinct(_usable(module), seen), MAX_PER_FILE)]
        )
    return columns


def _usable(module: Module) -> Iterator[Definition]:
    return filter(_says_enough, definitions([module]))


def _says_enough(definition: Definition) -> bool:
    """Whether docstring and code can be matched: 4 to 60 words, 2 to 60 lines, plain ASCII."""
    summary = definition.summary
    return (
        4 <= summary.count(" ") + 1 <= 60
        and summary.isascii()
        and not summary.startswith((">>>", ".. "))
        and 2 <= definition.code.count("\n") <= 60
    )


def _distinct(candidates: Iterable[Definition], seen: set[str]) -> Iterator[Definition]:
    for definition in candidates:
        texts = {definition.summary.lower(), "".join(definition.code.split())}
        if texts.isdisjoint(seen):
            seen |= texts
            yield definition


def _interleave(columns: Sequence[Sequence[Example]]) -> Iterator[Example]:
    """All examples so that every prefix holds the columns in proportion to their lengths."""
    placed = [
        ((row + 0.5) / len(column), index, example)
        for index, column in enumerate(columns)
        for row, example in enumerate(column)
    ]
    return (example for _, _, example in sorted(placed, key=lambda item: item[:2]))
