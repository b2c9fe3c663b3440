"""Paths that come out of files (shard indexes, layout records) are hostile until checked here."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from graftwork.errors import CheckpointError

_RELATIVE = "a relative path with '/' that stays inside its folder"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|^[A-Za-z]:")


def check_relative(name: str, *, file: str | os.PathLike[str], tensor: str | None = None) -> str:
    """Return ``name`` if it is a plain relative path: no root, ``..``, backslash or control character.

    ``file`` (and ``tensor``) say in the error where the path was found.
    """
    if _UNSAFE.search(name) or any(part in ("", ".", "..") for part in name.split("/")):
        raise CheckpointError(
            "a path leaves its folder or is unsafe",
            file=file,
            tensor=tensor,
            got=repr(name[:256]),
            wanted=_RELATIVE,
            remedy="do not trust this file; get it from its source again",
        )
    return name


def check_distinct(names: Iterable[str], *, file: str | os.PathLike[str]) -> None:
    """Refuse two paths that a file system without case, or with one spelling of accents, takes for one."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise CheckpointError(
                "two file names differ only in case or in the spelling of an accent",
                file=file,
                got=f"{other!r} and {name!r}",
                wanted="names that are distinct on every file system",
                remedy="rename one of them",
            )


def resolve_inside(root: Path, relative: str) -> Path:
    """Return the real path of a file in the folder ``root``, after following links; none may lead out of it.

    One layout is let through: in a Hugging Face cache the files of ``models--*/snapshots/<revision>/`` are
    links into ``models--*/blobs/``. A hard link cannot be told from a file, and is read as one.
    """
    root = root.resolve()
    path = root / relative
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        what = "a link leads nowhere" if path.is_symlink() else "a file is missing"
        raise CheckpointError(what, file=path, remedy="download the folder again") from None
    except (RuntimeError, OSError) as error:  # a loop of links
        raise CheckpointError("a path cannot be followed", file=path, got=error) from None
    if real.is_relative_to(root) or _is_cached_blob(root, real):
        return real
    raise CheckpointError(
        "a link leads out of the folder",
        file=path,
        got=f"a link to {real}",
        wanted="a file in the folder",
        remedy="replace the link by the file, if you trust it",
    )


def _is_cached_blob(root: Path, real: Path) -> bool:
    snapshots, repository = root.parent, root.parent.parent
    is_cache = snapshots.name == "snapshots" and repository.name.startswith("models--")
    return is_cache and real.parent == repository / "blobs"


def suffix_of(name: str) -> str:
    """The last suffix of a path, in lower case."""
    return PurePosixPath(name).suffix.lower()
