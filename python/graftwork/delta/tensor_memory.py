"""The bytes of a tensor in memory, in row-major order, however it lies there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graftwork.delta.pipeline import copy_bytes
from graftwork.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


class TensorMemory:
    """A tensor's bytes, to be looked at, copied out and overwritten piece by piece.

    A contiguous tensor on the CPU is looked at where it lies; of any other only the piece that is asked for is
    copied. Offsets and lengths are multiples of the element size. Thread-safe on disjoint pieces.
    """

    def __init__(self, tensor: Tensor) -> None:
        import torch

        width = tensor.dtype.itemsize
        self.word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
        self._words = tensor.detach().view(self.word)
        self._bytes = _flat_bytes(self._words)

    def view(self, offset: int, length: int) -> memoryview | None:
        """The bytes where they lie, writable; None if they do not lie one after another, or not aligned."""
        return None if self._bytes is None else self._bytes[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Copy the bytes from ``offset`` on into ``buffer``."""
        if self._bytes is not None:
            copy_bytes(self._bytes[offset : offset + len(buffer)], buffer)
            return
        for words, part in self._parts(offset, buffer):
            part.copy_(words)

    def write(self, offset: int, data: memoryview) -> None:
        """Overwrite the bytes from ``offset`` on with ``data``."""
        import torch

        if self._bytes is not None:
            copy_bytes(data, self._bytes[offset : offset + len(data)])
            return
        with torch.inference_mode() if self._words.is_inference() else torch.no_grad():
            for words, part in self._parts(offset, data):
                words.copy_(part)

    def _parts(self, offset: int, data: memoryview) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of equal shape: a piece of the tensor, and its place in ``data``."""
        import torch

        width = self.word.itemsize
        flat, at = torch.frombuffer(data, dtype=self.word), 0
        for words in boxes(self._words, offset // width, (offset + len(data)) // width):
            yield words, flat[at : at + words.numel()].view(words.shape)
            at += words.numel()


def boxes(tensor: Tensor, start: int, stop: int) -> Iterator[Tensor]:
    """Views that hold elements ``start`` to ``stop`` of the tensor in row-major order, one after another.

    There are fewer than twice as many as the tensor has dimensions, whatever its strides.
    """
    if start >= stop:
        return
    if start == 0 and stop == tensor.numel():
        yield tensor
        return
    row = math.prod(tensor.shape[1:])
    first, last = start // row, stop // row
    if first == last:
        yield from boxes(tensor[first], start % row, stop % row)
        return
    if start % row:
        yield from boxes(tensor[first], start % row, row)
        first += 1
    if first < last:
        yield tensor[first:last]
    if stop % row:
        yield from boxes(tensor[last], 0, stop % row)


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements may share memory, as after ``expand``."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach += (size - 1) * stride
    return False


def find_overlap(tensors: Sequence[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """The names of two tensors that share memory, or None."""
    from graftwork.ops._native import memory_range

    ranges = sorted((memory_range(tensor), name, tensor) for name, tensor in tensors if tensor.numel())
    group: list[tuple[tuple[str, int, int], str, Tensor]] = []
    for entry in ranges:
        device, start, _ = entry[0]
        if group and (group[0][0][0] != device or start >= max(held[0][2] for held in group)):
            group = []
        group.append(entry)
        if len(group) > 1 and (clash := _clash(group)):
            return clash
    return None


def check_apart(tensors: Sequence[tuple[str, Tensor]], owner: str, *, remedy: str) -> None:
    """Refuse tensors of which two share part of their memory; ``owner`` says in the error whose they are."""
    if overlap := find_overlap(tensors):
        raise CheckpointError(
            f"two tensors of the {owner} share part of their memory",
            file=owner,
            tensor=overlap[0],
            got=f"it overlaps {overlap[1]}",
            wanted="tensors that share all of their memory, or none",
            remedy=remedy,
        )


def _clash(group: Sequence[tuple[tuple[str, int, int], str, Tensor]]) -> tuple[str, str] | None:
    """Whether the last of tensors whose ranges of memory meet has an element in common with one before it."""
    import torch

    (_, start, stop), name, tensor = group[-1]
    for (_, other_start, other_stop), other_name, other in group[:-1]:
        if start >= other_stop:
            continue
        width = tensor.dtype.itemsize
        if tensor.is_contiguous() and other.is_contiguous():
            return other_name, name
        if other.dtype.itemsize != width or (start - other_start) % width:
            return other_name, name
        both = max(stop, other_stop) - other_start
        taken = torch.zeros(both // width, dtype=torch.bool)
        taken.as_strided(other.shape, other.stride()).fill_(True)
        if taken.as_strided(tensor.shape, tensor.stride(), (start - other_start) // width).any():
            return other_name, name
    return None


def _flat_bytes(words: Tensor) -> memoryview | None:
    import numpy as np
    import torch

    if words.device.type != "cpu" or not words.is_contiguous():
        return None
    found: np.ndarray = words.view(-1).view(torch.uint8).numpy()
    return None if found.__array_interface__["data"][0] % words.itemsize else found.data
