"""Merging in one pass: the bits of the reference, the formulas in float64, closed forms, threads."""

from __future__ import annotations

import doctest
import sys

import pytest
import torch
from torch import Tensor

from graftwork.ops import thread_limit
from graftwork.ops.merge import Sparsify, combine, keep_count, merge_many
from graftwork.ops.merge.merge_many import Consensus
from tests.generators.weights import special_words
from tests.ops.merge.merge_arguments import FORMATS, by_the_reference, fine_tunes, rules, same_bits
from tests.tolerances import assert_close

SHAPES = ((0, 3), (1, 1), (31,), (3, 11), (1000,), (17, 241))
WEIGHTS = [1.0, 0.5, -0.25]
RULES = tuple(rules(1, 1))
CONSENSUS: tuple[Consensus, ...] = ("none", "sum", "count")


def check(*arguments: object, **options: object) -> Tensor:
    """The words, the residual and the counts are those of the reference."""
    results = []
    for native in (True, False):
        residual = torch.zeros(arguments[1][0].shape, device=arguments[1][0].device)  # type: ignore[index]
        if native:
            out, counts = merge_many(*arguments, residual_out=residual, **options)  # type: ignore[arg-type]
        else:
            with by_the_reference():
                out, counts = merge_many(*arguments, residual_out=residual, **options)  # type: ignore[arg-type]
        results.append((out, residual, counts.table))
    (out, residual, counts), (wanted, wanted_residual, wanted_counts) = results
    assert same_bits(out, wanted)
    assert same_bits(residual, wanted_residual)
    assert torch.equal(counts, wanted_counts)
    return out


@pytest.mark.parametrize("consensus", CONSENSUS)
@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str, consensus: Consensus, device: str) -> None:
    for shape in SHAPES:
        for dtype in FORMATS:
            base, donors = fine_tunes(shape, dtype, 3)
            base, donors = base.to(device), [donor.to(device) for donor in donors]
            sparsify = rules(3, base.numel())[rule]
            if rule.endswith(
                "l1"
            ):  # the norms are sums in another order, and may move the last bit of a coefficient
                sparsify = Sparsify(sparsify.kind, sparsify.numbers, sparsify.keys, None)
            for normalize in (False, True):
                options = {"sparsify": sparsify, "consensus": consensus, "normalize": normalize}
                check(base, donors, WEIGHTS, scale=0.7, **options)
                check(None, donors, WEIGHTS, **options)


@pytest.mark.parametrize("rule", ["magnitude_l1", "random_l1"])
def test_rescaling_to_the_l1_norm(rule: str) -> None:
    base, donors = fine_tunes((70_001,), torch.float32, 2)
    kept = rules(2, base.numel())[rule]
    plain = Sparsify(kept.kind, kept.numbers, kept.keys, None)
    for donor, one in zip(donors, (0, 1), strict=True):
        weights = [1.0 - one, float(one)]
        out = merge_many(None, donors, weights, sparsify=kept)[0].double()
        wanted = merge_many(None, donors, weights, sparsify=plain)[0].double()
        assert_close("merge_many", out.abs().sum(), donor.double().abs().sum())
        assert_close("merge_many", out, wanted * (donor.double().abs().sum() / wanted.abs().sum()))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("out_dtype", FORMATS, ids=str)
def test_every_pair_of_formats(out_dtype: torch.dtype, rounding: str) -> None:
    key = (1, 2) if rounding == "stochastic" else None
    for base_dtype in FORMATS:
        base, donors = fine_tunes((7, 300), torch.float32, 3)
        mixed = [donor.to(dtype) for donor, dtype in zip(donors, FORMATS, strict=True)]
        options = {"rounding": rounding, "key": key, "dtype": out_dtype}
        check(base.to(base_dtype), mixed, WEIGHTS, **options)
        check(None, mixed, WEIGHTS, normalize=True, **options)


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
@pytest.mark.parametrize("consensus", CONSENSUS)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_special_words(dtype: torch.dtype, consensus: Consensus, nonfinite: str, device: str) -> None:
    special = special_words(dtype).to(device)
    n = len(special)
    base = special.repeat_interleave(n * n)
    donors = [special.repeat_interleave(n).repeat(n), special.repeat(n * n)]
    for rule in ("none", "magnitude", "random", "ranked"):
        check(
            base,
            donors,
            [0.5, 1.5],
            sparsify=rules(2, len(base))[rule],
            consensus=consensus,
            nonfinite=nonfinite,
        )
    for out_dtype in FORMATS:
        check(
            base, donors, [1.0, 1.0], dtype=out_dtype, rounding="stochastic", key=(3, 4), nonfinite=nonfinite
        )


def ties(base: Tensor, donors: list[Tensor], weights: list[float], density: float, scale: float) -> Tensor:
    """TIES as its authors state it, in float64: trim, elect, merge."""
    trimmed = []
    for donor in donors:
        difference = (donor.double() - base.double()).view(-1)
        kept = (
            difference.abs()
            .sort(descending=True, stable=True)
            .indices[: keep_count(density, len(difference))]
        )
        mine = torch.zeros_like(difference)
        mine[kept] = difference[kept]
        trimmed.append(mine)
    stacked = torch.stack(trimmed) * torch.tensor(weights, dtype=torch.float64)[:, None]
    elected = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == elected
    total = (agree * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)
    merged = (stacked * agree).sum(0) / torch.where(total == 0, 1.0, total)
    return base.double() + scale * merged.view(base.shape)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_ties_is_that_of_the_paper(count: int, density: float) -> None:
    base, donors = fine_tunes((61, 997), torch.float32, count)
    weights = [1.0 + 0.1 * k for k in range(count)]
    keep = [keep_count(density, base.numel())] * count
    out, counts = merge_many(
        base, donors, weights, sparsify=Sparsify.magnitude(keep), consensus="sum", normalize=True, scale=0.8
    )
    wanted = ties(base, donors, weights, density, 0.8)
    assert_close("merge_many", out, wanted)
    assert counts.changed == int((out != base).sum())
    halves, ones = [tensor.bfloat16() for tensor in (base, *donors)], [1.0] * count  # votes are exact
    rule = Sparsify.magnitude(keep)
    out = merge_many(halves[0], halves[1:], ones, sparsify=rule, consensus="sum", normalize=True, scale=0.8)[
        0
    ]
    exact = ties(halves[0], halves[1:], ones, density, 0.8)
    # One rounding: half a unit of bfloat16, and what float32 adds.
    assert float(((out.double() - exact).abs() / exact.abs().clamp(min=1e-3)).max()) <= 2.0**-8 + 1e-5


def test_a_worked_example() -> None:
    """Two donors trimmed to two of four: the vote, the mean over those that agree, the base where nobody is left."""
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    donors = [torch.tensor([5.0, 0.0, 3.0, 1.5]), torch.tensor([3.0, 4.0, 1.25, 0.9])]
    out, counts = merge_many(
        base, donors, [1.0, 1.0], sparsify=Sparsify.magnitude([2, 2]), consensus="sum", normalize=True
    )
    assert out.tolist() == [4.0, 4.0, 3.0, 1.0]
    assert (counts.changed, counts.lost, counts.nonfinite, counts.base_nonfinite) == (3, 0, [0, 0], 0)
    counted = merge_many(base, donors, [1.0, 9.0], consensus="count", scale=2.0)[0]
    assert counted.tolist() == pytest.approx([1 + 2 * (4 + 18), 1 + 2 * 27, 1 + 2 * (2 + 2.25), 1 + 2 * 0.5])


def test_the_vote() -> None:
    """0 counts as positive; what is 0 agrees with nobody; weights that cancel do not divide."""
    base = torch.zeros(4)
    donors = [torch.tensor([1.0, 0.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, -3.0, -1.0])]
    out = merge_many(base, donors, [1.0, 1.0], consensus="sum", normalize=True)[0]
    assert out.tolist() == [1.0, 0.0, -3.0, 1.0]
    cancelling = merge_many(base, donors, [1.0, -1.0], consensus="sum", normalize=True)[0]
    assert cancelling.tolist() == [2.0, 0.0, 5.0, 2.0]


def test_identities() -> None:
    """What must come back bit for bit, −0 too."""
    base, donors = fine_tunes((4097,), torch.bfloat16, 3)
    base[:3] = torch.tensor([-0.0, 0.0, float("inf")])
    for donor in donors:
        donor[:2] = torch.tensor([-0.0, 0.5])
        donor[2] = 1.0
    assert same_bits(merge_many(base[:2], [base[:2]] * 2, [1.0, 3.0])[0], base[:2])
    finite, others = base[3:], [donor[3:] for donor in donors]
    assert same_bits(merge_many(finite, others, WEIGHTS, scale=0.0)[0], finite)
    assert same_bits(merge_many(finite, others, [0.0] * 3)[0], finite)
    nobody = Sparsify.magnitude([0, 0, 0])
    assert same_bits(merge_many(base, donors, WEIGHTS, sparsify=nobody)[0], base)
    assert same_bits(merge_many(finite, others[:1], [1.0])[0], others[0])
    assert same_bits(merge_many(None, others[:1], [1.0])[0], others[0])
    same = merge_many(finite, [others[0]] * 3, [1.0] * 3, consensus="sum", normalize=True)[0]
    assert same_bits(same, others[0])
    everything = Sparsify.magnitude([4097] * 3)
    assert same_bits(
        merge_many(base, donors, WEIGHTS, sparsify=everything)[0], merge_many(base, donors, WEIGHTS)[0]
    )


def test_dare_keeps_the_expectation_and_needs_no_order() -> None:
    """A share of `density` is kept and divided by it; a part of the tensor gets the same choice."""
    base, donors = fine_tunes((200_000,), torch.float32, 1)
    difference = donors[0] - base
    kept = merge_many(None, [difference], [1.0], sparsify=Sparsify.random([0.25], [(9, 9)]))[0]
    share = float((kept != 0).double().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 200_000) ** 0.5
    chosen = kept != 0
    assert torch.equal(kept[chosen], difference[chosen] * 4)
    first = merge_many(None, [difference[:777]], [1.0], sparsify=Sparsify.random([0.25], [(9, 9)]))[0]
    assert torch.equal(first, kept[:777])
    other = merge_many(None, [difference], [1.0], sparsify=Sparsify.random([0.25], [(9, 8)]))[0]
    agreeing = float(((other != 0) == chosen).double().mean())
    assert abs(agreeing - (0.25**2 + 0.75**2)) < 0.01
    every = merge_many(None, [difference], [1.0], sparsify=Sparsify.random([1.0], [(9, 9)]))[0]
    nothing = merge_many(None, [difference], [1.0], sparsify=Sparsify.random([0.0], [(9, 9)]))[0]
    assert torch.equal(every, difference)
    assert not bool(nothing.any())


def test_magprune_prefers_the_large() -> None:
    """By rank in the row: the share kept of the k-th largest grows linearly; divided by it, the mean stays."""
    rows = torch.arange(1.0, 101.0).repeat(4000, 1)
    rule = Sparsify.ranked([0.5], [0.4], [(1, 1)], rescale=None)
    shares = (merge_many(None, [rows], [1.0], sparsify=rule)[0] != 0).double().mean(0)
    wanted = 0.1 + 0.8 * torch.arange(100) / 99
    assert float((shares - wanted).abs().max()) < 5 * (0.25 / 4000) ** 0.5
    rule = Sparsify.ranked([0.5], [0.4], [(1, 1)])
    mean = merge_many(None, [rows], [1.0], sparsify=rule)[0].double().mean(0)
    assert float(((mean / rows[0]) - 1).abs().max()) < 5 * (9 / 4000) ** 0.5


def test_breadcrumbs_leave_out_both_ends() -> None:
    difference = torch.tensor([5.0, -1.0, 4.0, 3.0, -2.0, 0.5, 0.25, 8.0, 6.0, -7.0])
    rule = Sparsify.band([0.4], [0.2])
    assert merge_many(None, [difference], [1.0], sparsify=rule)[0].tolist() == [5, 0, 4, 3, 0, 0, 0, 0, 6, 0]
    top = Sparsify.band([0.95], [0.2])  # one is left out at most
    out = merge_many(None, [difference], [1.0], sparsify=top)[0]
    assert out.tolist() == [5, -1, 4, 3, -2, 0.5, 0.25, 0, 6, -7]


def test_combine() -> None:
    base, donors = fine_tunes((6, 500), torch.bfloat16, 3)
    table = torch.randn(6, 3, generator=torch.Generator().manual_seed(5))
    each = torch.stack([donor.double() for donor in donors], 2)
    exact = (each * table.double()[:, None]).sum(2)
    assert_close("merge_many", combine(donors, table, dtype=torch.float32)[0], exact)
    moved = base.double() + ((each - base.double()[..., None]) * table.double()[:, None]).sum(2)
    assert_close("merge_many", combine(donors, table, base, dtype=torch.float32)[0], moved)
    for rows in (table, table[0]):
        got = combine(donors, rows, base)[0]
        with by_the_reference():
            assert same_bits(got, combine(donors, rows, base)[0])
    assert same_bits(combine(donors, WEIGHTS, base)[0], merge_many(base, donors, WEIGHTS)[0])
    assert combine([torch.tensor(3.0)], [2.0])[0].item() == 6
    assert combine([torch.zeros(0, 4)], torch.zeros(0, 1))[0].shape == (0, 4)


def test_threads_do_not_change_the_bits() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        base, donors = fine_tunes((700, 1003), torch.bfloat16, 3)
        for sparsify in rules(3, base.numel()).values():
            results = []
            for threads in (1, 2, 7):
                with thread_limit(threads):
                    out, counts = merge_many(
                        base,
                        donors,
                        WEIGHTS,
                        sparsify=sparsify,
                        consensus="sum",
                        rounding="stochastic",
                        key=(1, 1),
                    )
                    results.append((out, counts.table))
            for out, table in results:
                assert same_bits(out, results[0][0])
                assert torch.equal(table, results[0][1])
    finally:
        torch.set_num_threads(before)


def test_the_order_of_donors_is_that_of_the_sums() -> None:
    """Float32 sums: the caller decides the order, and it matters in the last bits only."""
    base, donors = fine_tunes((4097,), torch.float32, 3)
    forwards, backwards = (merge_many(base, order, [1.0] * 3)[0] for order in (donors, donors[::-1]))
    assert not torch.equal(forwards, backwards)
    assert_close("merge_many", forwards, backwards)


def test_examples_in_docstrings() -> None:
    module = sys.modules["graftwork.ops.merge.merge_many"]
    result = doctest.testmod(module, extraglobs={"torch": torch, "Sparsify": Sparsify})
    assert result.attempted > 0
    assert result.failed == 0
