"""The lineage of rebased weights: which base they belong to, and what they were made of, by digest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from graftwork import __version__
from graftwork.checkpoint import Checkpoint
from graftwork.checkpoint.folder import MAX_JSON_BYTES
from graftwork.delta.manifest import is_digest
from graftwork.delta.source import describe
from graftwork.errors import BaseMismatch, CheckpointError
from graftwork.rebase.methods import METHODS
from graftwork.rebase.sides import Side

__all__ = ["LINEAGE", "base_of", "check_old", "digest_of", "lineage_of", "read_lineage"]

LINEAGE = "graftwork.json"
"""The file in a folder, as `graftwork.compose` writes it; a single safetensors file has the same text in its metadata,
under this name."""
FORMAT = "graftwork-lineage"
VERSION = [1, 0]
_LONGEST = 256


def read_lineage(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The lineage that a checkpoint carries; None if there is none.

    Raises
    ------
    CheckpointError
        It is malformed, or of a newer version.
    """
    text = None
    if LINEAGE in checkpoint.other_files and checkpoint.file_size(LINEAGE) <= MAX_JSON_BYTES:
        text = checkpoint.read_file(LINEAGE).decode("utf-8", "replace")
    elif checkpoint.path != checkpoint.root:
        text = next(iter(checkpoint.headers.values())).metadata.get(LINEAGE)
    if text is None:
        return None
    try:
        found: Any = json.loads(text)
        base = found["base"]
        good = found["format"] == FORMAT and (base is None or is_digest(base["digest"]))
        good = good and isinstance(found.get("history", []), list)
        version = [int(part) for part in found["version"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good, version = False, VERSION
    if not good or version[0] > VERSION[0]:
        raise CheckpointError(
            "the lineage is malformed" if not good else "the lineage is of a newer version",
            file=checkpoint.root / LINEAGE,
            got=text[:80] if not good else version,
            wanted=FORMAT if not good else f"at most {VERSION[0]}",
            remedy="remove it, if you know which base the weights belong to",
        )
    return found


def digest_of(side: Side, threads: int) -> str:
    """The digest of a model's tensors, whatever files they lie in."""
    return describe(side.weights.source, threads=threads).digest


def base_of(lineage: Mapping[str, Any] | None) -> str | None:
    """The digest of the base that the weights with this lineage belong to."""
    base = None if lineage is None else lineage["base"]
    return None if base is None else str(base["digest"])


def check_old(lineage: Mapping[str, Any] | None, digest: str, old: Side, tuned: Side) -> None:
    """Refuse an old base that is not the one that the fine-tune's lineage names."""
    wanted = base_of(lineage)
    if lineage is not None and wanted not in (None, digest):
        base = lineage["base"]
        raise BaseMismatch(
            f"the fine-tune in {tuned.what} was made from another base",
            file=old.what,
            got=f"digest {digest[:16]}…",
            wanted=f"{base.get('name')}, digest {str(wanted)[:16]}…",
            remedy=f"give the base that {LINEAGE} names as old, or remove that file if it is wrong",
        )


def lineage_of(
    settings: Mapping[str, Any],
    base: Mapping[str, str],
    models: Sequence[Mapping[str, str]],
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A lineage: what was done, the base that the result belongs to, its models, and the fine-tune's own history."""
    history = []
    if before is not None:
        own = {key: before[key] for key in ("job", "method", "base", "models", "settings") if key in before}
        history = [*before.get("history", []), own][-_LONGEST:]
    method = METHODS[str(settings["method"])]
    return {
        "format": FORMAT,
        "version": VERSION,
        "created_by": f"graftwork {__version__}",
        "job": "rebase",
        "method": {"name": settings["method"], "title": method.title, "link": method.link},
        "base": dict(base),
        "models": [dict(model) for model in models],
        "settings": dict(settings),
        "history": history,
    }


def to_bytes(lineage: Mapping[str, Any]) -> bytes:
    """The text of the file."""
    return (json.dumps(lineage, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
