"""The store: many fine-tunes of one base as small deltas, restored byte for byte.

``pack`` fills a store, ``open_store`` opens one, ``diff`` compares two checkpoints, ``sync`` sends weights that change
from step to step. The format is specified in ``docs/store-format.md``. `SkillPack` keeps a fine-tune's changes with loss,
in about a bit a weight, and ``mount`` puts them on the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.store import sync
from graftwork.store.diff import CheckpointDiff, diff
from graftwork.store.pack import pack
from graftwork.store.results import (
    CheckoutResult,
    CodecUse,
    EntryInfo,
    EntryReport,
    GcReport,
    PackResult,
    VerifyReport,
)
from graftwork.store.store import Store, open_store
from graftwork.store.stored import Readable, find_entry, open_readable

if TYPE_CHECKING:
    from graftwork.store.skill_pack import SkillPack, mount

__all__ = [
    "CheckoutResult",
    "CheckpointDiff",
    "CodecUse",
    "EntryInfo",
    "EntryReport",
    "GcReport",
    "PackResult",
    "Readable",
    "SkillPack",
    "Store",
    "VerifyReport",
    "diff",
    "find_entry",
    "mount",
    "open_readable",
    "open_store",
    "pack",
    "sync",
]


def __getattr__(name: str) -> Any:
    if name in ("SkillPack", "mount"):  # these need torch, for which a listing of a store should not wait
        from graftwork.store import skill_pack

        return getattr(skill_pack, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
