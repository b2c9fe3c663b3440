"""Steps on the tuned weights against torch's optimizers and worked examples; what they refuse."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import pytest
import torch

from graftwork.ops.sparse_update import (
    Support,
    gather_gradients,
    gather_values,
    sparse_adamw_,
    sparse_sgd_,
    sparse_sm3_,
    step,
    swap_values_,
    write_values_,
)
from graftwork.reference.sparse_update import step as reference
from tests.generators.supports import random_tensors, some_support
from tests.ops.sparse_update.step_cases import State, adamw, copied, make_state, same_state
from tests.ops.test_ordinal_planes import same_bits
from tests.tolerances import assert_close


def run_compact(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, grads: list[torch.Tensor]) -> None:
    for grad in grads:
        parameter.grad = grad
        optimizer.step()


def dense_gradients(steps: int, numel: int) -> list[torch.Tensor]:
    return random_tensors([numel] * steps, torch.float32, 11)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_that_of_torch(weight_decay: float, device: str) -> None:
    """100 steps on the compact vector; eps and decay where torch has them."""
    support = some_support((1000,), 0.3).to(device)
    weight = random_tensors((1000,), torch.float32)[0].to(device)
    untouched, base = weight.clone(), gather_values(support, [weight])
    parameter = torch.nn.Parameter(base.double())
    grads = [grad.to(device) for grad in dense_gradients(100, 1000)]
    compact = [gather_gradients(support, [grad]).compact for grad in grads]
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=weight_decay, foreach=False)
    run_compact(optimizer, parameter, [grad.double() for grad in compact])
    value, m, v = (torch.zeros_like(base) for _ in range(3))
    options = {"lr": 1e-3, "weight_decay": weight_decay, "weights": [weight], "base": base}
    for number, grad in enumerate(grads, 1):
        sparse_adamw_(support, [grad], value, m, v, step=number, **options)
    assert_close("sparse_adamw", base.double() + value, parameter.detach())
    assert same_bits(gather_values(support, [weight]), base + value)
    mask = torch.ones(1000, dtype=torch.bool, device=device).index_fill_(0, support.indices.long(), False)
    assert same_bits(weight[mask], untouched[mask])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_sgd_is_that_of_torch(options: State, device: str) -> None:
    support = some_support((1000,), 0.3).to(device)
    weight = random_tensors((1000,), torch.float32)[0].to(device)
    base = gather_values(support, [weight])
    parameter = torch.nn.Parameter(base.double())
    compact = [gather_gradients(support, [g.to(device)]).compact for g in dense_gradients(30, 1000)]
    optimizer = torch.optim.SGD([parameter], lr=0.01, **options)
    run_compact(optimizer, parameter, [grad.double() for grad in compact])
    value, buffer = torch.zeros_like(base), torch.empty_like(base)
    for number, grad in enumerate(compact):
        sparse_sgd_(support, grad, value, buffer, lr=0.01, base=base, first=number == 0, **options)
    assert_close("sparse_sgd", base.double() + value, parameter.detach())


def test_decay_acts_on_tuned_weights_alone(device: str) -> None:
    """The worked example: three steps with mask [1, 0, 0, 1]; dense masked training shrinks the others too."""
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device)
    support = Support([torch.tensor([0, 3])], [4]).to(device)
    base = gather_values(support, [weight])
    value, m, v = (torch.zeros(2, device=device) for _ in range(3))
    for number in (1, 2, 3):
        grad = torch.tensor([0.1, 0.2, -0.3, 0.4], device=device) * number
        sparse_adamw_(support, [grad], value, m, v, step=number, lr=0.1, weights=[weight], base=base)
    torch.testing.assert_close(weight.cpu(), torch.tensor([0.70768, 2.0, 3.0, 3.70768]), rtol=0, atol=5e-6)


def test_ages_that_are_all_equal_are_a_step(device: str) -> None:
    support = some_support((500,), 0.5).to(device)
    grads, state = dense_gradients(1, 500), make_state(support.to("cpu"), torch.float32)
    for before in (0, 1, 40, 20_000, 1 << 20):
        one, other = copied(state, device), copied(state, device)
        ages = torch.full_like(support.indices, before)
        adamw(support, [grads[0].to(device)], one, step=before + 1)
        adamw(support, [grads[0].to(device)], other, step=ages)
        assert same_state(one, other)
        assert ages.unique().tolist() == [before + 1]


def test_ages_out_of_range_read_nothing_else() -> None:
    support, state = (
        Support([torch.arange(3)], [3]),
        make_state(Support([torch.arange(3)], [3]), torch.float32),
    )
    ages = torch.tensor([-5, 0, 2**31 - 2], dtype=torch.int32)
    adamw(support, torch.zeros(3), state, step=ages)
    assert state["values"].isfinite().all()


def test_corrections_reach_to_where_they_are_one() -> None:
    table = reference.correction_table(0.9, 0.999, torch.tensor([0]))
    assert table[:, -1].tolist() == [1, 1]
    exact = 1 - torch.tensor([[0.9], [0.999]], dtype=torch.float64) ** torch.arange(1, table.shape[1])
    exact[1].sqrt_()
    assert torch.equal(table[:, 1:], (1 / exact).float())
    young = reference.correction_table(0.9, 1 - 1e-7, torch.tensor([70_000]))
    assert 70_001 < young.shape[1] < 1 << 18


def test_uncorrected_eps_is_that_of_older_adams(device: str) -> None:
    """First step with eps 1: m = .1 g, v = .001 g²; denominator (√v + 1)/√.001."""
    support = Support([torch.tensor([0])], [1]).to(device)
    for mode, wanted in (("corrected", 0.5), ("uncorrected", 0.001**0.5 / (0.001**0.5 + 1))):
        value, m, v = (torch.zeros(1, device=device) for _ in range(3))
        sparse_adamw_(
            support, torch.ones(1, device=device), value, m, v, step=1, lr=1.0, eps=1.0, eps_mode=mode
        )
        assert value.item() == pytest.approx(-wanted, rel=1e-6)


def test_soft_threshold_and_l1(device: str) -> None:
    support = Support([torch.arange(4)], [4]).to(device)
    value = torch.tensor([0.3, -0.3, 0.05, 0.0], device=device)
    sparse_sgd_(support, torch.zeros(4, device=device), value, lr=1.0, l1=0.1, soft_threshold=0.1)
    torch.testing.assert_close(value.cpu(), torch.tensor([0.1, -0.1, 0.0, 0.0]))
    value = torch.tensor([-0.0, torch.inf, torch.nan, -1.0], device=device)
    before = value.clone()
    sparse_sgd_(support, torch.zeros(4, device=device), value, lr=0.0)
    assert same_bits(value.nan_to_num(9.0).cpu(), before.nan_to_num(9.0).cpu())


def test_sm3_by_hand(device: str) -> None:
    """The sheet's 2×2 example: entries (0, 0) and (1, 1), two steps."""
    support, value = Support([torch.tensor([0, 3])], [4]).to(device), torch.zeros(2, device=device)
    rows, columns = torch.zeros(2, device=device), torch.zeros(2, device=device)
    for grad, accumulators, wanted in (
        ([1.0, 2.0], [1.0, 4.0], [-0.1, -0.1]),
        ([1.0, -1.0], [2.0, 5.0], [-0.170711, -0.055279]),
    ):
        sparse_sm3_(support, torch.tensor(grad, device=device), value, rows, columns, [2], lr=0.1)
        assert rows.tolist() == columns.tolist() == accumulators
        torch.testing.assert_close(value.cpu(), torch.tensor(wanted), rtol=0, atol=1e-6)


def test_sm3_reads_the_accumulators_of_the_step_before(device: str) -> None:
    """Both entries of a row see the old maximum, whichever comes first."""
    support, value = Support([torch.tensor([0, 1])], [2]).to(device), torch.zeros(2, device=device)
    rows, columns = torch.full((1,), 9.0, device=device), torch.full((2,), 1.0, device=device)
    sparse_sm3_(support, torch.tensor([4.0, 2.0], device=device), value, rows, columns, [2], lr=1.0, eps=0.0)
    assert rows.tolist() == [17.0]
    assert columns.tolist() == [17.0, 5.0]
    torch.testing.assert_close(value.cpu(), torch.tensor([-4 / 17**0.5, -2 / 5**0.5]))


def test_small_updates_add_up_in_16_bits(device: str) -> None:
    """A hundred steps far below the weight's spacing: a sum in the weight itself would stay where it is."""
    weight = torch.ones(10, dtype=torch.bfloat16, device=device)
    support = Support([torch.arange(10)], [10]).to(device)
    base, value = gather_values(support, [weight]), torch.zeros(10, device=device)
    for _ in range(100):
        sparse_sgd_(support, torch.ones(10, device=device), value, lr=1e-3, weights=[weight], base=base)
    assert weight.tolist() == [0.8984375] * 10
    write_values_(support, [weight], base, value, 0.0)
    assert weight.tolist() == [1.0] * 10


ONE = Support([torch.tensor([0, 2])], [4])
WORDS = torch.zeros(2)


def fresh(count: int = 3) -> list[torch.Tensor]:
    return [torch.zeros(2) for _ in range(count)]


def one_adamw(**options: object) -> None:
    arguments = {"step": 1, "lr": 0.1, "grads": WORDS, **options}
    sparse_adamw_(ONE, arguments.pop("grads"), *fresh(), **arguments)


def one_sgd(**options: object) -> None:
    arguments = {"lr": 0.1, **options}
    buffer = arguments.pop("momentum_buffer", None)
    sparse_sgd_(ONE, WORDS, torch.zeros(2), buffer, **arguments)


def one_sm3(rows: int = 2, width: int = 2, columns: tuple[int, ...] = (2,), **options: object) -> None:
    arguments = {"lr": 0.1, **options}
    sparse_sm3_(ONE, WORDS, torch.zeros(2), torch.zeros(rows), torch.zeros(width), columns, **arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: one_adamw(step=0), ValueError, "step must be at least 1, the number of this update, got 0"),
        (lambda: one_adamw(step=torch.zeros(2)), TypeError, "sparse_adamw_: step must be one of int32"),
        (lambda: one_adamw(step=torch.zeros(3).int()), ValueError, "step must be contiguous with one entry"),
        (lambda: one_adamw(lr=-1.0), ValueError, "lr must be at least 0 and finite, got -1.0"),
        (lambda: one_adamw(lr=float("nan")), ValueError, "lr must be at least 0 and finite, got nan"),
        (lambda: one_adamw(eps=-1.0), ValueError, "eps must be at least 0"),
        (lambda: one_adamw(l1=-1.0), ValueError, "l1 must be at least 0"),
        (lambda: one_adamw(soft_threshold=-1.0), ValueError, "soft_threshold must be at least 0"),
        (lambda: one_adamw(weight_decay=float("inf")), ValueError, "weight_decay must be at least 0"),
        (lambda: one_adamw(grad_scale=float("nan")), ValueError, "grad_scale must be finite, got nan"),
        (lambda: one_adamw(betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        (
            lambda: one_adamw(eps_mode="torch"),
            ValueError,
            "eps_mode must be one of 'corrected', 'uncorrected'",
        ),
        (
            lambda: one_adamw(decay_mode="both"),
            ValueError,
            "decay_mode must be one of 'weight', 'delta', 'none'",
        ),
        (lambda: one_adamw(weight_decay=0.1), ValueError, "base is missing; decay_mode 'weight' draws"),
        (lambda: one_adamw(weights=[torch.zeros(4)]), ValueError, "base is missing; weights are written"),
        (
            lambda: one_adamw(weights=[torch.zeros(4)], base=WORDS.half()),
            TypeError,
            "base must be one of float32",
        ),
        (lambda: one_adamw(base=WORDS.double()), TypeError, "base must be one of float16, bfloat16, float32"),
        (lambda: one_adamw(base=[0.0]), TypeError, "base must be a torch.Tensor, got list"),
        (
            lambda: one_adamw(base=torch.zeros(3)),
            ValueError,
            "base must be contiguous with one entry for each",
        ),
        (lambda: one_adamw(grads=WORDS.half()), TypeError, "grads must be one of float32"),
        (lambda: one_adamw(grads=torch.zeros(4)), ValueError, "grads must be contiguous with one entry"),
        (
            lambda: one_adamw(grads=[torch.zeros(4, 2)[:, 0]]),
            ValueError,
            r"grads\[0\] must be contiguous",
        ),
        (lambda: one_adamw(grads=[torch.zeros(2)]), ValueError, r"grads\[0\] must have 4 elements, got 2"),
        (lambda: one_adamw(grads=[None]), TypeError, r"grads\[0\] must be a torch.Tensor, got NoneType"),
        (lambda: one_sgd(momentum=0.9), ValueError, "momentum_buffer is missing; momentum needs it"),
        (
            lambda: one_sgd(momentum=0.9, momentum_buffer=torch.zeros(3)),
            ValueError,
            "momentum_buffer must be contiguous with one entry",
        ),
        (
            lambda: one_sgd(nesterov=True),
            ValueError,
            "nesterov needs momentum > 0 and dampening = 0, got 0.0",
        ),
        (lambda: one_sgd(dampening=float("inf")), ValueError, "dampening must be finite"),
        (lambda: one_sgd(momentum=-0.1), ValueError, "sparse_sgd_: momentum must be at least 0"),
        (lambda: one_sm3(momentum=1.0), ValueError, r"sparse_sm3_: momentum must be in \[0, 1\), got 1.0"),
        (lambda: one_sm3(columns=(2, 2)), ValueError, "columns must be 1 numbers, got 2"),
        (lambda: one_sm3(columns=(3,)), ValueError, r"columns\[0\] must divide 4 elements, got 3"),
        (lambda: one_sm3(columns=(0,)), ValueError, r"columns\[0\] must divide 4 elements, got 0"),
        (
            lambda: one_sm3(rows=3),
            ValueError,
            "row_max must be contiguous with 2 elements, those of all tensors",
        ),
        (lambda: one_sm3(width=3), ValueError, "column_max must be contiguous with 2 elements"),
        (lambda: one_sm3(weight_decay=0.1, decay_mode="weight"), ValueError, "base is missing"),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_overlapping_memory_is_refused() -> None:
    value, m, v = fresh()
    with pytest.raises(ValueError, match=r"sparse_adamw_: .* overlaps .* in memory"):
        sparse_adamw_(ONE, WORDS, value, m, m, step=1, lr=0.1)
    two, tied = Support([torch.tensor([0]), torch.tensor([1])], [4, 4]), torch.zeros(4)
    with pytest.raises(
        ValueError, match=r"weights\[1\] overlaps weights\[0\] in memory; list a tied tensor once"
    ):
        sparse_adamw_(two, WORDS, value, m, v, step=1, lr=0.1, weights=[tied, tied], base=WORDS)
    with pytest.raises(ValueError, match=r"sparse_sgd_: .* overlaps .* in memory"):
        sparse_sgd_(ONE, WORDS, value, value, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"sparse_sm3_: .* overlaps .* in memory"):
        sparse_sm3_(ONE, WORDS, value, m, m, [2], lr=0.1)


def test_parameters_are_written_and_autograd_notices() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    loss = (weight * weight).sum()
    base = gather_values(ONE, [weight])
    value, m, v = fresh()
    sparse_adamw_(ONE, [torch.ones(4)], value, m, v, step=1, lr=0.5, weights=[weight], base=base)
    assert weight.tolist() == [0.5, 1.0, 0.5, 1.0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_compiles_in_full() -> None:
    def train(
        weights: list[torch.Tensor], grads: list[torch.Tensor], state: list[torch.Tensor]
    ) -> torch.Tensor:
        base = gather_values(two, weights)
        gathered = gather_gradients(two, grads, scale=0.5)
        sparse_adamw_(two, gathered.compact, *state, step=1, lr=0.1, weights=weights, base=base)
        under = swap_values_(weights, two, base, two, state[0], 2.0)
        write_values_(two, weights, under, state[0])
        return gathered.sum_of_squares

    two = Support([torch.tensor([0, 5]), torch.tensor([2])], [6, 3])
    results = []
    for run in (train, torch.compile(train, fullgraph=True, backend="aot_eager")):
        weights, grads = (random_tensors((6, 3), torch.float32, seed) for seed in (0, 1))
        state = [torch.zeros(3) for _ in range(3)]
        results.append([run(weights, grads, state), *weights, *state])
    for one, other in zip(*results, strict=True):
        assert same_bits(one, other)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(step, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
