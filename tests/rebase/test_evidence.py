"""Trying models out in place: exact restore, the search for a scale, barrier and CKA."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from graftwork.errors import CheckpointError
from graftwork.rebase import Evaluation, Probe, linear_cka, preflight, transfer_state
from graftwork.rebase.candidate import Candidate
from graftwork.rebase.evidence import barrier_of
from graftwork.rebase.pairing import pair
from graftwork.rebase.sides import open_side


def quadratic(best: float) -> dict[str, dict[str, torch.Tensor]]:
    """Loss (w − best)² over one weight: old 0, tuned 1, new 0.5."""
    return {
        role: {"w": torch.tensor([value])} for role, value in (("old", 0.0), ("tuned", 1.0), ("new", 0.5))
    }


@pytest.mark.parametrize("best, scale", [(1.5, 1.0), (0.8, 0.25), (1.0, 0.5), (1.9, 1.25), (-3.0, 0.25)])
def test_the_scale_is_searched_on_the_dev_loss(best: float, scale: float) -> None:
    models = quadratic(best)
    found = preflight(*models.values(), loss=lambda weights: float((weights["w"] - best) ** 2))
    assert found.evidence is not None and found.evidence.scale == scale
    assert [trial for trial, _ in found.evidence.trials] == [1.0, 0.25, 0.5, 0.75, 1.25]


def test_a_given_scale_is_kept() -> None:
    found = preflight(
        *quadratic(1.0).values(), scale=0.75, loss=lambda weights: float((weights["w"] - 1) ** 2)
    )
    assert found.evidence is not None and found.evidence.scale == 0.75 and not found.evidence.trials
    assert found.evidence.result.loss == pytest.approx((0.5 + 0.75 - 1) ** 2)


def test_equal_scales_prefer_one() -> None:
    found = preflight(*quadratic(1.0).values(), loss=lambda weights: 2.0)
    assert found.evidence is not None and found.evidence.scale == 1.0 and found.evidence.retained is None


def test_a_loss_that_is_no_number_is_never_best() -> None:
    def loss(weights: dict[str, torch.Tensor]) -> float:
        value = weights["w"].item()
        return math.nan if value > 1.2 else (value - 1) ** 2

    found = preflight(*quadratic(1.0).values(), loss=loss)
    assert found.evidence is not None and found.evidence.scale == 0.5


def test_the_evaluations_see_the_right_models() -> None:
    seen: list[float] = []

    def loss(weights: dict[str, torch.Tensor]) -> float:
        seen.append(weights["w"].item())
        return (seen[-1] - 1.5) ** 2

    found = preflight(*quadratic(1.5).values(), loss=loss, scale=1.0, points=3)
    assert seen == [0.0, 1.0, 0.5, 1.5, 1.25]
    assert found.evidence is not None
    assert found.evidence.path == [(0.0, 0.25), (0.5, 0.0625), (1.0, 0.0)]
    assert found.evidence.retained == pytest.approx((1.0 - 0.0) / (2.25 - 0.25))


def test_held_out_examples_choose_nothing() -> None:
    probe = Probe(
        dev=lambda weights: Evaluation((weights["w"].item() - 1.0) ** 2),
        held_out=lambda weights: Evaluation((weights["w"].item() - 1.5) ** 2),
    )
    found = preflight(*quadratic(1.0).values(), examples=probe).evidence
    assert found is not None and found.scale == 0.5
    assert found.retained == pytest.approx(0.25) and found.retained_held_out == pytest.approx(
        (1.0 - 0.25) / 2
    )


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())


@pytest.mark.parametrize("fails", [False, True])
def test_a_live_model_is_patched_and_restored(fails: bool) -> None:
    torch.manual_seed(0)
    live = Model()
    before = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    states = [{name: tensor + shift for name, tensor in before.items()} for shift in (0.0, 0.25, 0.5)]
    x, seen = torch.randn(4, 5), []

    def dev(weights: object) -> float:
        seen.append(live.head.bias[0].item() - before["head.bias"][0].item())
        if fails and len(seen) == 3:
            raise RuntimeError("no more")
        return live(x).square().mean().item()

    own = dict(live.named_parameters())
    probe = Probe(dev, live=own, features=lambda _: {"body": live.body(x.repeat(3, 1)).detach()})
    if fails:
        with pytest.raises(RuntimeError):
            preflight(*states, examples=probe)
    else:
        found = preflight(*states, examples=probe, scale=1.0, points=2).evidence
        assert found is not None and seen == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=1e-6)
        assert found.cka.keys() == {"body"}
    assert all(torch.equal(live.state_dict()[name], before[name]) for name in before)
    assert dict(live.named_parameters()) == own


def test_a_live_model_of_another_kind() -> None:
    states = [{"body.weight": torch.ones(2, 2)}] * 3
    for live in ({"other": torch.ones(1)}, {"body.weight": torch.ones(3, 2)}):
        with pytest.raises(CheckpointError, match="lacks a tensor"):
            preflight(*states, examples=Probe(lambda _: 0.0, live=live))


def test_the_candidate_is_what_is_written() -> None:
    old, tuned, new = (
        torch.randn(9, 5, generator=torch.Generator().manual_seed(s)).bfloat16() for s in range(3)
    )
    with (
        open_side({"w": old}, "old") as a,
        open_side({"w": tuned}, "tuned") as b,
        open_side({"w": new}, "new") as c,
        Candidate(pair(a, b, c), a, b, c) as candidate,
    ):
        candidate.put_result(0.7)
        assert torch.equal(
            candidate.weights["w"], transfer_state({"w": old}, {"w": tuned}, {"w": new}, scale=0.7)["w"]
        )
        candidate.put_base("tuned")
        assert torch.equal(candidate.weights["w"], tuned)
        candidate.put_result(1.0, back=1.0)
        assert torch.equal(candidate.weights["w"], tuned)


def test_a_loss_of_another_kind() -> None:
    with pytest.raises(TypeError, match="must return a loss"):
        preflight(*quadratic(1.0).values(), loss=lambda weights: weights["w"])  # type: ignore[return-value, arg-type]


def test_barrier_of_the_sheet() -> None:
    assert barrier_of([(0.0, 1.0), (0.25, 1.5), (0.5, 1.75), (1.0, 2.0)]) == 0.25
    assert barrier_of([(0.0, 1.0), (0.5, 0.2), (1.0, 2.0)]) == 0.0


def normal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_in_closed_form() -> None:
    x = normal(40, 12, 0)
    q, _ = torch.linalg.qr(normal(12, 12, 1))
    assert linear_cka(x, x) == pytest.approx(1.0)
    assert linear_cka(x, 3 * x @ q + 5) == pytest.approx(1.0)  # rotations, scales and shifts are not seen
    assert math.isnan(linear_cka(x, torch.ones(40, 3)))


def test_cka_of_unrelated_activations_is_small_although_they_are_wide() -> None:
    found = [linear_cka(normal(30, 500, seed), normal(30, 500, seed + 50)) for seed in range(5)]
    assert sum(found) / 5 < 0.1
    x, y = normal(30, 500, 1), normal(30, 500, 2)
    k, m = (part - part.mean(0) for part in (x, y))
    biased = (k.T @ m).square().sum() / ((k.T @ k).norm() * (m.T @ m).norm())
    assert biased > 0.8  # the usual estimate takes them for alike


def test_cka_needs_the_same_examples() -> None:
    for one, other in ((normal(3, 2, 0), normal(3, 2, 1)), (normal(9, 2, 0), normal(8, 2, 1))):
        with pytest.raises(ValueError, match="at least 4 examples"):
            linear_cka(one, other)
