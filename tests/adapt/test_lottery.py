"""LT-SFT: the sheet's numbers, exactly K, rewinding, the penalty, sources, and resuming at any step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.adapt import LotterySparseFinetuner, Phase
from tests.adapt.lottery_cases import batch, finetuner, network, outputs, train

X = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
Y = torch.tensor([2.0, 1.0, 0.5, 2.5])


def test_the_worked_example() -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    seen = []

    def phase(phase: Phase) -> None:
        optimizer = phase.optimizer(0.1, kind="sgd")
        for _ in range(50):
            optimizer.zero_grad()
            (model(X).squeeze(1) - Y).square().mean().backward()
            optimizer.step()
        seen.append(model.weight.detach().view(-1).clone())

    delta = LotterySparseFinetuner(model, k=2).fit(phase, phase)
    torch.testing.assert_close(
        seen[0], torch.tensor([0.500508, 0.003601, 1.496385, 0.999477]), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(seen[1], torch.tensor([0.1, 0.2, 1.786890, 0.779224]), rtol=0, atol=2e-6)
    indices, values = delta.changes("weight")
    assert indices.tolist() == [2, 3]
    torch.testing.assert_close(values, torch.tensor([1.486890, 0.379224]), rtol=0, atol=2e-6)


def put(changes: torch.Tensor) -> Callable[[Phase], None]:
    """A full phase that moves weights by given amounts."""

    def run(phase: Phase) -> None:
        optimizer = phase.optimizer(1.0, kind="sgd")
        phase.model.weight.grad = -changes.view_as(phase.model.weight)
        optimizer.step()

    return run


def test_ties_give_exactly_k_and_zero_changes_are_never_chosen() -> None:
    changes = torch.tensor([0.3, 0.1, 0.1, 0.1, 0.0, 0.5])
    for k, chosen, unchanged in ((3, [0, 1, 5], 0), (6, [0, 1, 2, 3, 5], 1), (0, [], 0)):
        model = nn.Linear(6, 1, bias=False)
        nn.init.zeros_(model.weight)
        tuner = LotterySparseFinetuner(model, k=k)
        delta = tuner.fit(put(changes), put(torch.ones(6)))
        assert delta.changes("weight")[0].tolist() == chosen
        assert (tuner.selections[0].chosen, tuner.selections[0].unchanged) == (len(chosen), unchanged)
    assert LotterySparseFinetuner(nn.Linear(10, 10), density=0.055).k == 6


@pytest.mark.parametrize("selector", ["magnitude", "random"])
def test_frozen_weights_stay_and_the_delta_is_the_change(selector: str) -> None:
    net, base = network(), network()
    tuner = finetuner(net, selector=selector)
    delta = tuner.fit(train(5), train(5))
    assert sum(map(len, tuner.indices.values())) == tuner.selections[0].chosen == 20
    assert delta.entries == 20 if selector == "magnitude" else 0 < delta.entries <= 20
    for name, param in net.named_parameters():
        before = dict(base.named_parameters())[name]
        changed = (param != before).view(-1)
        if name.startswith("head"):
            assert changed.any()
        else:
            assert int(changed.sum()) == (0 if "norm" in name else len(delta.changes(name)[0]))
    assert all(param.requires_grad for param in net.parameters())
    handle = delta.apply_(base, with_full=True)
    assert all(torch.equal(x, y) for x, y in zip(base.parameters(), net.parameters(), strict=True))
    handle.revert_()
    assert all(torch.equal(x, y) for x, y in zip(base.parameters(), network().parameters(), strict=True))


def test_all_weights_are_a_full_fine_tune_and_none_is_the_head_alone() -> None:
    net, plain = network(), network()
    whole = finetuner(net, k=12 * 6 + 6 * 6 + 6, frozen="norm.*")
    whole.fit(train(5), train(5))  # rows 8 to 11 of the table see no gradient
    assert whole.selections[0].unchanged == 24
    optimizer = torch.optim.AdamW(
        [p for n, p in plain.named_parameters() if "norm" not in n], lr=0.02, weight_decay=0
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 5)
    for step in range(5):
        words, labels = batch(step + 100)
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs(plain, words), labels).backward()
        optimizer.step()
        scheduler.step()
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    net, base = network(), network()
    delta = finetuner(net, k=0).fit(train(3), train(3))
    assert delta.entries == 0
    assert set(delta.full) == {"head.weight", "head.bias"}
    for name, param in net.named_parameters():
        assert torch.equal(param, dict(base.named_parameters())[name]) != name.startswith("head")


def test_heads_are_set_back_before_the_sparse_phase() -> None:
    net = network()
    start = copy.deepcopy(net)

    def sparse(phase: Phase) -> None:
        assert all(torch.equal(x, y) for x, y in zip(net.parameters(), start.parameters(), strict=True))
        train(2)(phase)

    finetuner(net).fit(train(3), sparse)


def test_iterations_share_k_and_measure_from_the_start() -> None:
    net, start = network(), network()
    tuner = finetuner(net, k=21, iterations=2)
    seen: list[dict[str, torch.Tensor]] = []

    def full(phase: Phase) -> None:
        train(4)(phase)
        seen.append({name: p.detach().clone() for name, p in tuner.roles.maskable.items()})

    delta = tuner.fit(full, train(4))
    assert [selection.wanted for selection in tuner.selections] == [10, 11]
    assert delta.entries == 21
    base = dict(start.named_parameters())
    scores = torch.cat([(seen[0][name] - base[name]).abs().view(-1) for name in seen[0]])
    first = set(scores.topk(10).indices.tolist())
    scores = torch.cat([(seen[1][name] - base[name]).abs().view(-1) for name in seen[1]])
    scores[list(first)] = -1
    second = set(scores.topk(11).indices.tolist())
    starts, chosen = 0, set()
    for name, param in tuner.roles.maskable.items():
        chosen |= {int(i) + starts for i in delta.changes(name)[0]}
        starts += param.numel()
    assert chosen == first | second


def test_random_selection_is_uniform_and_leaves_out_what_is_chosen() -> None:
    counts = torch.zeros(12)
    for seed in range(150):
        model = nn.Linear(3, 3)
        tuner = LotterySparseFinetuner(model, k=4, iterations=2, selector="random", seed=seed)
        delta = tuner.fit(None, lambda phase: put_all(phase))
        assert delta.entries == 4
        counts[:9][delta.changes("weight")[0].long()] += 1
        counts[9:][delta.changes("bias")[0].long()] += 1
    assert (counts / 150 - 1 / 3).abs().max() < 0.15


def put_all(phase: Phase) -> None:
    optimizer = phase.optimizer(1.0, kind="sgd")
    for param in phase.model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()


def test_a_function_selects() -> None:
    def first_rows(tuned: Any, base: Any, k: int) -> dict[str, torch.Tensor]:
        assert set(tuned) == set(base) == {"table.weight", "body.weight", "body.bias"}
        return {"table.weight": torch.arange(k)}

    delta = finetuner(network(), selector=first_rows).fit(train(2), train(2))
    assert delta.changes("table.weight")[0].tolist() == list(range(20))
    with pytest.raises(ValueError, match="selector chose 21 weights where 20 were wanted"):
        finetuner(network(), selector=lambda t, b, k: {"table.weight": torch.arange(21)}).fit(
            train(1), train(1)
        )
    with pytest.raises(
        ValueError, match=r"selector chose weights of 'table\.weight' that were chosen before"
    ):
        finetuner(network(), selector=first_rows, iterations=2).fit(train(1), train(1))


def test_the_penalty_is_in_each_step_once_and_is_active() -> None:
    net = network()
    tuner = finetuner(net, l1=(3.0, 2.0))
    numel = sum(p.numel() for p in net.parameters())
    penalties = []

    def phase(phase: Phase) -> None:
        optimizer = phase.optimizer(0.5, kind="sgd")
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        weight = (2.0 if phase.kind == "sparse" else 3.0) / numel
        for step in range(2):
            optimizer.zero_grad()
            for _ in range(4):  # micro-batches do not multiply the penalty
                outputs(net, batch(step)[0]).sum().mul(0.0 if step else 1.0).backward()
            optimizer.step()
            after = {name: p.detach().clone() for name, p in net.named_parameters()}
            if step:
                for name in tuner.roles.trainable:
                    drawn = before[name] - 0.5 * weight * (before[name] - tuner.start[name]).sign()
                    torch.testing.assert_close(after[name], drawn, rtol=1e-5, atol=1e-7)
            before = after
        total = sum(float((before[name] - tuner.start[name]).abs().sum()) for name in tuner.roles.trainable)
        penalty = phase.penalty()
        assert float(penalty.detach()) == pytest.approx(weight * total, rel=1e-5)
        penalties.append(penalty.requires_grad)

    tuner.fit(phase, phase)
    assert penalties == [True, True]
    head_free = finetuner(network(), l1=(1.0, 0.0), l1_on_full=False)
    head_free.fit(lambda phase: put_groups(phase), train(1))


def put_groups(phase: Phase) -> None:
    optimizer = phase.optimizer(0.1)
    assert [group["l1"] > 0 for group in optimizer.param_groups] == [True, False]


def test_an_optimizer_of_ones_own_in_the_full_phase() -> None:
    net, other = network(), network()

    def own(phase: Phase) -> None:
        optimizer = phase.adopt(torch.optim.SGD([p for _, p in phase.parameters()], lr=0.1))
        for step in range(3):
            optimizer.zero_grad()
            (outputs(net, batch(step)[0]).square().mean() + phase.penalty()).backward()
            optimizer.step()
        assert phase.steps == 3

    def ours(phase: Phase) -> None:
        optimizer = phase.optimizer(0.1, kind="sgd")
        for step in range(3):
            optimizer.zero_grad()
            outputs(other, batch(step)[0]).square().mean().backward()
            optimizer.step()

    deltas = [
        finetuner(held, l1=(5.0, 0.0)).fit(phase, train(2)) for held, phase in ((net, own), (other, ours))
    ]
    assert torch.equal(deltas[0].support.indices, deltas[1].support.indices)
    torch.testing.assert_close(deltas[0].values, deltas[1].values, rtol=1e-4, atol=1e-6)


def test_bf16_models() -> None:
    net, base = network().bfloat16(), network().bfloat16()
    delta = finetuner(net).fit(train(3), train(3))
    delta.apply_(base, with_full=True)
    assert all(torch.equal(x, y) for x, y in zip(base.parameters(), net.parameters(), strict=True))


def test_training_that_diverges_is_named() -> None:
    def full(phase: Phase) -> None:
        with torch.no_grad():
            phase.model["body"].weight[1, 1] = float("nan")

    with pytest.raises(ValueError, match=r"parameter 'body\.weight' is NaN after the full phase"):
        finetuner(network()).fit(full, train(1))


def test_bad_arguments() -> None:
    for options, match in (
        ({"k": None}, "give either k or density, got k=None and density=None"),
        ({"density": 0.5}, "give either k or density, got k=20 and density=0.5"),
        ({"k": 115}, r"k must be in \[0, 114\], the weights that can be tuned, got 115"),
        ({"k": None, "density": 1.5}, r"density must be in \[0, 1\], got 1.5"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"l1": (0.1, -1)}, "l1 must be two numbers, none negative"),
        ({"selector": "best"}, "selector must be 'magnitude', 'random' or a function, got 'best'"),
    ):
        with pytest.raises(ValueError, match=match):
            finetuner(network(), **options)
    tuner = finetuner(network())
    with pytest.raises(ValueError, match="full_phase may be None only if selector is 'random'"):
        tuner.fit(None, train(1))
    with pytest.raises(ValueError, match="the sparse phase has no optimizer"):
        tuner.fit(train(1), lambda phase: None)
    with pytest.raises(ValueError, match="the sparse phase has no optimizer"):
        finetuner(network(), selector="random").fit(None, lambda phase: phase.keep_if_best(1.0))
    random = {"selector": "random"}
    with pytest.raises(ValueError, match="a phase has one optimizer"):
        finetuner(network(), **random).fit(None, lambda phase: [phase.optimizer(1.0), phase.optimizer(1.0)])
    with pytest.raises(ValueError, match="make the phase's optimizer first, and then one scheduler"):
        finetuner(network(), **random).fit(None, lambda phase: phase.scheduler(lambda made: None))
    with pytest.raises(ValueError, match="a sparse phase tunes chosen weights alone"):
        finetuner(network(), **random).fit(
            None, lambda phase: phase.adopt(torch.optim.SGD([p for _, p in phase.parameters()]))
        )
    with pytest.raises(ValueError, match="kind must be one of adamw, sgd, sm3, got 'lion'"):
        finetuner(network(), **random).fit(None, lambda phase: phase.optimizer(1.0, kind="lion"))
    with pytest.raises(ValueError, match="sm3 has no L1 penalty"):
        finetuner(network(), l1=(0, 1), **random).fit(None, lambda phase: phase.optimizer(1.0, kind="sm3"))
    assert finetuner(network(), **random).fit(None, train(2, kind="sm3")).entries > 0
