"""Sparse deltas on models: put on, several at once, taken off to the last bit, and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.adapt import AppliedDelta, DeltaSet, SparseDelta
from graftwork.errors import BaseMismatch, CheckpointError, DeltaError
from tests.adapt.deltas import (
    State,
    Tied,
    base_state,
    bits,
    cloned,
    expected,
    mixed_state,
    random_delta,
    with_head,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, -0.3, 0.0])
def test_on_and_off(dtype: torch.dtype, scale: float, device: str) -> None:
    base = base_state(dtype)
    delta = random_delta(base, 1)
    model = {name: tensor.to(device) for name, tensor in cloned(base).items()}
    objects = {name: id(tensor) for name, tensor in model.items()}
    handle = delta.apply_(model, scale)
    assert isinstance(handle, AppliedDelta) and handle.is_applied and handle.delta is delta
    assert bits(model) == bits(expected(base, {delta: scale}))
    handle.revert_()
    assert bits(model) == bits(base) and not handle.is_applied
    assert objects == {name: id(tensor) for name, tensor in model.items()}
    with pytest.raises(ValueError, match="not on the model"):
        handle.revert_()


def test_tensors_of_several_dtypes() -> None:
    base = mixed_state()
    delta = random_delta(base, 1)
    model = cloned(base)
    with delta.applied(model, 0.7):
        assert bits(model) == bits(expected(base, {delta: 0.7}))
    assert bits(model) == bits(base)


def test_special_words_come_back() -> None:
    for dtype in DTYPES:
        words = torch.tensor([-0.0, 0.0, torch.inf, -torch.inf, torch.nan, 1e-7, -1e-7, 6e4], dtype=dtype)
        base = {"w": words}
        delta = SparseDelta.from_changes({"w": (torch.arange(8), torch.full((8,), 1e5))}, base)
        model = cloned(base)
        with delta.applied(model):
            wanted = expected(base, {delta: 1.0})["w"]  # NaN stays NaN; which one is not said
            torch.testing.assert_close(model["w"], wanted, rtol=0, atol=0, equal_nan=True)
        assert bits(model) == bits(base)


def test_the_scale_of_a_handle() -> None:
    base = base_state(torch.bfloat16)
    one, other = random_delta(base, 1), random_delta(base, 2)
    model = cloned(base)
    handle = one.apply_(model)
    with other.applied(model):
        handle.set_scale_(0.25)
        assert handle.scale == 0.25 and bits(model) == bits(expected(base, {one: 0.25, other: 1.0}))
    handle.revert_()
    assert bits(model) == bits(base)
    for scale in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite"):
            one.apply_(model, scale)


def test_modules() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    base = cloned(model.state_dict())
    delta = random_delta(base, 1)
    versions = {name: p._version for name, p in model.named_parameters()}
    inputs = torch.ones(3, 7)
    before = model.eval()(inputs)
    with delta.applied(model):
        assert bits(model.state_dict()) == bits(expected(base, {delta: 1.0}))
        after = model(inputs)
        after.sum().backward()
        assert all(p._version > versions[name] for name, p in model.named_parameters()), "autograd notices"
    assert bits(model.state_dict()) == bits(base)
    assert not torch.equal(before, after) and torch.equal(before, model(inputs))


def test_inference_tensors() -> None:
    with torch.inference_mode():
        base = base_state()
        model = cloned(base)
    delta = random_delta(base, 1)
    delta = SparseDelta(delta.tensors, delta.support, delta.values, full={"scalar2": torch.tensor(3.0)})
    with torch.inference_mode():
        model["scalar2"] = torch.tensor(1.0)
    with delta.applied(model, with_full=True):
        assert bits(model) == bits({**expected(base, {delta: 1.0}), "scalar2": torch.tensor(3.0)})
    assert bits(model) == bits({**base, "scalar2": torch.tensor(1.0)})


def test_tied_weights() -> None:
    model = Tied()
    base = cloned(model.state_dict())
    some = random_delta({"embed.weight": base["embed.weight"]}, 1).changes("embed.weight")
    with pytest.raises(DeltaError, match="of one tensor"):
        SparseDelta.from_changes({"embed.weight": some, "head.weight": some}, model)
    delta = SparseDelta.from_changes({"embed.weight": some}, model)
    assert delta.tied == {"head.weight": "embed.weight"}
    with delta.applied(model):
        assert bits(model.state_dict()) == bits(
            expected(base, {delta: 1.0}) | {"head.weight": expected(base, {delta: 1.0})["embed.weight"]}
        )
    apart = Tied(tied=False)
    apart.load_state_dict(base)
    with delta.applied(apart):
        assert torch.equal(apart.head.weight, apart.embed.weight)
        assert not torch.equal(apart.head.weight, base["head.weight"])
    assert bits(apart.state_dict()) == bits(base)
    with delta.applied({"head.weight": base["head.weight"]}):
        pass


def test_tensors_that_are_apart_in_the_delta_and_tied_in_the_model() -> None:
    apart = {"a": torch.zeros(4), "b": torch.zeros(4)}
    one = torch.zeros(4)
    model = {"a": one, "b": one}
    same = SparseDelta.from_changes(dict.fromkeys("ab", (torch.tensor([1]), torch.ones(1))), apart)
    with same.applied(model):
        assert one.tolist() == [0, 1, 0, 0]
    other = SparseDelta.from_changes(
        {"a": (torch.tensor([1]), torch.ones(1)), "b": (torch.tensor([2]), torch.ones(1))}, apart
    )
    with pytest.raises(BaseMismatch, match="untie"):
        other.apply_(model)
    assert not one.any()


REFUSED: list[tuple[Callable[[State], Any], type[Exception], str, dict[str, Any]]] = [
    (lambda m: m.pop("embed.weight"), BaseMismatch, "lack", {}),
    (lambda m: m.update({"embed.weight": torch.zeros(65, 32)}), BaseMismatch, "resize_token_embeddings", {}),
    (lambda m: m.update({"embed.weight": m["embed.weight"].half()}), BaseMismatch, "another dtype", {}),
    (lambda m: m.update({"embed.weight": m["embed.weight"].long()}), BaseMismatch, "dequantise", {}),
    (
        lambda m: m.update({"embed.weight": m["embed.weight"].double()}),
        BaseMismatch,
        "dequantise",
        {"check_base": False},
    ),
    (lambda m: m["embed.weight"].view(-1)[:1].add_(1), BaseMismatch, "check_base=False", {}),
    (
        lambda m: m.update({"embed.weight": m["embed.weight"].mT.contiguous().mT}),
        CheckpointError,
        "contiguous",
        {},
    ),
    (lambda m: m.update({"embed.weight": torch.zeros(1).expand(64, 32)}), CheckpointError, "overlap", {}),
    (lambda m: m.update({"embed.weight": torch.zeros(64, 32, device="meta")}), CheckpointError, "dense", {}),
]


@pytest.mark.parametrize(("change", "error", "message", "how"), REFUSED)
def test_models_that_a_delta_is_not_for(
    change: Callable[[State], Any], error: type[Exception], message: str, how: dict[str, Any]
) -> None:
    base = base_state()
    delta = random_delta(base, 1)
    model = cloned(base)
    change(model)
    before = bits({name: tensor for name, tensor in model.items() if not tensor.is_meta})
    with pytest.raises(error, match=message) as caught:
        delta.apply_(model, **how)
    assert caught.value.tensor == "embed.weight"
    assert before == bits({name: tensor for name, tensor in model.items() if not tensor.is_meta})


def test_a_name_that_is_nearly_right() -> None:
    base = base_state()
    delta = random_delta(base, 1).renamed(lambda name: "bert." + name)
    with pytest.raises(BaseMismatch, match=r"nearest name is embed\.weight"):
        delta.apply_(base)
    with delta.renamed(lambda name: name.removeprefix("bert.")).applied(base):
        pass


def test_tensors_that_share_part_of_their_memory() -> None:
    memory = torch.zeros(10)
    model = {"a": memory[:6], "b": memory[4:]}
    delta = SparseDelta.from_changes(
        {"a": (torch.tensor([0]), torch.ones(1)), "b": (torch.tensor([0]), torch.ones(1))}, cloned(model)
    )
    with pytest.raises(CheckpointError, match="share part"):
        delta.apply_(model)
    one = SparseDelta.from_changes({"a": (torch.tensor([0]), torch.ones(1))}, cloned(model))
    other = SparseDelta.from_changes({"b": (torch.tensor([0]), torch.ones(1))}, cloned(model))
    active = DeltaSet(model)
    active.add_(one)
    with pytest.raises(CheckpointError, match="share part"):
        active.add_(other)


def test_other_weights_on_purpose() -> None:
    base = base_state()
    delta = random_delta(base, 1)
    other = base_state(torch.bfloat16, seed=9)
    model = cloned(other)
    with delta.applied(model, check_base=False):
        assert bits(model) == bits(expected(other, {delta: 1.0}))
    assert bits(model) == bits(other)


def test_the_same_delta_twice() -> None:
    base = base_state()
    delta = random_delta(base, 1)
    model = cloned(base)
    handle = delta.apply_(model)
    with pytest.raises(ValueError, match="set_scale_"):
        delta.apply_(model)
    handle.revert_()
    delta.apply_(model)
    gc.collect()
    with pytest.raises(BaseMismatch):
        delta.apply_(model)  # nobody can take the first one off any more


def test_tensors_without_digests_are_not_checked() -> None:
    base = base_state()
    delta = random_delta(base, 1)
    unknown = SparseDelta(
        [type(t)(t.name, t.shape, t.dtype) for t in delta.tensors], delta.support, delta.values
    )
    model = base_state(seed=5)
    with unknown.applied(model):
        assert bits(model) == bits(expected(base_state(seed=5), {delta: 1.0}))


def test_tensors_in_full() -> None:
    base = base_state()
    delta = with_head(base, head=torch.full((2, 3), 7.0), count=torch.tensor([4]))
    model = {**cloned(base), "head": torch.zeros(3, 2).mT, "count": torch.tensor([1])}
    before = bits(model)
    with delta.applied(model):
        assert not model["head"].any()
    with delta.applied(model, 0.5, with_full=True) as handle:
        assert bits(model) == bits({**expected(base, {delta: 0.5}), **delta.full})
        handle.set_scale_(2.0)
        with random_delta(base, 2).applied(model):
            assert torch.equal(model["head"], delta.full["head"])
    assert bits(model) == before
    for wrong, message in (
        (cloned(base), "with_full=False"),
        ({**model, "head": torch.zeros(3)}, "does not fit"),
        ({**model, "head": torch.zeros(2, 3).half()}, "does not fit"),
    ):
        with pytest.raises(BaseMismatch, match=message):
            delta.apply_(wrong, with_full=True)
        assert bits(wrong)["embed.weight"] == bits(base)["embed.weight"]
