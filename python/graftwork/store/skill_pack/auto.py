"""A codec for each tensor under one budget: least squared error for the bits, by a Lagrangian over trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from graftwork.errors import RecipeError
from graftwork.store.skill_pack.changes import Changes
from graftwork.store.skill_pack.codecs import Codec, Raw
from graftwork.store.skill_pack.compress import Settings, compress, error_of
from graftwork.store.skill_pack.manifest import ErrorOf
from graftwork.store.skill_pack.pieces import Piece, stored_bytes
from graftwork.store.skill_pack.trials import Trial, candidates, try_codecs, uniform_codecs

__all__ = ["Choice", "choose_codecs", "spend"]

_CLOSE = 1.1
"""Uniform plans of up to so many times the least estimated error are computed in full: estimates are of samples."""


class Choice(NamedTuple):
    """Codecs by tensor, and what they make of the changes."""

    codecs: dict[str, Codec]
    pieces: dict[str, Piece]
    errors: dict[str, ErrorOf]

    @property
    def nbytes(self) -> int:
        return sum(map(stored_bytes, self.pieces.values()))

    @property
    def squared(self) -> float:
        return math.fsum(error.squared for error in self.errors.values())


def choose_codecs(changes: Changes, bpw: float, settings: Settings) -> Choice:
    """The codecs of least total squared error in ``bpw`` bits for each weight that changed.

    Norms, biases and other vectors are raw, unless a plan of one codec for all tensors (of `uniform_codecs`) would then
    leave less error in the same budget; and if even a free choice leaves more, that plan is the choice.

    Raises
    ------
    RecipeError
        The budget is no positive number.
    """
    if not (isinstance(bpw, float | int) and math.isfinite(bpw) and bpw > 0):
        raise RecipeError("bpw is no budget", got=bpw, wanted="a positive number of bits a weight")
    if settings.quantizer == "gptq":
        settings = Settings("mse", settings.target_bpw, settings.seed)
    budget = int(bpw * sum(outline.numel for outline in changes.outlines.values()) / 8)
    trials = {
        name: try_codecs(
            candidates(outline, bpw), changes.delta(name), outline, changes.energies[name], settings, name
        )
        for name, outline in changes.outlines.items()
    }
    rival = _best_uniform(changes, trials, budget, settings)
    raw = {
        name: [trial for trial in rows if isinstance(trial.codec, Raw)]
        if len(changes.shapes[name]) < 2
        else rows
        for name, rows in trials.items()
    }
    for allowed in (raw, trials):
        codecs = spend(allowed, budget)
        if codecs is None:
            continue
        choice = _made(changes, codecs, settings)
        if rival is None or choice.squared <= rival.squared:
            return choice
    if rival is None:
        raise AssertionError("dropping everything fits any budget")
    return rival


def _made(changes: Changes, codecs: Mapping[str, Codec], settings: Settings) -> Choice:
    choice = Choice(dict(codecs), {}, {})
    for name, codec in codecs.items():
        delta = changes.delta(name)
        piece = compress(codec, delta, changes.outlines[name], settings, name=name)
        choice.pieces[name] = piece
        choice.errors[name] = error_of(piece, delta, changes.energies[name])
    return choice


def _best_uniform(
    changes: Changes, trials: Mapping[str, Sequence[Trial]], budget: int, settings: Settings
) -> Choice | None:
    """The plan of one codec for all tensors of least error in the budget."""
    sums: list[tuple[float, Codec]] = []
    for codec in uniform_codecs():
        rows = [next(trial for trial in mine if trial.codec == codec) for mine in trials.values()]
        if rows and sum(trial.nbytes for trial in rows) <= budget:
            sums.append((math.fsum(trial.error for trial in rows), codec))
    least = min((error for error, _ in sums), default=0.0)
    close = [codec for error, codec in sums if error <= _CLOSE * least]
    made = [_made(changes, dict.fromkeys(trials, codec), settings) for codec in close]
    return min(made, key=lambda choice: choice.squared, default=None)


def spend(trials: Mapping[str, Sequence[Trial]], budget: int) -> dict[str, Codec] | None:
    """The codec of each tensor that the budget of bytes buys.

    Each tensor starts with its smallest trial; then the steps along the lower convex hulls of (bytes, error) are taken in
    the order of the error that a byte saves, as far as they fit: the Lagrangian sweep of error + λ·bytes over all λ. What
    is left goes to single trials, on a hull or not, that save the most for a byte.

    Returns
    -------
    dict or None
        None if the smallest trials are above the budget.

    Examples
    --------
    >>> from graftwork.store.skill_pack.codecs import Drop, Quantize
    >>> small = [Trial(Drop(), 0, 4.0), Trial(Quantize(1), 1, 1.0)]
    >>> large = [Trial(Drop(), 0, 9.0), Trial(Quantize(1), 8, 1.0)]
    >>> {name: codec.bits for name, codec in spend({"a": small, "b": large}, 9).items()}
    {'a': 1, 'b': 1}
    >>> spend({"a": small, "b": large}, 8)["b"]
    Drop()
    """
    hulls = {name: _hull(rows) for name, rows in trials.items()}
    left = budget - sum(hull[0].nbytes for hull in hulls.values())
    if left < 0:
        return None
    steps = []
    for name, hull in hulls.items():
        for number, (before, after) in enumerate(pairwise(hull)):
            gain = (before.error - after.error) / (after.nbytes - before.nbytes)
            steps.append((-gain, name, number, after.nbytes - before.nbytes))
    at = dict.fromkeys(hulls, 0)
    for _, name, number, cost in sorted(steps):
        if at[name] == number and cost <= left:
            at[name], left = number + 1, left - cost
    chosen = {name: hull[at[name]] for name, hull in hulls.items()}
    _spend_rest(chosen, trials, left)
    return {name: trial.codec for name, trial in chosen.items()}


def _spend_rest(chosen: dict[str, Trial], trials: Mapping[str, Sequence[Trial]], left: int) -> None:
    """Improve single tensors for as long as there is something in what is left that does."""
    while True:
        better = [
            (_slope(now, trial), name, trial)
            for name, now in chosen.items()
            for trial in trials[name]
            if now.nbytes < trial.nbytes <= now.nbytes + left and trial.error < now.error
        ]
        if not better:
            return
        _, name, trial = max(better, key=lambda row: row[:2])
        left -= trial.nbytes - chosen[name].nbytes
        chosen[name] = trial


def _hull(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that are best for some price of a byte, from the smallest on."""
    hull: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.nbytes, trial.error)):
        if hull and (trial.nbytes == hull[-1].nbytes or trial.error >= hull[-1].error):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], trial):
            hull.pop()
        hull.append(trial)
    return hull


def _slope(before: Trial, after: Trial) -> float:
    """Error that a byte saves from one trial to the next."""
    return (before.error - after.error) / (after.nbytes - before.nbytes)
