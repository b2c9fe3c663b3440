"""An open store: what it holds, and how to get it back."""

from __future__ import annotations

from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.checkpoint.closing import Closing
from graftwork.checkpoint.digest import LEAF_BYTES, bytes_digest
from graftwork.checkpoint.files import FolderLock
from graftwork.delta.pipeline import Progress, default_threads, ordered_map
from graftwork.delta.source import leaf_ranges
from graftwork.errors import ChecksumError, DeltaError, StoreError
from graftwork.store.checkout import checkout_entry
from graftwork.store.entry import EntryManifest, parse_entry
from graftwork.store.objects import ObjectFolder
from graftwork.store.results import CheckoutResult, EntryInfo, EntryReport, GcReport, VerifyReport
from graftwork.store.root import OBJECTS, READER_LOCK, Root, read_root
from graftwork.store.sources import Sources

if TYPE_CHECKING:
    from torch import Tensor, nn


def open_store(path: str | PathLike[str], base: str | PathLike[str] | None = None) -> Store:
    """Open the store at ``path``; ``base`` is the folder of its base, unless the store holds that itself.

    Raises
    ------
    StoreError, ChecksumError, VersionTooNew
        ``path`` is no store, or a damaged one, or one of a newer version.
    """
    return Store(path, base)


class Store(Closing):
    """A store of fine-tunes; use `open_store`. A context manager: leaving it closes the files it has open.

    It shows the store as it was when opened; `verify`, `remove` and `gc` look again, and show it as it is then.
    """

    def __init__(self, path: str | PathLike[str], base: str | PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.root: Root = read_root(self.path)
        self.objects = ObjectFolder(self.path / OBJECTS)
        self.sources = Sources(self, None if base is None else Path(base))
        self._entries: dict[str, EntryManifest] = {}

    def close(self) -> None:
        """Close every file that the store has open."""
        self.sources.close()

    @property
    def base_digest(self) -> str:
        """Digest of the base that the entries are differences to, themselves or through other entries."""
        return self.root.base

    @property
    def holds_base(self) -> bool:
        """Whether an entry of the store is the base itself."""
        return self.sources.holds_base

    def entries(self) -> list[EntryInfo]:
        """The store's entries, sorted by name."""
        rows = []
        for name in sorted(self.root.entries):
            entry, parent = self.entry(name), None
            with suppress(StoreError):  # `verify` says what is wrong with it
                parent = self.sources.parent(name)
            rows.append(
                EntryInfo(
                    name,
                    entry.content,
                    entry.base,
                    len(entry.tensors),
                    entry.file_bytes,
                    entry.stored_bytes,
                    parent,
                )
            )
        return rows

    def entry(self, name: str) -> EntryManifest:
        """The manifest of entry ``name``; StoreError if there is none."""
        digest = self.manifest_digest(name)  # not the name: another writer may have replaced the entry
        if digest not in self._entries:
            self._entries[digest] = parse_entry(self.objects.read(digest, "json"), name)
        return self._entries[digest]

    def manifest_digest(self, name: str) -> str:
        """The digest of the manifest of entry ``name``; StoreError if there is no such entry."""
        if name not in self.root.entries:
            raise StoreError(
                "the store has no such entry",
                file=self.path,
                got=repr(name),
                wanted=f"one of {', '.join(sorted(self.root.entries)) or '(it is empty)'}",
            )
        return self.root.entries[name]

    def checkout(
        self,
        name: str,
        out: str | PathLike[str],
        base: str | PathLike[str] | None = None,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> CheckoutResult:
        """Restore entry ``name`` into the new folder ``out``, every file byte for byte.

        The base is read and checked whole before anything is written; then each restored chunk is checked
        against its digest, and the folder appears by one rename.

        Raises
        ------
        BaseRequired, BaseMismatch
            No base was given and the store does not hold it, or another one was given.
        TargetExists
            ``out`` is there already and is not an empty folder.
        ChecksumError
            The store is damaged. Nothing is left at ``out`` then.
        """
        threads = threads or default_threads()
        entry = self.entry(name)
        if Path(out).resolve().is_relative_to(self.path.resolve()):
            raise StoreError(
                "a checkout inside the store would damage it", file=out, remedy="choose another path"
            )
        with FolderLock(self.path / READER_LOCK, shared=True):
            if base is not None:
                self.sources.set_base(Path(base))
            if self.sources.needs_base(name):
                self.sources.check_base(threads, progress)
            self.sources.check_entry(name)
            source = self.sources.source(name)
            return checkout_entry(
                name, entry, self.objects, source, Path(out), threads=threads, progress=progress
            )

    def tensor(self, name: str, key: str) -> Tensor:
        """One tensor of entry ``name``, without reading the others; its bytes have been checked.

        Returns a CPU tensor of the stored dtype and shape that owns its memory; F4 has two numbers an element.
        """
        import torch

        from graftwork.checkpoint.dtypes import torch_form

        entry = self.entry(name)
        meta = entry.tensors.get(key)
        if meta is None:
            raise StoreError("the entry has no such tensor", file=self.path, tensor=key, got=name)
        form = torch_form(meta.dtype, meta.shape)
        if form is None:
            got = f"{meta.dtype} of shape {list(meta.shape)}"
            raise StoreError("torch has no tensor of this type", tensor=key, got=got, remedy="use checkout")
        dtype, shape = form
        self.sources.check_size(name, key)
        storage = torch.empty(meta.nbytes, dtype=torch.uint8)
        self._restore(name, key, memoryview(storage.numpy().data))
        return storage.view(dtype).view(shape) if meta.nbytes else torch.empty(shape, dtype=dtype)

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """All tensors of entry ``name``; tied ones are there as often as the fine-tune's files name them."""
        return {key: self.tensor(name, key) for key in self.entry(name).tensors}

    def load_into(self, model: nn.Module, name: str) -> None:
        """Copy entry ``name`` into ``model``, one tensor at a time.

        Raises StoreError, before anything is copied, if names, shapes or dtypes do not agree. Parameters that
        are missing from the entry are accepted if they share memory with one that is there (tied weights).
        """
        from graftwork.store.load import load_into

        load_into(model, self, name)

    def verify(self, deep: bool = False, *, progress: Progress | None = None) -> VerifyReport:
        """Check the store's structure and manifests; with ``deep`` also every byte, by restoring every tensor."""
        from graftwork.store.verify import verify

        return verify(self, deep=deep, progress=progress)

    def remove(self, name: str) -> None:
        """Take entry ``name`` out of the store; `gc` frees what nothing refers to any more."""
        from graftwork.store.collect import remove

        remove(self, name)

    def gc(self) -> GcReport:
        """Remove every file that no entry refers to, and what killed writers left."""
        from graftwork.store.collect import collect

        return collect(self)

    def squash(
        self,
        name: str,
        base: str | PathLike[str] | None = None,
        *,
        codec: str = "auto",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> EntryReport:
        """Make entry ``name`` a difference to the store's base itself, so that it needs no other entry.

        What it restores stays the same, and so do all other entries; `gc` frees what nothing refers to any more.
        The base must be at hand. Status ``squashed``, or ``unchanged`` if it was no difference to an entry.

        Raises
        ------
        BaseRequired, BaseMismatch
            No base was given and the store does not hold it, or another one was given.
        ChecksumError
            The store is damaged. It is left as it was.
        """
        from graftwork.store.squash import squash

        if base is not None:
            self.sources.set_base(Path(base))
        return squash(self, name, codec=codec, threads=threads or default_threads(), progress=progress)

    def _restore(self, name: str, key: str, target: memoryview) -> None:
        source = self.sources.source(name)
        record = source.record(key)

        def restore(piece: tuple[int, int]) -> None:
            offset, length = piece
            source.read_into(key, offset, target[offset : offset + length])

        try:
            if record.nbytes <= LEAF_BYTES:
                source.read_into(key, 0, target)
            else:
                for _ in ordered_map(restore, leaf_ranges(record.nbytes), threads=default_threads()):
                    pass
            if record.codec == "same" and bytes_digest(target) != record.digest:
                raise ChecksumError("a restored tensor differs from its digest", tensor=key)
        except DeltaError:
            if record.basis is not None and not self.sources.base_checked and self.sources.needs_base(name):
                self.sources.check_base(default_threads(), None)  # a wrong base explains it better
            raise
