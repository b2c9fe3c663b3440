from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from graftwork.errors import RecipeError
from graftwork.store import SkillPack
from graftwork.store.skill_pack import CompressionPlan, Drop, Quantize
from graftwork.store.skill_pack.auto import spend
from graftwork.store.skill_pack.compress import Settings, compress, error_of
from graftwork.store.skill_pack.pieces import Outline, stored_bytes
from graftwork.store.skill_pack.trials import Trial, candidates, try_codecs, uniform_codecs

State = dict[str, Tensor]


def state(kind: str, seed: int = 0) -> tuple[State, State]:
    """A base and a fine-tune whose changes are of one kind, or of all kinds."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    low = noise(90, 3) @ noise(3, 70) + 0.02 * noise(90, 70)
    rows = torch.zeros(700, 24)
    rows[::41] = 3 * noise(len(rows[::41]), 24)
    deltas = {
        "noise": {"mlp.a.weight": noise(64, 48), "mlp.b.weight": noise(31, 33), "norm.weight": noise(48)},
        "low": {"mlp.a.weight": low, "attn.b.weight": 0.1 * low.T, "b.bias": noise(70)},
        "rows": {"embed.weight": rows, "mlp.a.weight": 0.1 * noise(64, 48)},
        "heavy": {
            "mlp.a.weight": noise(64, 64) ** 5,
            "mlp.b.weight": noise(65, 64) ** 3,
            "conv.w": noise(8, 4, 3, 3),
        },
    }
    deltas["all"] = {f"{key}.{name}": delta for key, mine in deltas.items() for name, delta in mine.items()}
    base = {name: noise(*delta.shape) for name, delta in deltas[kind].items()}
    return base, {name: base[name] + 0.01 * delta for name, delta in deltas[kind].items()}


@pytest.mark.parametrize("kind", ["noise", "low", "rows", "heavy", "all"])
@pytest.mark.parametrize("uniform", [Quantize(1, block=0), Quantize(2, block=64), Quantize(4, block=128)])
def test_it_is_never_worse_than_one_codec_for_all_in_the_same_bits(kind: str, uniform: Quantize) -> None:
    base, tuned = state(kind)
    rival = SkillPack.build(tuned, base, CompressionPlan({"": uniform}))
    chosen = SkillPack.build(tuned, base, bpw=rival.bits_per_weight)
    assert chosen.nbytes <= rival.nbytes
    assert chosen.report().squared_error <= rival.report().squared_error
    if kind in ("low", "rows") and uniform.bits < 4:
        assert chosen.report().squared_error < 0.5 * rival.report().squared_error


@pytest.mark.parametrize("bpw", [0.05, 0.3, 1.0, 2.5, 6.0])
def test_it_keeps_to_its_budget_and_more_bits_leave_less_error(bpw: float) -> None:
    base, tuned = state("all")
    less, more = (SkillPack.build(tuned, base, bpw=bits) for bits in (bpw, 1.5 * bpw))
    assert less.bits_per_weight <= bpw and more.bits_per_weight <= 1.5 * bpw
    assert more.report().squared_error <= less.report().squared_error
    assert less.recipe["bpw"] == bpw


def test_vectors_are_raw_where_that_costs_little() -> None:
    base, tuned = state("all")
    pack = SkillPack.build(tuned, base, bpw=2.0)
    assert {pack.tensors[name].codec for name in pack.tensors if len(pack.tensors[name].shape) < 2} == {"raw"}


def test_one_bit_by_default() -> None:
    base, tuned = state("low")
    assert 0.5 < SkillPack.build(tuned, base).bits_per_weight <= 1.0


@pytest.mark.parametrize("bpw", [0, -1, math.nan, math.inf])
def test_a_budget_that_is_none(bpw: float) -> None:
    base, tuned = state("noise")
    with pytest.raises(RecipeError, match="bpw is no budget"):
        SkillPack.build(tuned, base, bpw=bpw)


def test_the_least_budget_drops_all() -> None:
    base, tuned = state("noise")
    pack = SkillPack.build(tuned, base, bpw=1e-6)
    assert pack.nbytes == 0 and {row.codec for row in pack.tensors.values()} == {"drop"}


def test_a_sample_of_rows_stands_for_all() -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.rand(3000, 1, generator=generator) ** 4
    delta = torch.randn(3000, 40, generator=generator) * sizes
    outline, energy = Outline(1, 3000, 40), float(delta.double().square().sum())
    trials = try_codecs(candidates(outline, 2.0), delta, outline, energy, Settings(), "w")
    assert len(trials) > 20
    for trial in trials:
        piece = compress(trial.codec, delta, outline, Settings(), name="w")
        assert trial.error == pytest.approx(error_of(piece, delta, energy).squared, rel=0.1)
        assert trial.nbytes == stored_bytes(piece)


def test_trials_of_small_tensors_are_exact() -> None:
    delta = torch.randn(2, 30, 20, generator=torch.Generator().manual_seed(2))
    outline = Outline(2, 30, 20)
    flat, energy = delta.view(60, 20), float(delta.double().square().sum())
    for trial in try_codecs(candidates(outline, 1.0), flat, outline, energy, Settings(), "experts.w"):
        piece = compress(trial.codec, flat, outline, Settings(), name="experts.w")
        assert trial.error == pytest.approx(error_of(piece, flat, energy).squared, rel=1e-4)
        assert trial.nbytes == stored_bytes(piece)


@pytest.mark.parametrize("seed", range(20))
def test_spending_is_nearly_the_best_there_is(seed: int) -> None:
    """Never above the budget, never worse than a plan of one codec, and within one step of the best of all."""
    generator = torch.Generator().manual_seed(seed)
    codecs = [Drop(), *(Quantize(bits) for bits in (1, 2, 3, 4))]
    trials = {}
    for name in "abc":
        sizes = torch.randint(1, 30, (4,), generator=generator).cumsum(0).tolist()
        errors = torch.rand(5, generator=generator).sort(descending=True).values.tolist()
        trials[name] = [
            Trial(codec, size, error) for codec, size, error in zip(codecs, [0, *sizes], errors, strict=True)
        ]
    budget = 60
    found = spend(trials, budget)
    assert found is not None
    chosen = {name: next(t for t in rows if t.codec == found[name]) for name, rows in trials.items()}
    assert sum(trial.nbytes for trial in chosen.values()) <= budget
    error = sum(trial.error for trial in chosen.values())
    fits = [rows for rows in itertools.product(*trials.values()) if sum(row.nbytes for row in rows) <= budget]
    best = min(sum(row.error for row in rows) for rows in fits)
    largest = max(rows[0].error for rows in trials.values())
    assert best <= error <= best + largest
    assert error < sum(rows[0].error for rows in trials.values())


def test_a_budget_below_the_least() -> None:
    assert spend({"a": [Trial(Drop(), 5, 1.0)]}, 4) is None


def test_the_uniform_plans_are_tried_for_every_tensor() -> None:
    for outline in (Outline(1, 1, 7), Outline(1, 30, 20), Outline(3, 5, 5)):
        assert set(uniform_codecs()) <= set(candidates(outline, 1.0))
