"""What low-rank packs add to a base: the sum rounded once, in place, several packs, exact zeros, tiles, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graftwork.ops.quantized_delta import (
    LowRankPack,
    lowrank_add,
    lowrank_dequant_add,
    lowrank_quantize,
    svd_delta,
)
from graftwork.reference.quantized_delta import lowrank as reference
from tests.ops.quantized_delta.lowrank_cases import matrix_of, power_law
from tests.tolerances import TOLERANCES, assert_close

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1), (31, 33), (100, 70), (600, 40), (1025, 17)]


def some_pack(
    rows: int, columns: int, seed: int = 0, groups: list[tuple[int | None, int]] | None = None
) -> LowRankPack:
    rank = min(rows, columns, 12)
    delta = matrix_of(power_law(rank), rows, columns, seed) * 0.01
    return lowrank_quantize(*svd_delta(delta, None, rank=rank), groups or [(1, 16), (3, 8), (None, 3)])


def some_base(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) * 0.02).to(dtype)


def dense(pack: LowRankPack) -> Tensor:
    return reference.dense([pack.factors()], *pack.shape)


def assert_rounded_once(got: Tensor, exact: Tensor, size: Tensor, compute: torch.dtype) -> None:
    """Within one rounding of the exact sum, and what the products' factors were rounded by, in units of `size`."""
    name = "lowrank_dequant_add.bfloat16" if compute == torch.bfloat16 else "lowrank_dequant_add"
    slack = TOLERANCES[name].relative * size.abs().max()
    spacing = torch.finfo(got.dtype).eps * exact.abs().clamp(min=torch.finfo(got.dtype).tiny)
    assert bool(((got.double() - exact).abs() <= spacing / 2 + slack).all())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sum_is_rounded_once(
    shape: tuple[int, int], dtype: torch.dtype, in_place: bool, device: str
) -> None:
    pack, base = some_pack(*shape), some_base(*shape, dtype)
    exact = base.double() + 0.75 * dense(pack)
    for compute in (torch.float32, torch.bfloat16) if dtype == torch.bfloat16 else (torch.float32, None):
        given = base.to(device, copy=True)
        out = given if in_place else torch.empty_like(given)
        found = lowrank_dequant_add(given, pack.to(device), 0.75, out=out, compute=compute)
        assert found is out
        assert_rounded_once(found.cpu(), exact, dense(pack), compute or torch.float32)
        assert in_place or torch.equal(given.cpu(), base)


def test_results_in_another_dtype() -> None:
    pack = some_pack(40, 30)
    for dtype in DTYPES:
        for target in DTYPES:
            base = some_base(40, 30, dtype)
            out = lowrank_dequant_add(
                base, pack, 1.0, out=torch.empty(40, 30, dtype=target), compute=torch.float32
            )
            assert_rounded_once(out, base.double() + dense(pack), dense(pack), torch.float32)


def test_several_packs_in_any_order() -> None:
    packs, weights = [some_pack(70, 50, seed) for seed in range(3)], [1.0, 0.5, -2.0]
    base = some_base(70, 50, torch.float32)
    exact = base.double() + sum(weight * dense(pack) for weight, pack in zip(weights, packs, strict=True))
    found = lowrank_dequant_add(base, packs, weights)
    assert_close("lowrank_dequant_add", found, exact)
    assert_close("lowrank_dequant_add", lowrank_dequant_add(base, packs[::-1], weights[::-1]), exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_of_zero_leaves_the_base(dtype: torch.dtype) -> None:
    pack, base = some_pack(600, 40), some_base(600, 40, dtype)
    base[3, 4], base[5, 6], base[590, 7], base[0, 0] = -0.0, math.nan, math.inf, -0.0
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    for packs, scales in ((pack, 0.0), ([pack, pack], [0.0, 0.0]), ([], [])):
        assert torch.equal(lowrank_dequant_add(base, packs, scales).view(bits), base.view(bits))
        same = base.clone()
        assert torch.equal(lowrank_dequant_add(same, packs, scales, out=same).view(bits), base.view(bits))
    rows = torch.zeros(600)
    rows[[1, 550]] = 2.0
    for out in (None, base.clone()):
        given = base if out is None else out
        found = lowrank_dequant_add(given, [pack, pack], [rows, 0.0], out=out)
        untouched = rows == 0
        assert torch.equal(found[untouched].view(bits), base[untouched].view(bits))
        assert_rounded_once(
            found[[1, 550]],
            base[[1, 550]].double() + 2 * dense(pack)[[1, 550]],
            2 * dense(pack),
            torch.bfloat16,
        )


def test_a_weight_for_each_row() -> None:
    pack, base = some_pack(80, 60), some_base(80, 60, torch.float32)
    rows = torch.linspace(-1, 2, 80)
    assert_close(
        "lowrank_dequant_add", lowrank_dequant_add(base, pack, rows), base + rows[:, None] * dense(pack)
    )


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    pack, base = some_pack(300, 90), some_base(300, 90, torch.float32)
    exact = base.double() + dense(pack)
    for rows in (1, 7, 128, 1000):
        monkeypatch.setattr(lowrank_add, "TILE_ROWS", rows)
        assert_close("lowrank_dequant_add", lowrank_dequant_add(base, pack, 1.0), exact)


def test_an_empty_pack_and_views() -> None:
    base = some_base(40, 30, torch.bfloat16)
    assert torch.equal(lowrank_dequant_add(base, LowRankPack((40, 30), ()), 1.0), base)
    wide = some_base(60, 40, torch.float32)
    view = wide.mT
    assert_close(
        "lowrank_dequant_add",
        lowrank_dequant_add(view, some_pack(40, 60), 1.0),
        view + dense(some_pack(40, 60)),
    )
    empty = lowrank_dequant_add(torch.zeros(0, 5), LowRankPack((0, 5), ()), 1.0)
    assert empty.shape == (0, 5)


def test_bad_arguments() -> None:
    pack, base = some_pack(40, 30), some_base(40, 30, torch.float32)
    with pytest.raises(
        ValueError, match=r"packs\[0\] must have the shape of base, \(30, 40\), got \(40, 30\)"
    ):
        lowrank_dequant_add(base.mT, pack, 1.0)
    with pytest.raises(ValueError, match=r"scales must be 2 numbers, one for each pack, got 1"):
        lowrank_dequant_add(base, [pack, pack], 1.0)
    with pytest.raises(TypeError, match=r"packs\[1\] must be a LowRankPack, got int"):
        lowrank_dequant_add(base, [pack, 3], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"lowrank_dequant_add: scales\[0\] must be finite, got nan"):
        lowrank_dequant_add(base, pack, math.nan)
    with pytest.raises(ValueError, match=r"scales\[0\] must be finite"):
        lowrank_dequant_add(base, pack, torch.full((40,), math.inf))
    with pytest.raises(ValueError, match=r"scales\[0\] must be a number or have one for each of 40 rows"):
        lowrank_dequant_add(base, pack, torch.ones(30))
    with pytest.raises(TypeError, match=r"scales\[0\] must be one of float32, got torch.float64"):
        lowrank_dequant_add(base, pack, torch.ones(40, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"scales\[0\] must be a number or a tensor, got str"):
        lowrank_dequant_add(base, pack, "1")
    with pytest.raises(TypeError, match=r"base must be one of float16, bfloat16, float32, got torch.int32"):
        lowrank_dequant_add(base.int(), pack, 1.0)
    with pytest.raises(ValueError, match=r"base must have two dimensions, got shape \(40, 30, 1\)"):
        lowrank_dequant_add(base[..., None], pack, 1.0)
    with pytest.raises(ValueError, match=r"out must have the shape of base, \(40, 30\), got \(40, 31\)"):
        lowrank_dequant_add(base, pack, 1.0, out=torch.empty(40, 31))
    with pytest.raises(ValueError, match=r"out is written in place and must be contiguous"):
        lowrank_dequant_add(base, pack, 1.0, out=torch.empty(30, 40).mT)
    storage = torch.zeros(1240)
    with pytest.raises(
        ValueError, match=r"out overlaps base in memory; pass base itself, or a separate output"
    ):
        lowrank_dequant_add(storage[:1200].view(40, 30), pack, 1.0, out=storage[40:].view(40, 30))
    for dtype, compute in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)):
        with pytest.raises(
            ValueError, match=r"compute must be float32, or bfloat16 where base and out are, got"
        ):
            lowrank_dequant_add(base.to(dtype), pack, 1.0, compute=compute)
