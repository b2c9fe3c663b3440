"""Names of one model in another's naming: the same tensors under a renamed prefix.

Model classes wrap one another (``model.layers`` in one, ``language_model.model.layers`` or ``layers`` in the next), so the
names of two checkpoints of one architecture may differ in what stands before them all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

__all__ = ["Prefix", "find_prefixes"]

_DEPTH = 4
"""Leading components of a name that may be renamed."""


class Prefix(NamedTuple):
    """Names that begin with ``old`` begin with ``new`` in the other naming."""

    old: str
    new: str

    def rename(self, name: str) -> str:
        """The name in the other naming; one that does not begin with ``old`` is the same in both."""
        return self.new + name.removeprefix(self.old) if name.startswith(self.old) else name


def find_prefixes(wanted: Collection[str], names: Collection[str]) -> list[Prefix]:
    """The renamings under which every name of ``wanted`` is one of ``names``; the identity alone if that is one.

    A renaming is of all names of numbered layers (of all names, if none are); others that do not begin so are the same in
    both. Renamings that lead to the same names are given once. Several mean that it is ambiguous, none that the names are
    not of one architecture.
    """
    held = frozenset(names)
    missing = [name for name in wanted if name not in held]
    if not missing:
        return [Prefix("", "")]
    layers = [name for name in wanted if any(part.isdecimal() for part in name.split("."))] or list(wanted)
    found: dict[tuple[str, ...], Prefix] = {}
    sample = min(layers, key=lambda name: (name in held, name.count("."), name))
    for old in _prefixes(sample):
        if not all(name.startswith(old) for name in layers):
            continue
        rest = sample.removeprefix(old)
        for name in held:
            prefix = Prefix(old, name.removesuffix(rest))
            if not f".{name}".endswith(f".{rest}") or prefix.new.count(".") > _DEPTH:
                continue
            renamed = tuple(map(prefix.rename, sorted(wanted)))
            if all(other in held for other in renamed):
                found.setdefault(renamed, prefix)
    return sorted(found.values())


def _prefixes(name: str) -> Iterator[str]:
    """The name's leading components, none first; at least two components are left, by which it is known."""
    parts = name.split(".")
    for count in range(min(_DEPTH, len(parts) - 2) + 1):
        yield "".join(f"{part}." for part in parts[:count])
