"""Sparse optimizers against torch's own on the tuned weights alone; what is frozen stays as it is, bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graftwork.adapt import SparseAdamW, SparseSGD, SparseSM3
from graftwork.ops import thread_limit
from tests.tolerances import assert_close

SHAPES = ((), (1,), (31,), (7, 9), (0,), (2, 3, 4), (41, 100))


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        str(number): nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for number, shape in enumerate(SHAPES)
    }


def some(params: dict[str, nn.Parameter], share: float, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand(p.numel(), generator=generator) < share).nonzero().view(-1)
        for name, p in params.items()
    }


def give_gradients(params: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params.values():
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def compact(params: dict[str, nn.Parameter], indices: dict[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(p.detach().view(-1)[indices[name]].clone()) for name, p in params.items()}


PEERS = {
    "adamw": (
        lambda params, indices: SparseAdamW(params.items(), indices, lr=0.05, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params.values(), lr=0.05, weight_decay=0.1),
    ),
    "adamw_betas": (
        lambda params, indices: SparseAdamW(params.items(), indices, lr=0.01, betas=(0.5, 0.7), eps=1e-3),
        lambda params: torch.optim.AdamW(
            params.values(), lr=0.01, betas=(0.5, 0.7), eps=1e-3, weight_decay=0
        ),
    ),
    "sgd": (
        lambda params, indices: SparseSGD(params.items(), indices, lr=0.05, weight_decay=0.1),
        lambda params: torch.optim.SGD(params.values(), lr=0.05, weight_decay=0.1),
    ),
    "nesterov": (
        lambda params, indices: SparseSGD(params.items(), indices, lr=0.05, momentum=0.9, nesterov=True),
        lambda params: torch.optim.SGD(params.values(), lr=0.05, momentum=0.9, nesterov=True),
    ),
    "dampening": (
        lambda params, indices: SparseSGD(params.items(), indices, lr=0.05, momentum=0.9, dampening=0.5),
        lambda params: torch.optim.SGD(params.values(), lr=0.05, momentum=0.9, dampening=0.5),
    ),
}


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", PEERS)
def test_steps_are_those_of_torch_on_the_tuned_weights(name: str, share: float) -> None:
    params = parameters()
    indices = some(params, share)
    before = {key: p.detach().clone() for key, p in params.items()}
    mine, theirs = compact(params, indices), PEERS[name][1]
    peer, optimizer = theirs(mine), PEERS[name][0](params, indices)
    for step in range(100):
        give_gradients(params, step)
        for key, param in params.items():
            mine[key].grad = param.grad.view(-1)[indices[key]].clone()
        optimizer.step()
        peer.step()
    for key, param in params.items():
        assert_close("adapt.steps", param.detach().view(-1)[indices[key]], mine[key].detach())
        frozen = torch.ones(param.numel(), dtype=torch.bool)
        frozen[indices[key]] = False
        assert torch.equal(param.detach().view(-1)[frozen], before[key].view(-1)[frozen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PEERS)
def test_parameters_without_indices_are_tuned_as_by_torch(name: str, dtype: torch.dtype) -> None:
    params, others = parameters(dtype), parameters(dtype)
    optimizer, peer = PEERS[name][0](params, None), PEERS[name][1](others)
    for group in peer.param_groups:
        group["fused"] = name.startswith("adamw")
        group["foreach"] = False
    for step in range(5):
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        peer.step()
    for key in params:
        assert torch.equal(params[key], others[key])


def test_the_weight_decay_trap() -> None:
    """Decay acts on what is tuned alone: a mask on gradients would let frozen weights shrink."""
    wanted = {0.0: [0.70768, 2.0, 3.0, 3.70768], 0.1: None}
    for decay, numbers in wanted.items():
        param = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        optimizer = SparseAdamW([param], {param: torch.tensor([0, 3])}, lr=0.1, weight_decay=decay)
        mine = nn.Parameter(torch.tensor([1.0, 4.0]))
        peer = torch.optim.AdamW([mine], lr=0.1, weight_decay=decay)
        for step in (1, 2, 3):
            param.grad = torch.tensor([0.1, 0.2, -0.3, 0.4]) * step
            mine.grad = torch.tensor([0.1, 0.4]) * step
            optimizer.step()
            peer.step()
        assert param[1:3].tolist() == [2.0, 3.0]
        torch.testing.assert_close(param.detach()[[0, 3]], mine.detach())
        if numbers:
            assert [round(x, 5) for x in param.tolist()] == numbers


def test_decay_towards_the_base() -> None:
    param = nn.Parameter(torch.tensor([1.0, 2.0]))
    head = nn.Parameter(torch.tensor([1.0, 2.0]))
    for options in ({"decay_first": True}, {"decay_first": False}):
        optimizer = SparseAdamW(
            [param, head], {param: torch.tensor([0])}, lr=0.5, weight_decay=0.5, decay_mode="delta", **options
        )
        with torch.no_grad():
            head += 1
        optimizer.start_from_({param: torch.tensor([1.0])})
        param.grad, head.grad = torch.zeros(2), torch.zeros(2)
        start = head.detach().clone()
        optimizer.step()
        assert optimizer.state[param]["values"].tolist() == [0.75]
        assert torch.equal(head, start - 0.25)
        with torch.no_grad():
            param[0] = 1.0


def test_sm3_numbers() -> None:
    param = nn.Parameter(torch.zeros(2, 2))
    optimizer = SparseSM3([param], {param: torch.tensor([0, 3])}, lr=0.1)
    param.grad = torch.tensor([[1.0, 7.0], [7.0, 2.0]])
    optimizer.step()
    state = optimizer.state[param]
    assert state["row_max"].tolist() == state["column_max"].tolist() == [1.0, 4.0]
    torch.testing.assert_close(state["values"], torch.tensor([-0.1, -0.1]))
    param.grad = torch.tensor([[1.0, 7.0], [7.0, -1.0]])
    optimizer.step()
    assert state["row_max"].tolist() == state["column_max"].tolist() == [2.0, 5.0]
    torch.testing.assert_close(state["values"], torch.tensor([-0.170711, -0.055279]), rtol=0, atol=1e-6)
    assert param[0, 1] == param[1, 0] == 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sm3_in_full_is_sm3_on_every_weight(momentum: float) -> None:
    params, others = parameters(), parameters()
    every = {name: torch.arange(p.numel()) for name, p in params.items()}
    sparse = SparseSM3(
        params.items(), every, lr=0.1, momentum=momentum, weight_decay=0.1, decay_mode="weight"
    )
    full = SparseSM3(others.items(), lr=0.1, momentum=momentum, weight_decay=0.1, decay_mode="weight")
    for step in range(10):
        give_gradients(params, step)
        give_gradients(others, step)
        sparse.step()
        full.step()
    for name in params:
        assert_close("adapt.steps", params[name].detach(), others[name].detach())


def test_ages_of_one_kind_are_the_step() -> None:
    params, others = parameters(), parameters()
    indices = some(params, 0.3)
    by_entry = SparseAdamW(params.items(), indices, lr=0.1, per_entry_steps=True)
    by_tensor = SparseAdamW(others.items(), indices, lr=0.1)
    for step in range(5):
        give_gradients(params, step)
        give_gradients(others, step)
        by_entry.step()
        by_tensor.step()
    for name in params:
        assert_close("adapt.steps", params[name].detach(), others[name].detach())
        assert (by_entry.state[params[name]]["age"] == 5).all()


def test_eps_before_the_bias_correction() -> None:
    """SpIEL's AdamW: (√v + ε) · (1 − β₁ᵗ) / √(1 − β₂ᵗ), in part and in full."""
    param, head = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = SparseAdamW(
        [param, head], {param: torch.tensor([0, 1, 2])}, lr=0.1, eps=0.5, eps_mode="uncorrected"
    )
    value, m, v = (torch.zeros(3, dtype=torch.float64) for _ in range(3))
    for step in (1, 2, 3):
        gradient = torch.tensor([1.0, -0.1, 0.01]) * step
        param.grad, head.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient.double()
        v = 0.999 * v + 0.001 * gradient.double() ** 2
        value -= 0.1 * m / ((v.sqrt() + 0.5) * (1 - 0.9**step) / math.sqrt(1 - 0.999**step))
    torch.testing.assert_close(param.detach().double(), value, rtol=1e-5, atol=0)
    torch.testing.assert_close(head.detach().double(), value, rtol=1e-5, atol=0)


def test_bf16_weights_are_the_rounded_sum_after_many_small_steps() -> None:
    """In place, 50 updates of 1e-5 on weights of .04 would leave most bf16 weights where they were."""
    generator = torch.Generator().manual_seed(0)
    start = (torch.randn(4096, generator=generator) * 0.04).bfloat16()
    param = nn.Parameter(start.clone())
    optimizer = SparseSGD([param], {param: torch.arange(4096)}, lr=1.0)
    total = torch.zeros(4096)
    for _ in range(50):
        update = torch.randn(4096, generator=generator).bfloat16() * 1e-5
        param.grad = update
        total -= update.float()
        optimizer.step()
    assert torch.equal(optimizer.state[param]["values"], total)
    assert torch.equal(param, (start.float() + total).bfloat16())


def test_l1_in_part_and_in_full() -> None:
    param, head = nn.Parameter(torch.tensor([1.0, 5.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = SparseSGD([param, head], {param: torch.tensor([0])}, lr=1.0, l1=0.25)
    for gradient in (-1.0, 0.0, 0.0):
        param.grad, head.grad = torch.tensor([gradient, 9.0]), torch.tensor([gradient])
        optimizer.step()
    assert param.tolist() == [1.5, 5.0]  # sign(0) is 0 in the first step
    assert head.tolist() == [1.5]


def test_soft_threshold_gives_zero_changes() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = SparseSGD([param], {param: torch.tensor([0, 1])}, lr=1.0, soft_threshold=0.5)
    param.grad = torch.tensor([-0.25, -2.0])
    optimizer.step()
    assert param.tolist() == [1.0, 2.5]


@pytest.mark.parametrize("name", ["adamw", "nesterov"])
def test_parameters_without_a_gradient_are_left_out(name: str) -> None:
    params, alone = parameters(), parameters()
    indices = some(params, 0.5)
    optimizer = PEERS[name][0](params, indices)
    single = PEERS[name][0]({"3": alone["3"]}, {"3": indices["3"]})
    others = {key: p.detach().clone() for key, p in params.items()}
    for step in range(3):
        give_gradients({"3": params["3"]}, step)
        give_gradients({"3": alone["3"]}, step)
        optimizer.step()
        single.step()
    assert torch.equal(params["3"], alone["3"])
    assert all(torch.equal(p, others[key]) for key, p in params.items() if key != "3")
    give_gradients(params, 9)  # now all of them; "3" has three updates more than the others
    give_gradients({"3": alone["3"]}, 9)
    alone["3"].grad = params["3"].grad.clone()
    optimizer.step()
    single.step()
    assert torch.equal(params["3"], alone["3"])
    assert [optimizer.state[p]["step"] for p in params.values()] == [1, 1, 1, 4, 1, 1, 1]


def test_groups_dtypes_and_other_arrangements_do_not_change_the_bits() -> None:
    params, others = parameters(), parameters()
    extra, other_extra = (nn.Parameter(torch.ones(50, dtype=torch.bfloat16)) for _ in range(2))
    indices = some(params, 0.4)
    together = SparseAdamW(
        [*params.values(), extra],
        {**{params[k]: i for k, i in indices.items()}, extra: torch.arange(9)},
        lr=0.1,
    )
    apart = SparseAdamW(
        [{"params": list(others.values())[:3], "indices": {others[k]: indices[k] for k in "012"}}], lr=0.1
    )
    apart.add_param_group({"params": [other_extra], "indices": {other_extra: torch.arange(9)}})
    apart.add_param_group(
        {"params": list(others.values())[3:], "indices": {others[k]: indices[k].int() for k in "3456"}}
    )
    for step in range(3):
        for held in (params, others):
            give_gradients(held, step)
        extra.grad, other_extra.grad = torch.ones_like(extra), torch.ones_like(extra)
        together.step()
        apart.step()
    assert all(torch.equal(params[name], others[name]) for name in params)
    assert torch.equal(extra, other_extra)


def test_threads_do_not_change_the_bits() -> None:
    results = []
    for threads in (1, 2, 7):
        param = nn.Parameter(torch.linspace(-1, 1, 1 << 18))
        optimizer = SparseAdamW([param], {param: torch.arange(0, 1 << 18, 2)}, lr=0.1, max_norm=1.0)
        with thread_limit(threads):
            for step in range(3):
                param.grad = torch.sin(torch.arange(1 << 18) * (step + 1.0))
                optimizer.step()
        results.append(param.detach().clone())
    assert all(torch.equal(result, results[0]) for result in results)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 1000))
def test_frozen_weights_never_change(sizes: list[int], share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = {str(n): nn.Parameter(torch.randn(size, generator=generator)) for n, size in enumerate(sizes)}
    indices = some(params, share, seed)
    before = copy.deepcopy(params)
    optimizer = SparseAdamW(params.items(), indices, lr=0.3, weight_decay=0.2)
    for step in range(2):
        give_gradients(params, seed + step)
        optimizer.step()
    for name, param in params.items():
        changed = (param != before[name]).nonzero().view(-1)
        assert set(changed.tolist()) <= set(indices[name].tolist())


def test_one_index_past_the_end_and_other_bad_arguments() -> None:
    param = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(
        ValueError, match=r"SparseAdamW: 'w': Support: indices\[0\] must be in \[0, 6\), got 6"
    ):
        SparseAdamW([("w", param)], {"w": torch.tensor([6])})
    with pytest.raises(ValueError, match=r"SparseSGD: parameter 0: .* must be sorted and without duplicates"):
        SparseSGD([param], {param: torch.tensor([2, 1])})
    with pytest.raises(TypeError, match=r"parameter 0: .* must be one of int32, int64, got torch.float32"):
        SparseSM3([param], {param: torch.tensor([1.0])})
    with pytest.raises(ValueError, match="indices has keys that are none of the parameters: v"):
        SparseAdamW([("w", param)], {"v": torch.tensor([1])})
    with pytest.raises(ValueError, match="bases has keys that are none of the parameters: v"):
        SparseAdamW([("w", param)], {}, bases={"v": torch.ones(1)})
    with pytest.raises(ValueError, match="its base must have its shape and dtype"):
        SparseAdamW([param], {param: torch.tensor([1])}, bases={param: torch.ones(3)})
    with pytest.raises(TypeError, match=r"must be float16, bfloat16 or float32, got torch\.float64"):
        double = nn.Parameter(torch.ones(2).double())
        SparseAdamW([double], {double: torch.tensor([1])})
    with pytest.raises(ValueError, match=r"must be contiguous, got strides \(1, 2\)"):
        turned = nn.Parameter(torch.ones(3, 2).t())
        SparseAdamW([turned], {turned: torch.tensor([1])})
    for bad, match in (
        ({"lr": -1}, "lr must be at least 0 and finite, got -1"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        ({"eps_mode": "x"}, "eps_mode must be one of 'corrected', 'uncorrected', got 'x'"),
        ({"decay_mode": "x"}, "decay_mode must be one of 'weight', 'delta', 'none', got 'x'"),
        ({"nonfinite": "x"}, "nonfinite must be one of"),
        ({"max_norm": 0.0}, "max_norm must be above 0, or None, got 0.0"),
        ({"l1": math.inf}, "l1 must be at least 0 and finite, got inf"),
    ):
        with pytest.raises(ValueError, match=match):
            SparseAdamW([param], {}, **bad)
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0, and no dampening"):
        SparseSGD([param], {}, nesterov=True)
    optimizer = SparseSGD([param], {}, momentum=0.5)
    with pytest.raises(
        ValueError, match="momentum must be above 0 in all parameter groups or in none, got 0"
    ):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "momentum": 0.0})
    other = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="indices has keys that are none of the parameters: x"):
        optimizer.add_param_group({"params": [other], "indices": {"x": torch.tensor([0])}})
    with pytest.raises(TypeError, match="a parameter group must be a dict, got list"):
        optimizer.add_param_group([other])
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["l1"] = 0.1
    param.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match="l1, or a decay towards the base, was switched on after"):
        optimizer.step()


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = SparseAdamW(table.named_parameters(), {"weight": torch.tensor([1])})
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"layout torch.sparse_coo, wanted a dense one; .*sparse=False"):
        optimizer.step()
