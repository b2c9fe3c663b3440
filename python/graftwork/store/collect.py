"""Take entries out of a store, and free what nothing refers to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.checkpoint import files
from graftwork.checkpoint.files import FolderLock
from graftwork.store.chains import check_change
from graftwork.store.results import GcReport
from graftwork.store.root import READER_LOCK, WRITER_LOCK, Root, read_root, write_root

if TYPE_CHECKING:
    from graftwork.store.store import Store


def remove(store: Store, name: str) -> None:
    """Commit a root without entry ``name``; refuse it if other entries are differences to that."""
    with FolderLock(store.path / WRITER_LOCK):
        store.root = read_root(store.path, to_write=True)
        store.manifest_digest(name)  # it exists; a damaged one can be removed too
        links = store.sources.links()
        left = {other: link for other, link in links.items() if other != name}
        check_change(links, left, store.root.base, name)
        root = store.root.without_entry(name)
        write_root(store.path, root)
        store.root = root


def collect(store: Store) -> GcReport:
    """Remove unreferenced objects and leftovers of killed writers; see `Store.gc`."""
    count = total = 0
    with FolderLock(store.path / WRITER_LOCK), FolderLock(store.path / READER_LOCK):
        store.close()
        store.root = read_root(store.path)
        wanted = referenced(store, store.root)
        leftovers = [path for path in sorted(store.path.iterdir()) if files.is_partial(path.name)]
        for path in [*store.objects.files(), *leftovers]:
            if path not in wanted:
                count, total = count + 1, total + path.stat().st_size
                files.remove_file(path)
    return GcReport(count, total)


def referenced(store: Store, root: Root) -> set[Path]:
    """Where every object lies that the root refers to, directly or through a manifest."""
    wanted = {store.objects.locate(root.description, "json")}
    for name, manifest in root.entries.items():
        wanted.add(store.objects.locate(manifest, "json"))
        entry = store.entry(name)
        wanted |= {store.objects.locate(str(file.blob["object"]), "zst") for file in entry.files}
        wanted |= {store.objects.locate(t.object, "safetensors") for t in entry.tensors.values()}
    return wanted
