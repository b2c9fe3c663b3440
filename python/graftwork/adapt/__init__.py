"""Sparse fine-tuning: deltas of a few weights that are trained, kept, composed and put on a model exactly."""

from __future__ import annotations

from graftwork.adapt.deltas.composition import Overlap, TensorOverlap, compose
from graftwork.adapt.deltas.delta_set import AppliedDelta, DeltaSet
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.tuned_tensor import TunedTensor
from graftwork.adapt.lottery.finetuner import LotterySparseFinetuner
from graftwork.adapt.lottery.phase import Phase
from graftwork.adapt.optimizers.rules import SparseAdamW, SparseSGD, SparseSM3
from graftwork.adapt.roles import Roles, assign_roles, untie_output_embedding_
from graftwork.adapt.spiel.finetuner import SpIELFinetuner
from graftwork.adapt.spiel.policies import AccumulatedGradient, Fixed, MomentApproximation
from graftwork.adapt.training.apply import ApplyReport, apply_deltas
from graftwork.adapt.training.train import Evaluation, PhaseReport, TrainReport, train_sparse

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
