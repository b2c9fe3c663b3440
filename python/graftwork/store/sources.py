"""Where the tensors of a store's entries come from: delta files, other entries, and the base."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.checkpoint import Checkpoint, open_checkpoint
from graftwork.checkpoint.digest import LEAF_BYTES
from graftwork.delta.basis import check_basis
from graftwork.delta.container import DeltaFile
from graftwork.delta.pipeline import Progress
from graftwork.delta.source import CheckpointSource, DescribedTensor, Description, TensorSource, describe
from graftwork.errors import BaseRequired, ChecksumError, GraftworkError, StoreError
from graftwork.store.base import EntrySource, LazySource, check_same_base
from graftwork.store.chains import Chains, Link

if TYPE_CHECKING:
    from graftwork.store.store import Store


class Sources:
    """The open files of one `Store`, and the sources on them. Each is opened once, when it is first needed."""

    def __init__(self, store: Store, base: Path | None) -> None:
        self._store = store
        self._base_path = base
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._deltas: dict[str, DeltaFile] = {}
        self._entries: dict[str, EntrySource] = {}
        self._base: TensorSource | None = None
        self._given: Checkpoint | None = None
        self._described: Description | None = None
        self._chains: tuple[object, Chains] | None = None

    def close(self) -> None:
        """Close every open file."""
        self._stack.close()
        self._deltas.clear()
        self._forget_base()

    def _forget_base(self) -> None:
        self._entries.clear()
        self._base, self._given, self._described = None, None, None

    def set_base(self, base: Path) -> None:
        """Use the folder ``base`` as the base from now on."""
        if base != self._base_path:
            self._base_path = base
            self._forget_base()

    # ---- chains

    def links(self) -> dict[str, Link]:
        """What each entry is a difference to, and restores; those that cannot be read count as absent."""
        links = {}
        for name in self._store.root.entries:
            with suppress(GraftworkError, OSError):
                links[name] = self._store.entry(name).link
        return links

    def chains(self) -> Chains:
        """How the entries stand on each other."""
        root = self._store.root
        if self._chains is None or self._chains[0] is not root:
            self._chains = root, Chains(self.links(), root.base)
        return self._chains[1]

    def parent(self, name: str) -> str | None:
        """The entry that ``name`` is a difference to; None if that is the store's base, or nothing."""
        link = self._store.entry(name).link
        if link.base is None or link.base == self._store.root.base:
            return None  # the other entries' manifests need not be read
        return self.chains().parent(link)

    def needs_base(self, name: str) -> bool:
        """Whether the entry cannot be restored without the store's base."""
        if self._store.entry(name).base is None:
            return False
        parent = self.parent(name)
        return parent is None or self.needs_base(parent)

    # ---- entries

    def source(self, name: str) -> EntrySource:
        """The entry's tensors, restored on demand; nothing is opened yet."""
        digest = self._store.manifest_digest(name)
        with self._lock:
            if digest not in self._entries:
                entry = self._store.entry(name)
                base = None if entry.base is None else LazySource(partial(self._base_of, name))
                self._entries[digest] = EntrySource(entry, self.delta, base)
            return self._entries[digest]

    def _base_of(self, name: str) -> TensorSource:
        parent = self.parent(name)
        return self.base_source() if parent is None else self.source(parent)

    def check_entry(self, name: str) -> None:
        """Open the delta files of the entry and of all that it stands on, and check that they fit together."""
        source, parent = self.source(name), self.parent(name)
        below = None if parent is None else self._store.entry(parent).tensors
        for key in source.metas:
            basis = source.record(key).basis
            if basis is not None and below is not None:
                check_basis(basis, below)
        if parent is not None:
            self.check_entry(parent)

    def check_size(self, name: str, key: str) -> None:
        """Refuse a tensor whose size nothing bears out; to be called before memory is taken for it.

        Its chunk table does, or, for one that equals its base's tensor, that one. A chunk's bytes are always had.
        """
        if self._store.entry(name).tensors[key].nbytes <= LEAF_BYTES:
            return
        record, tensor = self.source(name).record(key), self._store.entry(name).tensors[key]
        if record.codec != "same" or record.basis is None:
            self.delta(tensor.object).chunks(tensor.key)
            return
        below = self.parent(name)
        if below is None and self._base_path is None:
            below = self._held_base()
        metas = self.base_source().metas if below is None else self._store.entry(below).tensors
        check_basis(record.basis, metas)
        if (nbytes := metas[record.basis.name].nbytes) != record.nbytes:
            raise StoreError(
                "a tensor that equals its base's is of another size",
                file=self._store.path,
                tensor=key,
                got=record.nbytes,
                wanted=nbytes,
            )
        if below is not None:
            self.check_size(below, record.basis.name)

    def describe(self, name: str) -> Description:
        """The entry's tensors by digest, leaves too, from its delta files' chunk tables: nothing is restored.

        The base must have been checked if the entry needs it.
        """
        entry = self._store.entry(name)
        described = Description(
            {
                key: DescribedTensor(key, t.dtype, t.shape, t.nbytes, t.digest, self._leaves(name, key))
                for key, t in entry.tensors.items()
            }
        )
        if described.digest != entry.tensors_digest:
            raise ChecksumError("an entry's tensors differ from its digest", file=self._store.path, got=name)
        return described

    def _leaves(self, name: str, key: str) -> tuple[bytes, ...]:
        tensor = self._store.entry(name).tensors[key]
        record = self.source(name).record(key)
        if record.codec != "same" or record.basis is None:
            return tuple(chunk.leaf for chunk in self.delta(tensor.object).chunks(tensor.key)[0])
        parent = self.parent(name)
        if parent is not None:
            return self._leaves(parent, record.basis.name)
        held = self._held_base() if self._described is None else None
        if held is not None:
            return self._leaves(held, record.basis.name)
        return () if self._described is None else self._described.tensors[record.basis.name].leaves

    def delta(self, digest: str) -> DeltaFile:
        """The delta file with ``digest``, open."""
        opened = self._deltas.get(digest)
        if opened is not None:
            return opened
        with self._lock:
            if digest not in self._deltas:
                path = self._store.objects.find(digest, "safetensors")
                self._deltas[digest] = self._stack.enter_context(DeltaFile(path))
            return self._deltas[digest]

    # ---- the base

    @property
    def base_at_hand(self) -> bool:
        """Whether the base was given, or is held."""
        return self._base_path is not None or self.holds_base

    @property
    def holds_base(self) -> bool:
        """Whether an entry of the store is the base itself."""
        return self._held_base() is not None

    def _held_base(self) -> str | None:
        for name in sorted(self._store.root.entries):
            with suppress(GraftworkError, OSError):  # a damaged entry is no reason to refuse the others
                if self._store.entry(name).link == (None, self._store.root.base):
                    return name
        return None

    def base_source(self) -> TensorSource:
        """The base's tensors: from the folder that was given, else from the entry that is the base."""
        with self._lock:
            if self._base is None:
                self._base = self._open_base()
            return self._base

    def _open_base(self) -> TensorSource:
        if self._base_path is not None:
            self._given = self._stack.enter_context(open_checkpoint(self._base_path))
            return CheckpointSource(self._given)
        return self.source(self._required_base())

    def _required_base(self) -> str:
        """The entry that is the base; BaseRequired if there is none."""
        held = self._held_base()
        if held is None:
            raise BaseRequired(
                "the store refers to its base by digest and does not hold it",
                file=self._store.path,
                wanted=f"the base with digest {self._store.root.base}",
                remedy="give the base's folder (--base DIR), or pack with --with-base",
            )
        return held

    @property
    def base_checked(self) -> bool:
        """Whether the given base has been read whole and found to be the right one."""
        return self._described is not None

    def check_base(self, threads: int, progress: Progress | None) -> None:
        """Read the given base whole, once, and refuse it if it is not the store's."""
        source = self.base_source()
        if self._base_path is None or self._described is not None:
            return  # a held base is checked chunk by chunk as it is read
        given = describe(source, threads=threads, stage="check base", progress=progress)
        listing = self._store.objects.read(self._store.root.description, "json")
        check_same_base(given, self._store.root.base, listing, self._base_path)
        self._described = given

    def describe_base(self, threads: int, progress: Progress | None) -> Description:
        """The base by digest, leaves too, after `check_base`."""
        self.check_base(threads, progress)
        return self.describe(self._required_base()) if self._described is None else self._described

    def check_unchanged(self) -> None:
        """Raise `SourceChanged` if the given base changed after it was opened; objects never change."""
        if self._given is not None:
            self._given.check_unchanged()
