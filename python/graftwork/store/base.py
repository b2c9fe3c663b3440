"""The base of a store's entries: which one is meant, where it comes from, and that it is the right one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from graftwork.checkpoint.digest import LEAF_BYTES
from graftwork.delta.basis import BasisReader
from graftwork.delta.container import DeltaFile
from graftwork.delta.pipeline import Scratch
from graftwork.delta.source import Description, TensorMeta
from graftwork.errors import BaseMismatch, StoreError
from graftwork.store.entry import EntryManifest, StoredTensor


class EntrySource:
    """An entry of a store as a source of tensors; every byte that it delivers has been checked."""

    def __init__(
        self, entry: EntryManifest, open_delta: Callable[[str], DeltaFile], basis: BasisReader
    ) -> None:
        self._entry = entry
        self._open_delta = open_delta
        self._basis = basis
        self._scratch = Scratch()

    @property
    def metas(self) -> Mapping[str, TensorMeta]:
        return self._entry.tensors

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the tensor's bytes from ``offset`` on. Thread-safe."""
        tensor = self._entry.tensors[name]
        delta = self._open_delta(tensor.object)
        nbytes = delta.records[tensor.key].nbytes
        done = 0
        while done < len(buffer):
            index, skip = divmod(offset + done, LEAF_BYTES)
            length = min(LEAF_BYTES, nbytes - index * LEAF_BYTES)
            take = min(length - skip, len(buffer) - done)
            if take == length:
                delta.read_chunk(tensor.key, index, self._basis, buffer[done : done + take])
            else:
                chunk = self._scratch.buffer("chunk", length)
                delta.read_chunk(tensor.key, index, self._basis, chunk)
                buffer[done : done + take] = chunk[skip : skip + take]
            done += take


def check_record(entry: EntryManifest, tensor: StoredTensor, delta: DeltaFile) -> None:
    """Refuse a delta file that does not hold the tensor that the entry's manifest names, as it says."""
    record = delta.records.get(tensor.key)
    if record is not None and record.basis is not None and entry.base is None:
        raise StoreError(
            "an entry that needs no base refers to a difference",
            file=delta.path,
            tensor=tensor.name,
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


def check_same_base(given: Description, wanted_digest: str, listing: bytes, where: object) -> None:
    """Refuse a base other than the store's, naming the first tensor that differs.

    ``listing`` is the canonical listing that the store keeps of its base.
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
                remedy="give the base that the entries were packed against",
            )
    raise BaseMismatch(
        "this is not the base of the store", file=str(where), got=given.digest, wanted=wanted_digest
    )


def _identity(row: tuple[str, tuple[int, ...], str] | None) -> str:
    return "no such tensor" if row is None else f"{row[0]} {list(row[1])}, digest {row[2][:16]}…"
