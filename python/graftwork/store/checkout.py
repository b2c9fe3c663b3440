"""Restore an entry: every file, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from graftwork.checkpoint import files
from graftwork.checkpoint.digest import LEAF_BYTES
from graftwork.checkpoint.header import MAX_HEADER_BYTES, Header, parse_header
from graftwork.delta.pipeline import Progress, Scratch, ordered_map
from graftwork.delta.source import TensorSource, leaf_ranges
from graftwork.errors import StoreError
from graftwork.store.entry import EntryManifest, StoredFile
from graftwork.store.objects import ObjectFolder
from graftwork.store.results import CheckoutResult

_RUN_PIECES = 256
_WORD_BYTES = 8


class _Run(NamedTuple):
    """Chunks that follow each other in a file: many small ones are restored and written at once."""

    position: int
    nbytes: int
    pieces: list[tuple[str, int, int]]
    """Tensor, offset in it, and length."""


def checkout_entry(
    name: str,
    entry: EntryManifest,
    objects: ObjectFolder,
    source: TensorSource,
    out: Path,
    *,
    threads: int,
    progress: Progress | None,
) -> CheckoutResult:
    """Write all files of ``entry`` into the new folder ``out``, which appears whole or not at all."""
    headers = {file.path: entry_header(objects, file, entry) for file in entry.files if file.holds_tensors}
    done = _Counter(f"checkout {name}", entry.file_bytes, progress)
    files.make_folder(out.absolute().parent)
    with files.AtomicFolder(out) as folder:
        for file in entry.files:
            files.make_folder((folder.path / file.path).parent)
            with files.AtomicFile(folder.path / file.path) as target:
                if file.holds_tensors:
                    _restore_tensors(target, headers[file.path], source, threads, done)
                else:
                    for piece in objects.blob_pieces(file.blob):
                        target.write(piece)
                        done.add(len(piece))
    return CheckoutResult(name, out, entry.file_bytes, len(entry.files))


def entry_header(objects: ObjectFolder, file: StoredFile, entry: EntryManifest) -> Header:
    """The header of a file with tensors, checked against the tensors that the entry holds."""
    header = parse_header(objects.blob(file.blob, 8 + MAX_HEADER_BYTES), file.path, file.nbytes)
    for info in header.tensors:
        held = entry.tensors.get(info.name)
        if held is None or (held.dtype, held.shape) != (info.dtype, info.shape):
            raise StoreError("an entry lacks a tensor of its own file", file=file.path, tensor=info.name)
    return header


def _restore_tensors(
    target: files.AtomicFile, header: Header, source: TensorSource, threads: int, done: _Counter
) -> None:
    scratch = Scratch()

    def restore(run: _Run) -> int:
        buffer = scratch.buffer("run", run.nbytes)
        at = 0
        for name, offset, length in run.pieces:
            source.read_into(name, offset, buffer[at : at + length])
            at += length
        target.pwrite(run.position, buffer)
        return run.nbytes

    target.write(header.raw)
    done.add(len(header.raw))
    for nbytes in ordered_map(restore, _runs(header), threads=threads):
        done.add(nbytes)


def _runs(header: Header) -> Iterator[_Run]:
    """The file's chunks, in order, up to a chunk's bytes together. Words stay aligned in a run's buffer."""
    pieces: list[tuple[str, int, int]] = []
    start = nbytes = 0
    for info in header.tensors:
        for offset, length in leaf_ranges(info.nbytes):
            full = nbytes + length > LEAF_BYTES or len(pieces) == _RUN_PIECES
            if pieces and (full or nbytes % _WORD_BYTES):
                yield _Run(start, nbytes, pieces)
                pieces, nbytes = [], 0
            if not pieces:
                start = info.start + offset
            pieces.append((info.name, offset, length))
            nbytes += length
    if pieces:
        yield _Run(start, nbytes, pieces)


class _Counter:
    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self._stage, self._total, self._progress = stage, total, progress
        self._done = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress:
            self._progress(self._stage, self._done, self._total)
