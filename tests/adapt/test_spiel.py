"""SpIEL: exchange of weights, seeds of moments, gradients that are freed, and resuming at any step."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftwork.adapt import AccumulatedGradient, Fixed, MomentApproximation, SpIELFinetuner
from graftwork.adapt.spiel.linear_targets import apportion
from graftwork.adapt.spiel.rank_one import largest_products

EAGER = AccumulatedGradient(period=4, window=2, rate=0.5)


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    return net.to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(dtype)


def finetuner(net: nn.Module, **options: Any) -> SpIELFinetuner:
    settings = {"k": 24, "targets": ["0", "2"], "full": "4.*", "policy": EAGER, "total_steps": 40}
    return SpIELFinetuner(net, **{**settings, **options})


def train(tuner: SpIELFinetuner, optimizer: torch.optim.Optimizer, steps: range, micro: int = 1) -> None:
    dtype = next(tuner.model.parameters()).dtype
    for step in steps:
        optimizer.zero_grad()
        for part in range(micro):
            (tuner.model(batch(step * micro + part, dtype)).square().mean() / micro).backward()
        tuner.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", [EAGER, MomentApproximation(period=3, rate=0.5), Fixed()])
def test_the_number_of_weights_stays_and_frozen_ones_too(policy: Any, dtype: torch.dtype) -> None:
    net, base = network(dtype=dtype), network(dtype=dtype)
    tuner = finetuner(net, policy=policy)
    assert tuner.ks == {"0.weight": 10, "2.weight": 14}
    optimizer = tuner.optimizer(0.05)
    seen = []
    for step in range(20):
        train(tuner, optimizer, range(step, step + 1))
        assert net[0].weight.grad is None
        support = [optimizer.state[net[layer].weight]["indices"] for layer in (0, 2)]
        assert [len(indices) for indices in support] == [10, 14]
        assert all((indices.diff() > 0).all() for indices in support)
        seen.append(tuple(map(tuple, (indices.tolist() for indices in support))))
        for layer, indices in zip((0, 2), support, strict=True):
            frozen = torch.ones(net[layer].weight.numel(), dtype=torch.bool)
            frozen[indices.long()] = False
            same = net[layer].weight.view(-1) == base[layer].weight.view(-1)
            assert same[frozen].all()
    assert (len(set(seen)) > 1) == (not isinstance(policy, Fixed))
    for layer, name in ((0, "bias"), (2, "bias"), (3, "weight")):
        assert torch.equal(getattr(net[layer], name), getattr(base[layer], name))
        assert not getattr(net[layer], name).requires_grad
    delta = tuner.delta()
    assert set(delta.full) == {"4.weight", "4.bias"}
    delta.apply_(base, with_full=True)
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), base.parameters(), strict=True))
    tuner.close()
    assert all(param.requires_grad for param in net.parameters())
    net(batch(0, dtype)).sum().backward()
    assert net[0].weight.grad is not None


def test_fixed_weights_are_plain_sparse_tuning() -> None:
    """Nothing is exchanged with a rate of zero: the optimizer's steps alone."""
    nets = [network(), network()]
    policies = [Fixed(), AccumulatedGradient(period=4, window=2, rate=0.0, first_rate=0.0)]
    for net, policy in zip(nets, policies, strict=True):
        tuner = finetuner(net, policy=policy)
        train(tuner, tuner.optimizer(0.05), range(12))
    assert all(torch.equal(x, y) for x, y in zip(*(net.parameters() for net in nets), strict=True))


def test_a_first_exchange_by_hand() -> None:
    net, other = network(), network()
    tuner = finetuner(net, policy=AccumulatedGradient(period=20, window=2, first_rate=0.5), full=())
    optimizer = tuner.optimizer(0.05, weight_decay=0.5)
    state = optimizer.state[net[0].weight]
    start = state["indices"].clone()
    gradients = []
    for step in range(2):
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        twin = copy.deepcopy(net).requires_grad_(True)
        twin(batch(step)).square().mean().backward()
        gradients.append(twin[0].weight.grad.view(-1))
        if step == 1:
            held = copy.deepcopy(state)
        tuner.step()
    candidates = gradients[0].abs().topk(10).indices.sort().values
    # The values that decide are those after the second step, which the exchange follows.
    plain = SpIELFinetuner(other, k=24, targets=["0", "2"], policy=Fixed())
    after = plain.optimizer(0.05, weight_decay=0.5)
    train(plain, after, range(2))
    values = after.state[other[0].weight]["values"]
    assert torch.equal(after.state[other[0].weight]["indices"], start)
    assert torch.equal(held["indices"], start)
    dropped = {int(start[i]) for i in values.abs().argsort(stable=True)[:5]}
    sums = gradients[0] + gradients[1]
    kept = set(start.tolist()) - dropped
    valid = [i for i in candidates.tolist() if i not in kept]
    grown = sorted(valid, key=lambda i: -abs(float(sums[i])))[:5]
    both = dropped & set(grown)
    out = [i for i in [int(start[j]) for j in values.abs().argsort(stable=True)] if i in dropped - both]
    out = out[: len(set(grown) - both)]
    wanted = sorted((set(start.tolist()) - set(out)) | set(grown))
    assert state["indices"].tolist() == wanted
    for place, index in enumerate(wanted):
        if index in set(grown) - both:
            mean, square = sums[index] / 2, (gradients[0][index] ** 2 + gradients[1][index] ** 2) / 2
            assert state["values"][place] == 0.0
            assert int(state["age"][place]) == 2
            torch.testing.assert_close(state["exp_avg"][place], mean * (1 - 0.9**2))
            torch.testing.assert_close(state["exp_avg_sq"][place], square * (1 - 0.999**2))
            assert net[0].weight.view(-1)[index] == network()[0].weight.view(-1)[index]
        else:
            old = start.tolist().index(index)
            assert state["values"][place] == values[old]
            assert int(state["age"][place]) == 2
    for index in out:
        assert net[0].weight.view(-1)[index] == network()[0].weight.view(-1)[index]


def test_the_first_step_of_an_exchanged_weight_has_the_right_size() -> None:
    """With a constant gradient every step of Adam is lr, also that after an exchange; age a would make it 1.0448 · lr."""
    net = nn.Linear(20, 1, bias=False)
    nn.init.zeros_(net.weight)
    tuner = SpIELFinetuner(net, k=5, policy=AccumulatedGradient(period=8, window=5), total_steps=100)
    optimizer = tuner.optimizer(0.01, eps=0.0)
    slopes = torch.arange(1.0, 21.0)
    for _ in range(6):
        optimizer.zero_grad()
        (net(slopes)).sum().backward()
        tuner.step()
    state = optimizer.state[net.weight]
    assert state["indices"].tolist() == [15, 16, 17, 18, 19]
    fresh = state["values"].abs() < 0.02
    assert fresh.any()
    torch.testing.assert_close(
        state["values"][fresh], torch.full((int(fresh.sum()),), -0.01), rtol=1e-5, atol=0
    )
    assert (state["age"] == 6).all()
    too_large = (1 - 0.9**6) / (1 - 0.9**5) * math.sqrt((1 - 0.999**5) / (1 - 0.999**6))
    assert too_large == pytest.approx(1.0448, abs=1e-4)


def test_micro_batches_count_as_one_update() -> None:
    """Seeds are in units of updates: four micro-batches are one batch of four times the size."""
    nets = [network(), network()]
    states = []
    for net, micro in zip(nets, (1, 4), strict=True):
        tuner = finetuner(net, policy=AccumulatedGradient(period=4, window=2))
        optimizer = tuner.optimizer(0.05)
        for step in range(2):
            optimizer.zero_grad()
            for part in batch(step).chunk(micro):
                (net(part).square().mean() / micro).backward()
            tuner.step()
        states.append(optimizer.state[net[2].weight])
    same = set(states[0]["indices"].tolist()) & set(states[1]["indices"].tolist())
    assert len(same) > 7  # the first micro-batch, not the first batch, chooses the candidates
    for index in same:
        places = [state["indices"].tolist().index(index) for state in states]
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                *(s[name][p] for s, p in zip(states, places, strict=True)), rtol=1e-4, atol=1e-8
            )


def test_seeds_are_scaled_as_gradients_are() -> None:
    net, other = network(), network()
    for held, factor in ((net, 1.0), (other, 1024.0)):
        tuner = finetuner(held, full=())
        optimizer = tuner.optimizer(0.05)
        for step in range(6):
            optimizer.zero_grad()
            (held(batch(step)).square().mean() * factor).backward()
            optimizer.grad_scale = torch.tensor(factor)
            tuner.step()
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), other.parameters(), strict=True))


def test_steps_that_are_skipped_leave_no_trace() -> None:
    net, other = network(), network()
    for held, bad in ((net, ()), (other, (0, 3, 5))):
        tuner = finetuner(held)
        optimizer = tuner.optimizer(0.05, nonfinite="skip")
        for step in range(6):
            for broken in (True, False) if step in bad else (False,):
                optimizer.zero_grad()
                (held(batch(step)).square().mean() * (math.nan if broken else 1.0)).backward()
                tuner.step()
        assert tuner.steps == 6
        assert optimizer.skipped == len(bad)
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), other.parameters(), strict=True))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("model_saved", [True, False])
@pytest.mark.parametrize("policy", [EAGER, MomentApproximation(period=3, rate=0.5)])
def test_a_resumed_run_gives_the_same_bits(policy: Any, model_saved: bool) -> None:
    net = network()
    tuner = finetuner(net, policy=policy)
    optimizer = tuner.optimizer(0.05)
    saved = []
    for step in range(9):
        saved.append(through_a_file({"tuner": tuner.state_dict(), "model": net.state_dict()}))
        train(tuner, optimizer, range(step, step + 1), micro=2)
    for step, state in enumerate(saved):
        other = network()
        again = finetuner(other, policy=policy, seed=5)
        resumed = again.optimizer(0.05)
        if model_saved:
            other.load_state_dict(state["model"])
        again.load_state_dict(state["tuner"])
        train(again, resumed, range(step, 9), micro=2)
        assert all(torch.equal(x, y) for x, y in zip(net.parameters(), other.parameters(), strict=True))
        assert torch.equal(tuner.delta().values, again.delta().values)


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    net = network()
    tuner = finetuner(net)
    optimizer = tuner.optimizer(0.05)
    train(tuner, optimizer, range(4))
    state = through_a_file(tuner.state_dict())
    other = network(seed=1)
    stranger = finetuner(other)
    train(stranger, stranger.optimizer(0.05), range(4))
    before, steps = copy.deepcopy(other), str(stranger.state_dict())
    with pytest.raises(ValueError, match="the state is of a model with other weights: "):
        stranger.load_state_dict(state)
    assert all(torch.equal(x, y) for x, y in zip(other.parameters(), before.parameters(), strict=True))
    assert str(stranger.state_dict()) == steps
    with pytest.raises(ValueError, match=r"the state is of AccumulatedGradient\(.*, here it is Fixed\(\)"):
        fixed = finetuner(network(), policy=Fixed())
        fixed.optimizer(0.05)
        fixed.load_state_dict(state)


def test_nothing_of_the_models_size_survives_backward() -> None:
    net = nn.Linear(300, 300, bias=False)
    tuner = SpIELFinetuner(net, k=50, policy=EAGER, total_steps=10)
    optimizer = tuner.optimizer(0.01)
    for step in range(5):
        optimizer.zero_grad()
        net(torch.randn(4, 300, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        assert net.weight.grad is None
        tuner.step()
    held = _tensors(tuner.state_dict())
    assert max(t.numel() for t in held) <= 300


def _tensors(found: Any) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, dict):
        return [tensor for value in found.values() for tensor in _tensors(value)]
    return [t for value in found for t in _tensors(value)] if isinstance(found, list | tuple) else []


def test_schedules() -> None:
    policy = AccumulatedGradient()
    watched = [step for step in range(50) if policy.watches(step)]
    assert watched == [0, 1, 2, 3, 4, 20, 21, 22, 23, 24, 40, 41, 42, 43, 44]
    assert [step for step in range(1, 60) if policy.exchanges(step)] == [5, 25, 45]
    assert policy.share(5, 100) == 1.0
    assert policy.share(25, 100) == pytest.approx(0.2 * 0.75)
    cosine = AccumulatedGradient(schedule="cosine")
    assert cosine.share(50, 100) == pytest.approx(0.1)
    assert cosine.share(120, 100) == pytest.approx(0.0)
    moments = MomentApproximation()
    assert [step for step in range(1, 60) if moments.exchanges(step)] == [20, 40]
    every = AccumulatedGradient(period=3, window=3)
    assert [step for step in range(1, 10) if every.exchanges(step)] == [3, 6, 9]
    assert all(every.watches(step) for step in range(9))


@given(
    st.lists(st.sampled_from([0.0, 1e-30, 0.5, 1.0, 2.0, 5.0, 1e20]), max_size=9),
    st.lists(st.sampled_from([0.0, 1e-30, 0.5, 1.0, 2.0, 5.0, 1e20]), max_size=9),
    st.integers(0, 90),
)
def test_largest_products_are_those_of_the_outer_product(
    rows: list[float], columns: list[float], count: int
) -> None:
    r, c = torch.tensor(rows, dtype=torch.float32), torch.tensor(columns, dtype=torch.float32)
    indices, products = largest_products(r, c, count)
    outer = (r[:, None] * c).view(-1)
    order = outer.sort(descending=True, stable=True).indices[:count]
    wanted = order[outer[order] > 0].sort().values
    assert torch.equal(indices, wanted)
    assert torch.equal(products, outer[wanted])


def test_largest_products_of_continuous_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    r, c = torch.rand(37, generator=generator), torch.rand(61, generator=generator)
    for count in (1, 100, 2000, 37 * 61):
        indices, products = largest_products(r, c, count)
        wanted = (r[:, None] * c).view(-1).topk(count).indices.sort().values
        assert torch.equal(indices, wanted)
        assert torch.equal(products, (r[:, None] * c).view(-1)[wanted])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_add_up(numels: list[int], density: float) -> None:
    total = int(sum(numels) * density)
    shares = apportion(total, numels)
    assert sum(shares) == total
    assert all(0 <= share <= numel for share, numel in zip(shares, numels, strict=True))
    if total >= len(numels):
        assert all(share >= 1 for share, numel in zip(shares, numels, strict=True) if numel)


def test_targets() -> None:
    net = network()
    assert list(SpIELFinetuner(net, k=3, policy=Fixed()).ks) == ["0.weight", "2.weight", "4.weight"]
    chosen = SpIELFinetuner(network(), density=0.5, policy=Fixed(), targets=lambda name, m: name == "2")
    assert chosen.ks == {"2.weight": 40}
    tied = nn.ModuleDict(
        {"table": nn.Embedding(5, 4), "layer": nn.Linear(4, 4), "head": nn.Linear(4, 5, bias=False)}
    )
    tied["head"].weight = tied["table"].weight
    assert list(SpIELFinetuner(tied, k=3, policy=Fixed()).ks) == ["layer.weight"]
    for targets, error, match in (
        (["3"], TypeError, "targets: '3' must be a torch.nn.Linear, got LayerNorm"),
        (["*.q_proj"], ValueError, r"the pattern '\*.q_proj' matches no Linear module"),
        (lambda name, m: False, ValueError, "the model has no Linear module to tune"),
    ):
        with pytest.raises(error, match=match):
            SpIELFinetuner(network(), k=3, policy=Fixed(), targets=targets)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="total_steps must be at least 1 for this policy, got None"):
        SpIELFinetuner(network(), k=3)
    with pytest.raises(ValueError, match=r"k must be in \[0, 140\], the weights that can be tuned, got 141"):
        finetuner(network(), k=141)
    for options, match in (
        ({"period": 0}, "period must be at least 1, got 0"),
        ({"window": 21}, r"window must be in \[1, period\], got 21"),
        ({"rate": 1.5}, r"rate must be in \[0, 1\], got 1.5"),
        ({"schedule": "step"}, "schedule must be one of"),
    ):
        with pytest.raises(ValueError, match=match):
            AccumulatedGradient(**options)
    tuner = finetuner(network(), policy=MomentApproximation())
    with pytest.raises(ValueError, match="make its optimizer first"):
        tuner.step()
    with pytest.raises(ValueError, match="kind must be 'sm3' for MomentApproximation, got 'adamw'"):
        tuner.optimizer(0.1, kind="adamw")
    tuner.optimizer(0.1)
    with pytest.raises(ValueError, match="it has an optimizer already"):
        tuner.optimizer(0.1)
    with pytest.raises(ValueError, match="kind must be one of adamw, sgd, sm3, got 'lion'"):
        finetuner(network()).optimizer(0.1, kind="lion")
    sgd = finetuner(network())
    train(sgd, sgd.optimizer(0.1, kind="sgd", momentum=0.9), range(6))
    assert sgd.delta().entries > 0
