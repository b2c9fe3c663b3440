"""Apply a payload to a checkpoint on disk: its files are written beside the old ones and take their place.

One rename makes the new version stand. If a single file changes, that is its own. If several shards do, they are
written under other names, and it is that of the shard index, which names them; then the old shards are removed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from graftwork.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from graftwork.checkpoint.files import AtomicFile, remove_file, write_file
from graftwork.checkpoint.folder import SUFFIX, Index, find_index
from graftwork.delta.pipeline import ordered_map
from graftwork.delta.weights import checkpoint_weights
from graftwork.errors import CheckpointError
from graftwork.store.sync.check import LeafChecker
from graftwork.store.sync.match import match_target
from graftwork.store.sync.payload import Leaf, SyncPayload

if TYPE_CHECKING:
    from graftwork.store.sync.apply import Check

_TAG = re.compile(r"\.sync-[0-9a-f]{16}(?=\.safetensors$)")


class _Job(NamedTuple):
    """A chunk to make, and where it goes; ``file`` is None where it is only checked."""

    info: TensorInfo
    leaf: Leaf
    file: AtomicFile | None


def apply_to_checkpoint(
    path: str | os.PathLike[str], payload: SyncPayload, *, check: Check, threads: int
) -> None:
    """Turn the checkpoint at ``path`` into what the payload says; see `apply_`."""
    with open_checkpoint(path) as checkpoint:
        update = _Update(checkpoint, payload, check, threads)
        if len(update.touched) <= 1:
            update.write({file: file for file in update.touched})
        else:
            update.write_shards()


class _Update:
    """The new files of a checkpoint; ``touched`` are those in which anything changes."""

    def __init__(self, checkpoint: Checkpoint, payload: SyncPayload, check: Check, threads: int) -> None:
        self._checkpoint = checkpoint
        self._check = check
        self._threads = threads
        self._digest = payload.report().digest
        weights = checkpoint_weights(checkpoint)
        self._checker = LeafChecker(weights.source, payload, str(checkpoint.path))
        targets = match_target(weights, payload)
        self._leaves = {held: list(payload.leaves(record)) for record, held, writes in targets if writes}
        self.touched = [
            file
            for file, header in checkpoint.headers.items()
            if any(leaf.changes for info in header.tensors for leaf in self._leaves[info.name])
        ]

    def write(self, names: Mapping[str, str]) -> None:
        """Check everything, and write the files of ``names`` under the names that it gives them."""
        root, headers = self._checkpoint.root, self._checkpoint.headers
        with ExitStack() as stack:
            files = {file: stack.enter_context(AtomicFile(root / name)) for file, name in names.items()}
            for file, output in files.items():
                output.pwrite(0, headers[file].raw)
            with closing(
                ordered_map(self._make, self._jobs(files), threads=self._threads, weigh=_weigh)
            ) as made:
                for _ in made:
                    pass
            self._checkpoint.check_unchanged()

    def write_shards(self) -> None:
        """Write the touched shards under new names, then the index that names them."""
        root = self._checkpoint.root
        everything = [*self._checkpoint.headers, *self._checkpoint.other_files]
        index = find_index(root, everything) if self._checkpoint.path == root else None
        if index is None:
            raise CheckpointError(
                "the files of this checkpoint cannot be replaced all at once",
                file=root,
                got=f"{len(self.touched)} files without a shard index",
                wanted="one file, or shards with an index",
                remedy="save it again as one file or with an index",
            )
        names = {file: _tagged(file, self._digest) for file in self.touched}
        try:
            self.write(names)
            write_file(root / index.file, self._new_index(index, names))
        except BaseException:
            with suppress(OSError, ValueError):
                _remove(root, set(names.values()) - _named(root / index.file))
            raise
        plain = {_TAG.sub("", file) for file in self._checkpoint.headers}
        old = {file for file in everything if _TAG.sub("", file) in plain}
        with suppress(OSError):
            _remove(root, old - _named(root / index.file))

    def _jobs(self, files: Mapping[str, AtomicFile]) -> Iterator[_Job]:
        for file, header in self._checkpoint.headers.items():
            if file in files or self._check == "all":
                for info in header.tensors:
                    for leaf in self._leaves[info.name]:
                        yield _Job(info, leaf, files.get(file))

    def _make(self, job: _Job) -> None:
        (data,) = self._checker.restore([(job.info.name, job.leaf)])
        if job.file is not None:
            job.file.pwrite(job.info.start + job.leaf.offset, data)

    def _new_index(self, index: Index, names: Mapping[str, str]) -> bytes:
        document = json.loads(self._checkpoint.read_file(index.file).decode("utf-8-sig"))
        document["weight_map"] = {name: names.get(file, file) for name, file in index.weight_map.items()}
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _weigh(job: _Job) -> int:
    return job.leaf.length


def _tagged(file: str, digest: str) -> str:
    """The name of a shard of the version with ``digest``."""
    return f"{_TAG.sub('', file).removesuffix(SUFFIX)}.sync-{digest[:16]}{SUFFIX}"


def _named(index: Path) -> set[str]:
    """The shards that the index on disk names."""
    return set(json.loads(index.read_bytes())["weight_map"].values())


def _remove(root: Path, files: set[str]) -> None:
    for file in sorted(files):
        if (root / file).exists():
            remove_file(root / file)
