"""A base and a delta as a dense checkpoint: written tensor by tensor, in the base's files."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.targets import check_digest, check_dtypes, match_tensors
from graftwork.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from graftwork.checkpoint.digest import LEAF_BYTES, bytes_digest
from graftwork.checkpoint.dtypes import code_of, torch_dtype
from graftwork.checkpoint.files import AtomicFile, AtomicFolder, make_folder
from graftwork.checkpoint.folder import find_index
from graftwork.checkpoint.writer import make_header
from graftwork.delta.weights import checkpoint_weights
from graftwork.errors import BaseMismatch
from graftwork.ops.sparse_update import Support, gather_values, write_values_


def export_checkpoint(
    delta: SparseDelta,
    base: str | os.PathLike[str] | Checkpoint,
    out: str | os.PathLike[str],
    *,
    scale: float,
    with_full: bool,
    check_base: bool,
) -> None:
    """See `SparseDelta.to_checkpoint`."""
    opened = nullcontext(base) if isinstance(base, Checkpoint) else open_checkpoint(base)
    with opened as checkpoint:
        export = _Export(delta, checkpoint, scale, with_full, check_base)
        if checkpoint.path != checkpoint.root:
            (file,) = checkpoint.headers
            with AtomicFile(out, replace=False) as target:
                export.write(file, target)
                checkpoint.check_unchanged()
            return
        make_folder(Path(out).absolute().parent)
        with AtomicFolder(out) as folder:
            for file in checkpoint.headers:
                make_folder((folder.path / file).parent)
                with AtomicFile(folder.path / file) as target:
                    export.write(file, target)
            for file in checkpoint.other_files:
                make_folder((folder.path / file).parent)
                with AtomicFile(folder.path / file) as target:
                    export.copy(file, target)
            checkpoint.check_unchanged()


class _Export:
    """A checkpoint's files with the delta on them; ``index`` is the new content of the shard index, if it changes."""

    def __init__(
        self, delta: SparseDelta, checkpoint: Checkpoint, scale: float, with_full: bool, check_base: bool
    ) -> None:
        self._delta, self._checkpoint, self._scale, self._check_base = delta, checkpoint, scale, check_base
        weights = checkpoint_weights(checkpoint)
        targets = match_tensors(delta, weights)
        self._changed = {target.held: target.number for target in targets}
        self._what = weights.what
        self._dtypes = {
            held: dtype
            for held in self._changed
            if (dtype := torch_dtype(checkpoint.tensors[held].dtype)) is not None
        }
        if check_base:
            check_dtypes(delta, targets, self._dtypes, self._what)
        self._full: dict[str, Tensor] = {}
        for name, tensor in delta.full.items() if with_full else ():
            held = [first for one in delta.names_of(name) if (first := weights.first_name(one))]
            self._full |= dict.fromkeys(held or [name], tensor)
        self._check_full()
        self._last = list(checkpoint.headers)[-1]
        self._added = [name for name in self._full if name not in checkpoint.tensors]

    def _check_full(self) -> None:
        for name in self._full.keys() & self._changed.keys():
            raise BaseMismatch(
                "a tensor in full would take the place of one that the delta changes",
                file=self._what,
                tensor=name,
                remedy="pass with_full=False",
            )

    def write(self, file: str, target: AtomicFile) -> None:
        """Write one of the safetensors files."""
        header = self._checkpoint.headers[file]
        infos = {info.name: info for info in header.tensors}
        layout = {name: (info.dtype, info.shape) for name, info in infos.items()}
        wanted = layout | {
            name: (str(code_of(tensor.dtype)), tuple(tensor.shape))
            for name, tensor in self._full.items()
            if name in infos or (file == self._last and name in self._added)
        }
        order, begin = list(infos), header.raw
        if wanted != layout:
            order, begin = make_header(wanted, header.metadata)
        target.write(begin)
        for name in order:
            if name in self._full:
                target.write(_bytes(self._full[name]))
            elif name in self._changed:
                target.write(_bytes(self._tuned(infos[name])))
            else:
                self._copy_tensor(infos[name], target)

    def _tuned(self, info: TensorInfo) -> Tensor:
        """A tensor with the delta on it; the only one in memory."""
        number = self._changed[info.name]
        tensor = self._delta.tensors[number]
        data = torch.empty(info.nbytes, dtype=torch.uint8)
        self._checkpoint.read_into(info, 0, data.numpy().data)
        if self._check_base:
            check_digest(tensor, bytes_digest(data.numpy().data), info.name, self._what)
        weight = data.view(self._dtypes[info.name])
        indices, values = (part.cpu() for part in self._delta.changes(tensor.name))
        support = Support.trusted(indices, torch.tensor([0, len(indices)]), [tensor.numel])
        write_values_(support, [weight], gather_values(support, [weight]), values, self._scale)
        return weight

    def _copy_tensor(self, info: TensorInfo, target: AtomicFile) -> None:
        buffer = memoryview(bytearray(min(info.nbytes, LEAF_BYTES)))
        for offset in range(0, info.nbytes, LEAF_BYTES):
            piece = buffer[: min(LEAF_BYTES, info.nbytes - offset)]
            self._checkpoint.read_into(info, offset, piece)
            target.write(piece)

    def copy(self, file: str, target: AtomicFile) -> None:
        """Write one of the other files: as it is, but for a shard index that must name tensors that are new."""
        index = find_index(self._checkpoint.root, [*self._checkpoint.headers, *self._checkpoint.other_files])
        if index is not None and file == index.file and self._full:
            target.write(self._new_index(json.loads(self._checkpoint.read_file(file).decode("utf-8-sig"))))
            return
        for piece in self._checkpoint.file_pieces(file):
            target.write(piece)

    def _new_index(self, document: dict[str, Any]) -> bytes:
        document["weight_map"] |= dict.fromkeys(self._added, self._last)
        infos = self._checkpoint.tensors
        sizes = {name: info.nbytes for name, info in infos.items()}
        sizes |= {name: tensor.nbytes for name, tensor in self._full.items()}
        if isinstance(document.get("metadata"), dict) and "total_size" in document["metadata"]:
            document["metadata"]["total_size"] = sum(sizes.values())
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
