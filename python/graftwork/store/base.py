"""The base of a store's entries: which one is meant, where it comes from, and that it is the right one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping

from graftwork.checkpoint.digest import LEAF_BYTES
from graftwork.delta.basis import BasisReader
from graftwork.delta.container import DeltaFile
from graftwork.delta.manifest import TensorRecord
from graftwork.delta.pipeline import Scratch
from graftwork.delta.source import Description, TensorMeta, TensorSource
from graftwork.errors import BaseMismatch, StoreError
from graftwork.store.entry import EntryManifest, StoredTensor


class LazySource:
    """A source that is opened when it is first asked for something; thread-safe."""

    def __init__(self, open_source: Callable[[], TensorSource]) -> None:
        self._open_source = open_source
        self._opened: TensorSource | None = None
        self._lock = threading.Lock()

    def _source(self) -> TensorSource:
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = self._open_source()
        return self._opened

    @property
    def metas(self) -> Mapping[str, TensorMeta]:
        return self._source().metas

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the tensor's bytes from ``offset`` on. Thread-safe."""
        self._source().read_into(name, offset, buffer)


class EntrySource:
    """An entry of a store as a source of tensors; every byte that it delivers has been checked.

    ``base`` is what the entry is a difference to: the store's base, or the source of another entry. Such sources
    nest chunk by chunk: each keeps one chunk a thread, however large the tensors are.
    """

    def __init__(
        self, entry: EntryManifest, open_delta: Callable[[str], DeltaFile], base: TensorSource | None
    ) -> None:
        self._entry = entry
        self._open_delta = open_delta
        self._basis = BasisReader(base)
        self._scratch = Scratch()
        self._held = threading.local()
        self._checked: set[str] = set()

    @property
    def metas(self) -> Mapping[str, TensorMeta]:
        return self._entry.tensors

    def record(self, name: str) -> TensorRecord:
        """The record of a tensor in its delta file."""
        tensor = self._entry.tensors[name]
        return self._delta(tensor).records[tensor.key]

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the tensor's bytes from ``offset`` on. Thread-safe."""
        tensor = self._entry.tensors[name]
        delta = self._delta(tensor)
        nbytes = delta.records[tensor.key].nbytes
        if offset + len(buffer) > nbytes:
            raise StoreError(
                "a tensor is smaller than a delta needs",
                file=delta.path,
                tensor=name,
                got=f"{nbytes} bytes",
                wanted=f"{offset + len(buffer)} bytes",
                remedy="pack the fine-tune again",
            )
        done = 0
        while done < len(buffer):
            index, skip = divmod(offset + done, LEAF_BYTES)
            length = min(LEAF_BYTES, nbytes - index * LEAF_BYTES)
            take = min(length - skip, len(buffer) - done)
            if take == length:
                delta.read_chunk(tensor.key, index, self._basis, buffer[done : done + take])
            else:
                chunk = self._chunk(delta, tensor, index, length)
                buffer[done : done + take] = chunk[skip : skip + take]
            done += take

    def _chunk(self, delta: DeltaFile, tensor: StoredTensor, index: int, length: int) -> memoryview:
        """A whole chunk, of which a part is wanted: the rest is often wanted next (a base cast to a wider dtype)."""
        chunk = self._scratch.buffer("chunk", length)
        wanted = (tensor.object, tensor.key, index)
        if getattr(self._held, "chunk", None) != wanted:
            self._held.chunk = None
            delta.read_chunk(tensor.key, index, self._basis, chunk)
            self._held.chunk = wanted
        return chunk

    def _delta(self, tensor: StoredTensor) -> DeltaFile:
        """The delta file that holds ``tensor``, after checking, once, that it does."""
        delta = self._open_delta(tensor.object)
        if tensor.name not in self._checked:
            check_record(self._entry, tensor, delta)
            self._checked.add(tensor.name)
        return delta


def check_record(entry: EntryManifest, tensor: StoredTensor, delta: DeltaFile) -> None:
    """Refuse a delta file that does not hold the tensor that the entry's manifest names, as it says.

    A difference is of use only to an entry with the very base that the delta file was made against.
    """
    record = delta.records.get(tensor.key)
    if record is not None and record.basis is not None and (entry.base is None or entry.base != delta.base):
        raise StoreError(
            "an entry refers to a difference to another base than its own"
            if entry.base
            else "an entry that needs no base refers to a difference",
            file=delta.path,
            tensor=tensor.name,
            got=f"base {delta.base}",
            wanted=f"base {entry.base}" if entry.base else "no base",
            remedy="pack it again with its base folder at hand",
        )
    if record is None or (record.digest, record.dtype, record.shape) != (
        tensor.digest,
        tensor.dtype,
        tensor.shape,
    ):
        raise StoreError(
            "a delta file does not hold the tensor that an entry's manifest names",
            file=delta.path,
            tensor=tensor.name,
            remedy="run `graftwork verify --deep`, and restore the store from a copy",
        )


def check_same_base(
    given: Description, wanted_digest: str, listing: bytes, where: object, remedy: str | None = None
) -> None:
    """Refuse a base other than the store's, naming the first tensor that differs.

    ``listing`` is the canonical listing that the store keeps of its base; ``remedy`` is what helps in place of
    giving the right one.
    """
    if given.digest == wanted_digest:
        return
    wanted = {name: (row[0], tuple(row[1]), row[2]) for name, row in json.loads(listing).items()}
    for name in sorted(wanted.keys() | given.tensors.keys()):
        found = given.tensors.get(name)
        got = None if found is None else (found.dtype, found.shape, found.digest)
        if got != wanted.get(name):
            raise BaseMismatch(
                "this is not the base of the store",
                file=str(where),
                tensor=name,
                got=_identity(got),
                wanted=_identity(wanted.get(name)),
                remedy=remedy or "give the base that the entries were packed against",
            )
    raise BaseMismatch(
        "this is not the base of the store", file=str(where), got=given.digest, wanted=wanted_digest
    )


def _identity(row: tuple[str, tuple[int, ...], str] | None) -> str:
    return "no such tensor" if row is None else f"{row[0]} {list(row[1])}, digest {row[2][:16]}…"
