"""Skill packs: the changes of fine-tunes, compressed with loss, that are mounted on a base and taken off exactly."""

from __future__ import annotations

from graftwork.store.skill_pack.codecs import SVD, Drop, Prune, Quantize, Raw, Sparse
from graftwork.store.skill_pack.distill import DistillReport, distill_scales
from graftwork.store.skill_pack.mount import Mounted, mount
from graftwork.store.skill_pack.pack import SkillPack
from graftwork.store.skill_pack.plan import CompressionPlan
from graftwork.store.skill_pack.report import PackSummary, TensorSummary
from graftwork.store.skill_pack.router import Selection, SkillRouter
from graftwork.store.skill_pack.skill_set import SkillSet

__all__ = [
    "SVD",
    "CompressionPlan",
    "DistillReport",
    "Drop",
    "Mounted",
    "PackSummary",
    "Prune",
    "Quantize",
    "Raw",
    "Selection",
    "SkillPack",
    "SkillRouter",
    "SkillSet",
    "Sparse",
    "TensorSummary",
    "distill_scales",
    "mount",
]
