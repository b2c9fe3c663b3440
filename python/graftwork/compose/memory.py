"""Buffers of a merge: kept from tensor to tensor, and backed by a file where a tensor is very large."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["IN_MEMORY", "Buffers"]

#: Bytes of a buffer that is held in memory; a larger one lies in a file that has no name, so that the system can write
#: its pages out while a tensor is larger than what is free.
IN_MEMORY = 192 << 20


class Buffers:
    """Tensors that are overwritten from one output tensor to the next; a context manager.

    Parameters
    ----------
    folder : Path
        Where the files of very large ones lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Tensor] = {}

    def take(self, role: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor; its contents are what its last user left."""
        import torch

        nbytes = math.prod(shape) * dtype.itemsize
        held = self._held.get(role)
        if held is None or held.numel() < nbytes:
            self._held.pop(role, None)
            size = max(nbytes, 1)
            held = self._mapped(size) if size > IN_MEMORY else torch.empty(size, dtype=torch.uint8)
            self._held[role] = held
        return (
            held[:nbytes].view(dtype).view(tuple(shape)) if nbytes else torch.empty(tuple(shape), dtype=dtype)
        )

    def _mapped(self, nbytes: int) -> Tensor:
        import torch

        with tempfile.TemporaryFile(dir=self._folder) as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)  # a full disk shows now, and not as a signal later
            return torch.frombuffer(mmap.mmap(file.fileno(), nbytes), dtype=torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
