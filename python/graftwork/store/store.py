"""An open store: what it holds, and how to get it back."""

from __future__ import annotations

from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from graftwork.checkpoint import Checkpoint, open_checkpoint
from graftwork.checkpoint.digest import bytes_digest
from graftwork.checkpoint.files import FolderLock
from graftwork.delta.basis import BasisReader
from graftwork.delta.container import DeltaFile
from graftwork.delta.pipeline import Progress, default_threads, ordered_map
from graftwork.delta.source import CheckpointSource, TensorSource, describe, leaf_ranges
from graftwork.errors import BaseRequired, ChecksumError, StoreError
from graftwork.store.base import EntrySource, check_record, check_same_base
from graftwork.store.checkout import checkout_entry
from graftwork.store.entry import EntryManifest, parse_entry
from graftwork.store.objects import ObjectFolder
from graftwork.store.results import CheckoutResult, EntryInfo, GcReport, VerifyReport
from graftwork.store.root import OBJECTS, READER_LOCK, Root, read_root

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


class Store:
    """A store of fine-tunes; use `open_store`. A context manager: leaving it closes the files it has open.

    It shows the store as it was when opened; `verify`, `remove` and `gc` look again, and show it as it is then.
    """

    def __init__(self, path: str | PathLike[str], base: str | PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.root: Root = read_root(self.path)
        self.objects = ObjectFolder(self.path / OBJECTS)
        self._base_path = None if base is None else Path(base)
        self._entries: dict[str, EntryManifest] = {}
        self._deltas: dict[str, DeltaFile] = {}
        self._stack = ExitStack()
        self._base: TensorSource | None = None
        self._base_checked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file that the store has open."""
        self._stack.close()
        self._deltas.clear()
        self._base, self._base_checked = None, False

    @property
    def base_digest(self) -> str:
        """Digest of the base that the entries are differences to."""
        return self.root.base

    @property
    def holds_base(self) -> bool:
        """Whether an entry of the store is the base itself."""
        return self._held_base() is not None

    def entries(self) -> list[EntryInfo]:
        """The store's entries, sorted by name."""
        rows = []
        for name in sorted(self.root.entries):
            entry = self.entry(name)
            rows.append(
                EntryInfo(
                    name, entry.content, entry.base, len(entry.tensors), entry.file_bytes, entry.stored_bytes
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
                self.set_base(base)
            if entry.base is not None:
                self.check_base(threads, progress)
            source = self.source(entry)
            return checkout_entry(
                name, entry, self.objects, source, Path(out), threads=threads, progress=progress
            )

    def tensor(self, name: str, key: str) -> Tensor:
        """One tensor of entry ``name``, without reading the others; its bytes have been checked.

        Returns a CPU tensor of the stored dtype and shape that owns its memory.
        """
        import torch

        from graftwork.checkpoint.dtypes import torch_dtype

        entry = self.entry(name)
        meta = entry.tensors.get(key)
        if meta is None:
            raise StoreError("the entry has no such tensor", file=self.path, tensor=key, got=name)
        dtype = torch_dtype(meta.dtype)
        if dtype is None:
            raise StoreError("torch has no such dtype", tensor=key, got=meta.dtype, remedy="use checkout")
        storage = torch.empty(meta.nbytes, dtype=torch.uint8)
        self._restore(entry, key, memoryview(storage.numpy().data))
        return storage.view(dtype).view(meta.shape) if meta.nbytes else torch.empty(meta.shape, dtype=dtype)

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

    def set_base(self, base: str | PathLike[str]) -> None:
        """Use the folder ``base`` as the base from now on."""
        if self._base_path is None or Path(base) != self._base_path:
            self._base_path, self._base, self._base_checked = Path(base), None, False

    def source(self, entry: EntryManifest) -> EntrySource:
        """The entry's tensors, restored on demand. Its delta files are opened and checked here."""
        self.open_deltas(entry)
        base = None if entry.base is None else self.base_source()
        return EntrySource(entry, self.delta, BasisReader(base))

    def open_deltas(self, entry: EntryManifest) -> None:
        """Open the delta files that hold the entry's tensors, and check that they do."""
        for tensor in entry.tensors.values():
            check_record(entry, tensor, self.delta(tensor.object))

    @property
    def base_at_hand(self) -> bool:
        """Whether the base was given, or is held."""
        return self._base_path is not None or self.holds_base

    def delta(self, digest: str) -> DeltaFile:
        """The delta file with ``digest``, open."""
        if digest not in self._deltas:
            path = self.objects.find(digest, "safetensors")
            self._deltas[digest] = self._stack.enter_context(DeltaFile(path))
        return self._deltas[digest]

    def base_source(self) -> TensorSource:
        """The base's tensors: from the folder that was given, else from the entry that is the base."""
        if self._base is None:
            held = self._held_base()
            if self._base_path is not None:
                checkpoint: Checkpoint = self._stack.enter_context(open_checkpoint(self._base_path))
                self._base = CheckpointSource(checkpoint)
            elif held is not None:
                self._base = self.source(held)
            else:
                raise BaseRequired(
                    "the store refers to its base by digest and does not hold it",
                    file=self.path,
                    wanted=f"the base with digest {self.root.base}",
                    remedy="give the base's folder (--base DIR), or pack with --with-base",
                )
        return self._base

    def _held_base(self) -> EntryManifest | None:
        for name in sorted(self.root.entries):
            entry = self.entry(name)
            if entry.base is None and entry.tensors_digest == self.root.base:
                return entry
        return None

    def check_base(self, threads: int, progress: Progress | None) -> None:
        """Read the given base whole, once, and refuse it if it is not the store's."""
        source = self.base_source()
        if self._base_path is None or self._base_checked:
            return  # a held base is checked chunk by chunk as it is read
        given = describe(source, threads=threads, stage="check base", progress=progress)
        listing = self.objects.read(self.root.description, "json")
        check_same_base(given, self.root.base, listing, self._base_path)
        self._base_checked = True

    def _restore(self, entry: EntryManifest, key: str, target: memoryview) -> None:
        tensor = entry.tensors[key]
        delta = self.delta(tensor.object)
        check_record(entry, tensor, delta)
        record = delta.records[tensor.key]
        basis = BasisReader(None if record.basis is None else self.base_source())
        ranges = list(leaf_ranges(record.nbytes))

        def restore(index: int) -> None:
            offset, length = ranges[index]
            delta.read_chunk(tensor.key, index, basis, target[offset : offset + length])

        try:
            for _ in ordered_map(restore, range(len(ranges)), threads=min(default_threads(), len(ranges))):
                pass
            if record.codec == "same" and bytes_digest(target) != tensor.digest:
                raise ChecksumError("a restored tensor differs from its digest", tensor=key)
        except ChecksumError:
            if record.basis is not None and not self._base_checked:
                self.check_base(default_threads(), None)  # a wrong base explains it better
            raise
