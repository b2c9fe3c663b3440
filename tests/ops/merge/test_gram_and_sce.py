"""Inner products; SCE against its formula and the worked numbers."""

from __future__ import annotations

import doctest
import math
import sys

import pytest
import torch
from torch import Tensor

from graftwork.ops import thread_limit
from graftwork.ops.merge import combine, merge_gram, sce
from tests.generators.weights import special_words
from tests.ops.merge.merge_arguments import FORMATS, by_the_reference, fine_tunes, same_bits
from tests.tolerances import assert_close

SHAPES = ((0, 3), (1, 1), (31,), (3, 11), (300, 7), (17, 4097))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_gram(dtype: torch.dtype, device: str) -> None:
    for shape in SHAPES:
        base, donors = fine_tunes(shape, dtype, 4)
        for origin in (None, base.to(device)):
            mine = [donor.to(device) for donor in donors]
            for rowwise in (False, True):
                got = merge_gram(mine, origin, rowwise)
                with by_the_reference():
                    assert_close("merge_gram", got, merge_gram(mine, origin, rowwise))
                assert got.shape == ((shape[0],) if rowwise else ()) + (4, 4)
                assert torch.equal(got, got.mT)


def test_gram_of_special_words() -> None:
    """NaN and infinity come out in the rows and columns of those that have them."""
    donors = [torch.ones(100), torch.ones(100), torch.ones(100)]
    donors[1][50] = torch.nan
    gram = merge_gram(donors)
    assert gram.isnan().tolist() == [[False, True, False], [True] * 3, [False, True, False]]
    donors[1][50] = torch.inf
    assert merge_gram(donors)[0, 1] == torch.inf


def test_gram_gives_slerp() -> None:
    """On the sphere through both: coefficients from the Gram matrix alone."""
    _, (a, b) = fine_tunes((64, 65), torch.float32, 2, step=0.02)
    (aa, ab), (_, bb) = merge_gram([a, b]).tolist()
    angle = math.acos(ab / math.sqrt(aa * bb))
    halfway = math.sin(angle / 2) / math.sin(angle)
    got = combine([a, b], [halfway / math.sqrt(aa), halfway / math.sqrt(bb)])[0]
    assert got.double().norm().item() == pytest.approx(1, abs=1e-6)
    cosines = [float(got.double().flatten() @ x.double().flatten() / x.double().norm()) for x in (a, b)]
    assert cosines == pytest.approx([math.cos(angle / 2)] * 2, abs=1e-6)


def test_threads_do_not_change_the_bits() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        base, donors = fine_tunes((900, 1003), torch.bfloat16, 3)
        grams, rows, merges = [], [], []
        for threads in (1, 2, 7):
            with thread_limit(threads):
                grams.append(merge_gram(donors, base))
                rows.append(merge_gram(donors, base, rowwise=True))
                merges.append(sce(base, donors, 0.1))
        assert all(torch.equal(gram, grams[0]) for gram in grams)
        assert all(torch.equal(row, rows[0]) for row in rows)
        assert all(same_bits(merge.out, merges[0].out) for merge in merges)
        assert all(merge.weights == merges[0].weights for merge in merges)
    finally:
        torch.set_num_threads(before)


def sce_formula(base: Tensor, donors: list[Tensor], select: float) -> Tensor:
    """SCE as the paper states it, in float64."""
    vectors = torch.stack([donor.double() - base.double() for donor in donors])
    variance = vectors.var(0, unbiased=False)
    kept = torch.ones_like(variance, dtype=torch.bool)
    if select < 1:
        count = int(select * int((variance != 0).sum()))
        kept.zero_().view(-1)[variance.view(-1).sort(descending=True, stable=True).indices[:count]] = True
    vectors = vectors * kept
    energies = vectors.square().flatten(1).mean(1)
    shape = (-1,) + (1,) * base.dim()
    weights = (energies / energies.sum()).view(shape)
    agree = vectors.sign() == torch.where(vectors.sum(0) >= 0, 1.0, -1.0)
    total = (weights * agree).sum(0)
    return base.double() + (weights * vectors * agree).sum(0) / torch.where(total == 0, 1.0, total)


@pytest.mark.parametrize("select", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_sce_is_that_of_the_paper(count: int, select: float) -> None:
    base, donors = fine_tunes((61, 997), torch.float32, count)
    donors[0] = donors[0] + 3e-3 * torch.randn(61, 997, generator=torch.Generator().manual_seed(9))
    found = sce(base, donors, select)
    assert_close("merge_many", found.out, sce_formula(base, donors, select))
    assert sum(found.weights) == pytest.approx(1)
    assert found.weights[0] > found.weights[1]


def test_sce_worked_numbers() -> None:
    vectors = torch.tensor([[1.0, -2, 0.5, 0], [3, 1, 0.5, 0], [-1, 1, 0.4, 2]])
    found = sce(torch.zeros(4), list(vectors), 0.5)
    assert found.weights == pytest.approx([0.29412, 0.58824, 0.11765], abs=5e-6)
    assert found.out.tolist() == pytest.approx([2.33333, 1, 0, 0], abs=5e-6)
    assert found.counts.changed == 2


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_sce_has_the_bits_of_the_reference(dtype: torch.dtype, device: str) -> None:
    for shape in SHAPES:
        base, donors = fine_tunes(shape, dtype, 3)
        base, donors = base.to(device), [donor.to(device) for donor in donors]
        for select in (0.0, 0.3, 1.0):
            for zero in (False, True):
                limits, energies = torch.ops.graftwork.sce_select(donors, base, select, zero)
                with by_the_reference():
                    wanted = torch.ops.graftwork.sce_select(donors, base, select, zero)
                assert torch.equal(limits, wanted[0])
                assert_close("sparsify_norms", energies, wanted[1])
    special = special_words(dtype).to(device)
    base, donors = special.repeat(len(special)), [special.repeat_interleave(len(special))] * 2
    for zero in (False, True):
        limits, _ = torch.ops.graftwork.sce_select([*donors, base], base.flip(0), 0.3, zero)
        with by_the_reference():
            wanted = torch.ops.graftwork.sce_select([*donors, base], base.flip(0), 0.3, zero)
        assert torch.equal(limits, wanted[0])


def test_sce_without_differences() -> None:
    """Donors like the base, or like each other: nothing is selected, or nothing varies; all weigh the same."""
    base, donors = fine_tunes((50,), torch.bfloat16, 1)
    found = sce(base, [base, base], 0.5)
    assert same_bits(found.out, base)
    assert found.weights == [0.5, 0.5]
    assert same_bits(sce(base, [donors[0], donors[0]], 0.5).out, base)
    assert same_bits(sce(base, [donors[0], donors[0]]).out, donors[0])
    assert sce(base, donors, 0.0).weights == [1.0]


def test_bad_arguments() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"sce: select must be in \[0, 1\], got 1.1"):
        sce(x, [x], 1.1)
    with pytest.raises(ValueError, match=r"sce: donors must be a list of at least one tensor, got none"):
        sce(x, [])
    with pytest.raises(ValueError, match=r"merge_gram: rowwise needs tensors with at least one dimension"):
        merge_gram([torch.tensor(1.0)], rowwise=True)
    with pytest.raises(
        TypeError, match=r"tensors\[0\] must be one of float16, bfloat16, float32, got torch.float64"
    ):
        merge_gram([x.double()])


@pytest.mark.parametrize("name", ["gram", "sce"])
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(sys.modules[f"graftwork.ops.merge.{name}"], extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
