"""Merges on the sphere: the coefficients out of inner products, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graftwork.compose.coefficients import karcher, model_stock, multislerp, nuslerp, slerp


def gram(*vectors: list[float]) -> Tensor:
    rows = torch.tensor(vectors, dtype=torch.float64)
    return rows @ rows.T


def test_slerp_on_the_circle() -> None:
    half = slerp(gram([1, 0], [0, 1]), 0.5)
    torch.testing.assert_close(half, torch.full((2,), math.sqrt(0.5), dtype=torch.float64))
    assert slerp(gram([1, 0], [0, 1]), 0.0).tolist() == [1.0, 0.0]
    assert slerp(gram([1, 0], [2, 0]), 0.25).tolist() == [0.75, 0.25]  # on one line: linear
    assert slerp(gram([1, 0], [-2, 0]), 0.25).tolist() == [0.75, 0.25]
    zero = slerp(gram([0, 0], [0, 1]), 0.5)
    assert bool(zero.isfinite().all())


def test_nuslerp_by_weights() -> None:
    third = nuslerp(gram([1, 0], [0, 1]), [2.0, 1.0])
    torch.testing.assert_close(third, torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]).double())
    near = [[1.0, 0.0], [1.0, 1e-3]]
    assert abs(float(nuslerp(gram(*near), [1, 1])[0]) - 0.5) < 1e-6


def test_multislerp_of_two_is_slerp_and_its_mean_has_the_mean_length() -> None:
    two = multislerp(gram([1, 0, 0], [0, 1, 0]), [0.5, 0.5], True, 1e-12)
    torch.testing.assert_close(two, slerp(gram([1, 0], [0, 1]), 0.5))
    vectors = [[1.0, 0, 0], [0, 2, 0], [0, 0, 3]]
    found = multislerp(gram(*vectors), [1, 1, 1], True, 1e-12) @ torch.tensor(vectors, dtype=torch.float64)
    torch.testing.assert_close(found.norm(), torch.tensor(2.0).double())
    torch.testing.assert_close(found / found.norm(), torch.full((3,), 1 / math.sqrt(3)).double())
    assert multislerp(gram([1, 0], [-1, 0]), [1, 1], True, 1e-8).tolist() == [0.5, 0.5]
    assert multislerp(gram([0, 0], [0, 0], [0, 0]), [1, 1, 2], True, 1e-8).tolist() == [0.25, 0.25, 0.5]
    with pytest.raises(ZeroDivisionError, match="mean of the directions is 0"):
        multislerp(gram([1, 0], [-1, 0], [0, 0]), [1, 1, 1], True, 1e-8)


def test_karcher_mean() -> None:
    vectors = [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]
    found = karcher(gram(*vectors), 10, 1e-9)
    torch.testing.assert_close(found, torch.full((3,), 1 / math.sqrt(3)).double())
    angles = [0.1, 0.4, 1.0]  # on a great circle the mean is at the mean angle
    found = karcher(gram(*[[math.cos(a), math.sin(a)] for a in angles]), 100, 1e-12) @ torch.tensor(
        [[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64
    )
    torch.testing.assert_close(found, torch.tensor([math.cos(0.5), math.sin(0.5)]).double())
    assert karcher(gram([0, 0], [0, 0]), 10, 1e-5).tolist() == [0.0, 0.0]
    assert karcher(gram([2, 0], [0, 0]), 10, 1e-5).tolist() == [0.5, 0.0]  # the mean length
    antipodes = karcher(gram([1, 0], [-1, 0]), 10, 1e-5)
    assert antipodes.tolist() == [1.0, 0.0]


def test_model_stock_by_its_angle() -> None:
    assert model_stock(gram([1, 0], [0, 1])).tolist() == [0.0, 0.0]  # at right angles: the base
    torch.testing.assert_close(model_stock(gram([1, 0], [2, 0])), torch.tensor([0.5, 0.5]).double())
    sixty = gram([1, 0], [0.5, math.sqrt(0.75)])
    torch.testing.assert_close(model_stock(sixty), torch.full((2,), 2 * 0.5 / 1.5 / 2).double())
    assert model_stock(gram([1, 0], [-1, 0])).tolist() == [0.0, 0.0]
