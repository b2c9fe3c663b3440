"""What examples say of a transfer: losses and scores of all models, the barrier between them, representations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Evaluation", "Evidence", "Probe", "barrier_of", "linear_cka"]


class Evaluation(NamedTuple):
    """A model on some examples: mean loss (lower is better), and a score (higher is better; None: there is none)."""

    loss: float
    score: float | None = None

    @property
    def merit(self) -> float:
        """The score, or the negated loss where there is none."""
        return -self.loss if self.score is None else self.score


Weights = Mapping[str, "Tensor"]
Evaluate = Callable[[Weights], "Evaluation | float"]


@dataclass(frozen=True)
class Probe:
    """How models are tried out: functions of their weights, which are patched in place between the calls.

    Attributes
    ----------
    dev : callable
        Weights by name to an `Evaluation`, or to a loss alone, on the examples by which things are chosen.
    held_out : callable, optional
        The same on other examples, by which nothing is chosen.
    features : callable, optional
        Weights to activations ``[examples, width]`` by layer, for the CKA of the bases.
    live : mapping of str to Tensor, optional
        The tensors of a model that the functions run: they are patched where they lie and restored exactly at the end.
        None: tensors of the probe's own, which the functions are given.
    """

    dev: Evaluate
    held_out: Evaluate | None = None
    features: Callable[[Weights], Mapping[str, Tensor]] | None = None
    live: Mapping[str, Tensor] | None = None

    def on_dev(self, weights: Weights) -> Evaluation:
        """`dev` as an `Evaluation`."""
        return _evaluation(self.dev(weights), "dev")

    def on_held_out(self, weights: Weights) -> Evaluation | None:
        """`held_out` as an `Evaluation`; None without one."""
        return None if self.held_out is None else _evaluation(self.held_out(weights), "held_out")


def _evaluation(found: Evaluation | float, role: str) -> Evaluation:
    if isinstance(found, Evaluation):
        return found
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TypeError(f"{role} must return a loss or an Evaluation, got {type(found).__name__}")
    return Evaluation(float(found))


@dataclass
class Evidence:
    """What was measured on examples.

    Attributes
    ----------
    old, tuned, new, result : Evaluation
        The four models on the examples that things were chosen by; the bases with what only the fine-tune has.
    held_out : dict of str to Evaluation
        The same four on the other examples; empty without any.
    scale : float
        The factor of the result.
    trials : list of (float, Evaluation)
        The result at other scales.
    path : list of (float, float)
        Points between the fine-tune (0) and the result (1), and the loss there.
    cka : dict of str to float
        Similarity of the bases' representations by layer, 0 to 1.
    why_not : str
        Why `retained` is None.
    """

    scale: float
    old: Evaluation
    tuned: Evaluation
    new: Evaluation
    result: Evaluation
    held_out: dict[str, Evaluation] = field(default_factory=dict)
    trials: list[tuple[float, Evaluation]] = field(default_factory=list)
    path: list[tuple[float, float]] = field(default_factory=list)
    cka: dict[str, float] = field(default_factory=dict)
    why_not: str = ""

    def __post_init__(self) -> None:
        if self.retained is None and not self.why_not:
            self.why_not = "on the examples the fine-tune is no better than its base: they tell nothing of what it learnt"

    @property
    def retained(self) -> float | None:
        """(result − new) / (tuned − old) in the score: the share of the fine-tune's gain that the new base gets."""
        return _retained(self.old, self.tuned, self.new, self.result)

    @property
    def retained_held_out(self) -> float | None:
        """`retained` on the held-out examples; None without any."""
        if not self.held_out:
            return None
        return _retained(*(self.held_out[role] for role in ("old", "tuned", "new", "result")))

    @property
    def barrier(self) -> float | None:
        """The greatest rise of the loss over the straight line between the ends of `path`."""
        return barrier_of(self.path) if self.path else None

    @property
    def relative_barrier(self) -> float | None:
        """The barrier as a share of what the fine-tune gained in loss."""
        gain = self.old.loss - self.tuned.loss
        return None if self.barrier is None or gain <= 0 else self.barrier / gain

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what is not finite is None."""
        plain = {role: getattr(self, role)._asdict() for role in ("old", "tuned", "new", "result")}
        found = {
            "scale": self.scale,
            **plain,
            "held_out": {role: found._asdict() for role, found in self.held_out.items()},
            "retained": self.retained,
            "retained_held_out": self.retained_held_out,
            "barrier": self.barrier,
            "relative_barrier": self.relative_barrier,
            "trials": [{"scale": scale, **found._asdict()} for scale, found in self.trials],
            "path": [list(point) for point in self.path],
            "cka": dict(self.cka),
            "why_not": self.why_not,
        }
        return _finite(found)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_SMALL = 0.02
"""A gain below this share of the larger merit is none that could be retained."""


def _retained(old: Evaluation, tuned: Evaluation, new: Evaluation, result: Evaluation) -> float | None:
    merits = [found.merit for found in (old, tuned, new, result)]
    gain = merits[1] - merits[0]
    if not all(map(math.isfinite, merits)) or gain <= _SMALL * max(abs(merits[0]), abs(merits[1])):
        return None
    return (merits[3] - merits[2]) / gain


def barrier_of(path: Sequence[tuple[float, float]]) -> float:
    """max over λ of L(λ) − [(1 − λ) L(0) + λ L(1)], for points (λ, L) of which the first and last are the ends.

    >>> barrier_of([(0.0, 1.0), (0.5, 3.0), (1.0, 2.0)])
    1.5
    """
    (first, start), (last, end) = path[0], path[-1]
    span = (last - first) or 1.0
    rises = [loss - (start + (at - first) / span * (end - start)) for at, loss in path]
    return max(0.0, *rises)


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear CKA of two sets of activations of the same examples, with the unbiased estimate of HSIC.

        CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),  K = X Xᵀ, L = Y Yᵀ

    Parameters
    ----------
    one, other : Tensor
        Float ``[examples, width]``; widths may differ; at least four examples.

    Returns
    -------
    float
        In [0, 1]; 1 for activations that are rotations and multiples of each other; NaN if one is constant.

    Notes
    -----
    In float64. Kornblith et al. 2019 (arXiv 1905.00414); the estimate of HSIC is that of Song et al. 2012, as in Nguyen
    et al. 2021: the usual one is near 1 for unrelated activations as soon as widths exceed the number of examples.
    """
    if one.dim() != 2 or other.dim() != 2 or len(one) != len(other) or len(one) < 4:
        got = f"{list(one.shape)} and {list(other.shape)}"
        raise ValueError(f"linear_cka: wanted two matrices of the same, at least 4 examples, got {got}")
    first, second = (_kernel(part) for part in (one, other))
    mixed, alone, apart = _hsic(first, second), _hsic(first, first), _hsic(second, second)
    if alone <= 0 or apart <= 0:
        return math.nan
    return min(1.0, max(0.0, mixed / math.sqrt(alone * apart)))


def _kernel(activations: Tensor) -> Tensor:
    wide = activations.double()
    wide = wide - wide.mean(0)
    kernel = wide @ wide.T
    return kernel.fill_diagonal_(0.0)


def _hsic(one: Tensor, other: Tensor) -> float:
    """Unbiased HSIC of kernels whose diagonals are zero, up to a factor that CKA does not see."""
    n = len(one)
    trace = float((one * other).sum())
    means = float(one.sum() * other.sum()) / ((n - 1) * (n - 2))
    rows = 2 * float(one.sum(0) @ other.sum(0)) / (n - 2)
    return trace + means - rows
