"""Weights that are patched in place: the old base, the fine-tune, the new base, the result at any scale, and between.

Nothing is written to disk to try a model out. Tensors of a live model are restored bit for bit at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor

from graftwork.checkpoint.dtypes import torch_dtype
from graftwork.errors import CheckpointError
from graftwork.rebase.difference import difference_tile
from graftwork.rebase.evidence import Evaluation, Evidence, Probe, linear_cka
from graftwork.rebase.pairing import Carried, Pairing, Renaming
from graftwork.rebase.sides import Side
from graftwork.rebase.tiles import Triple, triples

__all__ = ["Candidate", "gather_evidence", "search_scale"]

Base = Literal["old", "tuned", "new"]


class Candidate:
    """The tensors of a plan in memory; a context manager that restores those of a live model.

    Attributes
    ----------
    weights : dict of str to Tensor
        By the names of the result, and of its ties; or by the live model's.
    """

    def __init__(
        self, pairing: Pairing, old: Side, tuned: Side, new: Side, live: Mapping[str, Tensor] | None = None
    ) -> None:
        self._pairing, self._sides = pairing, (old, tuned, new)
        self._frame = tuned if pairing.frame == "tuned" else new
        self._live = live
        self._targets: dict[str, Tensor] = {}
        self._saved: dict[str, Tensor] = {}
        self.weights: Mapping[str, Tensor] = {}

    def __enter__(self) -> Self:
        if self._live is None:
            for row in self._pairing.rows:
                source = self._whole(row)
                self._targets[row.name] = source.clone()
            tied = {
                name: self._targets[first]
                for name, first in self._frame.tied.items()
                if first in self._targets
            }
            self.weights = self._targets | tied
            return self
        rename = Renaming({row.name for row in self._pairing.rows}, set(self._live))
        seen: set[int] = set()
        for row in self._pairing.rows:
            name = rename(row.name)
            if name is None:
                if row.action == "difference":
                    self._refuse(row, "no such tensor")
                continue
            held = self._live[name]
            if tuple(held.shape) != row.shape:
                self._refuse(row, list(held.shape))
            if id(held) not in seen:
                seen.add(id(held))
                self._targets[row.name] = held
                self._saved[row.name] = held.detach().clone()
        self.weights = self._live
        return self

    def _refuse(self, row: Carried, got: object) -> None:
        raise CheckpointError(
            "the live model lacks a tensor of the result",
            tensor=row.name,
            got=got,
            wanted=f"a tensor of shape {list(row.shape)}",
            remedy="give the tensors of a model of the fine-tune's kind",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with torch.no_grad():
            for name, saved in self._saved.items():
                self._targets[name].copy_(saved)
        self._saved.clear()

    def _whole(self, row: Carried) -> Tensor:
        """A tensor of the right shape and dtype that the result starts from."""
        _, tuned, new = self._sides
        if row.action == "new" and row.new is not None:
            return new.tensor(row.new)
        if row.action == "tuned" and row.tuned is not None:
            return tuned.tensor(row.tuned)
        meta = new.meta(row.new)
        dtype = None if meta is None else torch_dtype(meta.dtype)
        return torch.zeros(row.shape, dtype=dtype)

    def put_base(self, which: Base) -> None:
        """The old base, the fine-tune or the new base; what only the fine-tune has stays the fine-tune's."""
        self._fill(lambda triple: {"old": triple.old, "tuned": triple.tuned, "new": triple.new}[which])

    def put_result(self, scale: float, back: float = 0.0) -> None:
        """The result at this scale, as it would be written; or a share ``back`` of the way back to the fine-tune."""

        def values(triple: Triple) -> Tensor:
            result = difference_tile(triple, scale)
            if not back:
                return result
            return result.float().lerp(triple.tuned.float(), back)

        self._fill(values)

    def _fill(self, values: Callable[[Triple], Tensor]) -> None:
        with torch.no_grad():
            for row in self._pairing.rows:
                target = self._targets.get(row.name)
                if target is None:
                    continue
                if row.action != "difference":
                    target.copy_(self._whole(row))
                    continue
                whole = (
                    target.view(-1)
                    if target.is_contiguous()
                    else torch.empty(row.shape, dtype=target.dtype).view(-1)
                )
                for triple in triples(row, *self._sides):
                    found = values(triple)
                    whole[triple.start : triple.start + found.numel()].copy_(found)
                if not target.is_contiguous():
                    target.copy_(whole.view(row.shape))


def search_scale(
    candidate: Candidate, probe: Probe, scales: tuple[float, ...]
) -> tuple[float, list[tuple[float, Evaluation]]]:
    """The scale with the best merit on the dev examples, and all trials; of equals the one nearest to 1."""
    trials = []
    for scale in scales:
        candidate.put_result(scale)
        trials.append((scale, probe.on_dev(candidate.weights)))
    finite = [trial for trial in trials if trial[1].merit == trial[1].merit]
    best = max(finite or trials, key=lambda trial: (trial[1].merit, -abs(trial[0] - 1)))
    return best[0], trials


def gather_evidence(
    candidate: Candidate, probe: Probe, *, scales: tuple[float, ...], points: int = 11
) -> Evidence:
    """Evaluate the three models and the result, choose its scale on the dev examples, and walk the path between."""
    found: dict[str, Evaluation] = {}
    held_out: dict[str, Evaluation] = {}
    activations = {}

    def evaluate(role: str) -> None:
        found[role] = probe.on_dev(candidate.weights)
        other = probe.on_held_out(candidate.weights)
        if other is not None:
            held_out[role] = other

    bases: tuple[Base, ...] = ("old", "tuned", "new")
    for role in bases:
        candidate.put_base(role)
        evaluate(role)
        if probe.features is not None and role != "tuned":
            activations[role] = {
                name: value.clone() for name, value in probe.features(candidate.weights).items()
            }
    scale, trials = scales[0], list[tuple[float, Evaluation]]()
    if len(scales) > 1:
        scale, trials = search_scale(candidate, probe, scales)
    candidate.put_result(scale)
    evaluate("result")
    path = [(0.0, found["tuned"].loss)]
    for number in range(1, points - 1):
        share = number / (points - 1)
        candidate.put_result(scale, back=1 - share)
        path.append((share, probe.on_dev(candidate.weights).loss))
    path.append((1.0, found["result"].loss))
    cka = {}
    if activations:
        shared = [name for name in activations["old"] if name in activations["new"]]
        cka = {name: linear_cka(activations["old"][name], activations["new"][name]) for name in shared}
    return Evidence(
        scale=scale,
        old=found["old"],
        tuned=found["tuned"],
        new=found["new"],
        result=found["result"],
        held_out=held_out,
        trials=trials,
        path=path,
        cka=cka,
    )
