"""Where tensors' bytes come from, and the description by which a set of tensors is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

from graftwork.checkpoint import Checkpoint
from graftwork.checkpoint.bulk import makes_many_objects
from graftwork.checkpoint.digest import LEAF_BYTES, tree_digest
from graftwork.delta.pipeline import Progress, Scratch, in_batches, ordered_map
from graftwork.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


class TensorMeta(Protocol):
    """Name, safetensors dtype code, shape and size in bytes of one tensor."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


class TensorSource(Protocol):
    """Anything that can deliver tensors' bytes piece by piece: a checkpoint, or an entry of a store."""

    @property
    def metas(self) -> Mapping[str, TensorMeta]: ...

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the tensor's bytes from ``offset`` on. Thread-safe."""
        ...


class ViewableSource(TensorSource, Protocol):
    """A source that holds its tensors in memory."""

    def view(self, name: str, offset: int, length: int) -> memoryview | None:
        """The tensor's bytes where they lie, writable; None if they do not lie one after another. Thread-safe."""
        ...


def view_piece(source: TensorSource, name: str, offset: int, length: int) -> memoryview | None:
    """The tensor's bytes where they lie, if the source is a `ViewableSource` and has them one after another."""
    view: Callable[[str, int, int], memoryview | None] | None = getattr(source, "view", None)
    return None if view is None else view(name, offset, length)


def read_piece(source: TensorSource, name: str, offset: int, buffer: memoryview) -> memoryview:
    """The tensor's ``len(buffer)`` bytes from ``offset`` on: a view of them if the source has one, else ``buffer``,
    filled."""
    view = view_piece(source, name, offset, len(buffer))
    if view is not None:
        return view
    source.read_into(name, offset, buffer)
    return buffer


class CheckpointSource:
    """A checkpoint's tensors as a source."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @property
    def metas(self) -> Mapping[str, TensorMeta]:
        return self._checkpoint.tensors

    def tensor(self, name: str) -> Tensor:
        """The tensor, memory-mapped."""
        return self._checkpoint.tensor(name)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        info = self._checkpoint.tensors[name]
        if offset + len(buffer) > info.nbytes:
            raise CheckpointError(
                "a tensor is smaller than a delta needs",
                file=self._checkpoint.path,
                tensor=name,
                got=f"{info.nbytes} bytes",
                wanted=f"{offset + len(buffer)} bytes",
            )
        self._checkpoint.read_into(info, offset, buffer)


@dataclass(frozen=True, slots=True)
class DescribedTensor:
    """A tensor's identity: dtype, shape, size and tree digest; its leaves stay in memory only."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    digest: str
    leaves: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Description:
    """What a set of tensors holds, by digest, whatever files they lie in."""

    tensors: Mapping[str, DescribedTensor]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON listing: independent of shards, tensor order and metadata."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @makes_many_objects
    def to_json(self) -> bytes:
        """Canonical listing ``{name: [dtype, shape, digest]}`` with sorted names."""
        rows = {t.name: [t.dtype, list(t.shape), t.digest] for t in self.tensors.values()}
        return json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()


def leaf_ranges(nbytes: int) -> Iterator[tuple[int, int]]:
    """``(offset, length)`` of every leaf of a range of ``nbytes`` bytes."""
    for offset in range(0, nbytes, LEAF_BYTES):
        yield offset, min(LEAF_BYTES, nbytes - offset)


def describe(
    source: TensorSource, *, threads: int, stage: str = "digest", progress: Progress | None = None
) -> Description:
    """Read every tensor of ``source`` once and describe it by digest.

    Leaves are hashed on ``threads`` threads; the result does not depend on their number.
    """
    from graftwork.ops.digest import sha256

    scratch = Scratch()
    metas = list(source.metas.values())
    total = sum(meta.nbytes for meta in metas)

    def digest_leaves(jobs: Sequence[tuple[str, int, int]]) -> list[bytes]:
        buffers = scratch.buffers("leaves", [length for _, _, length in jobs])
        pairs = zip(jobs, buffers, strict=True)
        return sha256([read_piece(source, name, offset, buffer) for (name, offset, _), buffer in pairs])

    jobs = ((meta.name, offset, length) for meta in metas for offset, length in leaf_ranges(meta.nbytes))
    batches = in_batches(jobs, itemgetter(2), 2 * LEAF_BYTES)
    leaves = chain.from_iterable(ordered_map(digest_leaves, batches, threads=threads))
    done = 0
    described: dict[str, DescribedTensor] = {}
    for meta in metas:
        own = tuple(islice(leaves, -(-meta.nbytes // LEAF_BYTES)))
        described[meta.name] = DescribedTensor(
            meta.name, meta.dtype, tuple(meta.shape), meta.nbytes, tree_digest(meta.nbytes, own), own
        )
        done += meta.nbytes
        if progress:
            progress(stage, done, total)
    return Description(described)
