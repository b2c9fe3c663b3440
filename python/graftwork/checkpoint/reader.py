"""Reading a checkpoint of any architecture: a safetensors file, or a folder as Hugging Face writes it.

Opening reads headers only. Tensors come memory-mapped (`Checkpoint.tensor`) or are read into the caller's
memory by any number of threads (`Checkpoint.read_into`). Every file's size, time and inode are kept, so that
work on files that someone changes meanwhile ends in `SourceChanged` and not in wrong results.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from graftwork.checkpoint.closing import Closing
from graftwork.checkpoint.digest import LEAF_BYTES
from graftwork.checkpoint.dtypes import torch_form
from graftwork.checkpoint.files import is_partial
from graftwork.checkpoint.folder import Index, find_index, list_files, model_files, read_config
from graftwork.checkpoint.header import Header, TensorInfo, read_source_header
from graftwork.checkpoint.source import Signature, SourceFile
from graftwork.checkpoint.ties import find_ties
from graftwork.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_KEPT_OPEN = 64  # files beyond these are opened for each read


class Checkpoint(Closing):
    """A checkpoint that is open for reading; use it as a context manager. Made by `open_checkpoint`.

    Attributes
    ----------
    path : Path
        What was opened.
    root : Path
        The folder that file names are relative to: ``path``, or the parent of a single file.
    tensors : mapping of str to TensorInfo
        All tensors, in payload order, files in the order of their names.
    headers : mapping of str to Header
        The headers of the safetensors files that hold them, by relative file name.
    other_files : tuple of str
        Every other file of the folder, relative with ``/``, sorted; empty for a single file.
    config : dict or None
        The content of ``config.json``, as data.
    tied : mapping of str to str
        Names that are absent because a present tensor is the same weight.
    """

    def __init__(
        self,
        path: Path,
        root: Path,
        sources: dict[str, SourceFile],
        headers: dict[str, Header],
        config: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.root = root
        self.config = config
        self.headers: Mapping[str, Header] = MappingProxyType(headers)
        self.other_files = tuple(name for name in sorted(sources) if name not in headers)
        tensors = {info.name: info for header in headers.values() for info in header.tensors}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        metadata = {k: v for header in headers.values() for k, v in header.metadata.items()}
        self.tied: Mapping[str, str] = MappingProxyType(find_ties(tensors, metadata, config))
        self._sources = sources

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def file_size(self, file: str) -> int:
        """Size in bytes of one of the checkpoint's files, as at opening."""
        return self._source(file).size

    def signature(self, file: str) -> Signature:
        """What told the state of one of the checkpoint's files from another at opening, without reading it."""
        return self._source(file).signature

    def read_file_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with bytes of any of the checkpoint's files from ``offset``; thread-safe."""
        self._source(file).read_into(offset, buffer)

    def read_file(self, file: str) -> bytes:
        """The whole of one of the checkpoint's files; meant for the small ones."""
        source = self._source(file)
        return source.read(0, source.size)

    def file_pieces(self, file: str) -> Iterator[memoryview]:
        """The bytes of any of the checkpoint's files, leaf by leaf of a digest, each valid until the next."""
        size = self.file_size(file)
        buffer = memoryview(bytearray(min(size, LEAF_BYTES)))
        for offset in range(0, size, LEAF_BYTES):
            piece = buffer[: min(LEAF_BYTES, size - offset)]
            self.read_file_into(file, offset, piece)
            yield piece

    def read_into(self, info: TensorInfo, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with bytes of a tensor's payload from byte ``offset`` of it; thread-safe.

        Raises
        ------
        SourceChanged
            If the file has become shorter.
        """
        if offset < 0 or offset + buffer.nbytes > info.nbytes:
            raise ValueError(f"{info.name!r} has {info.nbytes} bytes, not {offset + buffer.nbytes}")
        self._source(info.file).read_into(info.start + offset, buffer)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor by name (a tied name gives the tensor that it is tied to), on the CPU.

        The memory is a private map of the file: nothing is read before it is used, and writing into the
        tensor never reaches the file, but later calls in this process see it. Clone a tensor before changing
        it. A payload that is not aligned to its element size is copied.

        Raises
        ------
        CheckpointError
            If there is no such tensor, or torch has no such dtype.
        """
        import torch

        info = self._info(name)
        dtype, shape = self._torch_type(info)
        if info.nbytes == 0:
            return torch.empty(shape, dtype=dtype)
        mapped = self._source(info.file).map() if info.start % dtype.itemsize == 0 else None
        if mapped is not None:
            count = info.nbytes // dtype.itemsize
            return torch.frombuffer(mapped, dtype=dtype, count=count, offset=info.start).reshape(shape)
        copy = torch.empty(info.nbytes, dtype=torch.uint8)
        self.read_into(info, 0, copy.numpy().data)
        return copy.view(dtype).reshape(shape)

    def _torch_type(self, info: TensorInfo) -> tuple[torch.dtype, tuple[int, ...]]:
        form = torch_form(info.dtype, info.shape)
        if form is None:
            raise CheckpointError(
                "torch has no tensor of this type",
                file=self.root / info.file,
                tensor=info.name,
                got=f"{info.dtype} of shape {list(info.shape)}",
                remedy="read its bytes with Checkpoint.read_into",
            )
        return form

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(self.tied.get(name, name))
        if info is None:
            raise CheckpointError(
                "the checkpoint has no such tensor",
                file=self.path,
                tensor=name,
                remedy="Checkpoint.tensors holds the names",
            )
        return info

    def _source(self, file: str) -> SourceFile:
        try:
            return self._sources[file]
        except KeyError:
            raise CheckpointError("the checkpoint has no such file", file=self.root / file) from None

    def check_unchanged(self) -> None:
        """Raise `SourceChanged`, naming the file, if any file has changed since opening."""
        for source in self._sources.values():
            source.check_unchanged()

    def close(self) -> None:
        """Close all files; tensors that were given out stay valid."""
        for source in self._sources.values():
            source.close()


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a safetensors file, or a folder as Hugging Face writes it.

    In a folder, the model is what the shard index names; without an index it is every ``*.safetensors`` file
    at the top of the folder, and no two of them may hold the same name. All else in the folder is
    `Checkpoint.other_files`, except unfinished writes and, at its top, ``.git`` and ``.cache``.

    Raises
    ------
    CheckpointError
        If anything about the file or folder is malformed, unsafe, missing or contradictory.

    Examples
    --------
    >>> import torch
    >>> from graftwork.checkpoint import write_checkpoint
    >>> write_checkpoint("my-model", {"lm_head.weight": torch.zeros(48, 16)})
    >>> with open_checkpoint("my-model") as checkpoint:
    ...     checkpoint.tensors["lm_head.weight"].shape
    (48, 16)
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError("there is no such file or folder", file=path, remedy="check the path")
    if is_partial(path.name):
        raise CheckpointError("this is what an unfinished write left behind", file=path, remedy="remove it")
    if path.is_dir():
        return _open_folder(path)
    with ExitStack() as opened:
        source = opened.enter_context(SourceFile(path))
        headers = {path.name: read_source_header(source, path.name)}
        opened.pop_all()
        return Checkpoint(path, path.parent, {path.name: source}, headers)


def _open_folder(root: Path) -> Checkpoint:
    files = list_files(root)
    index = find_index(root, files)
    shards = model_files(root, files, index)
    with ExitStack() as opened:
        sources: dict[str, SourceFile] = {}
        headers: dict[str, Header] = {}
        for name in shards:
            source = SourceFile(root / name, keep_open=len(sources) < _KEPT_OPEN)
            sources[name] = opened.enter_context(source)
            headers[name] = read_source_header(source, name)
        _check_names(root, headers, index)
        for name in files:
            if name not in sources:
                sources[name] = opened.enter_context(SourceFile(root / name, keep_open=False))
        config = read_config(root / "config.json") if "config.json" in sources else None
        checkpoint = Checkpoint(root, root, sources, headers, config)
        opened.pop_all()
        return checkpoint


def _check_names(root: Path, headers: Mapping[str, Header], index: Index | None) -> None:
    """Each tensor stands in one file, and with an index exactly in the one that it says."""
    found: dict[str, str] = {}
    for file, header in headers.items():
        for info in header.tensors:
            other = found.setdefault(info.name, file)
            if other != file:
                raise CheckpointError(
                    "two files hold the same tensor",
                    file=root / file,
                    tensor=info.name,
                    got=f"in {other} and in {file}",
                    wanted="one file for each tensor",
                    remedy="remove the file that is no part of the model, or open one file by its own path",
                )
    if index is not None and found != index.weight_map:
        _refuse_index(root, index, found)


def _refuse_index(root: Path, index: Index, found: Mapping[str, str]) -> None:
    wanted = index.weight_map
    name = next(name for name in [*found, *wanted] if found.get(name) != wanted.get(name))
    raise CheckpointError(
        "the shards and their index do not belong together",
        file=root / index.file,
        tensor=name,
        got=f"the tensor in {found[name]}" if name in found else "no shard with the tensor",
        wanted=f"the tensor in {wanted[name]}" if name in wanted else "no such tensor, by the index",
        remedy="files of two saves may be mixed: download or copy the folder again",
    )
