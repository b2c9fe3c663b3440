"""The files of a merged checkpoint: where each tensor's bytes go, and what of them is there already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from graftwork.checkpoint.digest import LEAF_BYTES, leaf_digest, tree_digest
from graftwork.checkpoint.files import Data
from graftwork.checkpoint.folder import INDEX_NAME
from graftwork.checkpoint.resumable import SizedFile
from graftwork.checkpoint.writer import Planned, make_header, plan_shards

__all__ = ["Output", "Spot"]

SHARD_BYTES = 5_000_000_000


class Spot(NamedTuple):
    """Where a tensor's bytes are: file, first byte, and how many."""

    file: str
    start: int
    nbytes: int


class Output:
    """The safetensors files of an output folder, to be filled tensor by tensor; a context manager.

    Parameters
    ----------
    tensors : mapping of str to Planned
        All tensors. Which file each goes into follows from their names and sizes alone.
    metadata : mapping of str to str
        Of every file.
    max_shard_bytes : int
        A file with more than one tensor holds no more of them.

    Attributes
    ----------
    spots : dict of str to Spot
        In the order in which they lie in the files.
    """

    def __init__(
        self,
        tensors: Mapping[str, Planned],
        metadata: Mapping[str, str],
        max_shard_bytes: int = SHARD_BYTES,
    ) -> None:
        shards = plan_shards({name: tensors[name] for name in sorted(tensors)}, max_shard_bytes)
        self.spots: dict[str, Spot] = {}
        self._headers: dict[str, bytes] = {}
        self._sizes: dict[str, int] = {}
        for file, names in shards.items():
            order, begin = make_header({name: tensors[name] for name in names}, metadata)
            self._headers[file] = begin
            at = len(begin)
            for name in order:
                self.spots[name] = Spot(file, at, tensors[name].nbytes)
                at += tensors[name].nbytes
            self._sizes[file] = at
        self._files: dict[str, SizedFile] = {}
        self._stack = ExitStack()

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self._sizes.values())

    def index(self) -> dict[str, bytes]:
        """The shard index by its file name, where there is more than one file."""
        if len(self._headers) == 1:
            return {}
        total = sum(spot.nbytes for spot in self.spots.values())
        weight_map = {name: self.spots[name].file for name in sorted(self.spots)}
        text = json.dumps(
            {"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, ensure_ascii=False
        )
        return {INDEX_NAME: f"{text}\n".encode()}

    def open(self, folder: Path) -> Self:
        """Open the files in ``folder``, made if they are missing."""
        with ExitStack() as stack:
            for file, nbytes in self._sizes.items():
                self._files[file] = stack.enter_context(SizedFile(folder / file, nbytes))
                self._files[file].pwrite(0, self._headers[file])
            self._stack = stack.pop_all()
        return self

    def write(self, name: str, offset: int, data: Data) -> None:
        """Write bytes of a tensor."""
        spot = self.spots[name]
        self._files[spot.file].pwrite(spot.start + offset, data)

    def digest(self, name: str) -> str:
        """The digest of what stands in a tensor's place."""
        spot = self.spots[name]
        file = self._files[spot.file]
        leaves = [
            leaf_digest(file.pread(spot.start + at, min(LEAF_BYTES, spot.nbytes - at)))
            for at in range(0, spot.nbytes, LEAF_BYTES)
        ]
        return tree_digest(spot.nbytes, leaves)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
