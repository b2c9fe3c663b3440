"""Encode one checkpoint into a delta file, and say where each of its tensors went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from graftwork.checkpoint import Checkpoint, files
from graftwork.checkpoint.digest import tree_digest
from graftwork.delta.basis import Basis, BasisReader, find_basis
from graftwork.delta.container import DeltaWriter
from graftwork.delta.encoder import ChunkEncoder, ChunkJob, codec_of
from graftwork.delta.manifest import Chunk, TensorRecord
from graftwork.delta.pipeline import Progress, ordered_map
from graftwork.delta.source import CheckpointSource, DescribedTensor, Description, TensorMeta, leaf_ranges
from graftwork.store.entry import StoredTensor
from graftwork.store.results import CodecUse

Identity = tuple[str, str, tuple[int, ...]]
"""What makes two tensors the same content: digest, dtype, shape."""

_PENDING = ""
"""Object of a tensor whose delta file has no digest yet."""


class EntryEncoder:
    """Encodes the tensors of ``checkpoint`` as differences to ``base`` (alone, if that is None).

    A tensor whose content ``known`` lists is not stored again.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        base: Checkpoint | None,
        described_base: Description | None,
        known: Mapping[Identity, StoredTensor],
        *,
        levels: Sequence[int],
        threads: int,
        stage: str,
        progress: Progress | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._base = base
        self._described_base = described_base
        self._known = known
        self._levels = levels
        self._threads = threads
        self._stage = stage
        self._progress = progress
        self._bases = {meta.name: self._find_basis(meta) for meta in checkpoint.tensors.values()}
        self._described: dict[str, DescribedTensor] = {}
        self._stored: dict[str, StoredTensor] = {}
        self._own: dict[Identity, StoredTensor] = {}
        self._use: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def write(self, file: files.AtomicFile) -> None:
        """Write the delta file. Chunks are encoded on all threads and written in order."""
        metas = self._checkpoint.tensors.values()
        reader = BasisReader(None if self._base is None else CheckpointSource(self._base))
        encoder = ChunkEncoder(reader, CheckpointSource(self._checkpoint), self._levels)
        base_digest = None if self._described_base is None else self._described_base.digest
        writer = DeltaWriter(file, base_digest, self._checkpoint.tensors)
        encoded = ordered_map(encoder, self._jobs(), threads=self._threads)
        total, done = sum(meta.nbytes for meta in metas), 0
        for meta in metas:
            start, chunks = writer.position, []
            for _, length in leaf_ranges(meta.nbytes):
                chunk, parts = next(encoded)
                writer.write_payload(parts)
                chunks.append(chunk)
                done += length
                if self._progress:
                    self._progress(self._stage, done, total)
            self._finish_tensor(writer, meta, start, chunks)
        writer.finish()

    def description(self) -> Description:
        """What was encoded, by digest."""
        return Description(self._described)

    def stored_tensors(self, object_digest: str) -> dict[str, StoredTensor]:
        """Where each tensor is stored, given the digest of the delta file that ``write`` wrote."""
        return {
            name: replace(tensor, object=object_digest) if tensor.object == _PENDING else tensor
            for name, tensor in self._stored.items()
        }

    def codec_use(self) -> dict[str, CodecUse]:
        """How much each codec stores; ``shared`` is what was in the store already."""
        return {codec: CodecUse(*numbers) for codec, numbers in sorted(self._use.items())}

    def facts(self) -> dict[str, list[str]]:
        """The tensors that are not plain differences, by kind of fact; kinds without any are left out."""
        facts: dict[str, list[str]] = defaultdict(list)
        for absent, present in sorted(self._checkpoint.tied.items()):
            facts["tied"].append(f"{absent} = {present}")
        if self._described_base is None:
            return dict(facts)
        base = self._described_base.tensors
        for meta in self._checkpoint.tensors.values():
            basis, held = self._bases[meta.name], base.get(meta.name)
            if held is None:
                facts["only in the fine-tune"].append(meta.name)
            elif basis is None:
                facts["not comparable"].append(f"{meta.name}: {_what(meta)}, base {_what(held)}")
            else:
                if basis.dtype != meta.dtype:
                    facts["base cast"].append(f"{meta.name}: {basis.dtype} to {meta.dtype}")
                if held.shape != tuple(meta.shape):
                    facts["rows differ"].append(f"{meta.name}: {_what(meta)}, base {_what(held)}")
        facts["only in the base"] = [name for name in base if name not in self._checkpoint.tensors]
        return {kind: rows for kind, rows in facts.items() if rows}

    def _find_basis(self, meta: TensorMeta) -> Basis | None:
        if self._described_base is None:
            return None
        held = self._described_base.tensors.get(meta.name)
        return find_basis(meta, held, None if held is None else held.digest)

    def _jobs(self) -> Iterator[ChunkJob]:
        for meta in self._checkpoint.tensors.values():
            basis = self._bases[meta.name]
            leaves: tuple[bytes, ...] = ()
            if self._described_base and basis and (basis.dtype, basis.nbytes) == (meta.dtype, meta.nbytes):
                leaves = self._described_base.tensors[basis.name].leaves
            for index, (offset, length) in enumerate(leaf_ranges(meta.nbytes)):
                leaf = leaves[index] if index < len(leaves) else None
                yield ChunkJob(meta.name, meta.dtype, offset, length, basis, leaf)

    def _finish_tensor(
        self, writer: DeltaWriter, meta: TensorMeta, start: int, chunks: Sequence[Chunk]
    ) -> None:
        name, dtype, shape, nbytes = meta.name, meta.dtype, tuple(meta.shape), meta.nbytes
        digest = tree_digest(nbytes, (chunk.leaf for chunk in chunks))
        self._described[name] = DescribedTensor(name, dtype, shape, nbytes, digest)
        record = TensorRecord(name, dtype, shape, nbytes, digest, codec_of(chunks), self._bases[name])
        identity = (digest, dtype, shape)
        known = self._known.get(identity) or self._own.get(identity)
        if record.equals_basis:
            record = replace(record, codec="same")
        elif known is not None:
            writer.rewind(start)
            self._stored[name] = replace(known, name=name)
            self._count("shared", nbytes, 0)
            return
        writer.finish_tensor(record, chunks)
        self._stored[name] = self._own[identity] = StoredTensor(name, dtype, shape, digest, _PENDING, name)
        stored = 0 if record.codec == "same" else writer.position - start
        self._count(record.codec if any(chunk.length for chunk in chunks) else "same", nbytes, stored)

    def _count(self, codec: str, raw: int, stored: int) -> None:
        use = self._use[codec]
        use[0], use[1], use[2] = use[0] + 1, use[1] + raw, use[2] + stored


def _what(meta: TensorMeta) -> str:
    return f"{meta.dtype} {list(meta.shape)}"
