"""What lies in a checkpoint folder, and which of its files hold the model."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from graftwork.checkpoint.files import is_partial
from graftwork.checkpoint.foreign import CONVERT_PICKLE, PICKLE_SUFFIXES
from graftwork.checkpoint.paths import check_distinct, check_relative, resolve_inside, suffix_of
from graftwork.checkpoint.source import SourceFile, file_kind
from graftwork.errors import CheckpointError

SUFFIX = ".safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_JSON_BYTES = 100_000_000
NOT_THE_MODEL = (".git", ".cache")  # top-level folders of version control and of download tools
_AGAIN = "save or download the checkpoint again"
_SHARD = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})\.safetensors")


class Index(NamedTuple):
    """A shard index: where it stands, and the file of each tensor."""

    file: str
    weight_map: dict[str, str]

    @property
    def shards(self) -> list[str]:
        """The files that it names, sorted."""
        return sorted(set(self.weight_map.values()))


def _refuse(what: str, file: Path, *, remedy: str = _AGAIN, **details: Any) -> NoReturn:
    raise CheckpointError(what, file=file, remedy=remedy, **details)


def list_files(root: Path) -> list[str]:
    """All files under ``root``, relative with ``/``, sorted.

    Links are followed as `resolve_inside` allows. What is neither a regular file nor a folder is refused, and
    so is a linked folder. Unfinished writes, ``.git`` and ``.cache`` are left out.
    """
    return sorted(_walk(root, ""))


def _walk(root: Path, relative: str) -> Iterator[str]:
    with os.scandir(root / relative) as entries:
        for entry in entries:
            name = f"{relative}/{entry.name}" if relative else entry.name
            if is_partial(entry.name) or (not relative and entry.name in NOT_THE_MODEL):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, name)
                continue
            real = resolve_inside(root, name)
            if not real.is_file():
                got = ("a link to " if entry.is_symlink() else "") + file_kind(real.stat().st_mode)
                _refuse(
                    "not a regular file",
                    root / name,
                    got=got,
                    wanted="a regular file",
                    remedy="remove it from the folder",
                )
            check_relative(name, file=root)
            yield name


def _read_json(path: Path, pairs_hook: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    with SourceFile(path) as source:
        if source.size > MAX_JSON_BYTES:
            _refuse(
                "the file is too large for JSON", path, got=source.size, wanted=f"at most {MAX_JSON_BYTES}"
            )
        data = source.read(0, source.size)
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs_hook)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        _refuse("the file is not valid JSON", path, got=error, wanted="JSON in UTF-8")


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` as data: nothing in it is ever run or imported."""
    config = _read_json(path)
    if not isinstance(config, dict):
        _refuse(
            "the model's configuration is not an object", path, got=type(config).__name__, wanted="an object"
        )
    return config


def read_index(root: Path, name: str) -> Index:
    """Read and check a shard index, one of `list_files`; the shards are not opened."""
    path = root / name
    document = _read_json(path, lambda pairs: _unique(pairs, path))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        _refuse(
            "the index has no weight_map",
            path,
            got=type(weight_map).__name__,
            wanted="tensor name to file name",
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            _refuse("the index names no file", path, tensor=tensor, got=shard, wanted="a name")
        check_relative(shard, file=path, tensor=tensor)
        if suffix_of(shard) != SUFFIX:
            remedy = CONVERT_PICKLE if suffix_of(shard) in PICKLE_SUFFIXES else _AGAIN
            _refuse(
                "a shard is not safetensors",
                path,
                tensor=tensor,
                got=shard,
                wanted=f"*{SUFFIX}",
                remedy=remedy,
            )
    check_distinct(sorted(set(weight_map.values())), file=path)
    _check_total(document.get("metadata"), path)
    return Index(name, weight_map)


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            got = f"{result[key]!r} and {value!r}"
            _refuse(
                "the index holds a key twice", path, tensor=key, got=got, wanted="one file for each tensor"
            )
        result[key] = value
    return result


def _check_total(metadata: Any, path: Path) -> None:
    """``total_size`` is only a hint, and real ones are off or fractional: refuse what is no size at all."""
    total = metadata.get("total_size", 0) if isinstance(metadata, dict) else 0
    if not isinstance(total, int | float) or isinstance(total, bool) or not 0 <= total < math.inf:
        _refuse("the index's total_size is not a size", path, got=repr(total), wanted="a number of bytes")


def find_index(root: Path, files: Collection[str]) -> Index | None:
    """The folder's shard index, if it has one."""
    found = [name for name in files if "/" not in name and name.endswith(SUFFIX + ".index.json")]
    if INDEX_NAME in found:
        found = [INDEX_NAME]
    if not found:
        return None
    if len(found) > 1:
        _refuse(
            "the folder has several shard indexes",
            root,
            got=", ".join(found),
            wanted=INDEX_NAME,
            remedy="keep the index of the model that is meant",
        )
    index = read_index(root, found[0])
    _check_shards(root, index, files)
    return index


def _check_shards(root: Path, index: Index, files: Collection[str]) -> None:
    known = frozenset(files)
    for shard in index.shards:
        if shard not in known:
            tensor = next(name for name, file in index.weight_map.items() if file == shard)
            _refuse(
                "a shard that the index names is missing",
                root / shard,
                tensor=tensor,
                wanted=f"the file, as {index.file} says",
            )
    whole = index.file.removesuffix(".index.json")
    if whole in known and whole not in index.shards:
        _refuse(
            "the folder mixes two saves: a whole model and shards with an index",
            root / whole,
            got=f"{whole} and {index.file}",
            wanted="one of them",
            remedy=f"remove the older one, or give the path of {whole} itself",
        )


def model_files(root: Path, files: Collection[str], index: Index | None) -> list[str]:
    """The safetensors files that hold the model's tensors: the index's shards, else all of the top folder."""
    if index is not None:
        return index.shards
    names = [name for name in files if "/" not in name and suffix_of(name) == SUFFIX]
    if not names:
        _refuse_folder(root, files)
    check_distinct(names, file=root)
    _check_series(root, names)
    return names


def _refuse_folder(root: Path, files: Collection[str]) -> NoReturn:
    deeper = sorted({name.rsplit("/", 1)[0] for name in files if suffix_of(name) == SUFFIX})
    pickles = [name for name in files if suffix_of(name) in PICKLE_SUFFIXES]
    got, remedy = "no such file", f"give a folder with *{SUFFIX} files"
    if pickles:
        got, remedy = f"{', '.join(pickles[:4])} (pickle)", CONVERT_PICKLE
    if deeper:
        got, remedy = f"such files in {', '.join(deeper[:8])}", "give the path of one of these folders"
    _refuse(
        "the folder holds no safetensors file", root, got=got, wanted=f"*{SUFFIX} at its top", remedy=remedy
    )


def _check_series(root: Path, names: list[str]) -> None:
    """Shards without an index must at least be all there: ``x-00001-of-00003`` needs its two sisters."""
    series: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            series.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (stem, total), found in series.items():
        if len(found) != int(total):
            _refuse(
                "shards are missing, or two saves are mixed",
                root,
                got=f"{len(found)} files {stem}-*-of-{total}{SUFFIX}",
                wanted=f"{int(total)} files",
            )
