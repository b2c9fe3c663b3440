"""Sorted indices as bytes, in numpy; see :func:`graftwork.ops.sparse_update.encode_indices`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from graftwork.reference.entropy_delta import payload_bytes, refuse_if
from graftwork.reference.gap_code import SEGMENT_LOG2, decode_segment, encode_segment
from graftwork.reference.rans import Malformed, join_frame, open_frame

#: In the order of the native code's numbers.
CODECS = ("raw", "bitmap", "varint", "rans")
_MAX_VARINT = 9  # bytes: 63 bits


def refuse_unsorted(unsorted: bool, numel: int) -> None:
    """Raise what indices raise that are not sorted, unique and within the tensor."""
    if unsorted:
        raise ValueError(
            f"encode_indices: indices must be sorted, without duplicates and in [0, {numel}); "
            f"sort and deduplicate them: torch.unique(indices)"
        )


def encode_indices(indices: Tensor, numel: int, codec: int) -> Tensor:
    """The bytes of sorted indices below `numel`."""
    found = indices.cpu().numpy().astype(np.int64)
    outside = bool(found.size) and not 0 <= found[0] <= found[-1] < numel
    refuse_unsorted(outside or bool((np.diff(found) <= 0).any()), numel)
    encode = (_encode_raw, _encode_bitmap, _encode_varint, _encode_rans)[codec]
    data = np.frombuffer(bytearray(encode(found, numel)), np.uint8)
    return torch.from_numpy(data).to(indices.device)


def decode_indices(data: Tensor, codec: int, numel: int, count: int, dtype: torch.dtype) -> Tensor:
    """The `count` indices; ValueError if the bytes are malformed."""
    decode = (_decode_raw, _decode_bitmap, _decode_varint, _decode_rans)[codec]
    try:
        found = decode(payload_bytes(data), numel)
        if len(found) != count or (count and found[-1] >= numel):
            raise Malformed("the number of indices, or the last one")
    except Malformed:
        refuse_if("decode_indices", True)
    return torch.from_numpy(found).to(data.device, dtype)


def _raw_type(numel: int) -> str:
    return "<i4" if numel < 1 << 31 else "<i8"


def _encode_raw(indices: np.ndarray, numel: int) -> bytes:
    return indices.astype(_raw_type(numel)).tobytes()


def _decode_raw(data: bytes, numel: int) -> np.ndarray:
    if len(data) % np.dtype(_raw_type(numel)).itemsize:
        raise Malformed("an index ends early")
    found = np.frombuffer(data, _raw_type(numel)).astype(np.int64)
    if found.size and (found[0] < 0 or (np.diff(found) <= 0).any()):
        raise Malformed("the indices are not sorted")
    return found


def _encode_bitmap(indices: np.ndarray, numel: int) -> bytes:
    bits = np.zeros(numel, np.uint8)
    bits[indices] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _decode_bitmap(data: bytes, numel: int) -> np.ndarray:
    if len(data) != (numel + 7) // 8:
        raise Malformed("the bitmap's size")
    return np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little"))


def _encode_varint(indices: np.ndarray, numel: int) -> bytes:
    """LEB128 of the number of weights between an index and the one before."""
    skipped = np.diff(indices, prepend=-1) - 1
    shifts = 7 * np.arange(_MAX_VARINT)
    digits = (skipped[:, None] >> shifts) & 127
    lengths = np.maximum(1, (skipped[:, None] >> shifts != 0).sum(1))[:, None]
    place = np.arange(_MAX_VARINT)
    digits |= 128 * (place < lengths - 1)
    return digits[place < lengths].astype(np.uint8).tobytes()


def _decode_varint(data: bytes, numel: int) -> np.ndarray:
    digits = np.frombuffer(data, np.uint8).astype(np.int64)
    ends = np.flatnonzero(digits < 128)
    if (ends[-1] if ends.size else -1) != digits.size - 1:
        raise Malformed("the last number ends early")
    begins = np.concatenate([[0], ends[:-1] + 1])[: ends.size]
    lengths = ends - begins + 1
    if (lengths > _MAX_VARINT).any() or ((lengths > 1) & (digits[ends] == 0)).any():
        raise Malformed("a number is longer than it need be")
    places = np.arange(digits.size) - np.repeat(begins, lengths)
    skipped = np.add.reduceat((digits & 127) << 7 * places, begins) if ends.size else ends
    if (skipped >= numel).any():
        raise Malformed("a gap is larger than the tensor")
    found: np.ndarray = np.cumsum(skipped + 1) - 1
    return found


def _encode_rans(indices: np.ndarray, numel: int) -> bytes:
    size = 1 << SEGMENT_LOG2
    count = -(-numel // size)
    bounds = np.searchsorted(indices, size * np.arange(count + 1))
    segments = [
        encode_segment(indices[begin:end] - i * size) for i, (begin, end) in enumerate(pairwise(bounds))
    ]
    return join_frame(SEGMENT_LOG2, segments)


def _decode_rans(data: bytes, numel: int) -> np.ndarray:
    size, segments = open_frame(data, numel)
    if size != 1 << SEGMENT_LOG2:
        raise Malformed("the segments' size")
    found = [
        decode_segment(segment, min(size, numel - i * size))[0] + i * size
        for i, segment in enumerate(segments)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
