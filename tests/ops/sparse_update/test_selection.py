"""The largest of many tensors: equal to a stable sort, whatever the sample, the threads and the ISA level."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork import ops
from graftwork.ops import thread_limit
from graftwork.ops.sparse_update import Support, random_support, selection, topk_abs, topk_absdiff
from graftwork.ops.sparse_update.selection import FORMATS
from graftwork.reference.sparse_update import selection as reference
from tests.generators.weights import SIZES, pair

ROOT = Path(__file__).parents[3]
LARGE = 400_003  # enough to be sampled, and for four chunks
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def check_absdiff(pairs: Pairs, k: int, device: str = "cpu", wide: bool = False) -> None:
    tensors, bases = ([mine[side].to(device) for mine in pairs] for side in (0, 1))
    threshold, indices, counts = torch.ops.graftwork.topk_absdiff(tensors, bases, k, wide)
    wanted = reference.topk_absdiff(tensors, bases, k, wide)
    assert torch.equal(threshold, wanted[0])
    assert torch.equal(indices, wanted[1])
    assert torch.equal(counts, wanted[2])


def check_abs(tensors: list[torch.Tensor], ks: list[int], wide: bool = False) -> None:
    got = torch.ops.graftwork.topk_abs(tensors, ks, wide)
    assert torch.equal(got, reference.topk_abs(tensors, ks, wide))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_sizes(dtype: torch.dtype, wide: bool, device: str) -> None:
    for numel in SIZES:
        mine, empty, other = pair(numel, dtype), pair(0, dtype), pair(40, torch.float32, seed=1, step=1e-3)
        for k in sorted({0, 1, numel // 25, numel // 2, numel, numel + 40}):
            check_absdiff([empty, mine, empty, other], k, device, wide)
        check_abs([empty[0].to(device), mine[0].to(device), other[0].to(device)], [0, numel // 3, 40], wide)


@pytest.mark.parametrize("share", [1e-5, 1e-3, 0.04, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_large(dtype: torch.dtype, share: float) -> None:
    """Sampled, and not where much is chosen; a third of the weights did not change, and bfloat16 has many ties."""
    tuned, base = reversed(pair(LARGE, dtype))
    check_absdiff([(tuned, base), pair(1000, torch.float16)], max(1, int(share * LARGE)))
    check_abs([tuned, base[:1000].contiguous()], [int(share * LARGE), 10])


def test_many_small_tensors() -> None:
    """More tensors than chunks; some are shorter than a run of the sample."""
    pairs = [pair(numel % 97, FORMATS[numel % 3], seed=numel) for numel in range(8000)]
    for k in (1, 5000, 100_000):
        check_absdiff(pairs, k)


@pytest.mark.parametrize("changed", [0.0, 0.01, 0.03])
def test_few_changes(changed: float) -> None:
    """Fewer weights changed than are chosen: the first that did not change make up the number."""
    base = torch.randn(LARGE, generator=torch.Generator().manual_seed(0))
    moved = torch.rand(LARGE, generator=torch.Generator().manual_seed(1)) < changed
    tuned = torch.where(moved, base + 1, base)
    check_absdiff([(tuned, base)], int(0.04 * LARGE))
    threshold, (indices,) = topk_absdiff([tuned], [base], int(0.04 * LARGE))
    assert threshold == 0.0
    assert bool(torch.isin(moved.nonzero().view(-1), indices).all())


def sampled_positions(numel: int) -> torch.Tensor:
    """Where the native code looks first; see sample_scores of csrc/core/sparse_update/selection.inl."""
    runs = 1 << 14
    positions = []
    for run in range(runs):
        dice = ((run + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 40
        at = numel // runs * run + numel % runs * run // runs + dice % (numel // runs)
        positions.append(min(at, numel - 16))
    return (torch.tensor(positions)[:, None] + torch.arange(16)).view(-1).unique()


@pytest.mark.parametrize("low", [0.0, 2.0])
def test_a_sample_that_misleads(low: float) -> None:
    """All that is sampled is smaller, or larger, than all else: candidates are too many, or too few."""
    numel = 1 << 20
    x = torch.rand(numel, generator=torch.Generator().manual_seed(0)) + 1
    x[sampled_positions(numel)] = low + x[sampled_positions(numel)] / 4
    for k in (100, 40_000):
        check_abs([x], [k])


def test_neighbours_that_resemble_each_other() -> None:
    """Rows of very different size, as those of an embedding: one in two hundred has all that is large."""
    rows = torch.rand(1000, generator=torch.Generator().manual_seed(0)) ** 200
    x = rows[:, None] * torch.rand(1000, 700, generator=torch.Generator().manual_seed(1))
    for k in (1, 3000, 30_000):
        check_abs([x], [k])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_infinities_and_denormals(dtype: torch.dtype) -> None:
    tiny, inf = torch.finfo(dtype).smallest_normal / 4, float("inf")
    few = torch.tensor([0.0, tiny, -tiny, inf, 1.0, -inf, 2 * tiny, -0.0], dtype=dtype)
    for k in range(9):
        check_absdiff([(few, torch.zeros(8, dtype=dtype)), (torch.zeros(8, dtype=dtype), few)], k)
    many = torch.full((LARGE,), inf, dtype=dtype)
    many[::3] = 1
    for k in (1, 10_000, 300_000):
        check_absdiff([(many, torch.zeros_like(many))], k)


@pytest.mark.parametrize("numel", [100, LARGE])
@pytest.mark.parametrize("k", [0, 1, 50])
def test_nan_is_refused(numel: int, k: int, device: str) -> None:
    tensors = [torch.ones(numel, device=device) for _ in range(3)]
    tensors[1][numel // 2] = float("nan")
    zeros = [torch.zeros(numel, device=device)] * 3
    with pytest.raises(
        ValueError, match=r"topk_absdiff: the difference of tensors\[1\] and bases\[1\] has a NaN"
    ):
        topk_absdiff(tensors, zeros, k)
    with pytest.raises(ValueError, match=r"topk_abs: tensors\[1\] has a NaN"):
        topk_abs(tensors, [k, k, k])
    infinite = torch.full((numel,), float("inf"), device=device)
    with pytest.raises(ValueError, match=r"tensors\[0\] and bases\[0\] has a NaN"):
        topk_absdiff([infinite], [infinite], k)


@pytest.fixture
def eight_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("eight_threads")
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_threads_do_not_change_the_result(dtype: torch.dtype) -> None:
    base, tuned = pair(3 * LARGE, dtype)
    results = []
    for threads in (1, 2, 7):
        with thread_limit(threads):
            results.append((*topk_absdiff([tuned, base], [base, tuned], 30_000), topk_abs([tuned], [9000])))
    for threshold, chosen, largest in results:
        assert threshold == results[0][0]
        assert all(map(torch.equal, chosen, results[0][1]))
        assert torch.equal(largest[0], results[0][2][0])


DIGESTS = """
import hashlib, json, torch
from graftwork.ops import isa_level
from graftwork.ops.sparse_update import reselect, take_entries, topk_abs, topk_absdiff
from tests.generators.weights import pair
from tests.ops.sparse_update.test_reselection import NUMELS, case
digests = []
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    base, tuned = pair(400_003, dtype)
    for k in (1, 77, 16_000, 100_001, 400_003):
        threshold, (indices,) = topk_absdiff([tuned], [base], k)
        (largest,) = topk_abs([tuned], [k])
        digests += [threshold, *(hashlib.sha256(t.numpy()).hexdigest() for t in (indices, largest))]
for levels in (0, 1, 30):
    support, values, candidates, growth, drops = case(NUMELS, levels=levels)
    new, source = reselect(support, values, candidates, growth, drops)
    taken = take_entries(source, values, growth)
    digests += [hashlib.sha256(t.numpy()).hexdigest() for t in (new.indices, source, taken)]
print(json.dumps([isa_level(), digests]))
"""


@pytest.mark.skipif(ops.isa_level() is None, reason="the native core is not built")
def test_every_level_chooses_the_same() -> None:
    levels = ("baseline", "avx2", "avx512")
    results = []
    for level in levels[: levels.index(ops.isa_level() or "avx512") + 1]:
        environment = {**os.environ, "GRAFTWORK_SIMD": level, "PYTHONPATH": str(ROOT)}
        process = subprocess.run(
            [sys.executable, "-c", DIGESTS], env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
        results.append(json.loads(process.stdout))
        assert results[-1][0] == level
    assert all(result[1] == results[0][1] for result in results)


@settings(max_examples=100)
@given(st.data())
def test_properties(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
    levels = data.draw(st.integers(1, 50))  # few: many ties
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    tuned = [torch.randint(-levels, levels + 1, shape, generator=generator).bfloat16() for shape in shapes]
    base = [torch.randint(-levels, levels + 1, shape, generator=generator).bfloat16() for shape in shapes]
    total = sum(tensor.numel() for tensor in tuned)
    k = data.draw(st.integers(0, total))
    threshold, indices = topk_absdiff(tuned, base, k)
    support = Support(indices, [tensor.numel() for tensor in tuned])
    assert support.entries == k
    scores = [(a.float() - b.float()).abs().view(-1) for a, b in zip(tuned, base, strict=True)]
    chosen = torch.cat([mine[index.long()] for mine, index in zip(scores, indices, strict=True)])
    assert threshold == (chosen.min().item() if k else float("inf"))
    assert (
        int((torch.cat(scores) > threshold).sum()) <= k <= int((torch.cat(scores) >= threshold).sum())
        or not k
    )
    more = topk_absdiff(tuned, base, min(total, k + 1))[1]
    for fewer, all_of_them in zip(indices, more, strict=True):
        assert bool(torch.isin(fewer, all_of_them).all())


def test_views_of_mapped_memory_and_parameters() -> None:
    """Elements need not be aligned, as in a mapped file; a parameter's gradient is not in the way."""
    data = bytearray(
        b"." + torch.randn(200, generator=torch.Generator().manual_seed(0)).half().numpy().tobytes()
    )
    x = torch.frombuffer(data, dtype=torch.float16, offset=1)
    assert x.data_ptr() % 2 == 1
    check_abs([x], [20])
    parameter = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    (largest,) = topk_abs([parameter], [2])
    assert largest.tolist() == [1, 2]
    assert not largest.requires_grad


def test_random_support() -> None:
    numels = [1000, 0, 7, 50]
    for ks in ([900, 0, 3, 25], [1, 0, 0, 50], 0, 1, 400, 1057):
        support = random_support(numels, ks, torch.Generator().manual_seed(3))
        again = random_support(numels, ks, torch.Generator().manual_seed(3))
        checked = Support(support.split(support.indices), numels)
        assert torch.equal(checked.offsets, support.offsets)
        assert torch.equal(again.indices, support.indices)
        assert support.indices.dtype == torch.int32
        assert support.entries == (ks if isinstance(ks, int) else sum(ks))


def test_random_support_is_uniform() -> None:
    """Every weight is as likely: of 3000 draws each is in k/n, within five standard deviations; both ways to draw."""
    generator = torch.Generator().manual_seed(0)
    for k in (3, 8, 15):
        counts = torch.zeros(20)
        for _ in range(3000):
            support = random_support([12, 8], k, generator)
            first, second = support.split(support.indices)
            counts[torch.cat([first, second + 12]).long()] += 1
        expected = 3000 * k / 20
        assert float((counts - expected).abs().max()) < 5 * (expected * (1 - k / 20)) ** 0.5


def test_random_support_of_huge_tensors() -> None:
    """Memory goes with what is chosen: 2^40 weights take none."""
    support = random_support([1 << 40, 5], [1000, 5], torch.Generator().manual_seed(0))
    assert support.indices.dtype == torch.int64
    assert len(Support(support.split(support.indices), [1 << 40, 5]).numels) == 2
    assert int(support.indices[:1000].max()) > 1 << 38
    together = random_support([1 << 40, 1 << 41], 3000, torch.Generator().manual_seed(0))
    assert 800 < int(together.offsets[1]) < 1200


def test_bad_arguments() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="topk_absdiff: tensors must be at least one tensor, got none"):
        topk_absdiff([], [], 0)
    with pytest.raises(ValueError, match="topk_absdiff: bases must be 1 tensors, got 2"):
        topk_absdiff([x], [x, x], 1)
    with pytest.raises(
        ValueError, match=r"bases\[0\] must have the shape of tensors\[0\], \(4, 2\), got \(8,\)"
    ):
        topk_absdiff([x], [x.view(8)], 1)
    with pytest.raises(TypeError, match=r"bases\[0\] must have the dtype of tensors\[0\], torch.float32"):
        topk_absdiff([x], [x.half()], 1)
    with pytest.raises(
        TypeError, match=r"tensors\[1\] must be one of float16, bfloat16, float32, got torch.float64"
    ):
        topk_absdiff([x, x.double()], [x, x.double()], 1)
    with pytest.raises(
        ValueError, match=r"tensors\[0\] must be contiguous, got strides \(1, 4\); indices are row-major"
    ):
        topk_absdiff([x.view(2, 4).t()], [x], 1)
    with pytest.raises(ValueError, match=r"bases\[0\] must be contiguous"):
        topk_absdiff([x], [x.view(2, 4).t()], 1)
    for k in (-1, 9):
        with pytest.raises(ValueError, match=rf"k must be in \[0, 8\], the number of weights, got {k}"):
            topk_absdiff([x], [x], k)
    with pytest.raises(TypeError, match=r"tensors\[0\] must be a torch.Tensor, got list"):
        topk_abs([[1.0]], [1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"topk_abs: ks must be 1 numbers, one for each tensor, got 2"):
        topk_abs([x], [1, 2])
    with pytest.raises(
        ValueError, match=r"topk_abs: ks\[0\] must be in \[0, 8\], the tensor's elements, got 9"
    ):
        topk_abs([x], [9])
    with pytest.raises(ValueError, match=r"random_support: ks\[1\] must be in \[0, 3\], .* got 4"):
        random_support([5, 3], [5, 4])
    with pytest.raises(ValueError, match=r"random_support: ks must be in \[0, 8\], got 9"):
        random_support([5, 3], 9)
    with pytest.raises(
        ValueError, match=r"random_support: numels must be at least one number, none negative"
    ):
        random_support([5, -3], 1)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    """Fresh zeros are one page for all that is not written: 2^31 elements need little memory."""
    numel = (1 << 31) + 100
    x = torch.zeros(numel, dtype=torch.bfloat16)
    at = [5, 1 << 20, (1 << 31) - 1, 1 << 31, numel - 1]
    x[at] = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0], dtype=torch.bfloat16)
    (largest,) = topk_abs([x], [5])
    assert largest.dtype == torch.int64
    assert largest.tolist() == at


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(selection, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
