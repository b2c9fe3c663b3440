"""Chains: entries that are differences to other entries of the same store.

An entry names what it is a difference to by digest: the store's base, or the tensors of another entry. Which
entry that is follows from the entries that are there: of several that restore the same tensors the one counts
that needs the fewest others, and of these the first by name. So no chain can lead in a circle unless nothing
else is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from graftwork.errors import StoreError

MAX_DEPTH = 16
"""Entries of the longest chain: the one that is a difference to the store's base, and those on top of it."""


class Link(NamedTuple):
    """What an entry is a difference to (None: nothing), and what it restores, each by tensors digest."""

    base: str | None
    tensors_digest: str


class Chains:
    """How the entries of a store stand on each other. ``base`` is the digest of the store's base."""

    def __init__(self, links: Mapping[str, Link], base: str) -> None:
        self._links = links
        self._base = base
        self._depths: dict[str, int] = {}
        self._providers: dict[str, str] = {}
        waiting: dict[str, list[str]] = defaultdict(list)
        reached = []
        for name, link in sorted(links.items()):
            if link.base is None or link.base == base:
                reached.append(name)
            else:
                waiting[link.base].append(name)
        depth = 1
        while reached:
            for name in reached:
                self._depths[name] = depth
                self._providers.setdefault(links[name].tensors_digest, name)
            digests = {links[name].tensors_digest for name in reached}
            reached = sorted(name for digest in digests for name in waiting.pop(digest, ()))
            depth += 1

    def parent(self, link: Link) -> str | None:
        """The entry that ``link`` is a difference to; None if that is the store's base, or nothing.

        Raises StoreError if there is none, or if the chain is too deep.
        """
        if link.base is None or link.base == self._base:
            return None
        parent = self._providers.get(link.base)
        if parent is None:
            raise StoreError(
                "an entry is a difference to one that cannot be restored",
                got=self._reason(link.base),
                wanted=f"an entry whose tensors have digest {link.base}",
                remedy="restore the store from a copy, or pack the fine-tune again",
            )
        if self._depths[parent] >= MAX_DEPTH:
            raise StoreError(
                "a chain of entries is too long",
                got=f"{self._depths[parent] + 1} entries, the last of them on {parent!r}",
                wanted=f"at most {MAX_DEPTH}",
                remedy=f"squash one of them first (graftwork squash STORE {parent})",
            )
        return parent

    def fault(self, name: str) -> StoreError | None:
        """Why entry ``name`` cannot be restored, or None if its chain ends where it should."""
        try:
            self.parent(self._links[name])
        except StoreError as error:
            return error
        return None

    def _reason(self, digest: str) -> str:
        """Why nothing provides ``digest``: no entry has it, or those that have it stand on each other."""
        held: dict[str, Link] = {}
        for _, link in sorted(self._links.items()):
            held.setdefault(link.tensors_digest, link)
        seen = set()
        while digest in held and digest not in seen:
            seen.add(digest)
            digest = held[digest].base or ""
        return (
            "entries that are differences to each other"
            if digest in seen
            else "no such entry, or a damaged one"
        )


def check_change(before: Mapping[str, Link], after: Mapping[str, Link], base: str, changed: str) -> None:
    """Refuse to remove or replace entry ``changed`` if another, or its new self, could not be restored then."""
    old, new = Chains(before, base), Chains(after, base)
    if changed in after and (fault := new.fault(changed)):
        raise fault
    lost = [name for name in after if name in before and not old.fault(name) and new.fault(name)]
    if not lost:
        return
    direct = [name for name in lost if before[name].base == before[changed].tensors_digest] or lost
    raise StoreError(
        f"other entries are differences to {changed!r}",
        got=", ".join(sorted(direct)),
        wanted="an entry that nothing depends on",
        remedy=f"squash them first (graftwork squash STORE {min(direct)}), or remove them first",
    )
