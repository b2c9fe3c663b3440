"""The store: many fine-tunes of one base as small deltas, restored byte for byte.

``pack`` fills a store, ``open_store`` opens one, ``diff`` compares two checkpoints, ``sync`` sends weights that change
from step to step. The format is specified in ``docs/store-format.md``.
"""

from __future__ import annotations

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

__all__ = [
    "CheckoutResult",
    "CheckpointDiff",
    "CodecUse",
    "EntryInfo",
    "EntryReport",
    "GcReport",
    "PackResult",
    "Store",
    "VerifyReport",
    "diff",
    "open_store",
    "pack",
    "sync",
]
