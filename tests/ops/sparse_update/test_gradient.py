"""Gradients of single weights: the dense gradient's, at the indices, in any block, tile and dtype."""

from __future__ import annotations

import doctest
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from graftwork.ops import thread_limit
from graftwork.ops.sparse_update import gradient, linear_gradient, sddmm
from graftwork.ops.sparse_update.gradient import BREAK_EVEN, DTYPES
from graftwork.reference.sparse_update import gradient as reference
from tests.tolerances import assert_close

#: batch, in, out: within a tile, around one, several blocks, one block of 32 for a wide input.
SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (33, 17, 31),
    (100, 100, 50),
    (600, 64, 33),
    (257, 40, 1000),
    (70, 5000, 7),
    (0, 3, 4),
]


def layer(batch: int, columns: int, rows: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, size, generator=generator).to(dtype) for size in (columns, rows))


def chosen(numel: int, density: float, dtype: torch.dtype = torch.int32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(numel, generator=generator) < density).nonzero().view(-1).to(dtype)


def exact(x: Tensor, dy: Tensor, indices: Tensor) -> Tensor:
    return (dy.double().T @ x.double()).flatten()[indices.long()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int], index: torch.dtype, dtype: torch.dtype, device: str) -> None:
    x, dy = (tensor.to(device) for tensor in layer(*shape, dtype))
    for density in (0.0, 0.05, 1.0):
        indices = chosen(shape[1] * shape[2], density, index).to(device)
        found = sddmm(x, dy, indices)
        assert found.dtype == torch.float32
        assert_close("sddmm", found, exact(x, dy, indices))
        assert_close("sddmm", reference.sddmm(x, dy, indices), exact(x, dy, indices))
        assert_close("sddmm", linear_gradient(x, dy, indices), exact(x, dy, indices))


def test_any_order_and_repetitions() -> None:
    x, dy = layer(40, 30, 20, torch.float32)
    indices = torch.randint(0, 600, (500,), generator=torch.Generator().manual_seed(0))
    order = indices.argsort(stable=True)
    assert torch.equal(sddmm(x, dy, indices)[order], sddmm(x, dy, indices[order]))


def test_leading_sizes_and_views() -> None:
    x, dy = layer(24, 5, 7, torch.float32)
    indices = chosen(35, 0.5)
    wanted = sddmm(x, dy, indices)
    assert torch.equal(sddmm(x.view(2, 3, 4, 5), dy.view(2, 3, 4, 7), indices), wanted)
    assert torch.equal(sddmm(x.T.contiguous().T, dy.repeat_interleave(2, 1)[:, ::2], indices), wanted)
    assert torch.equal(sddmm(x[0], dy[0], indices), sddmm(x[:1], dy[:1], indices))  # one row without a batch
    assert torch.equal(sddmm(x, dy, indices.repeat_interleave(2)[::2]), wanted)


def test_bfloat16_is_summed_in_float32() -> None:
    ones = torch.ones(1000, 2, dtype=torch.bfloat16)
    assert sddmm(ones, ones, torch.tensor([3])).item() == 1000  # bfloat16 has no 257
    assert linear_gradient(ones, ones, torch.arange(4)).tolist() == [1000] * 4


def test_special_values_stay_in_their_gradients() -> None:
    x, dy = layer(40, 20, 20, torch.float32)
    x[3, 4], dy[5, 6], x[39, 7] = math.nan, math.inf, -math.inf
    indices = torch.arange(400)
    found, wanted = sddmm(x, dy, indices), exact(x, dy, indices)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.isinf(), wanted.isinf())
    clean = wanted.isfinite()
    assert_close("sddmm", found[clean], wanted[clean])


def test_both_ways_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x, dy = layer(64, 100, 100, torch.float32)
    dense: list[int] = []
    original = gradient._from_dense
    monkeypatch.setattr(gradient, "_from_dense", lambda *a: (dense.append(len(a[2])), original(*a))[1])
    few, many = torch.arange(int(BREAK_EVEN * 10_000)), torch.arange(int(BREAK_EVEN * 10_000) + 1)
    assert torch.equal(linear_gradient(x, dy, few), sddmm(x, dy, few))
    assert not dense
    assert_close("sddmm", linear_gradient(x, dy, many), exact(x, dy, many))
    linear_gradient(x[:1], dy[:1], few)  # a product of one row is little more than its output
    assert dense == [len(many), len(few)]


@pytest.fixture
def seven_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("seven_threads")
def test_threads_do_not_change_the_bits() -> None:
    x, dy = layer(600, 300, 200, torch.bfloat16)
    indices = chosen(60_000, 0.3)
    found = []
    for threads in (1, 2, 7):
        with thread_limit(threads):
            found.append(sddmm(x, dy, indices))
    assert all(torch.equal(mine, found[0]) for mine in found)


def test_results_never_require_gradients() -> None:
    x, dy = (tensor.requires_grad_() for tensor in layer(4, 5, 6, torch.float32))
    for indices in (torch.tensor([1]), torch.arange(30)):
        assert not sddmm(x, dy, indices).requires_grad
        assert not linear_gradient(x, dy, indices).requires_grad


def test_bad_arguments() -> None:
    x, dy = layer(4, 5, 6, torch.float32)
    indices = torch.tensor([0, 29])
    for wrong in (torch.tensor([-1]), torch.tensor([30])):
        for call in (sddmm, reference.sddmm):
            with pytest.raises(
                ValueError, match=r"sddmm: indices must be in \[0, 30\), the row-major positions"
            ):
                call(x, dy, wrong)
        with pytest.raises(ValueError, match=r"indices must be in \[0, 30\)"):
            linear_gradient(x, dy, wrong.repeat(30))
    with pytest.raises(
        TypeError, match=r"sddmm: x must be one of float16, bfloat16, float32, got torch.float64"
    ):
        sddmm(x.double(), dy.double(), indices)
    with pytest.raises(TypeError, match=r"linear_gradient: dy must have the dtype of x, torch.float32, got"):
        linear_gradient(x, dy.half(), indices)
    with pytest.raises(ValueError, match=r"sddmm: dy must have the leading sizes of x, \(4,\), got \(3,\)"):
        sddmm(x, dy[:3], indices)
    with pytest.raises(ValueError, match=r"sddmm: x must have one dimension at least, got a scalar"):
        sddmm(x[0, 0], dy, indices)
    with pytest.raises(TypeError, match=r"sddmm: indices must be one of int32, int64, got torch.float32"):
        sddmm(x, dy, indices.float())
    with pytest.raises(ValueError, match=r"sddmm: indices must have one dimension, got shape \(1, 2\)"):
        sddmm(x, dy, indices[None])
    with pytest.raises(TypeError, match=r"sddmm: x must be a torch.Tensor, got list"):
        sddmm([1.0], dy, indices)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(gradient, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
