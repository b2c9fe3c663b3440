"""Encode one checkpoint into delta files, and say where each of its tensors went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from operator import attrgetter

from graftwork.checkpoint import TensorInfo, files
from graftwork.checkpoint.bulk import makes_many_objects
from graftwork.checkpoint.digest import tree_digest
from graftwork.checkpoint.header import MAX_HEADER_BYTES
from graftwork.delta.basis import Basis, BasisReader, find_basis
from graftwork.delta.codecs import Parts
from graftwork.delta.container import DeltaWriter, header_room
from graftwork.delta.encoder import ChunkEncoder, ChunkJob, codec_of
from graftwork.delta.manifest import Chunk, TensorRecord
from graftwork.delta.pipeline import Progress, ordered_map
from graftwork.delta.source import Description, TensorMeta, TensorSource, leaf_ranges
from graftwork.store.entry import StoredTensor, listing_digest
from graftwork.store.objects import ObjectFolder
from graftwork.store.results import CodecUse
from graftwork.store.stored import Readable, source_of

Identity = tuple[str, str, tuple[int, ...]]
"""What makes two tensors the same content: digest, dtype, shape."""

FILE_TENSORS = 100_000
FILE_HEADER_BYTES = MAX_HEADER_BYTES // 2
"""An entry's tensors are spread over delta files of at most so many tensors and bytes of header: a reader holds
a file's manifest in memory, and a header has a limit of its own."""


class EntryEncoder:
    """Encodes the tensors of ``tuned`` as differences to ``base`` (alone, if that is None).

    A tensor whose content ``known`` lists is not stored again.
    """

    def __init__(
        self,
        tuned: Readable,
        base: TensorSource | None,
        described_base: Description | None,
        known: Mapping[Identity, StoredTensor],
        *,
        effort: str,
        threads: int,
        stage: str,
        progress: Progress | None,
    ) -> None:
        self._tuned = tuned
        self._base = base
        self._described_base = described_base
        self._known = known
        self._effort = effort
        self._threads = threads
        self._stage = stage
        self._progress = progress
        self._bases = {meta.name: self._find_basis(meta) for meta in tuned.tensors.values()}
        self._total = sum(meta.nbytes for meta in tuned.tensors.values())
        self._done = 0
        self._digests: dict[str, str] = {}
        self._places: dict[str, StoredTensor | tuple[int, str]] = {}  # known, or number of delta file and key
        self._own: dict[Identity, tuple[int, str]] = {}
        self._use: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        self.deltas: list[str] = []

    def store(self, objects: ObjectFolder) -> None:
        """Write the delta files; ``deltas`` are their digests. Chunks are encoded on all threads, written in order."""
        encode = ChunkEncoder(BasisReader(self._base), source_of(self._tuned), self._effort)
        encoded = ordered_map(encode, self._jobs(), threads=self._threads, weigh=attrgetter("length"))
        with closing(encoded):
            for metas in file_groups(self._tuned.tensors.values()):
                delta = objects.put_file(partial(self._write, metas, encoded), "safetensors")
                if any(place[0] == len(self.deltas) for place in self._own.values()):
                    self.deltas.append(delta)
                else:  # every tensor is stored elsewhere already: nothing would refer to the file
                    files.remove_file(objects.locate(delta, "safetensors"))

    def _write(
        self, metas: Sequence[TensorInfo], encoded: Iterator[tuple[Chunk, Parts]], file: files.AtomicFile
    ) -> None:
        base_digest = None if self._described_base is None else self._described_base.digest
        writer = DeltaWriter(file, base_digest, [meta.name for meta in metas])
        for meta in metas:
            start, chunks = writer.position, []
            for _, length in leaf_ranges(meta.nbytes):
                chunk, parts = next(encoded)
                writer.write_payload(parts)
                chunks.append(chunk)
                self._done += length
                if self._progress:
                    self._progress(self._stage, self._done, self._total)
            self._finish_tensor(writer, meta, start, chunks)
        writer.finish()

    def tensors_digest(self) -> str:
        """Digest of what was encoded."""
        metas = self._tuned.tensors.values()
        return listing_digest((meta.name, meta.dtype, meta.shape, self._digests[meta.name]) for meta in metas)

    @makes_many_objects
    def stored_tensors(self) -> dict[str, StoredTensor]:
        """Where each tensor is stored."""
        stored = {}
        for name, place in self._places.items():
            if isinstance(place, StoredTensor):
                stored[name] = replace(place, name=name)
            else:
                meta, (file, key) = self._tuned.tensors[name], place
                stored[name] = StoredTensor(
                    name, meta.dtype, meta.shape, self._digests[name], self.deltas[file], key
                )
        return stored

    def codec_use(self) -> dict[str, CodecUse]:
        """How much each codec stores; ``shared`` is what was in the store already."""
        return {codec: CodecUse(*numbers) for codec, numbers in sorted(self._use.items())}

    def facts(self) -> dict[str, list[str]]:
        """The tensors that are not plain differences, by kind of fact; kinds without any are left out."""
        facts: dict[str, list[str]] = defaultdict(list)
        for absent, present in sorted(self._tuned.tied.items()):
            facts["tied"].append(f"{absent} = {present}")
        if self._described_base is None:
            return dict(facts)
        base = self._described_base.tensors
        for meta in self._tuned.tensors.values():
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
        facts["only in the base"] = sorted(name for name in base if name not in self._tuned.tensors)
        return {kind: rows for kind, rows in facts.items() if rows}

    def _find_basis(self, meta: TensorMeta) -> Basis | None:
        if self._described_base is None:
            return None
        held = self._described_base.tensors.get(meta.name)
        return find_basis(meta, held, None if held is None else held.digest)

    def _jobs(self) -> Iterator[ChunkJob]:
        for meta in self._tuned.tensors.values():
            basis = self._bases[meta.name]
            leaves: tuple[bytes, ...] = ()
            if self._described_base and basis and (basis.dtype, basis.nbytes) == (meta.dtype, meta.nbytes):
                leaves = self._described_base.tensors[basis.name].leaves
            for index, (offset, length) in enumerate(leaf_ranges(meta.nbytes)):
                leaf = leaves[index] if index < len(leaves) else None
                yield ChunkJob(meta.name, meta.dtype, offset, length, basis, leaf)

    def _finish_tensor(
        self, writer: DeltaWriter, meta: TensorInfo, start: int, chunks: Sequence[Chunk]
    ) -> None:
        name, dtype, shape, nbytes = meta.name, meta.dtype, meta.shape, meta.nbytes
        digest = tree_digest(nbytes, [chunk.leaf for chunk in chunks])
        self._digests[name] = digest
        record = TensorRecord(name, dtype, shape, nbytes, digest, codec_of(chunks), self._bases[name])
        identity = (digest, dtype, shape)
        known = self._known.get(identity) or self._own.get(identity)
        if record.equals_basis:
            record = replace(record, codec="same")
        elif known is not None:
            writer.rewind(start)
            self._places[name] = known
            self._count("shared", nbytes, 0)
            return
        writer.finish_tensor(record, chunks)
        self._places[name] = self._own[identity] = len(self.deltas), name
        stored = 0 if record.codec == "same" else writer.position - start
        self._count(record.codec if any(chunk.length for chunk in chunks) else "same", nbytes, stored)

    def _count(self, codec: str, raw: int, stored: int) -> None:
        use = self._use[codec]
        use[0], use[1], use[2] = use[0] + 1, use[1] + raw, use[2] + stored


def file_groups(metas: Iterable[TensorInfo]) -> Iterator[list[TensorInfo]]:
    """Cut tensors, in their order, into groups for a delta file each; there is one at least."""
    group: list[TensorInfo] = []
    room = 0
    for meta in metas:
        own = header_room(meta.name)
        if group and (len(group) >= FILE_TENSORS or room + own > FILE_HEADER_BYTES):
            yield group
            group, room = [], 0
        group.append(meta)
        room += own
    yield group


def _what(meta: TensorMeta) -> str:
    return f"{meta.dtype} {list(meta.shape)}"
