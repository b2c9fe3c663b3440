"""The lossless codecs that graftwork is compared with: bytes of two checkpoint files in, a payload out.

Every peer is used as its own documentation shows. What a peer checks (fireworks an Adler-32, the others
nothing) is in its times; no peer checks that it got the right base.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

Data = bytes | memoryview
Compress = Callable[[bytes, bytes, int], Data]  # base, tuned, threads
Decompress = Callable[[bytes, bytes, int], Data]  # base, payload, threads


@dataclass(frozen=True)
class Peer:
    """One codec.

    ``restores`` says what comes back equal: the file's ``bytes``, or its ``tensors`` alone; ``aligned`` that both
    files must hold the same tensors at the same offsets; ``own_threads`` that it starts as many as it likes.
    """

    name: str
    package: str
    compress: Compress
    decompress: Decompress
    restores: str = "bytes"
    aligned: bool = False
    own_threads: bool = False

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
        return got.keys() == wanted.keys() and all(_same_bits(got[name], wanted[name]) for name in wanted)


def _same_bits(got: Any, wanted: Any) -> bool:
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


def _fireworks(kind: str) -> tuple[Compress, Decompress]:
    """One delta per tensor, ``threads`` tensors at a time; ``arc_v3`` starts six more threads for each."""

    def compress(base: bytes, tuned: bytes, threads: int) -> Data:
        from fireworks_delta_compression import delta_compress_dicts
        from safetensors.torch import load, save

        with ThreadPoolExecutor(threads) as pool:
            deltas, sums = delta_compress_dicts(load(base), load(tuned), kind, executor=pool)
        return save(deltas, metadata=sums)

    def decompress(base: bytes, payload: bytes, threads: int) -> Data:
        from fireworks_delta_compression import delta_decompress
        from safetensors.torch import load, save

        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        sums, source, deltas = header["__metadata__"], load(base), load(payload)

        def one(name: str) -> Any:
            return delta_decompress(
                src=source[name], compressed_diff=deltas[name], checksum=sums[name], compression_format=kind
            )

        with ThreadPoolExecutor(threads) as pool:
            return save(dict(zip(deltas, pool.map(one, deltas), strict=True)))

    return compress, decompress


def all_peers(dtype: str) -> Sequence[Peer]:
    """Every peer, installed or not, in the order of the tables, set up for files of ``dtype`` ("bfloat16", ...)."""
    fireworks, width = "fireworks-delta-compression", {"bfloat16": 2, "float16": 2, "float32": 4}[dtype]
    return (
        Peer("zstd -1", "zstandard", *_zstd(1, xor=False)),
        Peer("zstd -3", "zstandard", *_zstd(3, xor=False)),
        Peer("zstd -1 on XOR", "zstandard", *_zstd(1, xor=True), aligned=True),
        Peer("zstd -3 on XOR", "zstandard", *_zstd(3, xor=True), aligned=True),
        Peer("zstd -1 on XOR planes", "zstandard", *_zstd(1, xor=True, word_bytes=width), aligned=True),
        Peer("ZipNN", "zipnn", *_zipnn(dtype, xor=False)),
        Peer("ZipNN on XOR", "zipnn", *_zipnn(dtype, xor=True), aligned=True),
        Peer("fireworks arc_v2", fireworks, *_fireworks("arc_v2"), "tensors", aligned=True),
        Peer("fireworks arc_v3", fireworks, *_fireworks("arc_v3"), "tensors", aligned=True, own_threads=True),
    )
