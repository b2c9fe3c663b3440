"""Restore an entry: every file, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graftwork.checkpoint import files
from graftwork.checkpoint.header import Header, parse_header
from graftwork.delta.pipeline import Progress, Scratch, ordered_map
from graftwork.delta.source import TensorSource, leaf_ranges
from graftwork.errors import StoreError
from graftwork.store.entry import EntryManifest, StoredFile
from graftwork.store.objects import ObjectFolder
from graftwork.store.results import CheckoutResult


@dataclass(frozen=True, slots=True)
class _ChunkJob:
    """A chunk to restore: where it comes from and where in which file it goes."""

    file: files.AtomicFile
    position: int
    name: str
    offset: int
    length: int


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
    header = parse_header(objects.blob(file.blob), file.path, file.nbytes)
    for info in header.tensors:
        held = entry.tensors.get(info.name)
        if held is None or (held.dtype, held.shape) != (info.dtype, info.shape):
            raise StoreError("an entry lacks a tensor of its own file", file=file.path, tensor=info.name)
    return header


def _restore_tensors(
    target: files.AtomicFile, header: Header, source: TensorSource, threads: int, done: _Counter
) -> None:
    scratch = Scratch()

    def restore(job: _ChunkJob) -> int:
        buffer = scratch.buffer("chunk", job.length)
        source.read_into(job.name, job.offset, buffer)
        job.file.pwrite(job.position, buffer)
        return job.length

    target.write(header.raw)
    done.add(len(header.raw))
    for length in ordered_map(restore, _chunk_jobs(target, header), threads=threads):
        done.add(length)


def _chunk_jobs(target: files.AtomicFile, header: Header) -> Iterator[_ChunkJob]:
    for info in header.tensors:
        for offset, length in leaf_ranges(info.nbytes):
            yield _ChunkJob(target, info.start + offset, info.name, offset, length)


class _Counter:
    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self._stage, self._total, self._progress = stage, total, progress
        self._done = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress:
            self._progress(self._stage, self._done, self._total)
