"""Sums and comparisons of sparse deltas: the reference's bits, the laws of addition, every way to cut the work."""

from __future__ import annotations

import doctest
import math
import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.ops import thread_limit
from graftwork.ops.sparse_update import Comparison, Support, compare_deltas, merge, merge_deltas
from graftwork.reference.sparse_update import merge as reference
from tests.generators.supports import NUMELS, some_support
from tests.tolerances import assert_close

Delta = tuple[Support, Tensor]
LARGE = (0, 70_001, 0, 0, 3, 150_000, 0)  # more than one chunk, several of one tensor


def delta(
    numels: Sequence[int], density: float = 0.3, index: torch.dtype = torch.int32, seed: int = 0
) -> Delta:
    support = some_support(numels, density, index, seed)
    return support, torch.randn(support.entries, generator=torch.Generator().manual_seed(seed + 1))


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


def merged(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    return merge_deltas([d[0] for d in deltas], [d[1] for d in deltas], weights)


def compared(a: Delta, b: Delta) -> Comparison:
    return compare_deltas(*a, *b)


def equal(a: Delta, b: Delta) -> bool:
    arrays = zip(
        (a[0].indices, a[0].offsets, bits(a[1])), (b[0].indices, b[0].offsets, bits(b[1])), strict=True
    )
    return a[0].numels == b[0].numels and all(torch.equal(x, y) for x, y in arrays)


def check(deltas: Sequence[Delta], device: str = "cpu") -> Delta:
    """Against the reference: merged with weights of both signs, and the first two compared."""
    weights = [(-1) ** k * (k + 1) / 3 for k in range(len(deltas))]
    arrays = [d[0].indices for d in deltas], [d[0].offsets for d in deltas], [d[1] for d in deltas]
    on_device = [(support.to(device), values.to(device)) for support, values in deltas]
    found = merged(on_device, weights)
    indices, offsets, values = reference.merge_deltas(*arrays, weights)
    wanted = Support.trusted(indices, offsets, deltas[0][0].numels), values
    assert equal((found[0].to("cpu"), found[1].cpu()), wanted)
    Support(found[0].split(found[0].indices), found[0].numels)  # is one
    if len(deltas) > 1:
        got = compared(*on_device[:2])
        counts, sums = reference.compare_deltas(*(mine[:2] for mine in arrays))
        assert torch.equal(torch.stack(got[:3]).cpu(), counts)
        assert_close("compare_deltas.sums", torch.stack(got[3:]), sums)
    return found


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "densities", [(0.3,), (0.04, 0.04), (0.5, 0.0), (0.9, 0.01, 0.3), (1.0, 1.0), (0.02,) * 7]
)
def test_sizes(densities: tuple[float, ...], index: torch.dtype, device: str) -> None:
    for numels in (*([numel] for numel in NUMELS), NUMELS, LARGE):
        check([delta(numels, density, index, seed) for seed, density in enumerate(densities)], device)


def test_supports_that_lie_apart() -> None:
    """Halves of a tensor, and a tensor for each: shares of the work are what they are, and nothing is lost."""
    low, high = torch.arange(0, 50_000), torch.arange(50_000, 100_000, dtype=torch.int64)
    low, high, none = low.int(), high.int(), torch.zeros(0, dtype=torch.int32)
    for a, b in (([low, none], [high, none]), ([low, none], [none, high]), ([none, high], [low, none])):
        deltas = [(Support(mine, [100_000, 100_000]), torch.randn(50_000)) for mine in (a, b)]
        support, _ = check(deltas)
        assert support.entries == 100_000
        assert int(compared(*deltas).shared.sum()) == 0


def test_indices_far_from_zero() -> None:
    """A tile does not begin at its number, and int64 indices are not cut."""
    numel, base = 1 << 45, 1 << 44
    a = Support([base + torch.tensor([0, 63, 64, 4095, 4096, 1 << 40])], [numel]), torch.arange(1.0, 7.0)
    b = Support([base + torch.tensor([63, 65, 4096, (1 << 40) - 1])], [numel]), torch.arange(1.0, 5.0)
    support, values = check([a, b])
    assert support.indices[-1] == base + (1 << 40)
    assert values.dtype == torch.float32


def test_addition_has_its_laws() -> None:
    a, b = delta(NUMELS, seed=1), delta(NUMELS, seed=2)
    assert equal(merged([a, b], [1.0, 1.0]), merged([b, a], [1.0, 1.0]))
    assert equal(merged([a], [1.0]), a)
    support, values = merged([a, a], [1.0, -1.0])  # zeros are kept
    assert torch.equal(support.indices, a[0].indices)
    assert not values.any()
    nothing = delta(NUMELS, 0.0)
    assert equal(merged([a, nothing], [1.0, 5.0]), a)
    assert merged([nothing, nothing], [1.0, 1.0])[0].entries == 0


def test_the_order_of_the_list_is_the_order_of_the_sum() -> None:
    support = Support([torch.tensor([7])], [9])
    values = [torch.tensor([x]) for x in (1e8, 1.0, -1e8)]
    assert merge_deltas([support] * 3, values, [1.0] * 3)[1].item() == 0
    assert merge_deltas([support] * 3, [values[0], values[2], values[1]], [1.0] * 3)[1].item() == 1


def test_special_values() -> None:
    support = Support([torch.arange(6)], [6])
    special = torch.tensor([math.inf, math.nan, -0.0, 1e-45, 3e38, -math.inf])
    alone = merge_deltas([support], [special], [1.0])[1]
    assert torch.equal(bits(alone), bits(special))  # -0 too
    _, values = merge_deltas([support, support], [special, special.flip(0)], [1.0, 1.0])
    assert values.isnan().tolist() == [True, True, False, False, True, True]
    found = compare_deltas(support, special, support, special)
    assert found.agreeing.tolist() == [4]  # neither NaN nor 0
    assert found.dot.isnan().all()
    assert found.a_squared.isnan().all()


def test_what_is_compared() -> None:
    """A worked example: two tensors."""
    a = Support([torch.tensor([0, 2, 5]), torch.tensor([1])], [6, 4])
    b = Support([torch.tensor([2, 3, 5]), torch.tensor([0])], [6, 4])
    found = compare_deltas(a, torch.tensor([1.0, 2, 3, 4]), b, torch.tensor([5.0, 6, -7, 8]))
    assert found.shared.tolist() == [2, 0]
    assert found.union.tolist() == [4, 2]
    assert found.agreeing.tolist() == [1, 0]
    assert found.dot.tolist() == [10 - 21, 0]
    assert found.a_squared.tolist() == [14, 16]
    assert found.b_squared.tolist() == [110, 64]


@pytest.fixture
def seven_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("seven_threads")
def test_threads_do_not_change_the_bits() -> None:
    numels = [0, 200_000, 17, 400_000]
    a, b = delta(numels, 0.5, seed=1), delta(numels, 0.3, seed=2)
    sums, comparisons = [], []
    for threads in (1, 2, 7):
        with thread_limit(threads):
            sums.append(merged([a, b], [0.5, -2.0]))
            comparisons.append(compared(a, b))
    assert all(equal(found, sums[0]) for found in sums)
    for found in comparisons:
        assert all(torch.equal(x, y) for x, y in zip(found, comparisons[0], strict=True))


@st.composite
def deltas(draw: st.DrawFn) -> list[Delta]:
    """Up to four deltas of up to three tensors."""
    numels = draw(st.lists(st.integers(0, 300), min_size=1, max_size=3))
    count = draw(st.integers(1, 4))
    densities = [draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])) for _ in range(count)]
    return [delta(numels, density, seed=draw(st.integers(0, 999))) for density in densities]


@given(deltas(), st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4))
def test_properties(found: list[Delta], weights: list[float]) -> None:
    check(found)
    support, values = merged(found, weights[: len(found)])
    dense = [torch.zeros(numel) for numel in support.numels]
    for (mine, mine_values), weight in zip(found, weights, strict=False):
        for tensor, index, value in zip(
            dense, mine.split(mine.indices), mine.split(mine_values), strict=True
        ):
            tensor[index.long()] += weight * value
    for tensor, index, value in zip(
        dense, support.split(support.indices), support.split(values), strict=True
    ):
        assert torch.equal(tensor[index.long()], value)
        assert int((tensor != 0).sum()) == int((value != 0).sum())


def test_results_never_require_gradients() -> None:
    support, values = delta([100])
    values.requires_grad_()
    assert not merge_deltas([support], [values], [2.0])[1].requires_grad
    assert not compare_deltas(support, values, support, values).dot.requires_grad


def test_bad_arguments() -> None:
    a, values = delta([8, 8])
    with pytest.raises(
        ValueError, match=r"merge_deltas: wanted at least one support and as many values, got 0 and 0"
    ):
        merge_deltas([], [], [])
    with pytest.raises(ValueError, match=r"as many values, got 1 and 2"):
        merge_deltas([a], [values, values], [1.0])
    with pytest.raises(ValueError, match=r"merge_deltas: weights must be 1, one for each delta, got 2"):
        merge_deltas([a], [values], [1.0, 2.0])
    for weight in (math.nan, math.inf, 1e39):
        with pytest.raises(
            ValueError, match=r"weights\[0\] must be finite in float32, got " + re.escape(str(weight))
        ):
            merge_deltas([a], [values], [weight])
    with pytest.raises(TypeError, match=r"merge_deltas: supports\[1\] must be a Support, got Tensor"):
        merge_deltas([a, a.indices], [values, values], [1.0, 1.0])
    with pytest.raises(TypeError, match=r"compare_deltas: a and b must be Support, got Tensor and Support"):
        compare_deltas(a.indices, values, a, values)
    other, other_values = delta([8, 9])
    with pytest.raises(
        ValueError,
        match=r"merge_deltas: supports\[1\] must be over the tensors of supports\[0\], .*\(8, 9\) instead of \(8, 8\); "
        r"give a tensor that a delta leaves alone empty indices",
    ):
        merge_deltas([a, other], [values, other_values], [1.0, 1.0])
    many, many_values = delta([8] * 9)
    with pytest.raises(
        ValueError, match=r"compare_deltas: b must be over the tensors of a.*\(8, 8, .*8, …\)"
    ):
        compare_deltas(a, values, many, many_values)
    wide, wide_values = delta([8, 8], index=torch.int64)
    with pytest.raises(TypeError, match=r"b must have the index dtype of a, torch.int32, got torch.int64"):
        compare_deltas(a, values, wide, wide_values)
    with pytest.raises(
        TypeError, match=r"merge_deltas: values\[0\] must be one of float32, got torch.float64"
    ):
        merge_deltas([a], [values.double()], [1.0])
    with pytest.raises(
        ValueError, match=r"b_values must be contiguous with one entry for each of the \d+ tuned"
    ):
        compare_deltas(a, values, a, values[:-1])
    with pytest.raises(ValueError, match=r"values\[0\] must be contiguous"):
        merge_deltas([a], [values.repeat_interleave(2)[::2]], [1.0])


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(merge, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
