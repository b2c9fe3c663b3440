"""The codec registry: how one chunk of a tensor becomes bytes and comes back, bit for bit.

A tensor is cut into chunks of ``LEAF_BYTES`` of its own bytes, each stored by one of the methods below; the
codec of a tensor says which methods it may use. A later codec is one more class and one more row of
``METHODS``.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Protocol

import zstandard

from graftwork.delta.basis import Words
from graftwork.delta.pipeline import Scratch
from graftwork.errors import DeltaError, UnknownCodec

Parts = Sequence[bytes | bytearray | memoryview]


class Method(Protocol):
    """A way to store one chunk. ``basis`` and ``tuned`` are equally long; both sides see the same basis."""

    code: int
    name: str

    def encode(self, basis: memoryview, tuned: memoryview, words: Words, level: int) -> Parts:
        """The payload of a chunk, as parts to be written one after another."""
        ...

    def decode(self, basis: memoryview, payload: memoryview, words: Words, tuned: memoryview) -> None:
        """Restore a chunk into ``tuned``; a malformed payload raises ``DeltaError`` and never allocates more
        than the chunk's own size."""
        ...


class Same:
    """The chunk equals its basis: no payload."""

    code = 0
    name = "same"

    def encode(self, basis: memoryview, tuned: memoryview, words: Words, level: int) -> Parts:
        return ()

    def decode(self, basis: memoryview, payload: memoryview, words: Words, tuned: memoryview) -> None:
        if payload:
            raise DeltaError("a chunk stored as 'same' has a payload", got=f"{len(payload)} bytes", wanted=0)
        tuned[:] = basis


class Raw:
    """The chunk's own bytes."""

    code = 1
    name = "raw"

    def encode(self, basis: memoryview, tuned: memoryview, words: Words, level: int) -> Parts:
        return (bytes(tuned),)

    def decode(self, basis: memoryview, payload: memoryview, words: Words, tuned: memoryview) -> None:
        if len(payload) != len(tuned):
            raise DeltaError("a raw chunk has the wrong length", got=len(payload), wanted=len(tuned))
        tuned[:] = payload


class OrdinalPlanes:
    """Zigzag ordinal differences to the basis, in byte planes, each plane one zstd frame.

    Payload: the planes' compressed lengths as little-endian u32, then the frames, least significant plane
    first. See ``ops.lossless_delta.encode_ordinal_planes`` for the bijection.
    """

    code = 2
    name = "ordz"

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._local = threading.local()

    def _compressor(self, level: int) -> zstandard.ZstdCompressor:
        held: dict[int, zstandard.ZstdCompressor] = self._local.__dict__.setdefault("compressors", {})
        if level not in held:
            held[level] = zstandard.ZstdCompressor(level=level)
        return held[level]

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._local, "decompressor"):
            self._local.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        found: zstandard.ZstdDecompressor = self._local.decompressor
        return found

    def encode(self, basis: memoryview, tuned: memoryview, words: Words, level: int) -> Parts:
        import torch

        from graftwork.ops.lossless_delta import encode_ordinal_planes

        planes = self._scratch.buffer("planes", len(tuned))
        count = len(tuned) // words.nbytes
        encode_ordinal_planes(
            torch.frombuffer(basis, dtype=words.torch_dtype),
            torch.frombuffer(tuned, dtype=words.torch_dtype),
            torch.frombuffer(planes, dtype=torch.uint8).view(words.nbytes, count),
        )
        compress = self._compressor(level).compress
        frames = [compress(planes[j * count : (j + 1) * count]) for j in range(words.nbytes)]
        return (struct.pack(f"<{words.nbytes}I", *map(len, frames)), *frames)

    def decode(self, basis: memoryview, payload: memoryview, words: Words, tuned: memoryview) -> None:
        import torch

        from graftwork.ops.lossless_delta import decode_ordinal_planes

        count = len(tuned) // words.nbytes
        planes = self._scratch.buffer("planes", len(tuned))
        at = 4 * words.nbytes
        if len(payload) < at:
            raise DeltaError("an ordinal-plane chunk is too short", got=len(payload), wanted=f">= {at} bytes")
        lengths = struct.unpack_from(f"<{words.nbytes}I", payload)
        if at + sum(lengths) != len(payload):
            raise DeltaError(
                "an ordinal-plane chunk's frames do not fill it", got=at + sum(lengths), wanted=len(payload)
            )
        for j, length in enumerate(lengths):
            self._decompress(payload[at : at + length], planes[j * count : (j + 1) * count])
            at += length
        decode_ordinal_planes(
            torch.frombuffer(basis, dtype=words.torch_dtype),
            torch.frombuffer(planes, dtype=torch.uint8).view(words.nbytes, count),
            torch.frombuffer(tuned, dtype=words.torch_dtype),
        )

    def _decompress(self, frame: memoryview, plane: memoryview) -> None:
        try:
            declared = zstandard.frame_content_size(frame)
            if declared != len(plane):
                raise DeltaError("a plane's frame declares the wrong size", got=declared, wanted=len(plane))
            with self._decompressor().stream_reader(frame, read_across_frames=False) as reader:
                filled = 0
                while filled < len(plane):
                    step = reader.readinto(plane[filled:])
                    if not step:
                        raise DeltaError("a plane's frame ends early", got=filled, wanted=len(plane))
                    filled += step
        except zstandard.ZstdError as error:
            raise DeltaError(f"a plane's frame is not valid zstd: {error}") from error


METHODS: dict[int, Method] = {method.code: method for method in (Same(), Raw(), OrdinalPlanes())}

CODECS: dict[str, tuple[str, ...]] = {
    "same": ("same",),
    "raw": ("same", "raw"),
    "ordz": ("same", "raw", "ordz"),
}
"""Codec of a tensor -> methods that its chunks may use."""

LEVELS: dict[str, tuple[int, ...]] = {"fast": (1,), "auto": (1,), "small": (1, 9)}
"""Choice of a codec at the door -> the zstd levels to try; the smallest result of each chunk is kept."""


def method_named(name: str) -> Method:
    """The method called ``name``."""
    for method in METHODS.values():
        if method.name == name:
            return method
    raise UnknownCodec(f"no chunk method is called {name!r}", wanted=[m.name for m in METHODS.values()])
