"""The verdict of the pre-flight: go, risky or dont, with its reasons.

The thresholds were chosen on some families of models and checked on others, as ``docs/papers/finetuning_transfer.md``
says; the record of ``bench/rebase.py`` holds every pair with its verdict and what was retained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from graftwork.rebase.evidence import Evidence
from graftwork.rebase.pairing import Pairing
from graftwork.rebase.statistics import TensorStatistics, total

__all__ = ["Compatibility", "Verdict", "judge"]

Verdict = Literal["go", "risky", "dont"]
_ORDER: tuple[Verdict, ...] = ("go", "risky", "dont")

UNRELATED = 0.3
"""Weights of two bases that correlate less than this share no features, or have them in other units."""
MOST, SOME = 0.75, 0.1
"""Share of the fine-tune's change in such tensors: above MOST it is lost; up to SOME it does little harm."""
ESTRANGED = 0.5
KIN = 0.9
FAR, NEAR = 2.3, 0.45
"""‖Δbase‖ / ‖Δ‖: above FAR, with correlations below ESTRANGED, nothing was retained; up to NEAR, most always was."""
SAME_WAY, ALIKE = 0.5, 0.25
"""Cosine of Δ with Δbase: above SAME_WAY the new base has learnt much of what would be added to it once more."""
SOME_DRIFT = 0.3
CARRIED = 0.5
"""Share of the fine-tune's weights that must fit the new base."""
RETAINED, LOST = 0.75, 0.4
"""Measured on examples: the share of the gain that makes it a go, and the one below which it is a dont."""
TENTH = 0.1


@dataclass(frozen=True)
class Compatibility:
    """What the pre-flight found.

    Attributes
    ----------
    verdict : "go", "risky" or "dont"
        Whether to add the difference.
    reasons : list of str
        Why, the weightiest first.
    correlation : float or None
        Of the bases' weights: a tenth of all weights in matrices is in tensors that correlate no more than this.
    statistics : TensorStatistics
        Over all tensors that get a difference.
    tensors : mapping
        The same for each tensor, by its name.
    predicted : float or None
        Share of the fine-tune's gain that will be retained, by the statistics of the weights alone.
    evidence : Evidence or None
        What was measured on examples.
    pairing : Pairing
        Which tensor comes from what, and what is left behind.
    """

    verdict: Verdict
    reasons: list[str]
    correlation: float | None
    statistics: TensorStatistics
    tensors: Mapping[str, TensorStatistics]
    predicted: float | None
    pairing: Pairing = field(repr=False)
    evidence: Evidence | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "correlation": self.correlation,
            "predicted": self.predicted,
            "statistics": self.statistics.to_dict(),
            "evidence": self.evidence and self.evidence.to_dict(),
            "frame": self.pairing.frame,
            "problems": [str(problem) for problem in self.pairing.problems],
            "not_carried": list(self.pairing.not_carried),
            "notes": list(self.pairing.notes),
            "tensors": {name: row.to_dict() for name, row in self.tensors.items()},
        }


@dataclass
class _Findings:
    """Reasons, each with the verdict that it alone would give."""

    found: list[tuple[Verdict, str]] = field(default_factory=list)

    def add(self, verdict: Verdict, reason: str) -> None:
        self.found.append((verdict, reason))

    @property
    def verdict(self) -> Verdict:
        return max((verdict for verdict, _ in self.found), key=_ORDER.index, default="go")

    @property
    def reasons(self) -> list[str]:
        return [reason for _, reason in sorted(self.found, key=lambda row: -_ORDER.index(row[0]))]


def judge(
    pairing: Pairing, tensors: Mapping[str, TensorStatistics], evidence: Evidence | None = None
) -> Compatibility:
    """The verdict on a plan, its statistics and what was measured on examples, if anything was.

    What was measured on examples outweighs the statistics of the weights. What does not fit is held against the
    transfer in any case.
    """
    whole = total(tensors.values())
    correlation = low_correlation(pairing, tensors)
    by_structure, by_weights, by_evidence = _Findings(), _Findings(), _Findings()
    _judge_structure(by_structure, pairing, whole)
    _judge_weights(by_weights, pairing, tensors, whole)
    if evidence is not None:
        _judge_evidence(by_evidence, evidence)
    measured = evidence is not None and evidence.retained is not None
    parts = [by_structure, by_evidence if measured else by_weights]
    verdict = max((part.verdict for part in parts), key=_ORDER.index)
    reasons = [reason for part in parts for reason in part.reasons]
    reasons += (
        [f"the weights alone: {reason}" for reason in by_weights.reasons] if measured else by_evidence.reasons
    )
    return Compatibility(
        verdict,
        reasons,
        correlation,
        whole,
        tensors,
        predicted_retention(
            whole, mean_correlation(pairing, tensors), share_below(pairing, tensors, UNRELATED)
        ),
        pairing,
        evidence,
    )


def low_correlation(pairing: Pairing, tensors: Mapping[str, TensorStatistics]) -> float | None:
    """A tenth of all weights in matrices is in tensors whose bases correlate no more than this."""
    rows = [
        (found.correlation, found.elements)
        for row in pairing.differences
        if len(row.shape) > 1 and (found := tensors[row.name]).correlation is not None
    ]
    ordered = sorted((correlation, count) for correlation, count in rows if correlation is not None)
    left = TENTH * sum(count for _, count in ordered)
    for correlation, count in ordered:
        left -= count
        if left <= 0:
            return correlation
    return None


def share_below(pairing: Pairing, tensors: Mapping[str, TensorStatistics], limit: float) -> float:
    """The share of ‖Δ‖² over matrices that is in those whose bases correlate less than ``limit``."""
    rows = [tensors[row.name] for row in pairing.differences if len(row.shape) > 1]
    known = [(row.correlation, row.update_square) for row in rows if row.correlation is not None]
    whole = sum(square for _, square in known)
    return sum(square for correlation, square in known if correlation < limit) / whole if whole else 0.0


def mean_correlation(pairing: Pairing, tensors: Mapping[str, TensorStatistics]) -> float | None:
    """The correlation of the bases' matrices, each weighted with its share of ‖Δ‖²; None if nothing is known."""
    rows = [tensors[row.name] for row in pairing.differences if len(row.shape) > 1]
    known = [(row.correlation, row.update_square) for row in rows if row.correlation is not None]
    whole = sum(square for _, square in known)
    return sum(correlation * square for correlation, square in known) / whole if whole else None


INTERCEPT, BY_DRIFT, BY_CORRELATION, BY_COSINE = -0.13, -1.8, 1.54, -5.24


def predicted_retention(
    whole: TensorStatistics, correlation: float | None, unrelated: float = 0.0
) -> float | None:
    """A logistic curve in log drift, mean correlation and the cosine of Δ with Δbase, fitted to the calibration pairs.

    The share of the change that is in tensors without a relation counts as lost.
    """
    if correlation is None or whole.drift is None:
        return None
    drift = math.log(max(whole.drift, 1e-3))
    alike = max(0.0, whole.cosine or 0.0)
    x = INTERCEPT + BY_DRIFT * drift + BY_CORRELATION * correlation + BY_COSINE * alike
    return (1 - unrelated) / (1 + math.exp(-x))


def _judge_structure(found: _Findings, pairing: Pairing, whole: TensorStatistics) -> None:
    fatal = [problem for problem in pairing.problems if problem.fatal]
    for problem in fatal[:3]:
        found.add("dont", str(problem))
    others = [problem for problem in pairing.problems if not problem.fatal]
    for problem in others[:3]:
        found.add("risky", str(problem))
    if len(others) > 3:
        found.add("risky", f"and {len(others) - 3} more of the kind")
    if not pairing.differences:
        found.add("dont", "no tensor of the fine-tune fits the new base")
    elif pairing.frame == "new":
        numel = {row.name: math.prod(row.shape) for row in pairing.rows}
        carried = sum(numel[row.name] for row in pairing.differences) / max(1, sum(numel.values()))
        if carried < CARRIED:
            found.add(
                "dont", f"only {carried:.0%} of the new base's weights have a counterpart in the fine-tune"
            )
    if whole.update_square == 0 and pairing.differences:
        found.add("risky", "the fine-tune does not differ from the old base: there is nothing to carry over")
    for lost in pairing.not_carried[:3]:
        found.add("risky" if pairing.frame == "new" else "go", f"not carried over: {lost}")


def _judge_weights(
    found: _Findings, pairing: Pairing, tensors: Mapping[str, TensorStatistics], whole: TensorStatistics
) -> None:
    drift, cosine = whole.drift, whole.cosine
    mean = mean_correlation(pairing, tensors)
    if drift is None:
        return
    if mean is None:
        found.add("risky", "there is no matrix by which to tell whether the bases are related")
        return
    unrelated, estranged, near = (share_below(pairing, tensors, x) for x in (UNRELATED, ESTRANGED, KIN))
    if unrelated > MOST:
        found.add(
            "dont",
            f"the weights of the bases correlate {mean:.2f} only: they come from unrelated trainings, or their units stand "
            f"in another order",
        )
    elif estranged > MOST and drift > FAR:
        found.add(
            "dont",
            f"the new base has moved {drift:.1f} times as far as the fine-tune, and correlates {mean:.2f} only",
        )
    elif unrelated > SOME:
        found.add(
            "risky",
            f"{unrelated:.0%} of the change is in tensors whose bases correlate less than {UNRELATED:g}",
        )
    elif near > SOME:
        found.add("risky", f"{near:.0%} of the change is in tensors whose bases correlate less than {KIN:g}")
    if cosine is not None and cosine > ALIKE and drift > SOME_DRIFT:
        much = cosine > SAME_WAY
        found.add(
            "dont" if much else "risky",
            f"the new base has moved the way of the fine-tune (cosine {cosine:.2f}): "
            + ("adding the difference overshoots" if much else "a smaller scale may be better"),
        )
    if drift > NEAR:
        found.add(
            "risky", f"the new base has moved {drift:.2f} times as far from the old one as the fine-tune"
        )
    if not found.found:
        found.add(
            "go",
            f"the bases correlate {mean:.3f}, and the new one has moved {drift:.2f} times as far as the fine-tune",
        )
    short = whole.short_cosine
    if short is not None and short < ALIKE:
        found.add("risky", f"a short fine-tune of the new base goes another way (cosine {short:.2f})")


def _judge_evidence(found: _Findings, evidence: Evidence) -> None:
    retained = evidence.retained
    if retained is None:
        found.add("risky", evidence.why_not or "the examples do not tell whether the gain is retained")
        return
    text = f"on the examples {retained:.0%} of the fine-tune's gain is retained at scale {evidence.scale:g}"
    found.add("go" if retained >= RETAINED else "dont" if retained < LOST else "risky", text)
    barrier = evidence.relative_barrier
    if barrier is not None and barrier > 1 - LOST:
        found.add(
            "risky",
            f"the loss rises on the way from the fine-tune to the result (barrier {barrier:.2f} of the gain)",
        )
