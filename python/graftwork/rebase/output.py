"""The rebased model on disk: written shard by shard, tile by tile, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.checkpoint import Checkpoint, TensorInfo
from graftwork.checkpoint.digest import LEAF_BYTES
from graftwork.checkpoint.dtypes import torch_dtype
from graftwork.checkpoint.files import AtomicFile, AtomicFolder, make_folder, write_file
from graftwork.checkpoint.folder import INDEX_NAME, SUFFIX
from graftwork.checkpoint.writer import make_header
from graftwork.delta.pipeline import Progress
from graftwork.delta.residual import RESIDUAL, ResidualWriter
from graftwork.errors import CheckpointError
from graftwork.rebase.difference import Writer
from graftwork.rebase.lineage import LINEAGE, to_bytes
from graftwork.rebase.pairing import Carried, Pairing

__all__ = ["write_result"]

_NARROW = ("BF16", "F16")


def write_result(
    out: Path,
    pairing: Pairing,
    writer: Writer,
    frame: Checkpoint,
    *,
    config: Mapping[str, Any] | None,
    lineage: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    """Write the result as a folder with the files of its frame, or as one safetensors file if ``out`` is called so."""
    output = _Output(pairing, writer, frame, progress)
    if out.suffix == SUFFIX:
        if writer.preserve == "residual":
            raise CheckpointError(
                "a single file has no place for a residual",
                file=out,
                remedy="write a folder: a path without .safetensors",
            )
        metadata = {**output.metadata(), LINEAGE: to_bytes(lineage).decode()}
        with AtomicFile(out, replace=False) as file:
            output.write(pairing.rows, file, metadata)
            writer.check_unchanged()
        return
    make_folder(out.absolute().parent)
    with AtomicFolder(out) as folder, ExitStack() as stack:
        if writer.preserve == "residual":
            make_folder((folder.path / RESIDUAL).parent)
            names = [row.name for row in pairing.differences if writer.dtype_of(row) in _NARROW]
            output.residual = stack.enter_context(ResidualWriter(folder.path / RESIDUAL, names))
        output.write_folder(folder.path)
        for name, data in output.small_files(config, lineage).items():
            make_folder((folder.path / name).parent)
            write_file(folder.path / name, data)
        output.copy_files(folder.path)
        writer.check_unchanged()


class _Output:
    def __init__(
        self, pairing: Pairing, writer: Writer, frame: Checkpoint, progress: Progress | None
    ) -> None:
        self._pairing, self._writer, self._frame, self._progress = pairing, writer, frame, progress
        self.residual: ResidualWriter | None = None
        self._done = 0
        self._codes = {row.name: writer.dtype_of(row) for row in pairing.rows}
        self._whole = sum(self._nbytes(row) for row in pairing.rows)

    def _nbytes(self, row: Carried) -> int:
        return TensorInfo(row.name, self._codes[row.name], row.shape, "", 0, 0).numel * self._itemsize(row)

    def _itemsize(self, row: Carried) -> int:
        dtype = torch_dtype(self._codes[row.name])
        return 1 if dtype is None else dtype.itemsize

    def metadata(self) -> dict[str, str]:
        """What the headers of the frame say, all together."""
        return {key: text for header in self._frame.headers.values() for key, text in header.metadata.items()}

    def _files(self) -> dict[str, list[Carried]]:
        """The rows of each file, which are the frame's."""
        single = self._frame.path != self._frame.root
        files: dict[str, list[Carried]] = {}
        for row in self._pairing.rows:
            file = f"model{SUFFIX}" if single else self._frame.tensors[row.name].file
            files.setdefault(file, []).append(row)
        return files

    def write_folder(self, folder: Path) -> None:
        """All safetensors files."""
        for name, rows in self._files().items():
            make_folder((folder / name).parent)
            header = self._frame.headers.get(name)
            with AtomicFile(folder / name) as file:
                self.write(rows, file, header.metadata if header else self.metadata())

    def write(self, rows: list[Carried], file: AtomicFile, metadata: Mapping[str, str]) -> None:
        """One safetensors file."""
        named = {row.name: row for row in rows}
        forms = {row.name: (self._codes[row.name], row.shape) for row in rows}
        order, begin = make_header(forms, metadata)
        file.write(begin)
        for name in order:
            for data in self._pieces(named[name]):
                file.write(data)
                self._done += len(data)
                if self._progress:
                    self._progress("write", min(self._done, self._whole), self._whole)

    def _pieces(self, row: Carried) -> Iterator[memoryview]:
        if row.action != "difference":
            side, name = (
                (self._writer.tuned, row.tuned) if row.action == "tuned" else (self._writer.new, row.new)
            )
            meta = side.meta(name)
            if meta is None:
                raise ValueError(f"{row.name!r} comes from nowhere")
            buffer = memoryview(bytearray(min(meta.nbytes, LEAF_BYTES)))
            for offset in range(0, meta.nbytes, LEAF_BYTES):
                piece = buffer[: min(LEAF_BYTES, meta.nbytes - offset)]
                side.weights.source.read_into(meta.name, offset, piece)
                yield piece
            return
        keeps = self.residual is not None and self._codes[row.name] in _NARROW
        kept: list[tuple[Tensor, Tensor]] = []
        for tile in self._writer.tiles(row):
            if keeps and tile.exact is not None:
                kept.append((tile.written, tile.exact))
            yield tile.written.view(torch.uint8).numpy().data
        if self.residual is not None and keeps:
            written, exact = (
                torch.cat([pair[at] for pair in kept]) if kept else torch.empty(0, dtype=dtype)
                for at, dtype in ((0, torch_dtype(self._codes[row.name])), (1, torch.float32))
            )
            self.residual.add(row.name, written.view(row.shape), exact.view(row.shape))

    def small_files(self, config: Mapping[str, Any] | None, lineage: Mapping[str, Any]) -> dict[str, bytes]:
        """Configuration, shard index and lineage."""
        found = {LINEAGE: to_bytes(lineage)}
        if config is not None:
            found["config.json"] = (
                json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            ).encode()
        files = self._files()
        if len(files) > 1:
            weight_map = {row.name: file for file, rows in files.items() for row in rows}
            document = {"metadata": {"total_size": self._whole}, "weight_map": weight_map}
            found[INDEX_NAME] = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
        return found

    def copy_files(self, folder: Path) -> None:
        """Everything else that lies in the frame's folder: its tokenizer, above all."""
        for name in self._frame.other_files:
            made = name in ("config.json", LINEAGE, RESIDUAL) or name.endswith(f"{SUFFIX}.index.json")
            if made or self._frame.path != self._frame.root:
                continue
            make_folder((folder / name).parent)
            with AtomicFile(folder / name) as file:
                for piece in self._frame.file_pieces(name):
                    file.write(piece)
