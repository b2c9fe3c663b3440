"""Make a payload: what turns one version of a model's weights into the next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from graftwork.checkpoint.digest import tree_digest
from graftwork.delta.basis import Basis, BasisReader
from graftwork.delta.container import DeltaWriter
from graftwork.delta.encoder import ChunkEncoder, ChunkJob, codec_of
from graftwork.delta.manifest import Chunk, TensorRecord
from graftwork.delta.memory import MemoryWriter
from graftwork.delta.pipeline import default_threads, ordered_map
from graftwork.delta.source import TensorMeta, leaf_ranges
from graftwork.delta.weights import Stateful, Weights, open_weights
from graftwork.errors import StoreError
from graftwork.store.sync.payload import REVERSIBLE, seal_metadata


class Pair(NamedTuple):
    """A tensor and its predecessor, each under the name that its source knows it by."""

    name: str
    current: TensorMeta
    previous: TensorMeta


def encode(
    previous: Stateful,
    current: Stateful,
    *,
    version: str | None = None,
    parent: str | None = None,
    threads: int | None = None,
) -> bytes:
    """Encode what turns ``previous`` into ``current``, bit for bit.

    Parameters
    ----------
    previous, current : mapping of str to Tensor, Module, Checkpoint or path
        The weights that the receiver has, and those that it shall have: a state dict, a module, or a
        checkpoint. Names, shapes and dtypes agree. Tensors may be on any device and in any layout; nothing is
        changed. Nobody may write to them meanwhile.
    version, parent : str, optional
        What these weights are called, and the name of the version that they follow. They travel with the
        payload; ``apply_(..., expect_parent=...)`` checks ``parent``.
    threads : int, optional
        Threads to use; all processors by default. The bytes do not depend on it.

    Returns
    -------
    bytes
        The payload: a valid safetensors file. ``docs/weight-sync.md`` is the specification.

    Raises
    ------
    StoreError
        The two do not have the same tensors; the error names one that differs.
    CheckpointError
        A tensor or a checkpoint cannot be read.
    """
    with open_weights(previous, "previous") as old, open_weights(current, "current") as new:
        return encode_weights(old, new, version=version, parent=parent, threads=threads)


def encode_weights(
    old: Weights, new: Weights, *, version: str | None, parent: str | None, threads: int | None
) -> bytes:
    """`encode` of weights that are open already."""
    pairs, tied = _match(old, new)
    encoder = ChunkEncoder(BasisReader(old.source), new.source, methods=REVERSIBLE)
    file = MemoryWriter()
    said = len(json.dumps([version, parent, tied]))
    writer = DeltaWriter(file, None, [pair.name for pair in pairs], metadata_bytes=2 * said + 256)
    with closing(
        ordered_map(encoder, _jobs(pairs), threads=threads or default_threads(), weigh=lambda job: job.length)
    ) as encoded:
        for pair in pairs:
            chunks = []
            for _ in leaf_ranges(pair.current.nbytes):
                chunk, parts = next(encoded)
                writer.write_payload(parts)
                chunks.append(chunk)
            writer.finish_tensor(_record(pair, chunks), chunks)
    writer.finish(lambda manifest: seal_metadata(manifest, version, parent, tied))
    return file.getvalue()


def _basis(pair: Pair) -> Basis:
    """All of the tensor before; nobody takes its digest, since the receiver checks what it gets in the end."""
    return Basis(pair.previous.name, None, pair.previous.dtype, pair.previous.nbytes)


def _jobs(pairs: Sequence[Pair]) -> Iterator[ChunkJob]:
    for pair in pairs:
        name, dtype, basis = pair.current.name, pair.current.dtype, _basis(pair)
        for offset, length in leaf_ranges(pair.current.nbytes):
            yield ChunkJob(name, dtype, offset, length, basis, None)


def _record(pair: Pair, chunks: Sequence[Chunk]) -> TensorRecord:
    new = pair.current
    digest = tree_digest(new.nbytes, (chunk.leaf for chunk in chunks))
    shape, codec = tuple(new.shape), codec_of(chunks)
    return TensorRecord(pair.name, new.dtype, shape, new.nbytes, digest, codec, _basis(pair))


def _match(old: Weights, new: Weights) -> tuple[list[Pair], dict[str, str]]:
    """The tensors to encode, by name, and the other names of those that are tied on both sides.

    A name that one side leaves out because it is tied there is the tensor that it is tied to.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    tied: dict[str, str] = {}
    for name in dict.fromkeys([*new.names, *old.names]):
        in_new, in_old = _first_name(new, name, old), _first_name(old, name, new)
        known = pairs.get((in_new, in_old))
        if known is not None:
            tied[name] = known.name
            continue
        pair = Pair(name, new.source.metas[in_new], old.source.metas[in_old])
        _check_pair(pair, old, new)
        pairs[in_new, in_old] = pair
    return sorted(pairs.values(), key=lambda pair: pair.name), tied


def _first_name(side: Weights, name: str, other: Weights) -> str:
    """Under which name ``side`` holds ``name``, or holds what ``other`` ties it to."""
    first = side.first_name(name)
    if first is not None:
        return first
    for alias in other.tied_to(other.first_name(name) or name):
        first = side.first_name(alias)
        if first is not None:
            return first
    raise StoreError(
        "the two versions do not have the same tensors",
        tensor=name,
        got=f"it is in {other.what} alone",
        wanted=f"it in {side.what} too",
        remedy="send a model whose tensors change as a whole checkpoint",
    )


def _check_pair(pair: Pair, old: Weights, new: Weights) -> None:
    was, now = ((meta.dtype, list(meta.shape)) for meta in (pair.previous, pair.current))
    if was != now:
        raise StoreError(
            "a tensor's dtype or shape is not the same in the two versions",
            tensor=pair.name,
            got=f"{now[0]} {now[1]} in {new.what}",
            wanted=f"{was[0]} {was[1]}, as in {old.what}",
            remedy="cast or reshape one of them first; nothing is converted silently",
        )
