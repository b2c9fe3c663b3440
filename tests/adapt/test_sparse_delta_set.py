"""Several sparse deltas on one model: in any order, switched, and taken back when something fails."""

from __future__ import annotations

import itertools
import signal
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftwork.adapt import DeltaSet, SparseDelta, compose
from graftwork.adapt.deltas import weight_group
from graftwork.errors import BaseMismatch
from tests.adapt.deltas import (
    SHAPES,
    base_state,
    bits,
    cloned,
    expected,
    mixed_state,
    random_delta,
    with_head,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def test_several_deltas_go_in_any_order() -> None:
    base = base_state(torch.bfloat16)
    deltas = [random_delta(base, seed, density=0.3) for seed in range(3)]
    for order in itertools.permutations(range(3)):
        model = cloned(base)
        handles = [delta.apply_(model, 0.5 + i) for i, delta in enumerate(deltas)]
        assert bits(model) == bits(expected(base, {delta: 0.5 + i for i, delta in enumerate(deltas)}))
        left = {i: 0.5 + i for i in range(3)}
        for number in order:
            handles[number].revert_()
            del left[number]
            assert bits(model) == bits(expected(base, {deltas[i]: scale for i, scale in left.items()}))
        assert bits(model) == bits(base)


def test_applied_together_or_composed() -> None:
    base = base_state(torch.bfloat16)
    one, other = random_delta(base, 1), random_delta(base, 2)
    model, composed = cloned(base), cloned(base)
    handles = one.apply_(model, 0.5), other.apply_(model, -2.0)
    with compose([one, other], [0.5, -2.0]).applied(composed):
        assert bits(model) == bits(composed)
    assert all(handle.is_applied for handle in handles)


@given(
    steps=st.lists(
        st.dictionaries(st.integers(0, 3), st.sampled_from([1.0, 0.5, -1.0]), max_size=3),
        min_size=1,
        max_size=6,
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_switching(steps: list[dict[int, float]], dtype: torch.dtype) -> None:
    base = base_state(dtype)
    deltas = [
        random_delta({name: base[name] for name in names}, seed)
        for seed, names in enumerate(
            [
                list(SHAPES),
                ["embed.weight"],
                ["scalar", "layers.0.weight"],
                ["layers.1.weight", "embed.weight"],
            ]
        )
    ]
    model = cloned(base)
    active = DeltaSet(model)
    for step in steps:
        wanted = {deltas[number]: scale for number, scale in step.items()}
        active.set_(wanted)
        assert active.active == wanted
        assert bits(model) == bits(expected(base, wanted))
    active.clear_()
    assert bits(model) == bits(base)


def test_a_switch_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_state()
    one, other = random_delta(base, 1), random_delta(base, 2)
    model = cloned(base)
    active = DeltaSet(model)
    calls = []
    inner = weight_group.swap_values_
    monkeypatch.setattr(weight_group, "swap_values_", lambda *args: calls.append(args) or inner(*args))
    active.set_([one])
    active.set_([other])
    assert len(calls) == 2 and bits(model) == bits(expected(base, {other: 1.0}))
    active.set_([other])
    assert len(calls) == 2, "nothing changes"
    active.set_({other: 2.0})
    assert len(calls) == 3 and bits(model) == bits(expected(base, {other: 2.0}))


def test_digests_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_state()
    one, other = random_delta(base, 1), random_delta(base, 2)
    model = cloned(base)
    calls: list[Any] = []
    inner = weight_group._digest
    monkeypatch.setattr(weight_group, "_digest", lambda tensor: calls.append(tensor) or inner(tensor))
    active = DeltaSet(model)
    for _ in range(3):
        active.set_([one])
        active.set_([other])
        active.clear_()
    assert len(calls) == 4, "once for each tensor"
    model["embed.weight"][0, 0] += 1
    with pytest.raises(BaseMismatch, match="not what the delta was made against"):
        active.set_([one])


def test_tensors_in_full_of_two_deltas() -> None:
    base = base_state()
    one, other = with_head(base, head=torch.ones(3)), with_head(base, head=torch.zeros(3))
    model = {**cloned(base), "head": torch.full((3,), 5.0)}
    before = bits(model)
    with one.applied(model, with_full=True):
        with pytest.raises(ValueError, match="in full"):
            other.apply_(model, with_full=True)
        with other.applied(model):
            assert torch.equal(model["head"], torch.ones(3))
        head = SparseDelta.from_changes({"head": (torch.tensor([0]), torch.ones(1))}, model)
        with pytest.raises(ValueError, match="in full"):
            head.apply_(model)
    assert bits(model) == before


def test_writing_to_a_model_under_a_delta() -> None:
    base = base_state()
    delta = random_delta(base, 1)
    model = cloned(base)
    handle = delta.apply_(model)
    model["layers.0.weight"].add_(1)
    for act in (handle.revert_, lambda: handle.set_scale_(2.0), lambda: random_delta(base, 2).apply_(model)):
        with pytest.raises(BaseMismatch, match="written to") as caught:
            act()
        assert caught.value.tensor == "layers.0.weight"
    handle.revert_(force=True)
    touched = delta.changes("layers.0.weight")[0].long()
    wanted = base["layers.0.weight"] + 1
    got = model["layers.0.weight"].view(-1)
    assert torch.equal(got[touched], base["layers.0.weight"].view(-1)[touched])
    rest = torch.ones(got.numel(), dtype=torch.bool)
    rest[touched] = False
    assert torch.equal(got[rest], wanted.view(-1)[rest])


def test_a_model_that_moves_under_a_delta() -> None:
    model = nn.Linear(4, 3)
    delta = random_delta(cloned(model.state_dict()), 1)
    active = DeltaSet(model)
    active.add_(delta)
    model.half()
    with pytest.raises(BaseMismatch, match="moved or converted"):
        active.clear_(force=True)
    other = nn.Linear(4, 3)
    weights = cloned(other.state_dict())
    delta = random_delta(weights, 1)
    active = DeltaSet(other)
    active.set_([delta])
    active.clear_()
    other.weight.data = other.weight.data.clone()
    active.set_([delta])
    assert bits(other.state_dict()) == bits(expected(weights, {delta: 1.0}))


def test_sets_of_one_model() -> None:
    base = base_state()
    one, other = random_delta(base, 1), random_delta(base, 2)
    model = cloned(base)
    first, second = DeltaSet(model), DeltaSet(model)
    first.add_(one)
    with pytest.raises(ValueError, match="another DeltaSet"):
        second.add_(other, check_base=False)
    joined = other.apply_(model)
    assert first.active == {one: 1.0, other: 1.0}
    first.clear_()
    assert not joined.is_applied
    second.add_(other)
    with pytest.raises(ValueError, match="not on the model"):
        second.remove_(one)
    parts = {name: {name: tensor} for name, tensor in cloned(base).items() if tensor.numel()}
    handles = [random_delta({name: base[name]}, 3).apply_(part) for name, part in parts.items()]
    with pytest.raises(ValueError, match="applied apart"):
        one.apply_({name: part[name] for name, part in parts.items()} | {"nothing": base["nothing"]})
    assert len(handles) == 4


class Fault(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failure_is_taken_back(at: int, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = mixed_state()
    one, other = random_delta(base, 1), random_delta(base, 2)
    model = cloned(base)
    active = DeltaSet(model)
    active.set_([one])
    before = bits(model)
    inner = weight_group.WeightGroup.become
    calls = itertools.count()

    def become(self: weight_group.WeightGroup, plan: weight_group.Plan) -> None:
        fails = next(calls) == at
        if fails and when == "before":
            raise Fault
        inner(self, plan)
        if fails:
            raise Fault

    monkeypatch.setattr(weight_group.WeightGroup, "become", become)
    for change in (lambda: active.set_([other]), lambda: active.add_(other), active.clear_):
        calls = itertools.count()
        with pytest.raises(Fault):
            change()
        assert bits(model) == before and active.active == {one: 1.0}
    monkeypatch.undo()
    active.clear_()
    assert bits(model) == bits(base)


def test_an_interrupt_leaves_the_base_or_the_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    base = mixed_state()
    one, other = random_delta(base, 1), random_delta(base, 2)
    model = cloned(base)
    inner = weight_group.swap_values_

    def swap(*args: Any) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        return inner(*args)

    monkeypatch.setattr(weight_group, "swap_values_", swap)
    with pytest.raises(KeyboardInterrupt):
        one.apply_(model)
    assert bits(model) == bits(base), "nobody has a handle"
    active = DeltaSet(model)
    with pytest.raises(KeyboardInterrupt):
        active.set_([one])
    assert active.active == {one: 1.0} and bits(model) == bits(expected(base, {one: 1.0}))
    with pytest.raises(KeyboardInterrupt):
        active.set_([other])
    assert bits(model) == bits(expected(base, {other: 1.0}))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_exception_in_the_block_takes_the_delta_off() -> None:
    base = base_state()
    model = cloned(base)
    with pytest.raises(Fault), random_delta(base, 1).applied(model) as handle:
        raise Fault
    assert bits(model) == bits(base)
    with random_delta(base, 1).applied(model) as handle:
        handle.revert_()
    assert bits(model) == bits(base)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads(threads: int) -> None:
    base = {"w": torch.randn(300_000), "v": torch.randn(99_999)}
    one, other = random_delta(base, 1, 0.5), random_delta(base, 2, 0.5)
    model = cloned(base)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with one.applied(model), other.applied(model, 0.5):
            assert bits(model) == bits(expected(base, {one: 1.0, other: 0.5}))
    finally:
        torch.set_num_threads(before)
    assert bits(model) == bits(base)
