"""Pack fine-tunes into a store as differences to their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

from graftwork.checkpoint import files, open_checkpoint
from graftwork.checkpoint.files import FolderLock
from graftwork.delta.codecs import EFFORTS
from graftwork.delta.pipeline import Progress, default_threads
from graftwork.errors import StoreError
from graftwork.store.packer import PackBase, Packer
from graftwork.store.results import PackResult
from graftwork.store.root import FILE, OBJECTS, READER_LOCK, WRITER_LOCK
from graftwork.store.stored import (
    Readable,
    check_store_base,
    describe_readable,
    find_entry,
    open_readable,
    source_of,
)

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
    store_base: Source | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PackResult:
    """Pack fine-tunes of ``base`` into the store ``out``, to be restored byte for byte.

    Parameters
    ----------
    base : path or (name, path)
        The checkpoint that the fine-tunes started from: a folder, or a ``.safetensors`` file. It is recorded by
        digest and not copied, unless ``with_base``. Or ``STORE:NAME``, an entry of a store (unless a file or
        folder has just that name): if that store is ``out``, the new entries are differences to the entry, a
        chain of at most 16; else the entry is read as any base is.
    finetunes : path, (name, path), a sequence of these, or a mapping of names to paths
        An entry's name is its folder's (or file's) name unless given.
    out : path
        The store: a new folder, or an existing store of the same base, to which the entries are added.
    codec : "auto", "fast" or "small"
        How hard to try; every choice restores the same bytes.
    with_base : bool
        Also hold the base itself, so that ``checkout`` needs nothing else.
    replace : bool
        Let an entry of an existing name have new content; otherwise that is an error. One that others are
        differences to keeps its content in any case.
    store_base : path, optional
        With ``STORE:NAME``: the folder of the base that the store's entries are differences to, unless the store
        holds that.
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
    CheckpointError, StoreError, BaseMismatch, BaseRequired
        An input is malformed, a name is taken by other content, a chain would be too long, or the store belongs
        to another base. Nothing has been written then.
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
    >>> write_checkpoint("more", {"weight": torch.full((1000,), 2e-3)})
    >>> result = pack("store:chat", {"more": "more"}, out="store", store_base="base")
    """
    if codec not in EFFORTS:
        raise StoreError("unknown codec", got=repr(codec), wanted=f"one of {', '.join(EFFORTS)}")
    threads = threads or default_threads()
    base_name, base_path = _named(base)
    paths = _named_sources(finetunes)
    if with_base:
        _check_base_name(paths, base_name, base_path)
    check_store_base(store_base, base_path)
    own = _is_own(base_path, Path(out))
    with ExitStack() as stack:
        if own:
            stack.enter_context(_locked(Path(out)))  # no one may replace the entry meanwhile
        readable = stack.enter_context(
            open_readable(base_path, store_base, threads=threads, progress=progress)
        )
        opened: dict[str, Readable] = {base_name: readable} if with_base else {}
        opened |= {name: stack.enter_context(open_checkpoint(path)) for name, path in paths.items()}
        _check_place(Path(out), [readable, *opened.values()])
        described = describe_readable(readable, threads=threads, stage="read base", progress=progress)
        readable.check_unchanged()
        if not own:
            stack.enter_context(_locked(Path(out)))
        source = source_of(readable)
        packed = PackBase(readable.path, source, described, readable.check_unchanged, own)
        packer = Packer(Path(out), packed, codec, threads, progress)
        alone = base_name if with_base else None
        unchanged = packer.find_unchanged(opened, alone=alone, replace=replace)
        reports = [
            packer.report_unchanged(name)
            if name in unchanged
            else packer.pack_entry(name, checkpoint, alone=name == alone)
            for name, checkpoint in opened.items()
        ]
    return PackResult(Path(out), described.digest, tuple(reports))


def _is_own(base: Path, out: Path) -> bool:
    """Whether the base is an entry of the store that is written to: the new entries then make chains."""
    entry = find_entry(base)
    return entry is not None and out.exists() and entry[0].samefile(out)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """The store's folder, made if need be, under its writer lock."""
    files.make_folder(store)
    with FolderLock(store / WRITER_LOCK), FolderLock(store / READER_LOCK, shared=True):
        yield


def _check_place(store: Path, sources: Sequence[Readable]) -> None:
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
    if name is None:
        entry = find_entry(path)
        name = entry[1] if entry else path.absolute().name.removesuffix(".safetensors")
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


def _check_base_name(finetunes: Mapping[str, Path], name: str, path: Path) -> None:
    if name in finetunes:
        raise StoreError(
            "the base has the name of a fine-tune",
            file=path,
            got=name,
            remedy="give one of them another name: NAME=DIR",
        )
