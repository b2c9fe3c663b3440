"""Writing a checkpoint: a safetensors file, or a folder as Hugging Face writes it, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from graftwork.checkpoint.dtypes import DTYPES, code_of, tensor_bits
from graftwork.checkpoint.files import AtomicFile, AtomicFolder, make_folder, write_file
from graftwork.checkpoint.folder import INDEX_NAME, SUFFIX
from graftwork.checkpoint.paths import check_distinct, check_relative
from graftwork.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 8
_CODE_RANK = {code: rank for rank, code in enumerate(DTYPES)}


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    max_shard_bytes: int | None = None,
    other_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write tensors as a single file (``path`` ends in ``.safetensors``) or as a folder.

    Parameters
    ----------
    path : path
        What to create; it must not exist (an empty folder may).
    tensors : mapping of str to torch.Tensor
        Strided tensors on any device. They are written one after another, and only one is copied at a time.
        Tensors that share memory are each written in full.
    metadata : mapping of str to str, optional
        The ``__metadata__`` of every safetensors file; ``{"format": "pt"}`` by default.
    config : mapping, optional
        Written as ``config.json``; folders only.
    max_shard_bytes : int, optional
        Start another shard when a shard would hold more bytes of tensors than this; one tensor is never
        split. Folders only.
    other_files : mapping of str to bytes, optional
        Further files by relative path; folders only.

    Raises
    ------
    TargetExists
        If something stands at ``path``.
    CheckpointError
        If a tensor cannot be stored (its dtype, layout or name), or a file name is unsafe or taken.

    Notes
    -----
    The bytes of a safetensors file are those that the stock library writes for the same tensors.
    """
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    path = Path(path)
    _check_metadata(metadata, path)
    codes = {name: _check_tensor(name, tensor, path) for name, tensor in tensors.items()}
    if path.suffix == SUFFIX:
        if config is not None or max_shard_bytes is not None or other_files is not None:
            raise ValueError("config, max_shard_bytes and other_files need a folder, not a .safetensors path")
        _write_shard(path, tensors, codes, metadata)
        return
    shards = plan_shards(tensors, max_shard_bytes)
    files = _small_files(path, shards, tensors, config, other_files)
    with AtomicFolder(path) as folder:
        for file, names in shards.items():
            _write_shard(folder.path / file, {name: tensors[name] for name in names}, codes, metadata)
        for file, data in files.items():
            make_folder((folder.path / file).parent)
            write_file(folder.path / file, data)


class Planned(NamedTuple):
    """A tensor that is yet to be made: its dtype code and its shape as safetensors counts it."""

    code: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return (tensor_bits(self.code, self.shape) or 0) // 8


def stream_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Planned],
    make: Callable[[str], torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    max_shard_bytes: int | None = None,
    other_files: Mapping[str, bytes | Callable[[], Iterable[bytes | memoryview]]] | None = None,
) -> None:
    """`write_checkpoint` for tensors that are made one by one: ``make(name)`` is called when a tensor's turn has come.

    What it returns is of the planned dtype and shape, and is dropped before the next one is made. ``other_files`` may be
    functions that give a file's pieces. The bytes are those of `write_checkpoint`.
    """
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    path = Path(path)
    _check_metadata(metadata, path)
    if path.suffix == SUFFIX:
        if config is not None or max_shard_bytes is not None or other_files is not None:
            raise ValueError("config, max_shard_bytes and other_files need a folder, not a .safetensors path")
        _stream_shard(path, tensors, make, metadata)
        return
    shards = plan_shards(tensors, max_shard_bytes)
    whole = {name: data for name, data in (other_files or {}).items() if isinstance(data, bytes)}
    pieces = {name: data for name, data in (other_files or {}).items() if not isinstance(data, bytes)}
    files = _small_files(path, shards, tensors, config, whole | dict.fromkeys(pieces, b""))
    with AtomicFolder(path) as folder:
        for file, names in shards.items():
            _stream_shard(folder.path / file, {name: tensors[name] for name in names}, make, metadata)
        for file, data in files.items():
            make_folder((folder.path / file).parent)
            with AtomicFile(folder.path / file) as target:
                for piece in pieces[file]() if file in pieces else (data,):
                    target.write(piece)


def _stream_shard(
    path: Path,
    tensors: Mapping[str, Planned],
    make: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    order, begin = make_header(tensors, metadata)
    with AtomicFile(path, replace=False) as file:
        file.write(begin)
        for name in order:
            tensor = make(name)
            found = Planned(_check_tensor(name, tensor, path), tuple(_shape(tensor, tensors[name].code)))
            if found != tensors[name]:
                raise CheckpointError(
                    "a tensor came out in another form than planned",
                    file=path,
                    tensor=name,
                    got=f"{found.code} {list(found.shape)}",
                    wanted=f"{tensors[name].code} {list(tensors[name].shape)}",
                )
            file.write(_payload(tensor))


def checkpoint_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of the single file that `write_checkpoint` writes, in memory."""
    where = Path("<memory>")
    _check_metadata(metadata, where)
    codes = {name: _check_tensor(name, tensor, where) for name, tensor in tensors.items()}
    order = _file_order(codes)
    return b"".join([_header(order, tensors, codes, metadata), *(_payload(tensors[name]) for name in order)])


def _check_metadata(metadata: Mapping[str, str], path: Path) -> None:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must map str to str, got {key!r}: {value!r}")
        if not (_is_unicode(key) and _is_unicode(value)):
            raise CheckpointError("the metadata is not Unicode text", file=path, got=f"{key!r}: {value!r}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_tensor(name: str, tensor: torch.Tensor, path: Path) -> str:
    """The dtype code of a tensor that can be stored."""
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensors must map str to torch.Tensor, got {name!r}: {type(tensor).__name__}")
    if name == "__metadata__" or not _is_unicode(name):
        raise CheckpointError(
            "safetensors has no tensor of this name",
            file=path,
            tensor=name.encode("ascii", "backslashreplace").decode(),
        )
    if tensor.layout != torch.strided or tensor.is_meta:
        got = "a tensor without data (meta)" if tensor.is_meta else str(tensor.layout)
        raise CheckpointError(
            "the tensor is not dense", file=path, tensor=name, got=got, wanted="strided memory"
        )
    code = code_of(tensor.dtype)
    if code is None or (DTYPES[code].packed > 1 and tensor.ndim == 0):
        raise CheckpointError(
            "safetensors has no such dtype",
            file=path,
            tensor=name,
            got=tensor.dtype,
            wanted=", ".join(DTYPES),
            remedy="convert the tensor before saving it",
        )
    return code


def _shape(tensor: torch.Tensor, code: str) -> list[int]:
    shape, packed = list(tensor.shape), DTYPES[code].packed
    return shape if packed == 1 else [*shape[:-1], shape[-1] * packed]


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


def plan_shards(tensors: Mapping[str, _Sized], limit: int | None) -> dict[str, list[str]]:
    """File name to tensor names, filled in the order of the tensors."""
    if limit is not None and limit <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {limit}")
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if limit is not None and groups[-1] and filled + tensor.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += tensor.nbytes
    if len(groups) == 1:
        return {f"model{SUFFIX}": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}{SUFFIX}": names for i, names in enumerate(groups, 1)}


def _small_files(
    path: Path,
    shards: Mapping[str, Iterable[str]],
    tensors: Mapping[str, _Sized],
    config: Mapping[str, Any] | None,
    other_files: Mapping[str, bytes] | None,
) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        total = sum(tensor.nbytes for tensor in tensors.values())
        files[INDEX_NAME] = _json({"metadata": {"total_size": total}, "weight_map": weight_map})
    if config is not None:
        files["config.json"] = _json(config)
    for name, data in (other_files or {}).items():
        check_relative(name, file=path)
        if name in files or name in shards:
            raise CheckpointError(
                "two files of one name", file=path, got=name, remedy="rename the other file"
            )
        files[name] = data
    check_distinct([*shards, *files], file=path)
    return files


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _write_shard(
    path: Path, tensors: Mapping[str, torch.Tensor], codes: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    order = _file_order({name: codes[name] for name in tensors})
    with AtomicFile(path, replace=False) as file:
        file.write(_header(order, tensors, codes, metadata))
        for name in order:
            file.write(_payload(tensors[name]))


def _file_order(codes: Mapping[str, str]) -> list[str]:
    return sorted(codes, key=lambda name: (-_CODE_RANK[codes[name]], name.encode()))


def _header(
    order: Iterable[str],
    tensors: Mapping[str, torch.Tensor],
    codes: Mapping[str, str],
    metadata: Mapping[str, str],
) -> bytes:
    shapes = {name: (codes[name], _shape(tensors[name], codes[name])) for name in order}
    return _header_of(shapes, metadata)


def make_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[list[str], bytes]:
    """The beginning of a safetensors file, up to the first tensor's bytes, for tensors that are written one by one.

    ``tensors`` are dtype codes and shapes by name; the names are returned in the order in which their bytes follow.
    """
    order = _file_order({name: code for name, (code, _) in tensors.items()})
    return order, _header_of({name: tensors[name] for name in order}, metadata)


def _header_of(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, (code, shape) in tensors.items():
        stop = offset + (tensor_bits(code, shape) or 0) // 8
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _payload(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor; a view of its memory where that is contiguous on the CPU."""
    import torch

    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # a reshaped single element may keep a stride above 1
    return flat.view(torch.uint8).numpy().data
