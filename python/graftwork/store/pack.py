"""Pack fine-tunes into a store as differences to their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

from graftwork.checkpoint import Checkpoint, files, open_checkpoint
from graftwork.checkpoint.files import FolderLock
from graftwork.delta.codecs import LEVELS
from graftwork.delta.pipeline import Progress, default_threads
from graftwork.delta.source import CheckpointSource, Description, describe
from graftwork.errors import StoreError
from graftwork.store.base import check_same_base
from graftwork.store.encode import EntryEncoder, Identity
from graftwork.store.entry import EntryManifest, StoredFile, StoredTensor, parse_entry
from graftwork.store.layout import checkpoint_content, store_files
from graftwork.store.objects import ObjectFolder
from graftwork.store.results import EntryReport, PackResult
from graftwork.store.root import FILE, OBJECTS, READER_LOCK, WRITER_LOCK, Root, read_root, write_root

Source = str | PathLike[str]
Named = Source | tuple[str, Source]


def pack(
    base: Named,
    finetunes: Named | Sequence[Named] | Mapping[str, Source],
    *,
    out: Source,
    codec: str = "auto",
    with_base: bool = False,
    replace: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PackResult:
    """Pack fine-tunes of ``base`` into the store ``out``, to be restored byte for byte.

    Parameters
    ----------
    base : path or (name, path)
        The checkpoint that the fine-tunes started from: a folder, or a ``.safetensors`` file. It is recorded by
        digest and not copied, unless ``with_base``.
    finetunes : path, (name, path), a sequence of these, or a mapping of names to paths
        An entry's name is its folder's (or file's) name unless given.
    out : path
        The store: a new folder, or an existing store of the same base, to which the entries are added.
    codec : "auto", "fast" or "small"
        How hard to try; every choice restores the same bytes.
    with_base : bool
        Also hold the base itself, so that ``checkout`` needs nothing else.
    replace : bool
        Let an entry of an existing name have new content; otherwise that is an error.
    threads : int, optional
        Worker threads; default: the processors at hand. The store's bytes do not depend on it.
    progress : callable, optional
        ``progress(stage, done_bytes, total_bytes)``.

    Returns
    -------
    PackResult
        One report an entry. Packing what the store holds already changes nothing (``unchanged``).

    Raises
    ------
    CheckpointError, StoreError, BaseMismatch
        An input is malformed, a name is taken by other content, or the store belongs to another base. Nothing
        has been written then.
    SourceChanged
        A file changed while it was read. Entries finished before are in the store.

    Notes
    -----
    Deterministic: the same inputs in the same order give the same bytes. Each entry is committed by one atomic
    rename; a run that is killed leaves the store as it was before the entry it was at.

    Examples
    --------
    >>> import torch
    >>> from graftwork.checkpoint import write_checkpoint
    >>> write_checkpoint("base", {"weight": torch.zeros(1000)})
    >>> write_checkpoint("chat", {"weight": torch.full((1000,), 1e-3)})
    >>> result = pack("base", {"chat": "chat"}, out="store")
    >>> [(entry.name, entry.status) for entry in result.entries]
    [('chat', 'added')]
    """
    if codec not in LEVELS:
        raise StoreError("unknown codec", got=repr(codec), wanted=f"one of {', '.join(LEVELS)}")
    threads = threads or default_threads()
    base_name, base_path = _named(base)
    paths = _named_sources(finetunes)
    if with_base:
        paths = _with_base(paths, base_name, base_path)
    with ExitStack() as stack:
        base_checkpoint = stack.enter_context(open_checkpoint(base_path))
        opened = {name: stack.enter_context(open_checkpoint(path)) for name, path in paths.items()}
        _check_place(Path(out), [base_checkpoint, *opened.values()])
        described = describe(
            CheckpointSource(base_checkpoint), threads=threads, stage="read base", progress=progress
        )
        base_checkpoint.check_unchanged()
        with _locked(Path(out)):
            packer = _Packer(Path(out), base_checkpoint, described, LEVELS[codec], threads, progress)
            alone = base_name if with_base else None
            unchanged = packer.find_unchanged(opened, alone=alone, replace=replace)
            reports = [
                packer.report_unchanged(name)
                if name in unchanged
                else packer.pack_entry(name, checkpoint, alone=name == alone)
                for name, checkpoint in opened.items()
            ]
    return PackResult(Path(out), described.digest, tuple(reports))


class _Packer:
    """One run of ``pack`` on one store, under its writer lock."""

    def __init__(
        self,
        store: Path,
        base: Checkpoint,
        described: Description,
        levels: Sequence[int],
        threads: int,
        progress: Progress | None,
    ) -> None:
        self._store = store
        self._base = base
        self._described = described
        self._levels = levels
        self._threads = threads
        self._progress = progress
        self._objects = ObjectFolder(store / OBJECTS, threads)
        self._root = read_root(store, to_write=True) if (store / FILE).exists() else None
        self._entries: dict[str, EntryManifest] = {}
        if self._root is not None:
            listing = self._objects.read(self._root.description, "json")
            check_same_base(described, self._root.base, listing, base.path)
            for name, digest in self._root.entries.items():
                self._entries[name] = parse_entry(self._objects.read(digest, "json"), name)

    def find_unchanged(
        self, opened: Mapping[str, Checkpoint], *, alone: str | None, replace: bool
    ) -> set[str]:
        """Names whose entries hold this content already; other content under a taken name is an error.

        The entry ``alone`` shall need no base: one that is stored as differences is packed again.
        """
        unchanged = set()
        for name in opened.keys() & self._entries.keys():
            checkpoint, source = opened[name], CheckpointSource(opened[name])
            described = describe(
                source, threads=self._threads, stage=f"compare {name}", progress=self._progress
            )
            held = self._entries[name]
            if checkpoint_content(checkpoint, described.digest) == held.content:
                if name != alone or held.base is None:
                    unchanged.add(name)
            elif not replace:
                raise StoreError(
                    "the store has an entry of this name with other content",
                    file=self._store,
                    got=name,
                    remedy="give another name (NAME=DIR), or replace the entry (--replace)",
                )
        return unchanged

    def report_unchanged(self, name: str) -> EntryReport:
        """The report of an entry that was there already."""
        held = self._entries[name]
        facts = {kind: list(rows) for kind, rows in held.facts.items()}
        return EntryReport(name, held.content, "unchanged", held.file_bytes, 0, len(held.tensors), {}, facts)

    def pack_entry(self, name: str, checkpoint: Checkpoint, *, alone: bool) -> EntryReport:
        """Store one checkpoint, as differences to the base or alone, and commit it."""
        status = "replaced" if name in self._entries else "added"
        layout = store_files(self._objects, checkpoint)
        encoder = EntryEncoder(
            checkpoint,
            None if alone else self._base,
            None if alone else self._described,
            self._known_tensors(alone=alone),
            levels=self._levels,
            threads=self._threads,
            stage=f"pack {name}",
            progress=self._progress,
        )
        delta = self._objects.put_file(encoder.write, "safetensors")
        checkpoint.check_unchanged()
        self._base.check_unchanged()
        manifest = EntryManifest(
            None if alone else self._described.digest,
            encoder.description().digest,
            layout,
            encoder.stored_tensors(delta),
            encoder.facts(),
            self._added_bytes(layout, delta),
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

    def _known_tensors(self, *, alone: bool) -> dict[Identity, StoredTensor]:
        """The tensors that need not be stored again, whose objects are there.

        An entry that shall stand alone may lean only on entries that do: what others hold may be differences.
        Of several places the one whose entry's name comes last counts, in whatever order they were packed.
        """
        entries = [entry for _, entry in sorted(self._entries.items()) if entry.base is None or not alone]
        objects = {tensor.object for entry in entries for tensor in entry.tensors.values()}
        there = {digest for digest in objects if self._objects.locate(digest, "safetensors").is_file()}
        return {
            (tensor.digest, tensor.dtype, tensor.shape): tensor
            for entry in entries
            for tensor in entry.tensors.values()
            if tensor.object in there
        }

    def _added_bytes(self, layout: Sequence[StoredFile], delta: str) -> int:
        """Bytes of the objects that no committed entry refers to; leftovers of killed runs do not count."""
        held = {str(file.blob["object"]) for entry in self._entries.values() for file in entry.files}
        held |= {tensor.object for entry in self._entries.values() for tensor in entry.tensors.values()}
        new = {(str(file.blob["object"]), "zst") for file in layout} | {(delta, "safetensors")}
        return sum(
            self._objects.locate(digest, suffix).stat().st_size
            for digest, suffix in new
            if digest not in held
        )

    def _commit(self, name: str, manifest: EntryManifest) -> None:
        digest = self._objects.put(manifest.to_bytes(), "json")
        if self._root is None:
            description = self._objects.put(self._described.to_json(), "json")
            self._root = Root(self._described.digest, description)
        self._root = self._root.with_entry(name, digest)
        write_root(self._store, self._root)
        self._entries[name] = manifest


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """The store's folder, made if need be, under its writer lock."""
    files.make_folder(store)
    with FolderLock(store / WRITER_LOCK), FolderLock(store / READER_LOCK, shared=True):
        yield


def _check_place(store: Path, sources: Sequence[Checkpoint]) -> None:
    """Refuse to make a store inside of a checkpoint, or of a folder or file that holds something else."""
    for source in sources:
        if source.path.is_dir() and store.resolve().is_relative_to(source.path.resolve()):
            raise StoreError(
                "the store would lie inside a checkpoint that it holds",
                file=store,
                got=f"a place in {source.path}",
                remedy="choose another path (-o)",
            )
    if not store.exists() or (store / FILE).exists():
        return
    names = [path.name for path in store.iterdir()] if store.is_dir() else ["a file"]
    begun = {OBJECTS, WRITER_LOCK, READER_LOCK, files.partial_path(FILE).name}  # by a pack that was killed
    others = sorted(name for name in names if name not in begun)
    if others:
        raise StoreError(
            "the place for the store is taken",
            file=store,
            got=", ".join(others[:5]),
            wanted="a store, or a path that does not exist, or an empty folder",
            remedy="choose another path (-o)",
        )


def _named(source: Named) -> tuple[str, Path]:
    name, path = source if isinstance(source, tuple) else (None, source)
    path = Path(path)
    name = name if name is not None else path.absolute().name.removesuffix(".safetensors")
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0\n\r\t"):
        raise StoreError(
            "an entry's name is unusable",
            file=path,
            got=repr(name),
            wanted="a name without slashes and control characters",
            remedy="name it: NAME=DIR",
        )
    return name, path


def _named_sources(finetunes: Named | Sequence[Named] | Mapping[str, Source]) -> dict[str, Path]:
    """Names and paths of the fine-tunes, each name once."""
    if isinstance(finetunes, Mapping):
        rows = [_named((name, path)) for name, path in finetunes.items()]
    elif isinstance(finetunes, (str, PathLike, tuple)):
        rows = [_named(finetunes)]
    else:
        rows = [_named(source) for source in finetunes]
    named: dict[str, Path] = {}
    for name, path in rows:
        if name in named:
            raise StoreError(
                "two fine-tunes have one name",
                got=name,
                file=path,
                wanted="a name each",
                remedy="name them: NAME=DIR",
            )
        named[name] = path
    if not named:
        raise StoreError("there is nothing to pack", wanted="at least one fine-tune")
    return named


def _with_base(finetunes: dict[str, Path], name: str, path: Path) -> dict[str, Path]:
    if name in finetunes:
        raise StoreError(
            "the base has the name of a fine-tune",
            file=path,
            got=name,
            remedy="give one of them another name: NAME=DIR",
        )
    return {name: path, **finetunes}
