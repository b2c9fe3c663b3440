"""Drop and grow: equal to the reference, and to the rule taken one weight at a time."""

from __future__ import annotations

import doctest
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.ops import thread_limit
from graftwork.ops.sparse_update import (
    Reselection,
    Support,
    random_support,
    reselect,
    reselection,
    take_entries,
)
from graftwork.ops.sparse_update.reselection import ENTRY_DTYPES
from graftwork.reference.sparse_update import reselection as reference

NUMELS = [0, 1, 31, 33, 1000, 4097, 60_000]
Case = tuple[Support, torch.Tensor, Support, torch.Tensor, list[int]]


def case(numels: list[int], dtype: torch.dtype = torch.int32, seed: int = 0, levels: int = 0) -> Case:
    """Half of each tensor tuned, a third a candidate, a fifth of the tuned dropped; `levels`: so many values only."""
    generator = torch.Generator().manual_seed(seed)
    support = random_support(numels, [numel // 2 for numel in numels], generator)
    candidates = random_support(numels, [numel // 3 for numel in numels], generator)
    values, growth = (torch.randn(s.entries, generator=generator) for s in (support, candidates))
    if levels:
        values, growth = (values * levels).round(), (growth * levels).round()
    drops = [numel // 10 for numel in numels]
    return with_dtype(support, dtype), values, with_dtype(candidates, dtype), growth, drops


def with_dtype(support: Support, dtype: torch.dtype) -> Support:
    return Support.trusted(support.indices.to(dtype), support.offsets, support.numels)


def check(
    support: Support, values: torch.Tensor, candidates: Support, growth: torch.Tensor, drops: list[int]
) -> Reselection:
    found = reselect(support, values, candidates, growth, drops)
    mine, theirs = (
        (values, support.indices, support.offsets),
        (growth, candidates.indices, candidates.offsets),
    )
    indices, source = reference.reselect(*mine, *theirs, drops)
    assert torch.equal(found.support.indices, indices)
    assert torch.equal(found.source, source)
    Support(found.support.split(found.support.indices), support.numels)  # sorted, unique, in range
    assert torch.equal(found.support.offsets, support.offsets)
    taken = take_entries(found.source, support.indices, candidates.indices)
    assert torch.equal(taken, indices)
    return found


def one_by_one(
    active: list[int], values: list[float], candidates: list[int], growth: list[float], drop: int
) -> dict[int, int]:
    """The rule for one tensor: index of each entry of the new support -> source."""
    smallest = sorted(range(len(active)), key=lambda i: (abs(values[i]), active[i]))[:drop]
    dropped = {active[i] for i in smallest}
    valid = [j for j, index in enumerate(candidates) if index not in active or index in dropped]
    grown = sorted(valid, key=lambda j: (-abs(growth[j]), candidates[j]))[:drop]
    chosen = {candidates[j] for j in grown}
    leave = [active[i] for i in smallest if active[i] not in chosen]
    enter = [j for j in grown if candidates[j] not in dropped]
    leave = leave[: len(enter)]
    new = {index: i for i, index in enumerate(active) if index not in leave}
    return new | {candidates[j]: -1 - j for j in enter}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("levels", [0, 1, 30])
def test_sizes(dtype: torch.dtype, levels: int) -> None:
    for numel in NUMELS:
        check(*case([numel], dtype, levels=levels))
    check(*case([*NUMELS, 0, 7], dtype, seed=1, levels=levels))


@given(st.data())
def test_against_the_rule(data: st.DataObject) -> None:
    """Few values, so that many are equal; candidates that are tuned; more drops than candidates."""
    numel = data.draw(st.integers(0, 12))
    places = st.lists(st.integers(0, numel - 1), unique=True) if numel else st.just([])
    active, candidates = sorted(data.draw(places)), sorted(data.draw(places))
    number = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, float("inf"), 1e-42])
    values = data.draw(st.lists(number, min_size=len(active), max_size=len(active)))
    growth = data.draw(st.lists(number, min_size=len(candidates), max_size=len(candidates)))
    drop = data.draw(st.integers(0, len(active)))
    found = check(
        Support([torch.tensor(active, dtype=torch.int32)], [numel]),
        torch.tensor(values, dtype=torch.float32),
        Support([torch.tensor(candidates, dtype=torch.int32)], [numel]),
        torch.tensor(growth, dtype=torch.float32),
        [drop],
    )
    wanted = one_by_one(active, values, candidates, growth, drop)
    assert dict(zip(found.support.indices.tolist(), found.source.tolist(), strict=True)) == wanted


def test_what_is_dropped_and_grown_stays() -> None:
    support = Support([torch.tensor([2, 5, 9])], [12])
    candidates = Support([torch.tensor([2, 7])], [12])
    new, source = check(support, torch.tensor([0.1, 0.2, 3.0]), candidates, torch.tensor([5.0, 4.0]), [2])
    assert new.indices.tolist() == [2, 7, 9]
    assert source.tolist() == [0, -2, 2]


def test_no_more_is_dropped_than_grows() -> None:
    support = Support([torch.tensor([2, 5, 9])], [12])
    none = Support([torch.tensor([9], dtype=torch.int64)], [12])
    _, source = check(support, torch.tensor([0.1, 0.2, 3.0]), none, torch.tensor([5.0]), [2])
    assert source.tolist() == [0, 1, 2]
    one = Support([torch.tensor([4, 9])], [12])
    _, source = check(support, torch.tensor([0.3, -0.2, 3.0]), one, torch.tensor([0.0, 5.0]), [2])
    assert source.tolist() == [0, -1, 2]


@pytest.mark.parametrize("name", ["values", "growth"])
def test_nan_is_refused(name: str, device: str) -> None:
    support, values, candidates, growth, drops = case([100, 50])
    support, candidates, values, growth = (x.to(device) for x in (support, candidates, values, growth))
    {"values": values, "growth": growth}[name][-3] = float("nan")
    with pytest.raises(ValueError, match=f"reselect: {name} has a NaN"):
        reselect(support, values, candidates, growth, drops)


@pytest.fixture
def eight_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("eight_threads")
def test_threads_do_not_change_the_result() -> None:
    support, values, candidates, growth, drops = case([100_000, 300_000, 5, 200_000], levels=100)
    results = []
    for threads in (1, 2, 7):
        with thread_limit(threads):
            new, source = reselect(support, values, candidates, growth, drops)
            results.append((new.indices, source, take_entries(source, values, growth)))
    for result in results:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("dtype", ENTRY_DTYPES, ids=str)
def test_take_entries(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 31, 33, 1000, 70_000):
        old, fresh = (torch.randint(0, 100, (count + 1,), generator=generator).to(dtype) for _ in range(2))
        source = torch.randint(-count - 1, count + 1, (count,), generator=generator)
        old, fresh, source = (tensor.to(device) for tensor in (old, fresh, source))
        taken = take_entries(source, old, fresh)
        assert taken.dtype == dtype
        assert torch.equal(taken, reference.take_entries(old, source, fresh))
        assert torch.equal(
            take_entries(source, old, 3), torch.where(source >= 0, old[source.clamp(min=0)], 3)
        )


def test_take_entries_keeps_every_bit() -> None:
    old = torch.tensor([float("nan"), -0.0, float("inf")])
    taken = take_entries(torch.tensor([1, 0, -1, 2]), old, float("nan"))
    assert taken.isnan().tolist() == [False, True, True, False]
    assert taken[0].signbit()


@pytest.mark.parametrize("source", [[3], [-3], [1 << 62], [-(1 << 63)], [0, 1, -2, 3]])
def test_a_source_outside_is_refused(source: list[int], device: str) -> None:
    old, fresh = torch.zeros(3, device=device), torch.zeros(2, device=device)
    with pytest.raises(ValueError, match="take_entries: source names an entry outside old or fresh"):
        take_entries(torch.tensor(source, device=device), old, fresh)
    with pytest.raises(ValueError, match="source names an entry outside"):
        reference.take_entries(old, torch.tensor(source, device=device), fresh)


def test_bad_arguments() -> None:
    support, values, candidates, growth, drops = case([40, 30])
    with pytest.raises(TypeError, match=r"reselect: values must be one of float32, got torch\.float64"):
        reselect(support, values.double(), candidates, growth, drops)
    with pytest.raises(
        ValueError, match="reselect: growth must be contiguous with one entry for each of the"
    ):
        reselect(support, values, candidates, growth[1:], drops)
    with pytest.raises(ValueError, match="reselect: candidates must be of the same tensors as support"):
        reselect(
            support, values, Support.trusted(candidates.indices, candidates.offsets, [40, 31]), growth, drops
        )
    with pytest.raises(
        TypeError, match=r"reselect: candidates must have the dtype of support, torch\.int32, got"
    ):
        reselect(support, values, with_dtype(candidates, torch.int64), growth, drops)
    with pytest.raises(ValueError, match="reselect: drops must be 2 numbers, one for each tensor, got 1"):
        reselect(support, values, candidates, growth, drops[:1])
    for drop in (-1, 16):
        with pytest.raises(ValueError, match=rf"reselect: drops\[1\] must be in \[0, 15\], .* got {drop}"):
            reselect(support, values, candidates, growth, [0, drop])
    source = torch.tensor([0, -1])
    with pytest.raises(TypeError, match=r"take_entries: source must be one of int64, got torch\.int32"):
        take_entries(source.int(), values, growth)
    with pytest.raises(TypeError, match=r"take_entries: old must be one of .*, got torch\.bool"):
        take_entries(source, values > 0, growth)
    with pytest.raises(TypeError, match=r"take_entries: fresh must be one of float32, got torch\.float64"):
        take_entries(source, values, growth.double())
    with pytest.raises(
        TypeError, match=r"take_entries: fresh must be a whole number for torch\.int32, got 0\.5"
    ):
        take_entries(source, values.int(), 0.5)
    with pytest.raises(
        ValueError, match="take_entries: old must be contiguous with one dimension, got shape"
    ):
        take_entries(source, values[::2], growth)


def test_the_native_core_names_the_operation_in_its_errors() -> None:
    core = pytest.importorskip("graftwork._core", reason="the native core is not built")
    with pytest.raises(ValueError, match="take_entries: element_bytes must be 1, 2, 4 or 8"):
        core.take_entries(0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 1)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(reselection, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
