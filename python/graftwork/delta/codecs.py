"""The codec registry: how one chunk of a tensor becomes bytes and comes back, bit for bit.

A tensor is cut into chunks of ``LEAF_BYTES`` of its own bytes, each stored by one of the methods below; the
codec of a tensor says which methods it may use. A later codec is one more class and one more row of
``METHODS``.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import zstandard

from graftwork.delta.basis import Words
from graftwork.delta.pipeline import Scratch, copy_bytes
from graftwork.errors import ChecksumError, DeltaError, UnknownCodec

Parts = Sequence[bytes | bytearray | memoryview]


class Method(Protocol):
    """A way to store one chunk. ``basis`` and ``tuned`` are equally long; both sides see the same basis."""

    code: int
    name: str

    def encode(self, basis: memoryview, tuned: memoryview, words: Words, level: int) -> Parts | None:
        """The payload of a chunk, as parts to be written one after another; None if the method does not suit it."""
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
        copy_bytes(basis, tuned)


class Raw:
    """The chunk's own bytes."""

    code = 1
    name = "raw"

    def encode(self, basis: memoryview, tuned: memoryview, words: Words, level: int) -> Parts:
        return (bytes(tuned),)

    def decode(self, basis: memoryview, payload: memoryview, words: Words, tuned: memoryview) -> None:
        if len(payload) != len(tuned):
            raise DeltaError("a raw chunk has the wrong length", got=len(payload), wanted=len(tuned))
        copy_bytes(payload, tuned)


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
        self._restore(basis, payload, words, tuned, reverse=False)

    def _restore(
        self, basis: memoryview, payload: memoryview, words: Words, tuned: memoryview, reverse: bool
    ) -> None:
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
            reverse=reverse,
        )

    def apply_(self, chunk: memoryview, payload: memoryview, words: Words, *, reverse: bool = False) -> None:
        """Turn a chunk of the base into the fine-tune's, or back, in place; untouched if the payload is malformed."""
        result = self._scratch.buffer("applied", len(chunk))
        self._restore(chunk, payload, words, result, reverse)
        copy_bytes(result, chunk)

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


class OrdinalRans:
    """Ordinal differences of 16- and 32-bit floats, entropy coded; see ``ops.entropy_delta.encode_ordinal_rans``."""

    code = 3
    name = "ordrans"

    def encode(self, basis: memoryview, tuned: memoryview, words: Words, level: int) -> Parts:
        """The payload; ``level`` 1 codes the chunk as one segment, 2 halves segments for as long as that pays."""
        import torch

        from graftwork.ops.entropy_delta import encode_ordinal_rans

        dtype = words.float_dtype
        segment = _WHOLE_CHUNK if level < 2 else None
        payload = encode_ordinal_rans(
            torch.frombuffer(basis, dtype=dtype), torch.frombuffer(tuned, dtype=dtype), segment
        )
        return (payload.numpy().data,)

    def decode(self, basis: memoryview, payload: memoryview, words: Words, tuned: memoryview) -> None:
        import torch

        from graftwork.ops.entropy_delta import decode_ordinal_rans

        dtype = words.float_dtype
        try:
            decode_ordinal_rans(
                torch.frombuffer(basis, dtype=dtype), _bytes(payload), torch.frombuffer(tuned, dtype=dtype)
            )
        except ValueError as error:  # the basis says how the payload is read
            raise ChecksumError("the payload does not fit the base's words", remedy=WRONG_BASE) from error


class Sparse:
    """The words that differ, entropy coded; see ``ops.entropy_delta.encode_sparse_delta``."""

    code = 4
    name = "sparse"

    def encode(self, basis: memoryview, tuned: memoryview, words: Words, level: int) -> Parts | None:
        """The payload; None if more than an eighth of the words differs."""
        import torch

        from graftwork.ops.entropy_delta import encode_sparse_delta

        dtype = words.torch_dtype
        payload = encode_sparse_delta(
            torch.frombuffer(basis, dtype=dtype), torch.frombuffer(tuned, dtype=dtype)
        )
        return None if payload is None else (payload.numpy().data,)

    def decode(self, basis: memoryview, payload: memoryview, words: Words, tuned: memoryview) -> None:
        import torch

        from graftwork.ops.entropy_delta import decode_sparse_delta

        dtype = words.torch_dtype
        try:
            decode_sparse_delta(
                torch.frombuffer(basis, dtype=dtype), _bytes(payload), torch.frombuffer(tuned, dtype=dtype)
            )
        except ValueError as error:
            raise DeltaError(f"a sparse chunk's payload is malformed: {error}") from error

    def apply_(self, chunk: memoryview, payload: memoryview, words: Words, *, reverse: bool = False) -> None:
        """Turn a chunk of the base into the fine-tune's, or back, in place; untouched if the payload is malformed."""
        import torch

        from graftwork.ops.entropy_delta import apply_sparse_delta_

        try:
            apply_sparse_delta_(torch.frombuffer(chunk, dtype=words.torch_dtype), _bytes(payload), reverse)
        except ValueError as error:
            raise DeltaError(f"a sparse chunk's payload is malformed: {error}") from error


WRONG_BASE = "the base is not the one that the delta was made against, or the file is damaged"

_WHOLE_CHUNK = 1 << 20  # words: no chunk has more


def _bytes(payload: memoryview) -> Any:
    import torch

    if not payload:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(payload) if payload.readonly else payload, dtype=torch.uint8)


METHODS: dict[int, Method] = {
    method.code: method for method in (Same(), Raw(), OrdinalPlanes(), OrdinalRans(), Sparse())
}

CODECS: dict[str, tuple[str, ...]] = {
    "same": ("same",),
    "raw": ("same", "raw"),
    "ordz": ("same", "raw", "ordz"),
    "ordrans": ("same", "raw", "ordrans"),
    "sparse": ("same", "raw", "sparse"),
    "mixed": ("same", "raw", "ordz", "ordrans", "sparse"),
}
"""Codec of a tensor -> methods that its chunks may use."""

CODECS_OF_1_0 = ("same", "raw", "ordz")
"""Codecs that readers of format 1.0 know."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A method to try on a chunk, and how hard."""

    method: str
    level: int


def attempts(effort: str, words: Words, nbytes: int) -> tuple[Attempt, ...]:
    """What to try on a chunk of ``nbytes`` bytes, in order; the smallest result is kept, the first of equals.

    ``fast`` does not entropy code. The others try the planes too where the words have low bits that may have a pattern
    (32 bits), where the tables of an entropy code weigh much, and where there is nothing better. ``small`` cuts a
    chunk into segments where that pays, and compresses integers harder.
    """
    if nbytes <= _LEAST_PLANE * words.nbytes:
        return ()
    planes = (Attempt("ordz", 1),)
    if effort == "fast" or nbytes < _SMALL_CHUNK or words.nbytes not in (2, 4):
        return planes if effort != "small" else (*planes, Attempt("ordz", 9))
    if not words.exponent_bits:
        return (Attempt("sparse", 1), *planes, *((Attempt("ordz", 9),) if effort == "small" else ()))
    coded = (Attempt("sparse", 1), Attempt("ordrans", 2 if effort == "small" else 1))
    small_or_wide = words.nbytes == 4 or nbytes < _MEDIUM_CHUNK
    return (*coded, *planes) if small_or_wide else coded


EFFORTS = ("auto", "fast", "small")
"""Choices of a codec at the door; see `attempts`."""

_LEAST_PLANE = 14  # bytes: the length of a plane's frame, and the shortest frame
_SMALL_CHUNK = 512  # bytes: entropy coding has a header of about a hundred and fifty
_MEDIUM_CHUNK = 1 << 16  # from here on that header is too small to matter

FEW_CHANGES = 64
"""A sparse payload below one in so many bytes is taken at once by ``auto``: what is left to gain is little."""


def method_named(name: str) -> Method:
    """The method called ``name``."""
    for method in METHODS.values():
        if method.name == name:
            return method
    raise UnknownCodec(f"no chunk method is called {name!r}", wanted=[m.name for m in METHODS.values()])
