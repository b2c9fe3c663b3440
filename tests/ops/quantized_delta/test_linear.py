"""A linear layer over many packed deltas: every format against float64, any batch, no row that sees another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from graftwork.ops import thread_limit
from graftwork.ops.quantized_delta import (
    PackedDelta,
    PackFormat,
    PackList,
    _linear_native,
    delta_linear,
)
from graftwork.ops.quantized_delta.linear import DTYPES
from graftwork.reference.quantized_delta import linear as reference
from tests.ops.quantized_delta.linear_cases import (
    FACTOR_BITS,
    KINDS,
    Pack,
    dense,
    exact,
    low_rank,
    noise,
    quantized,
)
from tests.tolerances import TOLERANCES, assert_close

#: O, I: within a vector, around a tile of 64 rows, columns around 8, 32 and 64 bytes of codes.
SHAPES = [(1, 1), (3, 7), (17, 33), (65, 31), (130, 257), (70, 1001)]
IDS = torch.tensor([0, 1, 2, -1, 2, 2, 2, 0, 2, 2, 1])
LAMBDAS = (1.0, -0.5, 2.0)


def by_reference(x: Tensor, weight: Tensor | None, packs: list[Pack], ids: Tensor, scales: Tensor) -> Tensor:
    listed = PackList(packs)
    assert listed.shape is not None
    return reference.delta_linear(x, weight, None, ids, scales, *listed.flat, listed.shape[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("scheme", "bits"), KINDS, ids=str)
def test_formats(scheme: str, bits: int, shape: tuple[int, int], device: str) -> None:
    x = noise(len(IDS), shape[1]).to(device)
    scales = torch.tensor([*LAMBDAS, 0.0])[IDS].to(device)
    # Per matrix, per row, and blocks that are no whole words of codes, and that are; a dtype of scales with each.
    blocks = itertools.cycle((-1, 0, 8, 24, 40, 128))
    dtypes = itertools.cycle((torch.float16, torch.bfloat16, torch.float32))
    for _ in range(2):
        packs: list[Pack] = [
            quantized(*shape, scheme, bits, next(blocks), next(dtypes), seed).to(device) for seed in range(3)
        ]
        wanted = exact(x, None, packs, IDS, shape, scales=scales)
        assert_close("delta_linear", delta_linear(x, None, packs, IDS.to(device), scales=LAMBDAS), wanted)
        assert_close("delta_linear", delta_linear(x, None, packs, IDS.to(device), scales=scales), wanted)
        assert_close("delta_linear", by_reference(x, None, packs, IDS.to(device), scales), wanted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", FACTOR_BITS)
def test_low_rank_packs(bits: int, shape: tuple[int, int], device: str) -> None:
    x = noise(len(IDS), shape[1]).to(device)
    scales = torch.tensor([*LAMBDAS, 0.0])[IDS].to(device)
    formats = ((128, None), (24, "midrise"), (8, "asym"))
    packs: list[Pack] = [
        low_rank(*shape, bits, *made, seed=seed).to(device) for seed, made in enumerate(formats)
    ]
    wanted = exact(x, None, [pack and pack.to("cpu") for pack in packs], IDS, shape, scales=scales)
    assert_close("delta_linear", delta_linear(x, None, packs, IDS.to(device), scales=LAMBDAS), wanted)
    assert_close("delta_linear", by_reference(x, None, packs, IDS.to(device), scales), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_base(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Beyond half a last place of the result, which no result can avoid, at most the tolerance of its dtype."""
    rows, columns = shape
    packs: list[Pack] = [quantized(*shape, "sign", 1), low_rank(*shape, 3), quantized(*shape, "sym", 8)]
    x, weight, bias = (
        t.to(device, dtype) for t in (noise(len(IDS), columns), noise(*shape, seed=1), noise(rows, seed=2))
    )
    scales = torch.full((len(IDS),), 0.2)  # of a delta that is 0.1 to 0.3 of the base
    ids, there = IDS.to(device), [pack and pack.to(device) for pack in packs]
    wanted = exact(x, weight, packs, IDS, shape, bias=bias, scales=scales)
    found = delta_linear(x, weight, there, ids, bias=bias, scales=scales.to(device))
    assert found.dtype == dtype
    rounding = wanted.abs() * torch.finfo(dtype).eps / 2
    error = ((found.double().cpu() - wanted).abs() - rounding).clamp_min(0)
    tolerance = TOLERANCES["delta_linear" if dtype == torch.float32 else "delta_linear.halves"].relative
    assert error.max() <= tolerance * wanted.abs().max()
    per_row = bias.float().expand(len(IDS), rows)
    assert torch.equal(delta_linear(x, weight, there, ids, bias=per_row, scales=scales.to(device)), found)


def test_the_result_is_rounded_once() -> None:
    """1 + 2^-8 is a bfloat16's tie: a sum rounded before the delta came would lose what the delta decides."""
    weight = torch.tensor([[1.0, 2.0**-8]]).bfloat16()
    x = torch.ones(2, 2).bfloat16()
    pack = PackedDelta(
        PackFormat(1, "sign", -1, torch.float32),
        (1, 2),
        torch.tensor([[3]], dtype=torch.uint8),
        torch.tensor([[2**-12]]),
    )
    found = delta_linear(x, weight, [pack], torch.tensor([0, -1]))
    assert found.flatten().tolist() == [1 + 2.0**-7, 1.0]


def test_numbers_worked_by_hand() -> None:
    """The row [.03, −.01, .02, −.04, 0, .01, −.02, .05] in three formats; unit vectors give its elements."""
    unit, ids = torch.eye(8), torch.zeros(8, dtype=torch.int32)
    cases = [
        (1, "sign", 0.0225, [0xA5], [1, -1, 1, -1, -1, 1, -1, 1]),
        (4, "sym", 0.05 / 7, [0x7C, 0x2B, 0x98, 0xF5], [4, -1, 3, -6, 0, 1, -3, 7]),
        (2, "midrise", 0.025, [0x27, 0xDA], [1.5, -0.5, 0.5, -1.5, 0.5, 0.5, -0.5, 1.5]),
    ]
    for bits, scheme, scale, codes, values in cases:
        made = PackFormat(bits, scheme, 0, torch.float32)
        pack = PackedDelta(made, (1, 8), torch.tensor([codes], dtype=torch.uint8), torch.tensor([[scale]]))
        wanted = torch.tensor(values) * torch.tensor(scale)
        assert torch.equal(delta_linear(unit, None, [pack], ids)[:, 0], wanted)
        assert_close(
            "delta_linear", delta_linear(torch.ones(1, 8), None, [pack], ids[:1])[0, 0], wanted.sum()
        )


@pytest.mark.parametrize("seed", range(6))
def test_segments(seed: int) -> None:
    """Rows in any segments, some of them empty, are the rows of any order of ids."""
    generator = torch.Generator().manual_seed(seed)
    packs: list[Pack] = [
        quantized(70, 100, "sign", 1, seed=0),
        None,
        low_rank(70, 100, 2),
        quantized(70, 100, "nf4", 4),
    ]
    lengths = torch.randint(0, 25, (4,), generator=generator) * torch.randint(0, 2, (4,), generator=generator)
    indptr = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    rows = int(lengths.sum())
    x, weight = noise(rows, 100, seed=seed), noise(70, 100)
    ids = torch.arange(4).repeat_interleave(lengths).int()
    found = delta_linear(x, weight, packs, indptr=indptr)
    assert torch.equal(found, delta_linear(x, weight, packs, ids))
    assert_close("delta_linear", found, exact(x, weight, packs, ids, (70, 100)))
    order = torch.randperm(rows, generator=generator)
    deltas = delta_linear(x, None, packs, ids)
    assert torch.equal(delta_linear(x[order], None, packs, ids[order].long()), deltas[order])


def batch() -> tuple[Tensor, list[Pack], Tensor]:
    """55 rows: more of one pack than are multiplied at once, all formats, matrices of several tiles."""
    shape = (200, 700)
    packs: list[Pack] = [
        *(quantized(*shape, "midrise", bits, 40) for bits in (1, 2, 3, 4, 8)),
        quantized(*shape, "asym", 4, 32),
        quantized(*shape, "nf4", 4, 0),
        low_rank(*shape, 2, 24),
        low_rank(*shape, 4, 8, "asym"),
        None,
    ]
    ids = torch.cat([torch.arange(-1, len(packs)).repeat(3), torch.full((22,), 3)])
    return noise(len(ids), shape[1]), packs, ids


@pytest.fixture
def seven_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("seven_threads")
def test_a_row_does_not_see_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    x, packs, ids = batch()
    monkeypatch.setattr(_linear_native, "_GRAIN", 1 << 10)
    found = delta_linear(x, None, packs, ids)
    for threads in (1, 2):
        with thread_limit(threads):
            assert torch.equal(delta_linear(x, None, packs, ids), found)
    for row in range(0, len(ids), 3):
        assert torch.equal(delta_linear(x[row : row + 1], None, packs, ids[row : row + 1])[0], found[row])
    halves = [delta_linear(x[part], None, packs, ids[part]) for part in (slice(0, 31), slice(31, None))]
    assert torch.equal(torch.cat(halves), found)
    monkeypatch.setattr(_linear_native, "_ROOM", 1)  # a workspace for one piece of work at a time
    assert torch.equal(delta_linear(x, None, packs, ids), found)


def test_without_a_delta_the_base_alone(device: str) -> None:
    for dtype in DTYPES:
        x, weight, bias = (noise(*size).to(device, dtype) for size in ((4, 33), (9, 33), (9,)))
        wanted = torch.nn.functional.linear(x, weight, bias)
        pack = quantized(9, 33, "sign", 1).to(device)
        nothing = torch.full((4,), -1, device=device)
        assert torch.equal(delta_linear(x, weight, [pack], nothing, bias=bias), wanted)
        assert torch.equal(delta_linear(x, weight, [None], nothing + 1, bias=bias), wanted)
        assert torch.equal(delta_linear(x, weight, [], nothing, bias=bias), wanted)
        assert torch.equal(delta_linear(x, weight, [pack], nothing + 1, bias=bias, scales=[0.0]), wanted)
        none = delta_linear(x, None, [pack], nothing)
        assert torch.equal(none, torch.zeros_like(none))


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0)], ids=str)
def test_nothing_to_multiply(shape: tuple[int, int, int]) -> None:
    tokens, rows, columns = shape
    made = PackFormat(1, "sign", 0)
    pack = PackedDelta.empty(made, rows, columns)
    found = delta_linear(torch.ones(tokens, columns), None, [pack], torch.zeros(tokens, dtype=torch.long))
    assert torch.equal(found, torch.zeros(tokens, rows))


def test_what_is_not_finite_stays_in_its_row() -> None:
    x, packs, ids = batch()
    clean = delta_linear(x, None, packs, ids)
    for value in (math.nan, math.inf, -math.inf):
        broken = x.clone()
        rows = torch.arange(0, len(ids), 2)
        broken[rows, 5] = value
        found = delta_linear(broken, None, packs, ids)
        touched = torch.zeros(len(ids), dtype=torch.bool)
        touched[rows] = True
        assert torch.equal(found[~touched], clean[~touched])
        with_pack = touched & (ids >= 0) & (ids != len(packs) - 1)
        assert not found[with_pack].isfinite().any()
        assert torch.equal(found[touched & ~with_pack], clean[touched & ~with_pack])


def test_views_and_unaligned_memory() -> None:
    pack = quantized(20, 50, "sign", 1)
    ids = torch.zeros(6, dtype=torch.long)
    x, weight = noise(6, 50), noise(20, 50)
    wanted = delta_linear(x, weight, [pack], ids)
    assert torch.equal(delta_linear(x.T.contiguous().T, weight, [pack], ids), wanted)
    memory = torch.zeros(pack.codes.numel() + 3, dtype=torch.uint8)
    memory[3:] = pack.codes.view(-1)
    moved = PackedDelta(
        pack.format, pack.shape, memory[3:].view(pack.codes.shape), pack.scales, None, pack.scale_exp
    )
    assert torch.equal(delta_linear(x, weight, [moved], ids), wanted)


def test_the_codes_behind_the_last_column_are_not_looked_at() -> None:
    pack = quantized(3, 13, "asym", 2, 8)
    wanted = delta_linear(torch.ones(1, 13), None, [pack], torch.zeros(1, dtype=torch.long))
    pack.codes[:, -1] |= 0xFC
    assert torch.equal(
        delta_linear(torch.ones(1, 13), None, [pack], torch.zeros(1, dtype=torch.long)), wanted
    )


def test_compiles_and_has_no_gradient(device: str) -> None:
    packs = [quantized(20, 50, "sign", 1).to(device), low_rank(20, 50, 2).to(device)]
    x, weight = (noise(*size).to(device).requires_grad_() for size in ((3, 50), (20, 50)))
    ids = torch.tensor([0, 1, -1], device=device)
    listed = PackList(packs)

    def layer(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        return delta_linear(x, weight, listed, ids, scales=[0.5, 2.0]) + 1

    wanted = layer(x, weight, ids)
    assert not wanted.requires_grad
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, ids), wanted)


def test_a_list_of_packs_is_checked_once() -> None:
    packs = [quantized(4, 9, "sign", 1), None]
    listed = PackList(packs)
    assert (listed.shape, len(listed)) == ((4, 9), 2)
    x, ids = noise(2, 9), torch.tensor([0, 1])
    assert torch.equal(delta_linear(x, None, listed, ids), delta_linear(x, None, packs, ids))
    assert PackList([None]).shape is None


def test_bad_arguments() -> None:
    pack = quantized(5, 8, "sign", 1)
    x, weight, ids = torch.ones(3, 8), torch.ones(5, 8), torch.tensor([0, -1, 0])

    def refused(kind: type[Exception], message: str, *arguments: object, **more: object) -> None:
        with pytest.raises(kind, match=f"delta_linear: {message}"):
            delta_linear(*arguments, **more)  # type: ignore[arg-type]

    for wrong in (-2, 1):
        broken = torch.tensor([0, wrong, 0])
        refused(ValueError, rf"ids must be in \[-1, 1\), .* got {wrong}", x, weight, [pack], broken)
        with pytest.raises(ValueError, match="ids must be in"):
            by_reference(x, weight, [pack], broken, torch.ones(3))
    refused(
        TypeError,
        "x must be one of float16, bfloat16, float32, got torch.float64",
        x.double(),
        weight,
        [pack],
        ids,
    )
    refused(ValueError, r"x must have two dimensions, got shape \(8,\); reshape", x[0], weight, [pack], ids)
    refused(TypeError, "weight must be one of float32, got torch.bfloat16", x, weight.bfloat16(), [pack], ids)
    refused(TypeError, "x must be a torch.Tensor, got list", [1.0], weight, [pack], ids)
    refused(
        ValueError,
        r"weight must have the 8 columns of x, \[O, I\], got shape \(5, 7\)",
        x,
        weight[:, :7],
        [],
        ids,
    )
    refused(
        ValueError,
        r"weight must have the shape of the packs, \(5, 8\), got \(4, 8\)",
        x,
        weight[:4],
        [pack],
        ids,
    )
    refused(ValueError, "weight must have 2 dimensions", x, weight[0], [pack], ids)
    refused(ValueError, "weight must be given where no pack is", x, None, [None], ids)
    refused(ValueError, "packs must have the 7 columns of x", x[:, :7], None, [pack], ids)
    refused(
        TypeError, r"packs\[0\] must be a PackedDelta, a LowRankPack or None, got str", x, weight, ["a"], ids
    )
    other = quantized(5, 9, "sign", 1)
    refused(ValueError, r"packs\[1\] must have the shape of the packs before", x, weight, [pack, other], ids)
    refused(ValueError, "give either ids, .* or indptr", x, weight, [pack])
    refused(ValueError, "give either ids, .* or indptr", x, weight, [pack], ids, indptr=torch.tensor([0, 3]))
    refused(ValueError, "ids must be one-dimensional of 3 elements", x, weight, [pack], ids[:2])
    refused(TypeError, "ids must be one of int32, int64, got torch.float32", x, weight, [pack], ids.float())
    for given in ([0, 2], [1, 3], [0, 4], [3, 0]):
        indptr = torch.tensor(given)
        refused(
            ValueError,
            r"indptr must go from 0 to the 3 rows of x and never down",
            x,
            weight,
            [pack],
            indptr=indptr,
        )
    two = torch.tensor([0, 4, 3])
    refused(ValueError, r"indptr must go from 0", x, weight, [pack, pack], indptr=two)
    refused(ValueError, "indptr must be one-dimensional of 2 elements", x, weight, [pack], indptr=two)
    refused(
        ValueError,
        r"bias must have shape \(5,\) or \(3, 5\), got \(4,\)",
        x,
        weight,
        [pack],
        ids,
        bias=torch.ones(4),
    )
    refused(TypeError, "bias must be one of float32", x, weight, [pack], ids, bias=torch.ones(5).half())
    refused(ValueError, "scales must be 1 numbers", x, weight, [pack], ids, scales=[1.0, 2.0])
    refused(ValueError, r"scales\[0\] must be finite", x, weight, [pack], ids, scales=[math.inf])
    refused(
        ValueError, "scales must be finite", x, weight, [pack], ids, scales=torch.tensor([1.0, math.nan, 1.0])
    )
    refused(TypeError, "scales must be one of float32", x, weight, [pack], ids, scales=torch.ones(3).double())
    meta = PackedDelta.empty(pack.format, 5, 8, "meta")
    refused(ValueError, "packs must be on the device of x, cpu, got meta", x, weight, [meta], ids)
    refused(
        ValueError,
        r"packs\[1\].codes must be on the device of the packs before",
        x,
        weight,
        [pack, meta],
        ids,
    )


def test_dense_forms_of_the_cases() -> None:
    """The oracle itself: a pack's matrix is what its product with unit vectors gives."""
    for pack in (quantized(6, 20, "asym", 3, 8), low_rank(6, 20, 3)):
        units = delta_linear(torch.eye(20), None, [pack], torch.zeros(20, dtype=torch.int32)).T
        assert_close("delta_linear", units, dense(pack, (6, 20)))
