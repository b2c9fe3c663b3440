"""A fine-tune and its base to a skill pack."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftwork.delta.pipeline import Progress
from graftwork.delta.weights import Stateful
from graftwork.errors import CheckpointError, DataError, RecipeError
from graftwork.store.skill_pack.auto import choose_codecs
from graftwork.store.skill_pack.calibration import LinearInputs
from graftwork.store.skill_pack.changes import Changes, open_changes
from graftwork.store.skill_pack.codecs import SVD, Codec, Quantize
from graftwork.store.skill_pack.compress import Inputs, Settings, compress, error_of
from graftwork.store.skill_pack.file import fields_digest
from graftwork.store.skill_pack.manifest import ErrorOf, Manifest, TensorRow
from graftwork.store.skill_pack.pack import SkillPack
from graftwork.store.skill_pack.pieces import Piece, dense
from graftwork.store.skill_pack.plan import CompressionPlan

__all__ = ["build_pack"]

_QUANTIZERS = ("rtn", "mse", "gptq")


def build_pack(
    tuned: Stateful,
    base: Stateful,
    plan: CompressionPlan | Literal["auto"],
    *,
    bpw: float | None,
    calibration: Sequence[Any] | None,
    model: nn.Module | None,
    quantizer: str,
    only: Collection[str] | None,
    seed: int,
    threads: int | None,
    progress: Progress | None,
) -> SkillPack:
    """See `SkillPack.build`."""
    _check(plan, bpw, quantizer, calibration)
    if quantizer == "gptq" and model is None:
        model = next((given for given in (base, tuned) if isinstance(given, nn.Module)), None)
        if model is None:
            raise DataError(
                "GPTQ needs a model to run on the batches", remedy="pass model=, or a Module as base"
            )
    with open_changes(tuned, base, only, threads=threads, progress=progress) as changes, torch.no_grad():
        target = plan.target_bpw if isinstance(plan, CompressionPlan) else None
        builder = _Builder(changes, Settings(quantizer, target, seed), progress)
        if isinstance(plan, CompressionPlan):
            codecs = {name: plan.codec(name, shape) for name, shape in changes.shapes.items()}
            recipe = plan.to_dict()
        else:
            choice = choose_codecs(changes, 1.0 if bpw is None else bpw, builder.settings)
            codecs, recipe = choice.codecs, {"plan": "auto", "bpw": 1.0 if bpw is None else bpw}
            if quantizer != "gptq":
                builder.pieces, builder.errors = choice.pieces, choice.errors
        if quantizer == "gptq" and model is not None and calibration is not None:  # as checked above
            builder.calibrated(codecs, model, calibration)
        builder.plain(codecs)
        recipe |= {"quantizer": quantizer, "seed": seed}
        return builder.pack(recipe)


def _check(plan: object, bpw: float | None, quantizer: str, calibration: Sequence[Any] | None) -> None:
    if not isinstance(plan, CompressionPlan) and plan != "auto":
        raise RecipeError("the plan is none", got=f"{plan!r:.100}", wanted="a CompressionPlan or 'auto'")
    if isinstance(plan, CompressionPlan) and bpw is not None:
        raise RecipeError(
            "bpw is the budget of an automatic plan",
            got=bpw,
            remedy="set target_bpw, or bpw of an SVD, in the plan",
        )
    if quantizer not in _QUANTIZERS:
        raise RecipeError(
            "there is no such quantizer", got=f"{quantizer!r:.100}", wanted=", ".join(_QUANTIZERS)
        )
    if (quantizer == "gptq") != (calibration is not None):
        raise DataError(
            "batches to calibrate with go with the quantizer 'gptq', and only with it",
            got=f"quantizer {quantizer!r}, {'no' if calibration is None else 'some'} batches",
        )


class _Builder:
    """Pieces and their errors, as they become more."""

    def __init__(self, changes: Changes, settings: Settings, progress: Progress | None) -> None:
        self.changes, self.settings = changes, settings
        self.pieces: dict[str, Piece] = {}
        self.errors: dict[str, ErrorOf] = {}
        self._progress = progress
        self._total = sum(4 * outline.numel for outline in changes.outlines.values())

    def make(self, name: str, codec: Codec, inputs: Inputs | None = None) -> None:
        """Compress one tensor."""
        delta, outline = self.changes.delta(name), self.changes.outlines[name]
        piece = compress(codec, delta, outline, self.settings, name=name, inputs=inputs)
        self.pieces[name] = piece
        self.errors[name] = error_of(piece, delta, self.changes.energies[name])
        if self._progress:
            done = sum(4 * self.changes.outlines[made].numel for made in self.pieces)
            self._progress("compress", done, self._total)

    def plain(self, codecs: Mapping[str, Codec]) -> None:
        """Compress all tensors that have not been."""
        for name, codec in codecs.items():
            if name not in self.pieces:
                self.make(name, codec)

    def calibrated(self, codecs: Mapping[str, Codec], model: nn.Module, batches: Sequence[Any]) -> None:
        """Compress linear layers with their inputs in view, in the order in which the model calls them.

        The model starts as the base with all other tensors as the pack restores them; each group of layers is replaced by
        what the pack restores before the inputs of the next are taken.
        """
        wanted = {
            name
            for name, codec in codecs.items()
            if isinstance(codec, Quantize | SVD) and self.changes.outlines[name].stack == 1
        }
        known = {other: name for name in self.changes.shapes for other in (name, *self.changes.tied(name))}
        inputs = LinearInputs(model, batches, [other for other, name in known.items() if name in wanted])
        layers = {known[other] for group in inputs.groups for other in group}
        self._load_base(inputs.model)
        for name, codec in codecs.items():
            if name not in layers:
                self.make(name, codec)
                self._write(inputs.model, name)
        for group in inputs.groups:
            fresh = [other for other in group if known[other] not in self.pieces]
            hessian = inputs.hessian(group) if fresh else None
            shared = None if hessian is None else Inputs.of(hessian, fresh[0])
            for other in fresh:
                self.make(known[other], codecs[known[other]], shared)
                self._write(inputs.model, known[other])

    def _load_base(self, model: nn.Module) -> None:
        tensors = _named_tensors(model)
        for name in (*self.changes.shapes, *self.changes.unchanged):
            for other in (name, *self.changes.tied(name)):
                if other in tensors:
                    _fill(tensors[other], self.changes.base(name), other)

    def _write(self, model: nn.Module, name: str) -> None:
        """Replace a tensor by what base and pack make of it."""
        base = self.changes.base(name)
        restored = base.float() + dense(self.pieces[name]).view(base.shape).to(base.device)
        tensors = _named_tensors(model)
        for other in (name, *self.changes.tied(name)):
            if other in tensors:
                _fill(tensors[other], restored, other)

    def pack(self, recipe: dict[str, Any]) -> SkillPack:
        """All of it."""
        changes = self.changes
        rows = {name: self._row(name) for name in sorted(changes.shapes)}
        manifest = Manifest(changes.base_digest, rows, tuple(changes.unchanged), changes.left_out, recipe)
        return SkillPack(manifest, self.pieces)

    def _row(self, name: str) -> TensorRow:
        changes, piece = self.changes, self.pieces[name]
        return TensorRow(
            name,
            piece.codec,
            changes.shapes[name],
            changes.dtypes[name],
            changes.digests[name],
            1.0,
            self.errors[name],
            piece.facts(),
            fields_digest(piece.fields()),
            changes.tied(name),
        )


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def _fill(tensor: Tensor, values: Tensor, name: str) -> None:
    if tensor.shape != values.shape:
        raise CheckpointError(
            "the model to calibrate has a tensor of another shape",
            file="model",
            tensor=name,
            got=list(tensor.shape),
            wanted=list(values.shape),
        )
    tensor.copy_(values)
