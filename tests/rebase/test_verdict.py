"""The verdict: every reason, and what outweighs what."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from graftwork.rebase import Compatibility, Evaluation, Evidence, preflight
from graftwork.rebase.pairing import Pairing
from graftwork.rebase.verdict import judge, low_correlation
from tests.rebase.models import base_state, moved


def normal(seed: int, size: int = 96) -> torch.Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed))


OLD, DELTA, DRIFT = normal(0), 0.3 * normal(1), normal(2)


def judged(new: torch.Tensor, delta: torch.Tensor = DELTA, **more: Any) -> Compatibility:
    return preflight({"w": OLD}, {"w": OLD + delta}, {"w": new}, **more)


@pytest.mark.parametrize(
    "new, verdict, words",
    [
        (OLD + 0.1 * DRIFT, "go", "correlate 0.99"),
        (OLD + 0.25 * DRIFT, "risky", "moved 0.8"),
        (OLD + 0.6 * DRIFT, "risky", "less than 0.9"),
        (OLD + 2.0 * DRIFT, "dont", "times as far"),
        (normal(5), "dont", "unrelated trainings"),
        (OLD + 0.4 * DELTA + 0.1 * DRIFT, "dont", "overshoots"),
        (OLD + 0.14 * DELTA + 0.1 * DRIFT, "risky", "a smaller scale"),
        (OLD, "go", "correlate 1.000"),
    ],
)
def test_by_the_weights(new: torch.Tensor, verdict: str, words: str) -> None:
    found = judged(new)
    assert found.verdict == verdict, found.reasons
    assert any(words in reason for reason in found.reasons), found.reasons
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_prediction_falls_with_the_distance() -> None:
    predicted = [judged(OLD + share * DRIFT).predicted or 0.0 for share in (0.05, 0.2, 0.5, 1.0)]
    assert predicted == sorted(predicted, reverse=True) and predicted[0] > 0.9 and predicted[-1] < 0.5
    assert judged(normal(5)).predicted == 0.0  # all of the change is in weights without a relation
    assert judged(OLD, torch.zeros_like(DELTA)).predicted is None


def test_nothing_tuned() -> None:
    found = judged(OLD + 0.1 * DRIFT, torch.zeros_like(DELTA))
    assert found.verdict == "risky" and "nothing to carry over" in found.reasons[0]


def test_a_tenth_of_the_weights_decides() -> None:
    old = {"a.weight": normal(0), "b.weight": normal(1)[:10], "norm.weight": torch.rand(96)}
    new = {"a.weight": old["a.weight"], "b.weight": normal(9)[:10], "norm.weight": torch.rand(96)}
    tuned = {name: tensor + 0.1 for name, tensor in old.items()}
    found = preflight(old, tuned, new)
    assert found.correlation == pytest.approx(1.0)  # 9 % of the weights are unrelated
    new["b.weight"] = normal(9)
    old["b.weight"] = tuned["b.weight"] = normal(1)
    assert abs(preflight(old, tuned, new).correlation or 1) < 0.1
    assert low_correlation(Pairing(), {}) is None


def evidence(result: float, *, scale: float = 1.0, path: list[tuple[float, float]] | None = None) -> Evidence:
    scores = {"old": 0.1, "tuned": 0.9, "new": 0.1, "result": result}
    found = {role: Evaluation(1 - score, score) for role, score in scores.items()}
    return Evidence(scale, **found, path=path or [])


def with_evidence(new: torch.Tensor, found: Evidence | None) -> Compatibility:
    bare = judged(new)
    return judge(bare.pairing, bare.tensors, found)


@pytest.mark.parametrize(
    "result, verdict", [(0.9, "go"), (0.75, "go"), (0.55, "risky"), (0.4, "dont"), (0.0, "dont")]
)
def test_examples_outweigh_the_weights(result: float, verdict: str) -> None:
    for new in (OLD + 0.1 * DRIFT, OLD + 2.0 * DRIFT):
        found = with_evidence(new, evidence(result))
        assert found.verdict == verdict and "on the examples" in found.reasons[0]
        assert any(reason.startswith("the weights alone") for reason in found.reasons)


def test_examples_that_tell_nothing() -> None:
    flat = {role: Evaluation(0.5, 0.5) for role in ("old", "tuned", "new", "result")}
    found = with_evidence(OLD + 0.1 * DRIFT, Evidence(1.0, **flat))
    assert found.verdict == "go" and any("tell nothing" in reason for reason in found.reasons)
    assert found.evidence is not None and found.evidence.retained is None


def test_a_barrier_is_a_reason() -> None:
    path = [(0.0, 0.1), (0.5, 2.0), (1.0, 0.2)]
    found = with_evidence(OLD + 0.1 * DRIFT, evidence(0.9, path=path))
    assert found.verdict == "risky" and any("barrier" in reason for reason in found.reasons)


def test_what_does_not_fit_counts_in_any_case() -> None:
    old = base_state()
    new = moved(old, 1e-3, 1)
    new["other.weight"] = torch.ones(2, 2)
    found = preflight(old, moved(old, 2e-3, 2), new)
    assert found.verdict == "risky" and "do not have the same tensors" in found.reasons[0]
    nothing = preflight({"a": torch.ones(2)}, {"a": torch.ones(2)}, {"b": torch.ones(2)})
    assert nothing.verdict == "dont" and any("no tensor" in reason for reason in nothing.reasons)


def test_little_of_the_new_base_has_a_counterpart() -> None:
    old = {"w": OLD}
    new = {"w": OLD + 0.1 * DRIFT, "much.weight": torch.ones(400, 400)}
    found = preflight(old, {"w": OLD + DELTA}, new)
    assert found.verdict == "dont" and any("only 5% of the new base" in reason for reason in found.reasons)


def test_quantised_weights_are_a_dont_not_an_error() -> None:
    old = {"w.weight": OLD.bfloat16()}
    found = preflight(old, {"w.weight": OLD.to(torch.float8_e5m2)}, old)
    assert found.verdict == "dont" and "quantised" in found.reasons[0]
