"""Optimizer steps on the tuned weights: the reference's bits, for every size, format and option, thread and level."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.ops import isa_level, thread_limit
from graftwork.ops.sparse_update import Support, gather_gradients, sparse_sm3_
from tests.generators.supports import FORMATS, NUMELS, random_tensors, some_support, supports
from tests.native.test_isa_levels import LEVELS, run
from tests.ops.sparse_update.step_cases import EVERYTHING, STEPS, State, copied, make_state, same_state


def by_reference(monkeypatch: pytest.MonkeyPatch, run: Callable[[], None]) -> None:
    """Run doors with the native core away."""
    with monkeypatch.context() as away:
        away.setattr("graftwork.ops._native._missing", lambda module: "not here")
        run()


def compare(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    support: Support,
    grads: Any,
    state: State,
    device: str,
    **o: Any,
) -> None:
    """The door on this device against the reference, bit for bit, all arrays."""
    wanted, got = copied(state), copied(state, device)
    by_reference(monkeypatch, lambda: STEPS[name](support, grads, wanted, **o))
    there = grads.to(device) if isinstance(grads, torch.Tensor) else [grad.to(device) for grad in grads]
    STEPS[name](support.to(device), there, got, **o)
    assert same_state(got, wanted)
    assert not same_state(got, state) or not support.entries


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_sizes_against_the_reference(
    name: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for numels in [(numel,) for numel in NUMELS] + [NUMELS]:
        for index in (torch.int32, torch.int64):
            support = some_support(numels, 0.3, index)
            grads = random_tensors(numels, dtype, 1)
            state = make_state(support, dtype)
            compare(monkeypatch, name, support, grads, state, device, **EVERYTHING[name])
            compact = gather_gradients(support, grads).compact
            compare(monkeypatch, name, support, compact, state, device, **EVERYTHING[name])


def adamw_options() -> Iterator[State]:
    for eps_mode, decay_mode, first, with_ages in itertools.product(
        ("corrected", "uncorrected"), ("weight", "delta", "none"), (True, False), (True, False)
    ):
        yield {
            "eps_mode": eps_mode,
            "decay_mode": decay_mode,
            "decay_first": first,
            "with_ages": with_ages,
            "weight_decay": 0.5,
        }
    yield {"weights": None}
    yield {"betas": (0.0, 0.0), "with_ages": True}
    yield {"betas": (0.9, 0.99999), "with_ages": True}
    yield {"step": 100_000, "eps": 0.0}


def sgd_options() -> Iterator[State]:
    for decay_mode, momentum, nesterov, first in itertools.product(
        ("weight", "delta", "none"), (0.0, 0.9), (True, False), (True, False)
    ):
        if momentum or not (nesterov or first):
            yield {
                "decay_mode": decay_mode,
                "momentum": momentum,
                "nesterov": nesterov,
                "first": first,
                "weight_decay": 0.5,
            }
    yield {"dampening": 0.5, "momentum": 0.9}
    yield {"weights": None}


def sm3_options() -> Iterator[State]:
    for decay_mode, momentum in itertools.product(("weight", "delta", "none"), (0.0, 0.9)):
        yield {"decay_mode": decay_mode, "momentum": momentum, "weight_decay": 0.5}
    yield {"weights": None}


OPTIONS = [
    ("adamw", list(adamw_options())),
    ("sgd", list(sgd_options())),
    ("sm3", list(sm3_options())),
]


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, every in OPTIONS for options in every], ids=str
)
def test_every_option_against_the_reference(
    name: str, options: State, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    support = some_support((1000, 0, 333), 0.4)
    grads, state = random_tensors(support.numels, torch.float32, 5), make_state(support, torch.bfloat16)
    compare(monkeypatch, name, support, grads, state, device, **options)


@pytest.mark.parametrize("name", STEPS)
def test_gradients_of_another_format_than_the_weights(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    support = some_support((300,), 0.5)
    for weights, grads in itertools.permutations(FORMATS, 2):
        compare(
            monkeypatch,
            name,
            support,
            random_tensors((300,), grads),
            make_state(support, weights),
            device,
        )


@given(supports(), st.sampled_from(sorted(STEPS)), st.sampled_from(FORMATS), st.integers(0, 999))
def test_any_support(support: Support, name: str, dtype: torch.dtype, seed: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        grads, state = random_tensors(support.numels, dtype, seed), make_state(support, dtype, seed)
        compare(monkeypatch, name, support, grads, state, "cpu", **EVERYTHING[name])


@pytest.mark.parametrize("name", STEPS)
def test_threads_do_not_change_the_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    support = some_support((400_000, 3, 200_006), 0.4)
    grads, state = random_tensors(support.numels, torch.bfloat16), make_state(support, torch.bfloat16)
    results = []
    for threads in (1, 2, 7):
        results.append(copied(state))
        with thread_limit(threads):
            STEPS[name](support, grads, results[-1], **EVERYTHING[name])
    assert same_state(results[0], results[1])
    assert same_state(results[0], results[2])


@pytest.mark.parametrize("name", STEPS)
def test_gradients_that_are_not_finite(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They spoil their own entries alone, and as in the reference."""
    support, grad = Support([torch.arange(0, 300, 3)], [300]), torch.zeros(300)
    grad[[30, 60, 90]], grad[31] = torch.tensor([torch.nan, torch.inf, -torch.inf]), torch.nan
    state = make_state(support, torch.float32)
    wanted, got = copied(state), copied(state, device)
    by_reference(monkeypatch, lambda: STEPS[name](support, [grad], wanted, **EVERYTHING[name]))
    STEPS[name](support.to(device), [grad.to(device)], got, **EVERYTHING[name])
    for key in wanted:
        torch.testing.assert_close(
            got[key] if isinstance(got[key], list) else got[key].cpu(),
            wanted[key],
            rtol=0,
            atol=0,
            equal_nan=True,
        )
    if name != "sm3":  # its accumulators are shared
        assert wanted["values"].isfinite().sum() == 97


@pytest.mark.parametrize("columns", [1, 3, 7, 1021, 3063])
def test_sm3_rows_and_columns_of_odd_shapes(
    columns: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numel = 3 * 7 * 1021
    support, grad = some_support((numel,), 0.5), random_tensors((numel,), torch.float32)[0]
    state = {
        "values": torch.zeros(support.entries),
        "row_max": torch.zeros(numel // columns),
        "column_max": torch.zeros(columns),
    }
    wanted, got = copied(state), copied(state, device)
    arrays = [wanted["values"], wanted["row_max"], wanted["column_max"], [columns]]
    by_reference(monkeypatch, lambda: sparse_sm3_(support, [grad], *arrays, lr=0.1))
    arrays = [got["values"], got["row_max"], got["column_max"], [columns]]
    sparse_sm3_(support.to(device), [grad.to(device)], *arrays, lr=0.1)
    assert same_state(got, wanted)


DIGESTS = """
import hashlib, json, torch
from graftwork.ops import isa_level
from graftwork.ops.sparse_update import gather_gradients, gather_values, swap_values_, write_values_
from tests.generators.supports import FORMATS, random_tensors, some_support
from tests.ops.sparse_update.step_cases import EVERYTHING, STEPS, make_state

digests = {}
def record(name, *tensors):
    digests[name] = [hashlib.sha256(t.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest() for t in tensors]

for dtype in FORMATS:
    for index in (torch.int32, torch.int64):
        support, other = (some_support((4097, 0, 1001, 50_000), d, index) for d in (0.3, 0.6))
        grads = random_tensors(support.numels, dtype, 1)
        for name, run in STEPS.items():
            for options in ({}, EVERYTHING[name]):
                state = make_state(support, dtype)
                run(support, grads, state, **options)
                arrays = [t for s in state.values() for t in (s if isinstance(s, list) else [s])]
                record(f"{name} {dtype} {index} {options}", *arrays)
        record(f"gather {dtype} {index}", *gather_gradients(support, grads, scale=0.3), gather_values(support, grads))
        base, delta = gather_values(support, grads), torch.linspace(-2, 2, other.entries)
        record(f"swap {dtype} {index}", swap_values_(grads, support, base, other, delta * 70_000, 0.7), *grads)
print(json.dumps({"level": isa_level(), "digests": digests}))
"""


@pytest.mark.skipif(isa_level() is None, reason="the native core is not built")
def test_every_level_gives_the_same_bits() -> None:
    results = {}
    for level in LEVELS[: LEVELS.index(isa_level()) + 1]:
        process = run(DIGESTS, level)
        assert process.returncode == 0, process.stderr
        results[level] = json.loads(process.stdout)
        assert results[level]["level"] == level
    for result in results.values():
        assert result["digests"] == results["baseline"]["digests"]
