"""Rebase: carry a fine-tune over to another version of its base, with a verdict before anything is written."""

from __future__ import annotations

from graftwork.rebase.evidence import Evaluation, Evidence, Probe, linear_cka
from graftwork.rebase.job import preflight, transfer, transfer_state
from graftwork.rebase.methods import METHODS
from graftwork.rebase.recycle import Chain, Link, recycle
from graftwork.rebase.result import RebaseReport
from graftwork.rebase.verdict import Compatibility

__all__ = [
    "METHODS",
    "Chain",
    "Compatibility",
    "Evaluation",
    "Evidence",
    "Link",
    "Probe",
    "RebaseReport",
    "linear_cka",
    "preflight",
    "recycle",
    "transfer",
    "transfer_state",
]
