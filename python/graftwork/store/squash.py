"""Take an entry out of its chain: the same content, as a difference to the store's base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.checkpoint.files import FolderLock
from graftwork.delta.codecs import EFFORTS
from graftwork.delta.pipeline import Progress
from graftwork.errors import StoreError
from graftwork.store.packer import PackBase, Packer, unchanged_report
from graftwork.store.results import EntryReport
from graftwork.store.root import READER_LOCK, WRITER_LOCK, read_root
from graftwork.store.stored import StoredCheckpoint

if TYPE_CHECKING:
    from graftwork.store.store import Store


def squash(store: Store, name: str, *, codec: str, threads: int, progress: Progress | None) -> EntryReport:
    """Commit entry ``name`` with the same content and no parent; see `Store.squash`."""
    if codec not in EFFORTS:
        raise StoreError("unknown codec", got=repr(codec), wanted=f"one of {', '.join(EFFORTS)}")
    sources = store.sources
    with (
        FolderLock(store.path / WRITER_LOCK),
        FolderLock(store.path / READER_LOCK, shared=True),
    ):
        store.root = read_root(store.path, to_write=True)
        if sources.parent(name) is None:
            return unchanged_report(name, store.entry(name))
        described = sources.describe_base(threads, progress)
        base = PackBase(store.path, sources.base_source(), described, sources.check_unchanged)
        sources.check_entry(name)
        packer = Packer(store.path, base, codec, threads, progress)
        report = packer.pack_entry(name, StoredCheckpoint(store, name), alone=False, status="squashed")
        store.root = read_root(store.path)
    return report
