"""Sparse packs: which entries are kept, their values, and adding them."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from graftwork.ops import thread_limit
from graftwork.ops.merge import philox_uniform
from graftwork.ops.quantized_delta import PackedDelta, SparsePack, sparse, sparse_add_, sparse_quant
from graftwork.reference.quantized_delta import sparse as reference
from tests.ops.quantized_delta.quantized_cases import DTYPES, SHAPES, matrices

RULES = [(reference.THRESHOLD, 1e-3, 0), (reference.TWO_OF_FOUR, 0.0, 0), (reference.DRAWN, 0.0, 1 << 22)]
MODES = [("topk", 0.2), ("threshold", 1e-3), ("2:4", None), ("dare", 0.3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rule", "least", "below"), RULES)
def test_sets_against_the_reference(
    rule: int, least: float, below: int, dtype: torch.dtype, device: str
) -> None:
    for shape in [*SHAPES, (70, 4100)]:
        base, tuned = matrices(shape, dtype)
        for under in (base, None):
            arguments = tuned, under, rule, least, 7, 1 << 31, below
            there = [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]
            bitmap, count = torch.ops.graftwork.mark_kept(*there)
            wanted, wanted_count = reference.mark_kept(*arguments)
            assert torch.equal(bitmap.cpu(), wanted)
            assert int(count) == int(wanted_count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_each_mode_keeps(dtype: torch.dtype, device: str) -> None:
    base, tuned = matrices((33, 100), dtype)
    delta = tuned.float() - base.float()
    kept = {
        mode: sparse_quant(tuned.to(device), base.to(device), mode=mode, keep=keep, seed=(3, 4))
        .indices()
        .long()
        .cpu()
        for mode, keep in MODES
    }
    assert torch.equal(
        kept["topk"], delta.view(-1).abs().sort(descending=True, stable=True).indices[:660].sort().values
    )
    assert torch.equal(kept["threshold"], (delta.abs() >= 1e-3).view(-1).nonzero().view(-1))
    assert torch.equal(kept["dare"], (philox_uniform((3, 4), 0, 3300) < 0.3).nonzero().view(-1))
    groups = torch.zeros(3300).index_fill_(0, kept["2:4"], 1).view(-1, 4)
    assert (groups.sum(1) == 2).all()
    least = delta.abs().view(-1, 4).where(groups > 0, math.inf).amin(1)
    assert (delta.abs().view(-1, 4).where(groups == 0, 0).amax(1) <= least).all()


def test_equal_magnitudes_are_taken_in_their_order() -> None:
    ones = torch.tensor([[1.0, -1, 1, -1], [0, 0, 0, 0]])
    assert sparse_quant(ones, None, mode="2:4").indices().tolist() == [0, 1, 4, 5]
    assert sparse_quant(ones, None, mode="topk", keep=3).indices().tolist() == [0, 1, 2]
    last = torch.tensor([[1.0, 2, 3, 4, 5], [5, 4, 3, 2, -1]])
    assert sparse_quant(last, None, mode="2:4").indices().tolist() == [2, 3, 4, 5, 6, 9]


@pytest.mark.parametrize("mode", ["topk", "threshold", "2:4", "dare"])
@pytest.mark.parametrize("value", ["fp16", "int8", "sign"])
def test_values(mode: str, value: str, device: str) -> None:
    base, tuned = matrices((33, 100), torch.float32)
    delta = (tuned - base) * 1e-4  # below what halves hold without their power of two
    keep = 1e-7 if mode == "threshold" else dict(MODES)[mode]
    pack = sparse_quant(delta.to(device), None, mode=mode, keep=keep, value=value, rescale="none")
    indices = pack.indices().long().cpu()
    kept = delta.view(-1)[indices]
    error = (pack.floats().cpu() - kept).norm() / kept.norm()
    assert error < {"fp16": 2.0**-11, "int8": 0.01, "sign": 0.65}[value]
    dense = pack.dense().cpu().view(-1)
    assert torch.equal(dense[indices], pack.floats().cpu())
    assert dense.count_nonzero() == pack.floats().count_nonzero()
    assert pack.nbytes == pack.index.nbytes + pack.values.nbytes
    assert isinstance(pack.values, PackedDelta) == (value != "fp16")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["topk", "dare"])
def test_adding(dtype: torch.dtype, mode: str, device: str) -> None:
    for shape in SHAPES:
        base, tuned = matrices(shape, dtype)
        pack = sparse_quant(tuned.to(device), base.to(device), mode=mode, keep=0.4)
        weights = base.to(device, copy=True)
        assert sparse_add_(weights, pack, 0.5) is weights
        assert torch.equal(weights.cpu(), (base.float() + 0.5 * pack.dense().cpu()).to(dtype))
        untouched = base.to(device, copy=True)
        assert torch.equal(sparse_add_(untouched, pack, 0.0).cpu(), base)


def test_all_kept_as_halves_is_the_fine_tune_but_for_their_rounding() -> None:
    base, tuned = matrices((20, 60), torch.bfloat16)
    for mode in ("topk", "dare"):
        pack = sparse_quant(tuned, base, mode=mode, keep=1.0)
        assert pack.count == 1200
        delta = tuned.float() - base.float()
        assert (pack.dense() - delta).abs().max() <= delta.abs().max() * 2.0**-11
        assert torch.equal(sparse_add_(base.clone(), pack), (base.float() + pack.dense()).bfloat16())


def test_only_the_kept_are_touched() -> None:
    weights = torch.full((4, 25), math.nan)
    pack = sparse_quant(torch.ones(4, 25), None, mode="dare", keep=0.5, seed=9)
    weights.view(-1)[pack.indices().long()] = 0
    sparse_add_(weights, pack)
    assert int(weights.isfinite().sum()) == pack.count
    assert (weights[weights.isfinite()] == 2).all()


def test_dare_is_regenerated_and_keeps_the_sum() -> None:
    """No index is stored; a share p is kept; rescaling keeps what is expected, or the sum of magnitudes."""
    delta = torch.ones(500, 400)
    pack = sparse_quant(delta, None, mode="dare", keep=0.1, seed=(1 << 32) - 1)
    assert pack.codec == "drawn"
    assert pack.index.numel() == 0
    assert pack.count / 200_000 == pytest.approx(0.1, abs=0.003)
    assert pack.dense().mean().item() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(pack.floats(), torch.full((pack.count,), 10.0), rtol=1e-3, atol=0)
    exact = sparse_quant(delta, None, mode="dare", keep=0.1, rescale="l1")
    assert exact.dense().abs().sum().item() == pytest.approx(200_000, rel=1e-3)
    assert (
        sparse_quant(delta, None, mode="dare", keep=0.1, seed=1).indices()[:9].tolist()
        == (philox_uniform((1, 0), 0, 1000) < 0.1).nonzero().view(-1)[:9].tolist()
    )
    wide = sparse_quant(delta, None, mode="dare", keep=0.1, seed=(5 << 32) + 7)
    assert wide.key == (7, 5)


def test_threads_do_not_change_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    base, tuned = matrices((150, 5000), torch.bfloat16)
    for mode, keep in MODES:
        results = []
        for threads in (1, 2, 7):
            with thread_limit(threads):
                pack = sparse_quant(tuned, base, mode=mode, keep=keep, value="int8")
                results.append([pack.index, pack.values.codes, pack.values.scales, pack.indices()])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_more_than_two_to_the_31_elements() -> None:
    weights = torch.from_numpy(np.zeros(((1 << 16) + 1, 1 << 15), np.int16)).view(torch.bfloat16)
    last = weights.numel() - 1
    weights[-1, -1], weights[0, 1] = 3.0, -2.0
    pack = sparse_quant(weights, None, mode="threshold", keep=1.0)
    assert pack.indices().tolist() == [1, last]
    sparse_add_(weights, pack, -1.0)
    assert weights[-1, -1] == weights[0, 1] == 0


@pytest.mark.parametrize("mode", ["topk", "threshold", "2:4", "dare"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(mode: str, bad: float, device: str) -> None:
    base, tuned = matrices((20, 300), torch.bfloat16)
    tuned[3, 17] = bad
    message = (
        "topk_absdiff: .* has a NaN"
        if mode == "topk" and math.isnan(bad)
        else r"sparse_quant: .*at \[3, 17\]"
    )
    with pytest.raises(ValueError, match=message):
        sparse_quant(tuned.to(device), base.to(device), mode=mode, keep=dict(MODES)[mode])


SOME = torch.ones(3, 8)
PACK = sparse_quant(SOME, None, mode="topk", keep=4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sparse_quant(SOME[0], None, mode="2:4"), ValueError, "tuned must have two dimensions"),
        (lambda: sparse_quant(SOME, SOME[:2], mode="2:4"), ValueError, "base must have the shape of tuned"),
        (
            lambda: sparse_quant(SOME, None, mode="top"),
            ValueError,
            "mode must be one of 'topk', .*, got 'top'",
        ),
        (
            lambda: sparse_quant(SOME, None, mode="2:4", value="fp8"),
            ValueError,
            "value must be one of 'fp16'",
        ),
        (lambda: sparse_quant(SOME, None, mode="2:4", rescale="l2"), ValueError, "rescale must be one of"),
        (lambda: sparse_quant(SOME, None, mode="2:4", keep=0.5), ValueError, 'keep must be None for "2:4"'),
        (
            lambda: sparse_quant(SOME, None, mode="topk", keep=25),
            ValueError,
            r"or a number in \[0, 24\], got 25",
        ),
        (lambda: sparse_quant(SOME, None, mode="topk", keep=1.5), ValueError, r"a share in \[0, 1\]"),
        (lambda: sparse_quant(SOME, None, mode="topk"), ValueError, "got None"),
        (lambda: sparse_quant(SOME, None, mode="topk", keep=True), ValueError, "got True"),
        (
            lambda: sparse_quant(SOME, None, mode="threshold", keep=-1.0),
            ValueError,
            "must be at least 0 and finite",
        ),
        (
            lambda: sparse_quant(SOME, None, mode="threshold", keep=math.inf),
            ValueError,
            "at least 0 and finite",
        ),
        (
            lambda: sparse_quant(SOME, None, mode="dare", keep=0.0),
            ValueError,
            r"a probability in \(0, 1\], got 0.0",
        ),
        (lambda: sparse_quant(SOME, None, mode="dare"), ValueError, "a probability"),
        (
            lambda: sparse_quant(SOME, None, mode="dare", keep=0.5, seed=-1),
            ValueError,
            r"seed must be a number in",
        ),
        (lambda: sparse_quant(SOME, None, mode="dare", keep=0.5, seed=(1, 2, 3)), ValueError, "two words"),
        (
            lambda: sparse_add_(SOME[:2], PACK),
            ValueError,
            r"weights must have the shape of the pack, \(3, 8\)",
        ),
        (lambda: sparse_add_(SOME, SOME), TypeError, "pack must be a SparsePack, got Tensor"),
        (lambda: sparse_add_(torch.ones(8, 3).t(), PACK), ValueError, "weights is written in place"),
        (lambda: sparse_add_(SOME, PACK, math.nan), ValueError, "scale must be finite, got nan"),
        (lambda: sparse_add_(SOME.to("meta"), PACK), ValueError, "weights must be on the device of the pack"),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_damaged_pack_is_noticed() -> None:
    damaged = SparsePack(PACK.shape, PACK.codec, PACK.index, PACK.values[:3])
    with pytest.raises(ValueError, match="decode_indices"):
        sparse_add_(SOME.clone(), damaged)
    drawn = sparse_quant(SOME, None, mode="dare", keep=0.5)
    damaged = SparsePack(drawn.shape, drawn.codec, drawn.index, drawn.values[:-1], 0, drawn.key, drawn.below)
    with pytest.raises(ValueError, match="decode_indices"):
        damaged.indices()


def test_examples() -> None:
    assert doctest.testmod(sparse, extraglobs={"torch": torch}).failed == 0
