"""What a merge did, or would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftwork.delta.survival import SurvivalReport

__all__ = ["ComposeReport", "DonorReport", "Estimate"]


@dataclass(frozen=True)
class DonorReport:
    """A model of a merge: its name in the recipe, its part, the digest of its tensors, and what was odd about it.

    ``digest`` is None in a dry run. ``extra`` are its tensors that have no place in the output, ``nonfinite`` how many of
    its numbers are NaN or infinite.
    """

    name: str
    role: str
    digest: str | None = None
    extra: list[str] = field(default_factory=list)
    nonfinite: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name, "role": self.role, "digest": self.digest, "extra": self.extra, "nonfinite": self.nonfinite,
        }  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What a merge needs: bytes to read, to write and to have free, peak memory beside the libraries, seconds."""

    read_bytes: int
    write_bytes: int
    memory_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "read_bytes": self.read_bytes, "write_bytes": self.write_bytes, "memory_bytes": self.memory_bytes,
            "seconds": round(self.seconds, 6),
        }  # fmt: skip


@dataclass
class ComposeReport:
    """The outcome of `graftwork.compose.merge`.

    Attributes
    ----------
    out : Path
        The output's folder.
    method, preserve, nan : str
        As in the recipe.
    dry_run : bool
        Whether only the plan was made; then `estimate` is there, and what a run would measure is not.
    tensors, parameters : int
        Of the output.
    dtypes : dict of str to int
        Tensors by dtype code.
    donors : list of DonorReport
        The base first, the others in the recipe's order.
    resumed : int
        Tensors that an interrupted run had done.
    tied : dict of str to str
        Names that are another tensor of the output.
    notes : list of str
        What was decided or is odd.
    files : int
        Files of the output.
    digest : str or None
        The output's tensors by digest.
    seconds, cpu_seconds, digest_seconds : float
        Wall time, CPU time, and CPU time for digests, of this run.
    survival : SurvivalReport or None
        What of the update against the base survives in the output's dtype; None without a base.
    """

    out: Path
    method: str
    nan: str
    preserve: str
    dry_run: bool
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    donors: list[DonorReport]
    estimate: Estimate
    tied: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    resumed: int = 0
    files: int = 0
    digest: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    digest_seconds: float = 0.0
    survival: SurvivalReport | None = None

    @property
    def extra(self) -> dict[str, list[str]]:
        """By model, its tensors that have no place in the output."""
        return {donor.name: donor.extra for donor in self.donors if donor.extra}

    @property
    def nonfinite(self) -> dict[str, int]:
        """By model, how many of its numbers are NaN or infinite."""
        return {donor.name: donor.nonfinite for donor in self.donors if donor.nonfinite}

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            "out": str(self.out),
            "method": self.method,
            "nan": self.nan,
            "preserve": self.preserve,
            "dry_run": self.dry_run,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "dtypes": dict(self.dtypes),
            "donors": [donor.to_dict() for donor in self.donors],
            "estimate": self.estimate.to_dict(),
            "tied": dict(self.tied),
            "notes": self.notes,
            "resumed": self.resumed,
            "files": self.files,
            "digest": self.digest,
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "digest_seconds": round(self.digest_seconds, 3),
            "survival": None if self.survival is None else self.survival.to_dict(),
        }
