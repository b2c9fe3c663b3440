"""Gather, write, restore and swap: the reference's bits on every size, format and index type."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.ops import thread_limit
from graftwork.ops.sparse_update import (
    Support,
    gather_gradients,
    gather_values,
    restore_values_,
    swap_values_,
    values,
    write_values_,
)
from graftwork.reference.sparse_update import values as reference
from tests.generators.supports import FORMATS, NUMELS, random_tensors, some_support, supports
from tests.generators.weights import special_pair, special_words
from tests.ops.test_ordinal_planes import same_bits
from tests.tolerances import assert_close

INDEX = (torch.int32, torch.int64)


def copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(same_bits(a.cpu(), b.cpu()) for a, b in zip(one, other, strict=True))


def on(device: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.to(device, copy=True) for tensor in tensors]


@pytest.mark.parametrize("index", INDEX, ids=str)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_against_the_reference(dtype: torch.dtype, index: torch.dtype, device: str) -> None:
    for numels in [(numel,) for numel in NUMELS] + [NUMELS]:
        support = some_support(numels, 0.3, index)
        weights = random_tensors(numels, dtype)
        delta = torch.randn(support.entries)
        there, mine = support.to(device), on(device, weights)

        base = torch.empty(support.entries, dtype=dtype)
        reference.gather_values(weights, support.indices, support.offsets, base)
        assert same_bits(gather_values(there, mine).cpu(), base)

        for scale in (1.0, -0.3):
            reference.write_values(weights, support.indices, support.offsets, base, delta, scale)
            write_values_(there, mine, base.to(device), delta.to(device), scale)
            assert same(mine, weights)
        restore_values_(there, mine, base.to(device))
        assert same(mine, random_tensors(numels, dtype))


@pytest.mark.parametrize("index", INDEX, ids=str)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_gradients(dtype: torch.dtype, index: torch.dtype, device: str) -> None:
    for numels in [(numel,) for numel in NUMELS] + [NUMELS]:
        support = some_support(numels, 0.3, index)
        grads = random_tensors(numels, dtype)
        wanted = torch.empty(support.entries)
        squares, nonfinite = reference.gather_gradients(grads, support.indices, support.offsets, wanted, 0.3)
        got = gather_gradients(support.to(device), on(device, grads), scale=0.3)
        assert same_bits(got.compact.cpu(), wanted)
        assert_close("gather_gradients.sum_of_squares", got.sum_of_squares, squares)
        assert got.sum_of_squares.shape == got.nonfinite.shape == ()
        assert got.sum_of_squares.dtype == torch.float64
        assert got.nonfinite.item() == nonfinite.item() == 0


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_gradients_that_are_not_finite_are_counted(dtype: torch.dtype, device: str) -> None:
    grad = torch.zeros(300, dtype=dtype)
    grad[[3, 77]], grad[150], grad[299] = torch.inf, -torch.inf, torch.nan
    everywhere = Support([torch.arange(300)], [300]).to(device)
    got = gather_gradients(everywhere, [grad.to(device)])
    assert got.nonfinite.item() == 4
    assert got.sum_of_squares.isnan()
    grad[299] = 0
    assert gather_gradients(everywhere, [grad.to(device)]).sum_of_squares.isinf()
    some = Support([torch.tensor([0, 1])], [300]).to(device)
    assert gather_gradients(some, [grad.to(device)]).nonfinite.item() == 0


def test_a_scale_that_overflows_counts_as_not_finite(device: str) -> None:
    support = Support([torch.arange(2)], [2]).to(device)
    got = gather_gradients(support, [torch.tensor([1e38, 1.0], device=device)], scale=100.0)
    assert got.nonfinite.item() == 1


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_special_words(dtype: torch.dtype, device: str) -> None:
    """Every pair of special base and value: rounding to nearest even, overflow to infinity, NaN stays NaN."""
    base, _ = special_pair(dtype)
    special = special_words(torch.float32)
    delta = special.repeat(len(special_words(dtype)))
    every = Support([torch.arange(len(base))], [len(base)])
    weight = torch.zeros(len(base), dtype=dtype, device=device)
    write_values_(every.to(device), [weight], base.to(device), delta.to(device))
    wanted = (base.float() + delta).to(dtype)
    torch.testing.assert_close(weight.cpu(), wanted, rtol=0, atol=0, equal_nan=True)
    restore_values_(every.to(device), [weight], base.to(device))
    assert same_bits(weight.cpu(), base)
    assert same_bits(gather_values(every.to(device), [weight]).cpu(), base)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_rounding_of_every_halfway_case(dtype: torch.dtype, device: str) -> None:
    """float32 values around every midpoint of 16-bit words, as torch rounds them."""
    patterns = torch.arange(0, 1 << 16, 1, dtype=torch.int32)
    below, half = (patterns << 16) + 0x7FFF, (patterns << 16) + 0x8000
    fine = ((patterns << 13) + (112 << 23)).view(
        torch.float32
    )  # float16's normal range, in steps of its last bit
    delta = torch.cat([below.view(torch.float32), half.view(torch.float32), fine, fine * (1 + 2**-11)])
    delta = delta[delta.isfinite()]
    numel = delta.numel()
    weight, base = torch.empty(numel, dtype=dtype, device=device), torch.zeros(numel, dtype=dtype)
    every = Support([torch.arange(numel)], [numel]).to(device)
    write_values_(every, [weight], base.to(device), delta.to(device))
    assert torch.equal(weight.cpu(), (0.0 + delta).to(dtype))


@given(supports(), st.sampled_from(FORMATS), st.data())
def test_swap_is_restore_then_write(before: Support, dtype: torch.dtype, data: st.DataObject) -> None:
    density, seed = data.draw(st.sampled_from([0.0, 0.1, 0.9])), data.draw(st.integers(0, 999))
    after = some_support(before.numels, density, before.indices.dtype, seed)
    pristine = random_tensors(before.numels, dtype)
    weights = copies(pristine)
    one, other = torch.randn(before.entries), torch.randn(after.entries)
    base = swap_values_(weights, None, None, before, one, 0.5)
    assert same_bits(base, gather_values(before, pristine))
    wanted = copies(pristine)
    write_values_(before, wanted, base, one, 0.5)
    assert same(weights, wanted)

    base = swap_values_(weights, before, base, after, other)
    assert same_bits(base, gather_values(after, pristine))
    wanted = copies(pristine)
    write_values_(after, wanted, base, other)
    assert same(weights, wanted)

    empty = swap_values_(weights, after, base, None, None)
    assert empty.shape == (0,)
    assert empty.dtype == dtype
    assert same(weights, pristine)


@pytest.mark.parametrize("index", INDEX, ids=str)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_swap_of_large_supports(dtype: torch.dtype, index: torch.dtype, device: str) -> None:
    """Many pieces of work, equal indices at their edges, and lists of very different density."""
    numels = (300_000, 7, 0, 150_000)
    for densities in [(0.4, 0.4), (0.9, 0.01), (0.02, 1.0), (1.0, 1.0)]:
        before, after = (some_support(numels, density, index, seed) for seed, density in enumerate(densities))
        weights, delta = random_tensors(numels, dtype), torch.randn(after.entries)
        saved = torch.randn(before.entries).to(dtype)
        wanted = copies(weights)
        arrays = before.indices, before.offsets, saved, after.indices, after.offsets, delta
        base = reference.swap_values(wanted, *arrays, 1.5)
        for threads in (1, 2, 7):
            got = on(device, weights)
            with thread_limit(threads):
                after_base = swap_values_(
                    got, before.to(device), saved.to(device), after.to(device), delta.to(device), 1.5
                )
            assert same_bits(after_base.cpu(), base)
            assert same(got, wanted)


def test_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    numels = (400_000, 3, 200_001)
    support, grads = some_support(numels), random_tensors(numels, torch.bfloat16)
    base, delta = gather_values(support, grads), torch.randn(support.entries)
    results = []
    for threads in (1, 2, 7):
        weights = copies(grads)
        with thread_limit(threads):
            gathered = gather_gradients(support, grads, scale=0.7)
            write_values_(support, weights, base, delta)
        results.append([*gathered, gather_values(support, weights), *weights])
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_only_the_support_is_touched(device: str) -> None:
    weight = torch.full((1000,), torch.nan, device=device)
    support = some_support((1000,)).to(device)
    write_values_(
        support, [weight], torch.zeros(support.entries, device=device), support.indices.float(), 2.0
    )
    tuned = torch.zeros(1000, dtype=torch.bool).index_fill_(0, support.indices.long().cpu(), True)
    assert torch.equal(weight.cpu().isfinite(), tuned)
    assert torch.equal(weight.cpu()[tuned], 2.0 * support.indices.cpu())


def test_parameters_and_outputs(device: str) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0, device=device).view(2, 3))
    support = Support([torch.tensor([0, 4])], [6]).to(device)
    out = torch.empty(2, device=device)
    assert gather_values(support, [weight], out) is out
    assert out.tolist() == [0, 4]
    version = weight._version
    write_values_(support, [weight], out, torch.ones(2, device=device))
    assert weight.view(-1).tolist() == [1, 1, 2, 3, 5, 5]
    assert weight._version > version  # autograd notices
    assert gather_gradients(support, [weight], out).compact is out
    assert not out.requires_grad


def test_indices_past_two_to_the_31() -> None:
    """The pages of a fresh numpy array are not there until they are touched."""
    numel = (1 << 31) + 10
    weight = torch.from_numpy(np.zeros(numel, np.int16)).view(torch.bfloat16)
    at = [0, (1 << 31) - 1, 1 << 31, numel - 1]
    before, after = Support([torch.tensor(at)], [numel]), Support([torch.tensor(at[1:])], [numel])
    delta = torch.tensor([1.0, 2.0, 3.0, 4.0])
    base = swap_values_([weight], None, None, before, delta)
    assert gather_values(before, [weight]).tolist() == [1, 2, 3, 4]
    assert gather_gradients(before, [weight]).sum_of_squares.item() == 30
    swap_values_([weight], before, base, after, delta[1:] * 10)
    assert gather_values(before, [weight]).tolist() == [0, 20, 30, 40]


ONE = Support([torch.tensor([0, 2])], [4])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gather_values(ONE, []), ValueError, "gather_values: tensors must be 1 tensors, got 0"),
        (lambda: gather_values(ONE, [1]), TypeError, r"tensors\[0\] must be a torch.Tensor, got int"),
        (
            lambda: gather_values(ONE, [torch.zeros(4).double()]),
            TypeError,
            r"tensors\[0\] must be one of float16",
        ),
        (lambda: gather_values(ONE, [torch.zeros(5)]), ValueError, "must have 4 elements, got 5"),
        (lambda: gather_values(ONE, [torch.zeros(4, 2)[:, 0]]), ValueError, "must be contiguous"),
        (lambda: gather_values(ONE, [torch.zeros(4).to_sparse()]), TypeError, "must be dense"),
        (lambda: gather_values(ONE, [torch.zeros(4, device="meta")]), ValueError, "must be on the device"),
        (
            lambda: gather_values(ONE, [torch.zeros(4)], torch.zeros(2).half()),
            TypeError,
            "gather_values: out must be one of float32",
        ),
        (lambda: gather_values(ONE, [torch.zeros(4)], torch.zeros(3)), ValueError, "each of the 2 tuned"),
        (
            lambda: gather_gradients(ONE, [torch.zeros(4)], scale=float("nan")),
            ValueError,
            "gather_gradients: scale must be finite, got nan",
        ),
        (
            lambda: write_values_(ONE, [torch.zeros(4)], torch.zeros(2), torch.zeros(2), float("inf")),
            ValueError,
            "write_values_: scale must be finite",
        ),
        (
            lambda: write_values_(ONE, [torch.zeros(4)], torch.zeros(2).half(), torch.zeros(2)),
            TypeError,
            "write_values_: base must be one of float32",
        ),
        (
            lambda: write_values_(ONE, [torch.zeros(4)], torch.zeros(2), torch.zeros(2).half()),
            TypeError,
            "write_values_: values must be one of float32",
        ),
        (
            lambda: restore_values_(ONE, [torch.zeros(4)], torch.zeros(2, 2)[:, 0]),
            ValueError,
            "restore_values_: saved must be contiguous",
        ),
        (
            lambda: swap_values_([torch.zeros(4)], None, None, None, None),
            ValueError,
            "before and after must not both be None",
        ),
        (
            lambda: swap_values_([torch.zeros(4)], ONE, None, None, None),
            ValueError,
            "before_base is missing; it goes with its support",
        ),
        (
            lambda: swap_values_([torch.zeros(4)], ONE, torch.zeros(2), None, torch.zeros(2)),
            ValueError,
            "after_values must be None where its support is",
        ),
        (
            lambda: swap_values_(
                [torch.zeros(4)], ONE, torch.zeros(2), Support([torch.tensor([1]).int()], [4]), torch.zeros(1)
            ),
            TypeError,
            "indices of after must have the dtype of those of before, torch.int64, got torch.int32",
        ),
        (
            lambda: swap_values_([torch.zeros(4)], None, None, ONE, torch.zeros(2), float("nan")),
            ValueError,
            "swap_values_: scale must be finite",
        ),
        (
            lambda: swap_values_([torch.zeros(9)], None, None, ONE, torch.zeros(2)),
            ValueError,
            "must have 4 elements, got 9",
        ),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_mixed_formats_are_refused() -> None:
    two = Support([torch.tensor([0]), torch.tensor([1])], [4, 4])
    with pytest.raises(TypeError, match=r"tensors\[1\] must have the dtype of tensors\[0\]"):
        gather_values(two, [torch.zeros(4), torch.zeros(4).half()])


def test_overlapping_memory_is_refused() -> None:
    two, tied = Support([torch.tensor([0]), torch.tensor([1])], [4, 4]), torch.zeros(4)
    assert gather_values(two, [tied, tied]).tolist() == [0, 0]  # reading is harmless
    with pytest.raises(ValueError, match=r"write_values_: weights\[1\] overlaps weights\[0\] in memory"):
        write_values_(two, [tied, tied], torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"restore_values_: .* overlaps .* in memory"):
        restore_values_(two, [tied, torch.zeros(4)], tied[:2])
    with pytest.raises(ValueError, match=r"gather_values: out overlaps tensors\[0\] in memory"):
        gather_values(two, [tied, torch.zeros(4)], tied[2:])
    with pytest.raises(ValueError, match=r"swap_values_: .* overlaps .* in memory"):
        swap_values_([tied, tied[:4]], None, None, two, torch.zeros(2))


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(values, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
