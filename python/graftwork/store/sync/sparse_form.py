"""The sparse form in which training frameworks exchange updates: flat indices and new values of each tensor.

A safetensors file with, for each tensor in which anything changed, ``NAME.indices`` (I32, or I64 for tensors of
more than 2^31 elements; one dimension, ascending) and ``NAME.values`` (the tensor's dtype, as many), and the
metadata ``sparse`` = "True", ``model_version``, ``sparsity`` and ``changed_params`` (a JSON list of names). It has
no checksums and does not say which version it follows: a payload does.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from graftwork.checkpoint.digest import leaf_digest
from graftwork.checkpoint.dtypes import DTYPES, torch_dtype
from graftwork.checkpoint.header import TensorInfo, read_source_header
from graftwork.checkpoint.source import ReadableFile, SourceFile
from graftwork.checkpoint.writer import checkpoint_bytes
from graftwork.delta.memory import MemoryFile
from graftwork.delta.pipeline import Scratch, default_threads, ordered_map
from graftwork.delta.source import TensorMeta, TensorSource, read_piece, view_piece
from graftwork.delta.weights import Stateful, Weights, open_weights
from graftwork.errors import BaseMismatch, DeltaError
from graftwork.store.sync.encode import encode_weights
from graftwork.store.sync.inplace import apply_leaf
from graftwork.store.sync.match import match_target
from graftwork.store.sync.payload import Leaf, Payload, SyncPayload

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Array = NDArray[Any]

_INT32_ELEMENTS = 1 << 31
_INDICES, _VALUES = ".indices", ".values"
_TRUE = ("True", "true", "1")


class Patch(NamedTuple):
    """What changes in one tensor: ascending flat indices, and the words that stand there afterwards."""

    indices: Array
    values: Array


def export_sparse(payload: Payload, weights: Stateful, *, threads: int | None = None) -> bytes:
    """A payload in the sparse form.

    Parameters
    ----------
    payload : bytes-like or path
        What `encode` made.
    weights : mapping of str to Tensor, Module, Checkpoint or path
        The weights before the payload, or those after it; the digests tell which.
    threads : int, optional
        Threads to use; all processors by default.

    Returns
    -------
    bytes
        A safetensors file; tied tensors stand in it once. ``model_version`` is the payload's version, and
        missing if it has none.

    Raises
    ------
    BaseMismatch
        The weights are neither.
    DeltaError
        The payload is malformed or damaged, or a tensor has elements of less than a byte.
    """
    with SyncPayload(payload) as opened, open_weights(weights, "weights") as held:
        finder = _ChangeFinder(held.source, opened, held.what)
        targets = [target for target in match_target(held, opened) if target.writes]
        firsts: dict[str, str] = {}  # one memory of each tensor of the payload
        for target in targets:
            firsts.setdefault(target.record.name, target.held)
        jobs = [
            (firsts[name], leaf)
            for name in firsts
            for leaf in opened.leaves(opened.delta.records[name])
            if leaf.changes
        ]
        found: dict[str, list[Patch]] = defaultdict(list)
        results = ordered_map(finder, jobs, threads=threads or default_threads())
        for (_, leaf), patch in zip(jobs, results, strict=True):
            found[leaf.record.name].append(patch)
        return _sparse_file(opened, found)


class _ChangeFinder:
    """Finds the elements that a chunk changes; one instance serves all threads."""

    def __init__(self, source: TensorSource, payload: SyncPayload, where: str) -> None:
        self._source = source
        self._payload = payload
        self._where = where
        self._scratch = Scratch()

    def __call__(self, job: tuple[str, Leaf]) -> Patch:
        import numpy as np

        held, leaf = job
        known = read_piece(self._source, held, leaf.offset, self._scratch.buffer("known", leaf.length))
        other = self._scratch.buffer("other", leaf.length)
        other[:] = known
        is_after = leaf_digest(known) == leaf.chunk.leaf
        payload = self._payload.read(leaf, self._scratch.buffer("payload", leaf.chunk.length))
        apply_leaf(leaf, other, payload, reverse=is_after)
        if not is_after and leaf_digest(other) != leaf.chunk.leaf:
            raise BaseMismatch(
                "the weights are neither those before the payload nor those after it",
                file=self._where,
                tensor=held,
                got=f"chunk {leaf.number} has other words",
                wanted=f"version {self._payload.version!r} or the one before it",
            )
        word = _word(leaf.record.name, leaf.record.dtype)
        here, there = np.frombuffer(known, word), np.frombuffer(other, word)
        places = np.flatnonzero(here != there)
        values = (here if is_after else there)[places]
        return Patch(places + leaf.offset // word.itemsize, values)


def _sparse_file(payload: SyncPayload, found: Mapping[str, list[Patch]]) -> bytes:
    import numpy as np
    import torch

    tensors, changed, total = {}, 0, 0
    for name, record in payload.delta.records.items():
        elements = record.nbytes * 8 // DTYPES[record.dtype].bits
        total += elements
        if name in found:
            indices, values = (np.concatenate(parts) for parts in zip(*found[name], strict=True))
            narrow = np.int32 if elements <= _INT32_ELEMENTS else np.int64
            tensors[name + _INDICES] = torch.from_numpy(indices.astype(narrow))
            tensors[name + _VALUES] = torch.from_numpy(values).view(_torch_type(name, record.dtype))
            changed += len(indices)
    metadata = {
        "sparse": "True",
        "sparsity": f"{1 - changed / max(total, 1):.6f}",
        "changed_params": json.dumps(list(found)),
    }
    if payload.version is not None:
        metadata["model_version"] = payload.version
    return checkpoint_bytes(tensors, metadata)


def import_sparse(
    update: bytes | bytearray | memoryview | str | os.PathLike[str],
    previous: Stateful,
    *,
    version: str | None = None,
    parent: str | None = None,
    threads: int | None = None,
) -> bytes:
    """An update in the sparse form as a payload, bit for bit what `encode` makes of the weights it leads to.

    Parameters
    ----------
    update : bytes-like or path
        A safetensors file in the sparse form.
    previous : mapping of str to Tensor, Module, Checkpoint or path
        The weights that it is for; they are not changed.
    version, parent : str, optional
        As for `encode`; ``version`` is the update's ``model_version`` by default.
    threads : int, optional
        Threads to use; all processors by default.

    Raises
    ------
    DeltaError, CheckpointError
        The update is malformed: not this form, a name that ``previous`` lacks, indices that are out of range,
        not ascending or of the wrong type, or values of another number or dtype.
    """
    is_path = isinstance(update, str | os.PathLike)
    file: ReadableFile = SourceFile(Path(update)) if is_path else MemoryFile(update)  # type: ignore[arg-type]
    try:
        with open_weights(previous, "previous") as old:
            reader = _SparseReader(file, old)
            new = Weights(
                f"the update for {old.what}", _PatchedSource(old.source, reader.patches()), old.tied
            )
            said = reader.metadata.get("model_version") if version is None else version
            return encode_weights(old, new, version=said, parent=parent, threads=threads)
    finally:
        file.close()


class _SparseReader:
    """Reads the sparse form, and believes nothing of it."""

    def __init__(self, file: ReadableFile, old: Weights) -> None:
        self._file = file
        self._old = old
        header = read_source_header(file, file.path.name)
        self.metadata = header.metadata
        self._fields = {info.name: info for info in header.tensors}

    def patches(self) -> dict[str, Patch]:
        """The patch of each tensor, by its first name in the weights before."""
        names = self._names()
        patches: dict[str, Patch] = {}
        for name in names:
            first = self._old.first_name(name)
            if first is None:
                self._refuse("an update names a tensor that is not there", name, wanted=self._old.what)
            patch = self._patch(name, self._old.source.metas[first])
            known = patches.setdefault(first, patch)
            if any(a.tobytes() != b.tobytes() for a, b in zip(known, patch, strict=True)):
                self._refuse("an update treats tied tensors differently", name, wanted=f"the same as {first}")
        return patches

    def _names(self) -> list[str]:
        said = self.metadata.get("sparse")
        if said not in _TRUE:
            self._refuse(
                "this is not an update in the sparse form",
                got=f"sparse = {said!r}",
                wanted=f"sparse = {_TRUE[0]!r}",
                remedy="give a whole checkpoint to encode() instead",
            )
        names = [name.removesuffix(_INDICES) for name in self._fields if name.endswith(_INDICES)]
        fields = {name + end for name in names for end in (_INDICES, _VALUES)}
        for name in fields ^ self._fields.keys():
            self._refuse("an update's fields are not pairs of indices and values", name)
        if "changed_params" in self.metadata:
            try:
                listed = sorted(json.loads(self.metadata["changed_params"]))
            except (ValueError, TypeError, RecursionError):
                listed = None
            if listed != sorted(names):
                self._refuse("an update's changed_params are not the tensors that it holds", got=listed)
        return names

    def _patch(self, name: str, meta: TensorMeta) -> Patch:
        import numpy as np

        places, values = self._fields[name + _INDICES], self._fields[name + _VALUES]
        word = _word(name, meta.dtype)
        elements = meta.nbytes // word.itemsize
        if len(places.shape) != 1 or places.shape != values.shape:
            self._refuse("indices and values differ in number", name, got=(places.shape, values.shape))
        if values.dtype != meta.dtype:
            self._refuse("values have another dtype", name, got=values.dtype, wanted=meta.dtype)
        if places.dtype != "I64" and (places.dtype != "I32" or elements > _INT32_ELEMENTS):
            wanted = "I64" if elements > _INT32_ELEMENTS else "I32"
            self._refuse("indices have the wrong type", name, got=places.dtype, wanted=wanted)
        indices = self._read(places, np.dtype("<i4" if places.dtype == "I32" else "<i8"))
        if len(indices) and not (indices[0] >= 0 and indices[-1] < elements):
            got = f"{indices[0]} to {indices[-1]}"
            self._refuse("indices are out of range", name, got=got, wanted=f"0 to {elements - 1}")
        if not (indices[1:] > indices[:-1]).all():
            self._refuse("indices are not ascending", name, got="an index after one that is not below it")
        return Patch(indices, self._read(values, word))

    def _read(self, info: TensorInfo, dtype: np.dtype[Any]) -> Array:
        import numpy as np

        return np.frombuffer(self._file.read(info.start, info.nbytes), dtype)

    def _refuse(self, what: str, tensor: str | None = None, **details: Any) -> NoReturn:
        remedy = "make the update again; nothing was changed"
        raise DeltaError(what, file=self._file.path, tensor=tensor, **{"remedy": remedy, **details})


class _PatchedSource:
    """Weights with patches, which are put into each piece as it is read."""

    def __init__(self, source: TensorSource, patches: Mapping[str, Patch]) -> None:
        self._source = source
        self._patches = patches
        self.metas = source.metas

    def view(self, name: str, offset: int, length: int) -> memoryview | None:
        """See `ViewableSource`: only of what is not patched."""
        return None if name in self._patches else view_piece(self._source, name, offset, length)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See `TensorSource`."""
        import numpy as np

        self._source.read_into(name, offset, buffer)
        if name in self._patches:
            indices, values = self._patches[name]
            words = np.frombuffer(buffer, values.dtype)
            start = offset // values.dtype.itemsize
            low, high = np.searchsorted(indices, [start, start + len(words)])
            words[indices[low:high].astype(np.int64) - start] = values[low:high]


def _word(name: str, dtype: str) -> np.dtype[Any]:
    """Integers as wide as a dtype's elements."""
    import numpy as np

    return np.dtype(f"<u{_torch_type(name, dtype).itemsize}")


def _torch_type(name: str, dtype: str) -> torch.dtype:
    """The torch dtype whose elements a tensor's are; DeltaError if they do not fill bytes."""
    found = torch_dtype(dtype)
    if found is None or DTYPES[dtype].bits % 8:
        raise DeltaError(
            "the sparse form has no place for elements of less than a byte", tensor=name, got=dtype
        )
    return found
