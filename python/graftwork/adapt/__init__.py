"""Sparse fine-tuning: deltas of a few weights that are trained, kept, composed and put on a model exactly."""

from __future__ import annotations

from graftwork.adapt.apply import ApplyReport, apply_deltas
from graftwork.adapt.composition import Overlap, TensorOverlap, compose
from graftwork.adapt.delta_set import AppliedDelta, DeltaSet
from graftwork.adapt.lottery import LotterySparseFinetuner
from graftwork.adapt.optimizers import SparseAdamW, SparseSGD, SparseSM3
from graftwork.adapt.phase import Phase
from graftwork.adapt.policies import AccumulatedGradient, Fixed, MomentApproximation
from graftwork.adapt.roles import Roles, assign_roles, untie_output_embedding_
from graftwork.adapt.sparse_delta import SparseDelta
from graftwork.adapt.spiel import SpIELFinetuner
from graftwork.adapt.train import Evaluation, PhaseReport, TrainReport, train_sparse
from graftwork.adapt.tuned_tensor import TunedTensor

__all__ = [
    "AccumulatedGradient",
    "AppliedDelta",
    "ApplyReport",
    "DeltaSet",
    "Evaluation",
    "Fixed",
    "LotterySparseFinetuner",
    "MomentApproximation",
    "Overlap",
    "Phase",
    "PhaseReport",
    "Roles",
    "SpIELFinetuner",
    "SparseAdamW",
    "SparseDelta",
    "SparseSGD",
    "SparseSM3",
    "TensorOverlap",
    "TrainReport",
    "TunedTensor",
    "apply_deltas",
    "assign_roles",
    "compose",
    "train_sparse",
    "untie_output_embedding_",
]
