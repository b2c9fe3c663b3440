"""The writer of entries: what ``pack`` and ``squash`` do to one store while they hold its writer lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork.delta.pipeline import Progress
from graftwork.delta.source import Description, TensorSource
from graftwork.errors import ChecksumError, StoreError
from graftwork.store.base import check_same_base
from graftwork.store.chains import Link, check_change
from graftwork.store.encode import EntryEncoder, Identity
from graftwork.store.entry import (
    CHAIN_MIN_READER,
    MIN_READER,
    EntryManifest,
    StoredFile,
    StoredTensor,
    parse_entry,
)
from graftwork.store.layout import checkpoint_content, store_files
from graftwork.store.objects import ObjectFolder
from graftwork.store.results import EntryReport
from graftwork.store.root import FILE, OBJECTS, Root, read_root, write_root
from graftwork.store.stored import Readable, StoredCheckpoint, describe_readable


@dataclass(frozen=True)
class PackBase:
    """What entries are packed against. ``own`` says that it is an entry of the very store that is written to."""

    where: Path
    source: TensorSource
    described: Description
    check_unchanged: Callable[[], None]
    own: bool = False


class Packer:
    """One run of a writer on one store, under its writer lock."""

    def __init__(
        self, store: Path, base: PackBase, effort: str, threads: int, progress: Progress | None
    ) -> None:
        self._store = store
        self._base = base
        self._effort = effort
        self._threads = threads
        self._progress = progress
        self._objects = ObjectFolder(store / OBJECTS, threads)
        self.root = read_root(store, to_write=True) if (store / FILE).exists() else None
        self._entries: dict[str, EntryManifest] = {}
        if self.root is not None:
            for name, digest in self.root.entries.items():
                self._entries[name] = parse_entry(self._objects.read(digest, "json"), name)
            if not base.own:
                self._check_base(self.root)

    def _check_base(self, root: Root) -> None:
        listing = self._objects.read(root.description, "json")
        held = [
            name
            for name, e in sorted(self._entries.items())
            if e.tensors_digest == self._base.described.digest
        ]
        remedy = f"its entry {held[0]!r} has these tensors: give {self._store}:{held[0]}" if held else None
        check_same_base(self._base.described, root.base, listing, self._base.where, remedy)

    def find_unchanged(self, opened: Mapping[str, Readable], *, alone: str | None, replace: bool) -> set[str]:
        """Names whose entries hold this content already; other content under a taken name is an error.

        The entry ``alone`` shall need no base: one that is stored as differences is packed again. Nothing may be
        written that takes from another entry what that is a difference to.
        """
        unchanged: set[str] = set()
        links = {name: entry.link for name, entry in self._entries.items()}
        for name, checkpoint in opened.items():
            digest = f"new: {name}"
            if name in self._entries:
                digest, same = self._compare(name, checkpoint)
                if same and (name != alone or self._entries[name].base is None):
                    unchanged.add(name)
                    continue
                if not same and not replace:
                    raise StoreError(
                        "the store has an entry of this name with other content",
                        file=self._store,
                        got=name,
                        remedy="give another name (NAME=DIR), or replace the entry (--replace)",
                    )
            changed = {**links, name: Link(None if name == alone else self._base.described.digest, digest)}
            if self.root is not None:
                check_change(links, changed, self.root.base, name)
            links = changed
        return unchanged

    def _compare(self, name: str, checkpoint: Readable) -> tuple[str, bool]:
        """The tensors digest of ``checkpoint``, and whether entry ``name`` has its content."""
        described = describe_readable(
            checkpoint, threads=self._threads, stage=f"compare {name}", progress=self._progress
        )
        content = checkpoint_content(checkpoint, described.digest)
        return described.digest, content == self._entries[name].content

    def report_unchanged(self, name: str) -> EntryReport:
        """The report of an entry that was there already."""
        return unchanged_report(name, self._entries[name])

    def pack_entry(self, name: str, checkpoint: Readable, *, alone: bool, status: str = "") -> EntryReport:
        """Store one checkpoint, as differences to the base or alone, and commit it."""
        status = status or ("replaced" if name in self._entries else "added")
        layout = store_files(self._objects, checkpoint)
        base = None if alone else self._base.described
        encoder = EntryEncoder(
            checkpoint,
            None if base is None else self._base.source,
            base,
            self._known_tensors(None if base is None else base.digest),
            effort=self._effort,
            threads=self._threads,
            stage=f"pack {name}",
            progress=self._progress,
        )
        encoder.store(self._objects)
        checkpoint.check_unchanged()
        self._base.check_unchanged()
        digest = encoder.tensors_digest()
        if isinstance(checkpoint, StoredCheckpoint) and digest != checkpoint.entry.tensors_digest:
            raise ChecksumError("an entry's tensors differ from its digest", file=checkpoint.path)
        manifest = EntryManifest(
            None if base is None else base.digest,
            digest,
            layout,
            encoder.stored_tensors(),
            encoder.facts(),
            self._added_bytes(name, layout, encoder.deltas),
            self._min_reader(base),
        )
        self._commit(name, manifest)
        return EntryReport(
            name,
            manifest.content,
            status,
            manifest.file_bytes,
            manifest.stored_bytes,
            len(manifest.tensors),
            encoder.codec_use(),
            {kind: list(rows) for kind, rows in manifest.facts.items()},
        )

    def _min_reader(self, base: Description | None) -> tuple[int, int]:
        chained = base is not None and self.root is not None and base.digest != self.root.base
        return CHAIN_MIN_READER if chained else MIN_READER

    def _known_tensors(self, base: str | None) -> dict[Identity, StoredTensor]:
        """The tensors that need not be stored again by an entry with this base, whose objects are there.

        It may lean only on entries with the same base, and on those that need none: what others hold may be
        differences to something else. Of several places the one whose entry's name comes last counts, in whatever
        order they were packed.
        """
        entries = [entry for _, entry in sorted(self._entries.items()) if entry.base in (None, base)]
        objects = {tensor.object for entry in entries for tensor in entry.tensors.values()}
        there = {digest for digest in objects if self._objects.locate(digest, "safetensors").is_file()}
        return {
            (tensor.digest, tensor.dtype, tensor.shape): tensor
            for entry in entries
            for tensor in entry.tensors.values()
            if tensor.object in there
        }

    def _added_bytes(self, name: str, layout: Sequence[StoredFile], deltas: Sequence[str]) -> int:
        """Bytes of the objects that no other committed entry refers to; leftovers of killed runs do not count."""
        others = [entry for other, entry in self._entries.items() if other != name]
        held = {str(file.blob["object"]) for entry in others for file in entry.files}
        held |= {tensor.object for entry in others for tensor in entry.tensors.values()}
        new = {(str(file.blob["object"]), "zst") for file in layout}
        new |= {(delta, "safetensors") for delta in deltas}
        return sum(
            self._objects.locate(digest, suffix).stat().st_size
            for digest, suffix in new
            if digest not in held
        )

    def _commit(self, name: str, manifest: EntryManifest) -> None:
        digest = self._objects.put(manifest.to_bytes(), "json")
        if self.root is None:
            described = self._base.described
            self.root = Root(described.digest, self._objects.put(described.to_json(), "json"))
        self.root = self.root.with_entry(name, digest)
        write_root(self._store, self.root)
        self._entries[name] = manifest


def unchanged_report(name: str, held: EntryManifest) -> EntryReport:
    """The report of an entry that nothing was done to."""
    facts = {kind: list(rows) for kind, rows in held.facts.items()}
    return EntryReport(name, held.content, "unchanged", held.file_bytes, 0, len(held.tensors), {}, facts)
