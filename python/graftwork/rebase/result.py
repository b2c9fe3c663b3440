"""What a rebase reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftwork.delta.survival import SurvivalReport
from graftwork.rebase.evidence import Evidence
from graftwork.rebase.pairing import Carried
from graftwork.rebase.verdict import Compatibility

__all__ = ["RebaseReport"]


@dataclass
class RebaseReport:
    """What `transfer` did.

    Attributes
    ----------
    out : Path or None
        What was written; None after a dry run, or where the verdict was "dont" and the method "auto".
    old, tuned, new : str
        Where the models are.
    method : str
        "diff".
    scale : float
        The factor of the difference.
    compatibility : Compatibility
        The pre-flight, with its verdict.
    config_changes : list of str
        Keys of the configuration that are the new base's.
    survival : SurvivalReport
        What is left of the update after rounding; empty if nothing was written.
    lineage : mapping or None
        What stands in the lineage file.
    preserve : str
        How the update was kept through the rounding.
    """

    out: Path | None
    old: str
    tuned: str
    new: str
    method: str
    scale: float
    compatibility: Compatibility
    config_changes: list[str] = field(default_factory=list)
    survival: SurvivalReport = field(default_factory=SurvivalReport)
    lineage: Mapping[str, Any] | None = None
    preserve: str = "none"

    @property
    def verdict(self) -> str:
        """The pre-flight's verdict."""
        return self.compatibility.verdict

    @property
    def evidence(self) -> Evidence | None:
        """What was measured on examples."""
        return self.compatibility.evidence

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "out": None if self.out is None else str(self.out),
            "old": self.old,
            "tuned": self.tuned,
            "new": self.new,
            "method": self.method,
            "scale": self.scale,
            "verdict": self.verdict,
            "preserve": self.preserve,
            "config_changes": list(self.config_changes),
            "compatibility": self.compatibility.to_dict(),
            "tensors": [_plain(row) for row in self.compatibility.pairing.rows],
            "survival": self.survival.to_dict(),
            "lineage": self.lineage,
        }


def _plain(row: Carried) -> dict[str, Any]:
    return {"name": row.name, "action": row.action, "shape": list(row.shape), "note": row.note}
