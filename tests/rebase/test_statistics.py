"""Streamed statistics against float64, and what they say of permuted, unrelated and equal bases."""

from __future__ import annotations

import math

import pytest
import torch

from graftwork.rebase import preflight
from graftwork.rebase.pairing import pair
from graftwork.rebase.sides import open_side
from graftwork.rebase.statistics import TensorStatistics, measure_pairing, total
from graftwork.rebase.tiles import triples


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def measured(
    old: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], new: dict[str, torch.Tensor]
) -> dict[str, TensorStatistics]:
    with open_side(old, "old") as a, open_side(tuned, "tuned") as b, open_side(new, "new") as c:
        return measure_pairing(pair(a, b, c), a, b, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("numel", [1, 31, 33, 1000, 4097, (1 << 20) + 5])
def test_against_float64(dtype: torch.dtype, numel: int) -> None:
    if numel > 5000 and dtype != torch.bfloat16:
        return  # one dtype over two tiles is enough
    old, step, drift = normal(numel, dtype=dtype), normal(numel, seed=1) * 1e-2, normal(numel, seed=2) * 3e-2
    tuned, new = (old.float() + step).to(dtype), (old.float() + drift).to(dtype)
    row = measured({"w": old}, {"w": tuned}, {"w": new})["w"]
    a, b, c = old.double(), tuned.double(), new.double()
    if dtype == torch.float64:  # statistics read it as float32
        a, b, c = (part.float().double() for part in (a, b, c))
    d, e = b - a, c - a
    assert row.elements == numel
    for got, wanted in (
        (row.relative_update, (d.norm() / a.norm()).item()),
        (row.drift, (e.norm() / d.norm()).item()),
        (row.relative_drift, (e.norm() / a.norm()).item()),
        (row.cosine, ((d * e).sum() / d.norm() / e.norm()).item()),
    ):
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    if numel > 30:
        assert row.correlation == pytest.approx(torch.corrcoef(torch.stack([a, c]))[0, 1].item(), abs=1e-9)


def test_statistics_add_up() -> None:
    one, other = (TensorStatistics(*(float(k + s) for k in range(11))) for s in (1, 5))
    both = total([one, other])
    assert both.update_square == one.update_square + other.update_square
    assert both.elements == one.elements + other.elements
    assert total([]).drift is None and total([]).cosine is None and total([]).correlation is None


def test_what_is_undefined_is_none() -> None:
    w = normal(8, 8)
    same = measured({"w": w}, {"w": w}, {"w": w})["w"]
    assert same.drift is None and same.cosine is None and same.relative_update == 0.0
    assert same.correlation == pytest.approx(1.0)
    zero = measured({"w": torch.zeros(4)}, {"w": torch.ones(4)}, {"w": torch.zeros(4)})["w"]
    assert zero.relative_update is None and zero.correlation is None and zero.drift == 0.0
    constant = measured({"w": torch.ones(1000)}, {"w": torch.zeros(1000)}, {"w": torch.ones(1000) * 3})["w"]
    assert constant.correlation is None  # Pearson of constants, however large


def test_permuted_units_show_as_no_correlation() -> None:
    old = {"up.weight": normal(64, 32), "down.weight": normal(16, 64, seed=1)}
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    new = {"up.weight": old["up.weight"][order], "down.weight": old["down.weight"][:, order]}
    tuned = {name: tensor + 0.1 * normal(*tensor.shape, seed=7) for name, tensor in old.items()}
    found = preflight(old, tuned, new)
    assert found.verdict == "dont" and abs(found.correlation or 1) < 0.1
    assert any("another order" in reason for reason in found.reasons)


def test_a_short_fine_tune_of_the_new_base() -> None:
    old, delta, other = normal(40, 40), normal(40, 40, seed=1) * 0.05, normal(40, 40, seed=2) * 0.05
    new = old + 0.02 * normal(40, 40, seed=3)
    same = preflight({"w": old}, {"w": old + delta}, {"w": new}, short={"w": new + 0.5 * delta})
    assert same.statistics.short_cosine == pytest.approx(1.0, abs=1e-4) and same.verdict == "go"
    apart = preflight({"w": old}, {"w": old + delta}, {"w": new}, short={"w": new + other})
    assert abs(apart.statistics.short_cosine or 1) < 0.1 and apart.verdict == "risky"
    assert any("goes another way" in reason for reason in apart.reasons)


@pytest.mark.parametrize("tile", [1, 7, 16, 1000])
def test_tiles_of_a_grown_vocabulary(tile: int) -> None:
    old, tuned, new = normal(5, 4), normal(8, 4, seed=1), normal(6, 4, seed=2)
    name = "embed_tokens.weight"
    with (
        open_side({name: old}, "old") as a,
        open_side({name: tuned}, "tuned") as b,
        open_side({name: new}, "new") as c,
    ):
        (row,) = pair(a, b, c).rows
        pieces = list(triples(row, a, b, c, tile))
        before, after = (torch.cat([piece[at] for piece in pieces]).view(8, 4) for at in (0, 2))
        held = torch.cat([piece.held for piece in pieces if piece.held is not None]).view(8, 4)
        found = measure_pairing(pair(a, b, c), a, b, c)[name]
    assert torch.equal(before[:5], old) and not before[5:].any()
    assert torch.equal(after[:6], new) and not after[6:].any()
    assert bool(held[:5].all()) and not bool(held[5:].any())
    assert found.elements == 20  # rows that a base lacks say nothing of the bases
    assert found.update_square == pytest.approx((tuned[:5] - old).double().square().sum().item())


def test_progress_ends_at_the_whole() -> None:
    seen: list[tuple[str, int, int]] = []
    w = {"a": normal(8, 8), "b": normal(3)}
    preflight(w, w, w, progress=lambda *at: seen.append(at))
    assert seen[-1][1] == seen[-1][2] == 4 * 67 and {stage for stage, *_ in seen} == {"compare"}
    assert math.isfinite(seen[0][1])
