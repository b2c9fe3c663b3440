"""The lossless codecs that graftwork is compared with: two checkpoint files in, a payload out, and back.

Every peer is used as its own documentation shows. What a peer checks (fireworks an Adler-32, lmzip a CRC-32 of each
chunk, the others nothing) is in its times; no peer checks that it got the right base.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Data = bytes | memoryview
Tensors = dict[str, Any]
Compress = Callable[[bytes, bytes, int], Data]  # base, tuned, threads
Decompress = Callable[[bytes, bytes, int], Data]  # base, payload, threads


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One codec.

    ``restores`` says what comes back equal: the file's ``bytes``, or its ``tensors`` alone; ``aligned`` that both
    files must hold the same tensors at the same offsets; ``own_threads`` that it starts as many as it likes.
    """

    name: str
    package: str
    restores: str = "bytes"
    aligned: bool = False
    own_threads: bool = False

    def begin(self, base: Path, payload: Path) -> None:
        """Have in place what the peer needs before it packs, and no payload; not timed."""
        payload.unlink(missing_ok=True)

    def pack(self, base: Path, tuned: Path, payload: Path, threads: int) -> None:
        """Write the fine-tune's payload to disk."""
        raise NotImplementedError

    def checkout(self, base: Path, payload: Path, restored: Path, threads: int) -> None:
        """Write the restored file to disk."""
        raise NotImplementedError

    def stored_bytes(self, payload: Path) -> int:
        """What the fine-tune takes beside its base."""
        return payload.stat().st_size

    def end(self, payload: Path) -> None:
        """Remove the payload and what `begin` has put beside it."""
        payload.unlink(missing_ok=True)

    def threads(self, counts: Sequence[int]) -> Sequence[int]:
        """The thread counts of ``counts`` that make a difference to this peer."""
        return counts[:1] if self.own_threads else counts

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def same(self, restored: Data, tuned: bytes) -> bool:
        """Whether a round trip gave back what this peer promises."""
        if self.restores == "bytes":
            return restored == tuned
        from safetensors.torch import load

        got, wanted = load(bytes(restored)), load(tuned)
        return got.keys() == wanted.keys() and all(same_bits(got[name], wanted[name]) for name in wanted)


@dataclass(frozen=True, kw_only=True)
class MemoryPeer(Peer):
    """A codec of bytes in memory, for which this module reads and writes the files."""

    compress: Compress
    decompress: Decompress

    def pack(self, base: Path, tuned: Path, payload: Path, threads: int) -> None:
        write_file(payload, self.compress(base.read_bytes(), tuned.read_bytes(), threads))

    def checkout(self, base: Path, payload: Path, restored: Path, threads: int) -> None:
        write_file(restored, self.decompress(base.read_bytes(), payload.read_bytes(), threads))


@dataclass(frozen=True, kw_only=True)
class ArchivePeer(Peer):
    """lmzip, which keeps files in an archive: alone, or (``beside_base``) added to an archive that holds the base.

    Such an addition is coded against what the archive already has; it decodes the base that it needs from there.
    """

    beside_base: bool

    def begin(self, base: Path, payload: Path) -> None:
        import lmz

        payload.unlink(missing_ok=True)
        if not self.beside_base:
            return
        archive = self._base_archive(payload)
        if not archive.exists():
            member = payload.with_suffix(".base")  # a name of its own: an archive has each name once
            shutil.copyfile(base, member)
            lmz.compress(str(member), str(archive))
            member.unlink()
        shutil.copyfile(archive, payload)

    def pack(self, base: Path, tuned: Path, payload: Path, threads: int) -> None:
        import lmz

        if self.beside_base:
            lmz.append(str(payload), str(tuned), workers=threads)
        else:
            lmz.compress(str(tuned), str(payload), workers=threads)
        _sync(payload)

    def checkout(self, base: Path, payload: Path, restored: Path, threads: int) -> None:
        import lmz

        lmz.extract(str(payload), "model.safetensors", str(restored), workers=threads)
        _sync(restored)

    def stored_bytes(self, payload: Path) -> int:
        held = self._base_archive(payload).stat().st_size if self.beside_base else 0
        return payload.stat().st_size - held

    def end(self, payload: Path) -> None:
        for path in (payload, self._base_archive(payload)):
            path.unlink(missing_ok=True)

    @staticmethod
    def _base_archive(payload: Path) -> Path:
        return payload.with_suffix(".base-archive")


def write_file(path: Path, data: Data) -> None:
    """Write a file and wait until it is on its way to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def same_bits(got: Any, wanted: Any) -> bool:
    """Whether two tensors are equal in dtype, shape and every bit."""
    import torch

    return (
        got.dtype == wanted.dtype
        and got.shape == wanted.shape
        and torch.equal(got.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8))
    )


def _xor(one: bytes, other: bytes) -> np.ndarray:
    """Bytes of ``other`` XOR those of ``one`` at the same offset; checkpoints of one layout line up."""
    return np.bitwise_xor(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def _zstd(level: int, *, xor: bool, word_bytes: int = 1) -> tuple[Compress, Decompress]:
    """zstd on the file, on its XOR with the base, or on the byte planes of that XOR."""

    def compress(base: bytes, tuned: bytes, threads: int) -> Data:
        import zstandard

        data: Any = _xor(base, tuned) if xor else tuned
        if word_bytes > 1:
            whole = data.size // word_bytes * word_bytes
            data = np.concatenate([data[:whole].reshape(-1, word_bytes).T.reshape(-1), data[whole:]])
        return zstandard.ZstdCompressor(level=level, threads=threads if threads > 1 else 0).compress(data)

    def decompress(base: bytes, payload: bytes, threads: int) -> Data:
        import zstandard

        data = zstandard.ZstdDecompressor().decompress(payload)
        if not xor:
            return data
        difference = np.frombuffer(data, np.uint8)
        if word_bytes > 1:
            whole = difference.size // word_bytes * word_bytes
            planes = difference[:whole].reshape(word_bytes, -1).T.reshape(-1)
            difference = np.concatenate([planes, difference[whole:]])
        return np.bitwise_xor(difference, np.frombuffer(base, np.uint8)).data

    return compress, decompress


def _zipnn(dtype: str, *, xor: bool) -> tuple[Compress, Decompress]:
    """ZipNN on the file, or in its own delta mode. It writes into its input: hand it bytes of its own."""

    def coder(threads: int) -> Any:
        from zipnn import ZipNN

        kind = "byte" if xor else 0
        return ZipNN(bytearray_dtype=dtype, threads=threads, delta_compressed_type=kind)

    def compress(base: bytes, tuned: bytes, threads: int) -> Data:
        return coder(threads).compress(tuned, delta_second_data=base if xor else None)

    def decompress(base: bytes, payload: bytes, threads: int) -> Data:
        return coder(threads).decompress(payload, delta_second_data=base if xor else None)

    return compress, decompress


def fireworks_encode(base: Tensors, tuned: Tensors, kind: str, threads: int) -> bytes:
    """One delta per tensor, ``threads`` tensors at a time; ``arc_v3`` starts six more threads for each."""
    from fireworks_delta_compression import delta_compress_dicts
    from safetensors.torch import save

    with ThreadPoolExecutor(threads) as pool:
        deltas, sums = delta_compress_dicts(base, tuned, kind, executor=pool)
    return save(deltas, metadata=sums)


def fireworks_apply(base: Tensors, payload: bytes, kind: str, threads: int) -> Tensors:
    """New tensors; those of ``base`` stay."""
    from fireworks_delta_compression import delta_decompress
    from safetensors.torch import load

    header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
    sums, deltas = header["__metadata__"], load(payload)

    def one(name: str) -> Any:
        return delta_decompress(
            src=base[name], compressed_diff=deltas[name], checksum=sums[name], compression_format=kind
        )

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(deltas, pool.map(one, deltas), strict=True))


def _fireworks(kind: str) -> tuple[Compress, Decompress]:
    from safetensors.torch import load, save

    def compress(base: bytes, tuned: bytes, threads: int) -> Data:
        return fireworks_encode(load(base), load(tuned), kind, threads)

    def decompress(base: bytes, payload: bytes, threads: int) -> Data:
        return save(fireworks_apply(load(base), payload, kind, threads))

    return compress, decompress


def all_peers(dtype: str) -> Sequence[Peer]:
    """Every peer, installed or not, in the order of the tables, set up for files of ``dtype`` ("bfloat16", ...)."""
    return (
        *memory_peers(dtype),
        ArchivePeer(name="lmzip", package="lmzip", beside_base=False),
        ArchivePeer(name="lmzip beside the base", package="lmzip", beside_base=True),
    )


def memory_peers(dtype: str) -> Sequence[MemoryPeer]:
    """Those of `all_peers` that code bytes in memory."""
    width = {"bfloat16": 2, "float16": 2, "float32": 4}[dtype]

    def peer(name: str, package: str, codec: tuple[Compress, Decompress], **facts: Any) -> MemoryPeer:
        return MemoryPeer(name=name, package=package, compress=codec[0], decompress=codec[1], **facts)

    fireworks = {"restores": "tensors", "aligned": True}
    package = "fireworks-delta-compression"
    return (
        peer("zstd -1", "zstandard", _zstd(1, xor=False)),
        peer("zstd -3", "zstandard", _zstd(3, xor=False)),
        peer("zstd -1 on XOR", "zstandard", _zstd(1, xor=True), aligned=True),
        peer("zstd -3 on XOR", "zstandard", _zstd(3, xor=True), aligned=True),
        peer("zstd -1 on XOR planes", "zstandard", _zstd(1, xor=True, word_bytes=width), aligned=True),
        peer("ZipNN", "zipnn", _zipnn(dtype, xor=False)),
        peer("ZipNN on XOR", "zipnn", _zipnn(dtype, xor=True), aligned=True),
        peer("fireworks arc_v2", package, _fireworks("arc_v2"), **fireworks),
        peer("fireworks arc_v3", package, _fireworks("arc_v3"), own_threads=True, **fireworks),
    )
