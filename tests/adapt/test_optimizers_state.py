"""State of sparse optimizers, gradients that are taken in backward, clipping, what is not finite, and GradScaler."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.adapt import SparseAdamW, SparseDelta, SparseSGD, SparseSM3
from graftwork.adapt.optimizers.sparse_optimizer import SparseOptimizer

MAKERS: dict[str, Callable[..., SparseOptimizer]] = {
    "adamw": lambda params, indices: SparseAdamW(params, indices, lr=0.1, weight_decay=0.1, l1=0.01),
    "ages": lambda params, indices: SparseAdamW(params, indices, lr=0.1, per_entry_steps=True),
    "sgd": lambda params, indices: SparseSGD(params, indices, lr=0.1),
    "momentum": lambda params, indices: SparseSGD(params, indices, lr=0.1, momentum=0.9),
    "sm3": lambda params, indices: SparseSM3(params, indices, lr=0.1, momentum=0.5),
}


def model(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


INDICES = {"0.weight": torch.arange(0, 30, 3), "2.weight": torch.arange(4), "0.bias": torch.arange(0)}


def tuned(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Weights in part, the last layer in full."""
    return [(name, p) for name, p in net.named_parameters() if name in INDICES or name.startswith("4")]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    dtype = next(net.parameters()).dtype
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(8, 6, generator=generator).to(dtype)).square().mean().backward()
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("weights_first", [True, False])
def test_a_resumed_run_gives_the_same_bits(name: str, dtype: torch.dtype, weights_first: bool) -> None:
    net = model(dtype)
    optimizer = MAKERS[name](tuned(net), INDICES)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(net, optimizer, range(3))
    scheduler.step()
    state = through_a_file({"optimizer": optimizer.state_dict(), "model": net.state_dict()})
    train(net, optimizer, range(3, 6))
    other = model(dtype, seed=9)
    if weights_first:
        other.load_state_dict(state["model"])
    resumed = MAKERS[name](tuned(other), INDICES)
    resumed.load_state_dict(state["optimizer"])
    other.load_state_dict(state["model"])
    assert resumed.param_groups[0]["lr"] == 0.05
    train(other, resumed, range(3, 6))
    assert same(net, other)
    assert resumed.state[other[0].weight]["values"].dtype == torch.float32


def test_loading_does_not_share_memory_and_back_to_the_own_state() -> None:
    net = model()
    optimizer = MAKERS["adamw"](tuned(net), INDICES)
    train(net, optimizer, range(2))
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    held = optimizer.state_dict()
    optimizer.load_state_dict(held)
    assert held["state"][0]["values"].data_ptr() != optimizer.state[net[0].weight]["values"].data_ptr()
    train(net, optimizer, range(2, 4))
    after = [p.detach().clone() for p in net.parameters()]
    net.load_state_dict(weights)
    optimizer.load_state_dict(saved)
    train(net, optimizer, range(2, 4))
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), after, strict=True))


def test_copies_and_pickles_go_on_alike() -> None:
    net = model()
    optimizer = MAKERS["momentum"](tuned(net), INDICES)
    train(net, optimizer, range(2))
    for other, copied in (copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))):
        train(other, copied, range(2, 4))
        reference, original = copy.deepcopy((net, optimizer))
        train(reference, original, range(2, 4))
        assert same(other, reference)


def test_states_of_other_models_are_refused() -> None:
    net = model()
    optimizer = MAKERS["adamw"](tuned(net), INDICES)
    train(net, optimizer, range(2))
    state = optimizer.state_dict()

    def refused(match: str, params: Any, indices: Any, given: Any = state, make: str = "adamw") -> None:
        with pytest.raises(ValueError, match=match):
            MAKERS[make](params, indices).load_state_dict(given)

    wide = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    refused(r"'0.weight': the saved state is of another model: of shape \(5, 6\)", tuned(wide), INDICES)
    refused(r"'0.weight': .*float32, here it is .*bfloat16", tuned(model(torch.bfloat16)), INDICES)
    refused(r"its groups have \[5\] parameters, here they have \[4\]", tuned(net)[:4], INDICES)
    refused("it has '0.weight' where 'other' is", [("other", tuned(net)[0][1]), *tuned(net)[1:]], {})
    refused("'0.weight' is tuned in part in the saved state but not here", tuned(net), {})
    refused("it is of another optimizer", tuned(net), INDICES, make="sgd")
    big = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    refused(r"'4.weight': the saved state is of another model: \w+ has shape \(2, 5\)", tuned(big), INDICES)
    for change, match in (
        ({"indices": torch.tensor([30])}, "must be in"),
        ({"exp_avg": torch.zeros(3)}, r"exp_avg in the saved state must be torch.float32 of shape \(10,\)"),
        ({"values": torch.zeros(10).double()}, "values in the saved state must be torch.float32"),
    ):
        broken = copy.deepcopy(state)
        broken["state"][0].update(change)
        refused(match, tuned(net), INDICES, broken)
    fresh = model(seed=5)
    resumed = MAKERS["adamw"](tuned(fresh), INDICES)
    resumed.load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"the loaded state is of other weights: 10 of the 10 .* of '0.weight'"
    ):
        train(fresh, resumed, range(1))


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_taken_in_backward(name: str) -> None:
    net, other = model(), model()
    optimizer, compact = MAKERS[name](tuned(net), INDICES), MAKERS[name](tuned(other), INDICES)
    handles = compact.gather_in_backward()
    for step in range(4):
        for held, opt in ((net, optimizer), (other, compact)):
            opt.zero_grad()
            for micro in range(2):
                generator = torch.Generator().manual_seed(2 * step + micro)
                held(torch.randn(8, 6, generator=generator)).square().mean().backward()
            if held is other:
                assert other[0].weight.grad is None
                assert other[4].weight.grad is not None
            opt.step()
    assert same(net, other)
    handles.remove()
    handles.remove()
    other(torch.ones(1, 6)).sum().backward()
    assert other[0].weight.grad is not None


@pytest.mark.parametrize("taken", [False, True])
def test_clipping_counts_what_is_used(taken: bool) -> None:
    net = model()
    optimizer = SparseSGD(tuned(net), INDICES, lr=1.0)
    if taken:
        optimizer.gather_in_backward()
    before = {name: p.detach().clone() for name, p in tuned(net)}
    net(torch.ones(3, 6)).square().sum().backward()
    norm = float(optimizer.clip_grad_norm_(0.5))
    optimizer.step()
    moved = math.sqrt(
        sum(float((p.detach() - before[name]).double().square().sum()) for name, p in tuned(net))
    )
    assert norm > 0.5
    assert moved == pytest.approx(0.5, rel=1e-5)
    assert optimizer.applied_scale == pytest.approx(0.5 / norm, rel=1e-5)
    net.zero_grad()
    optimizer.zero_grad()
    net(torch.ones(3, 6)).square().sum().backward()
    assert float(optimizer.clip_grad_norm_(1e9)) > 0
    optimizer.step()
    assert optimizer.applied_scale == 1.0
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        optimizer.clip_grad_norm_(0)


def test_clipping_within_the_step_is_the_same() -> None:
    nets = [model(), model()]
    by_hand, within = SparseAdamW(tuned(nets[0]), INDICES), SparseAdamW(tuned(nets[1]), INDICES, max_norm=0.1)
    for _ in range(3):
        for net, optimizer in zip(nets, (by_hand, within), strict=True):
            optimizer.zero_grad()
            net(torch.ones(3, 6)).square().sum().backward()
            if optimizer is by_hand:
                optimizer.clip_grad_norm_(0.1)
            optimizer.step()
    assert same(*nets)


def test_a_gradient_after_a_clipped_step_is_read_anew() -> None:
    net = model()
    optimizer = SparseSGD(tuned(net), INDICES, lr=1.0)
    for scale in (1.0, 2.0):
        before = net[0].weight.detach().clone()
        for _, param in tuned(net):
            param.grad = torch.full_like(param, scale)  # no zero_grad in between
        optimizer.clip_grad_norm_(1e9)
        optimizer.step()
        assert (before - net[0].weight).view(-1)[INDICES["0.weight"]].tolist() == pytest.approx([scale] * 10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["0.weight", "4.bias"])
def test_gradients_that_are_not_finite(bad: float, place: str) -> None:
    def prepared(nonfinite: str) -> tuple[nn.Module, SparseOptimizer]:
        net = model()
        optimizer = SparseAdamW(tuned(net), INDICES, nonfinite=nonfinite)
        train(net, optimizer, range(1))
        net(torch.ones(3, 6)).sum().backward()
        dict(net.named_parameters())[place].grad.view(-1)[0] = bad
        return net, optimizer

    net, optimizer = prepared("raise")
    before, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(
        FloatingPointError, match=f"1 of the gradients are NaN or infinite, the first in '{place}'"
    ):
        optimizer.step()
    assert same(net, before)
    assert str(optimizer.state_dict()) == str(state)
    net, optimizer = prepared("skip")
    before = copy.deepcopy(net)
    optimizer.step()
    assert same(net, before)
    assert (optimizer.skipped, optimizer.applied_scale) == (1, None)
    train(net, optimizer, range(2))
    assert not same(net, before)
    net, optimizer = prepared("ignore")
    optimizer.step()
    assert not dict(net.named_parameters())[place].isfinite().all()


def test_a_frozen_weights_gradient_may_be_anything() -> None:
    net = model()
    optimizer = SparseAdamW(tuned(net), INDICES)
    net(torch.ones(3, 6)).sum().backward()
    net[0].weight.grad.view(-1)[1] = math.nan
    optimizer.step()
    assert optimizer.skipped == 0


def test_fused_and_checked_steps_give_the_same_bits() -> None:
    nets = [model(), model()]
    for net, nonfinite in zip(nets, ("ignore", "raise"), strict=True):
        train(net, SparseAdamW(tuned(net), INDICES, nonfinite=nonfinite), range(4))
    assert same(*nets)


@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(unscale: bool) -> None:
    net, other = model(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    scaled, plain = (SparseAdamW(tuned(held), INDICES) for held in (net, other))
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        batch = torch.randn(8, 6, generator=generator)
        scaled.zero_grad()
        scaler.scale(net(batch).square().mean()).backward()
        if step == 2:
            net[0].weight.grad.fill_(math.inf)
        if unscale:
            scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
        if step == 2:
            continue
        plain.zero_grad()
        other(batch).square().mean().backward()
        plain.step()
    assert scaled.skipped == 1
    assert same(net, other)  # scales are powers of two
    assert not hasattr(scaled, "grad_scale")


def test_closure_hooks_and_schedulers() -> None:
    net = model()
    optimizer = SparseAdamW(tuned(net), INDICES, lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(1, 6)).square().sum()
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(float(optimizer.step(closure).detach()))
        scheduler.step()
    assert losses[2] < losses[0]
    assert calls == ["before", "after"] * 3
    assert "SparseAdamW" in repr(optimizer)


def test_a_step_invalidates_graphs_as_every_optimizer_does() -> None:
    net = model()
    optimizer = SparseAdamW(tuned(net), INDICES)
    loss = net(torch.ones(1, 6)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_delta_puts_the_tuned_weights_on_the_base(dtype: torch.dtype) -> None:
    net, base = model(dtype), model(dtype)
    optimizer = SparseAdamW(tuned(net), INDICES, lr=0.1)
    train(net, optimizer, range(4))
    after = copy.deepcopy(net)
    delta = optimizer.delta()
    assert isinstance(delta, SparseDelta)
    assert same(net, after)
    assert set(delta.full) == {"4.weight", "4.bias"}
    assert delta.entries == 14
    delta.apply_(base, with_full=True)
    assert same(base, net)


def test_the_delta_of_weights_that_were_replaced() -> None:
    net = model()
    optimizer = SparseAdamW(tuned(net), INDICES, lr=0.1)
    train(net, optimizer, range(2))
    best = copy.deepcopy(net.state_dict())
    train(net, optimizer, range(2, 5))
    net.load_state_dict(best)
    base = model()
    optimizer.delta().apply_(base, with_full=True)
    for mine, theirs in zip(base.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


def test_a_delta_needs_names_and_something_in_part() -> None:
    net = model()
    with pytest.raises(ValueError, match=r"parameters have no names; .*model.named_parameters\(\)"):
        SparseAdamW(net.parameters(), {net[0].weight: torch.tensor([1])}).delta()
    with pytest.raises(ValueError, match="all parameters are tuned in full"):
        SparseAdamW(net.named_parameters()).delta()
