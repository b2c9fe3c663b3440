"""An entry of a store, named ``STORE:NAME``, where a checkpoint is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from graftwork.checkpoint import Checkpoint, Header, TensorInfo, open_checkpoint
from graftwork.checkpoint.files import FolderLock
from graftwork.checkpoint.folder import MAX_JSON_BYTES
from graftwork.checkpoint.ties import find_ties
from graftwork.delta.pipeline import Progress
from graftwork.delta.source import CheckpointSource, Description, TensorSource, describe
from graftwork.errors import StoreError
from graftwork.store.checkout import entry_header
from graftwork.store.root import FILE, READER_LOCK, read_root
from graftwork.store.store import Store, open_store

Source = str | os.PathLike[str]


class StoredCheckpoint:
    """An entry of an open store, read like the checkpoint that was packed; every byte has been checked.

    The store's base must be at hand if the entry needs it, and have been checked.
    """

    def __init__(self, store: Store, name: str) -> None:
        entry = store.entry(name)
        self.store = store
        self.name = name
        self.entry = entry
        self.path = store.path.with_name(f"{store.path.name}:{name}")
        self.source = store.sources.source(name)
        self.headers: Mapping[str, Header] = {
            file.path: entry_header(store.objects, file, entry) for file in entry.files if file.holds_tensors
        }
        self.tensors: Mapping[str, TensorInfo] = {
            info.name: info for header in self.headers.values() for info in header.tensors
        }
        self._files = {file.path: file for file in entry.files}
        self.other_files = tuple(file.path for file in entry.files if not file.holds_tensors)
        metadata = {k: v for header in self.headers.values() for k, v in header.metadata.items()}
        self.config = self._read_config()
        self.tied: Mapping[str, str] = find_ties(self.tensors, metadata, self.config)

    def _read_config(self) -> dict[str, Any] | None:
        if "config.json" not in self.other_files:
            return None
        text = self.store.objects.blob(self._files["config.json"].blob, MAX_JSON_BYTES)
        try:
            config = json.loads(text)
        except (ValueError, RecursionError):  # someone else's store: pack refuses such a file
            return None
        return config if isinstance(config, dict) else None

    def file_size(self, file: str) -> int:
        """Size in bytes of one of the entry's files."""
        return self._files[file].nbytes

    def file_pieces(self, file: str) -> Iterator[bytes]:
        """The bytes of one of `other_files`, piece by piece; ChecksumError at the end if they are damaged."""
        return self.store.objects.blob_pieces(self._files[file].blob)

    def read_into(self, info: TensorInfo, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with bytes of a tensor from byte ``offset`` of it; thread-safe."""
        self.source.read_into(info.name, offset, buffer)

    def describe(self) -> Description:
        """The tensors by digest, leaves too; nothing is restored for it."""
        return self.store.sources.describe(self.name)

    def check_unchanged(self) -> None:
        """Raise `SourceChanged` if the base's files changed; those of a store never do."""
        self.store.sources.check_unchanged()


Readable = Checkpoint | StoredCheckpoint


def find_entry(source: Source) -> tuple[Path, str] | None:
    """The store and the name that ``STORE:NAME`` stands for; None if ``source`` is a path.

    What exists under that very path is a path. A store's own path may hold colons.
    """
    text = os.fspath(source)
    if Path(text).exists():
        return None
    parts = [(Path(text[:at]), text[at + 1 :]) for at, mark in enumerate(text) if mark == ":" and at]
    found = [(store, name) for store, name in parts if name and "/" not in name and store.is_dir()]
    return next(
        ((store, name) for store, name in found if (store / FILE).is_file()), found[0] if found else None
    )


def check_store_base(base: Source | None, *sources: Source | Checkpoint) -> None:
    """Refuse a base for the entries of a store where no source is such an entry."""
    if base is None or any(not isinstance(source, Checkpoint) and find_entry(source) for source in sources):
        return
    raise StoreError(
        "a base for the entries of a store is given, and there is no such entry to read",
        file=base,
        wanted="STORE:NAME, an entry of a store that is there",
        remedy="leave --base (store_base) out, or check the name",
    )


@contextmanager
def open_stored(
    store: Path, name: str, base: Source | None, *, threads: int, progress: Progress | None = None
) -> Iterator[StoredCheckpoint]:
    """Open entry ``name``, and check all that it stands on but its payloads, which are checked as they are read.

    ``base`` is the folder of the store's base, unless it holds that. Until the end no one can collect objects.
    """
    read_root(store)  # it is a store: no lock file appears in anything else
    with FolderLock(store / READER_LOCK, shared=True), open_store(store, base) as opened:
        opened.entry(name)
        if opened.sources.needs_base(name):
            opened.sources.check_base(threads, progress)
        opened.sources.check_entry(name)
        yield StoredCheckpoint(opened, name)


def open_readable(
    source: Source | Checkpoint, base: Source | None, *, threads: int, progress: Progress | None = None
) -> AbstractContextManager[Readable]:
    """Open a checkpoint's path, or ``STORE:NAME``; a checkpoint that is open already stays open after."""
    if isinstance(source, Checkpoint):
        return nullcontext(source)
    entry = find_entry(source)
    if entry is None:
        return open_checkpoint(source)
    return open_stored(*entry, base, threads=threads, progress=progress)


def source_of(readable: Readable) -> TensorSource:
    """Its tensors as a source."""
    return readable.source if isinstance(readable, StoredCheckpoint) else CheckpointSource(readable)


def describe_readable(
    readable: Readable, *, threads: int, stage: str, progress: Progress | None
) -> Description:
    """Its tensors by digest, leaves too."""
    if isinstance(readable, StoredCheckpoint):
        return readable.describe()
    return describe(CheckpointSource(readable), threads=threads, stage=stage, progress=progress)
