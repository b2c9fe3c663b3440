"""Check that a store is what it says it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.checkpoint.files import FolderLock, is_partial
from graftwork.delta.pipeline import Progress, default_threads, ordered_map
from graftwork.delta.source import describe
from graftwork.errors import GraftworkError, StoreError
from graftwork.store.checkout import entry_header
from graftwork.store.collect import referenced
from graftwork.store.objects import file_digest
from graftwork.store.results import VerifyReport
from graftwork.store.root import FILE, OBJECTS, READER_LOCK, WRITER_LOCK, read_root

if TYPE_CHECKING:
    from graftwork.store.store import Store


class _Findings:
    """Problems, and remarks that are none, in the order in which they were met."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    def attempt(self, check: Callable[[], object]) -> bool:
        """Run a check; what it raises is a problem. Whether it passed."""
        try:
            check()
        except (GraftworkError, OSError) as error:
            self.problems.append(" | ".join(str(error).splitlines()))
            return False
        return True


def verify(store: Store, *, deep: bool, progress: Progress | None) -> VerifyReport:
    """Check ``store``; see `Store.verify`."""
    findings = _Findings()
    with FolderLock(store.path / READER_LOCK, shared=True):
        store.close()
        store.root = read_root(store.path)
        findings.attempt(lambda: store.objects.read(store.root.description, "json"))
        intact = []
        for name in sorted(store.root.entries):
            if findings.attempt(partial(_check, store, name)):
                intact.append(name)
        held = _check_folder(store, findings, complete=len(intact) == len(store.root.entries))
        nbytes = sum(path.stat().st_size for path in held)
        restored = 0
        if deep:
            _check_bytes(held, nbytes, findings, progress)
            for name in intact:
                restored += _check_tensors(store, name, findings, progress)
    return VerifyReport(
        not findings.problems, tuple(findings.problems), tuple(findings.notes), len(held), nbytes, restored
    )


def _check(store: Store, name: str) -> None:
    """An entry's manifest, headers, delta manifests and chunk tables agree, and its chain ends at the base."""
    entry = store.entry(name)
    for file in entry.files:
        if file.holds_tensors:
            entry_header(store.objects, file, entry)
        else:
            store.objects.find(str(file.blob["object"]), "zst")
    store.sources.check_entry(name)
    for tensor in entry.tensors.values():
        store.sources.delta(tensor.object).chunks(tensor.key)
    if entry.listing_digest != entry.tensors_digest:
        raise StoreError(
            "an entry's tensors differ from the digest of their listing", file=store.path, got=name
        )


def _check_folder(store: Store, findings: _Findings, *, complete: bool) -> list[Path]:
    """Every file of the store's folder is one that belongs there; the objects, sorted."""
    wanted = referenced(store, store.root) if complete else None
    for path in sorted(store.path.iterdir()):
        if path.name in (WRITER_LOCK, READER_LOCK):
            if path.stat().st_size:
                findings.problems.append(f"a lock file is not empty: {path}")
        elif is_partial(path.name):
            findings.notes.append(f"left by a killed writer (gc removes it): {path}")
        elif path.name not in (FILE, OBJECTS):
            findings.problems.append(f"a file that does not belong to the store: {path}")
    objects = store.objects.files()
    if wanted is not None:
        extra = [path for path in objects if path not in wanted]
        if extra:
            findings.notes.append(f"{len(extra)} files that no entry refers to (gc removes them)")
        return [path for path in objects if path in wanted]
    return objects


def _check_bytes(paths: list[Path], total: int, findings: _Findings, progress: Progress | None) -> None:
    """Every object's bytes have the digest that is its name."""
    done = 0
    for path, (digest, nbytes) in zip(
        paths, ordered_map(file_digest, paths, threads=default_threads()), strict=True
    ):
        if digest != path.stem:
            findings.problems.append(f"an object differs from its digest: {path}")
        done += nbytes
        if progress:
            progress("check bytes", done, total)


def _check_tensors(store: Store, name: str, findings: _Findings, progress: Progress | None) -> int:
    """Every tensor of an entry is restored and has its digest; how many were."""
    entry = store.entry(name)
    restored = 0

    def restore() -> None:
        nonlocal restored
        if store.sources.needs_base(name):
            store.sources.check_base(default_threads(), progress)
        for file in entry.files:
            if not file.holds_tensors:
                for _ in store.objects.blob_pieces(file.blob):
                    pass
        source = store.sources.source(name)
        described = describe(source, threads=default_threads(), stage=f"restore {name}", progress=progress)
        for tensor in entry.tensors.values():
            if described.tensors[tensor.name].digest != tensor.digest:
                findings.problems.append(f"entry {name}: tensor {tensor.name} differs from its digest")
            restored += 1
        if described.digest != entry.tensors_digest:
            findings.problems.append(f"entry {name}: its tensors differ from the entry's digest")

    if store.sources.needs_base(name) and not store.sources.base_at_hand:
        findings.notes.append(f"entry {name} was not restored: its base is not at hand (give --base DIR)")
        return 0
    findings.attempt(restore)
    return restored
