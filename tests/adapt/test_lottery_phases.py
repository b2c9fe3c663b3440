"""Phases of LT-SFT: sources, the best weights, and resuming at any step."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from graftwork.adapt import LotterySparseFinetuner, Phase, SparseDelta
from tests.adapt.lottery_cases import Interrupted, batch, finetuner, network, outputs, train


def languages() -> dict[str, SparseDelta]:
    base = dict(network().state_dict())
    return {
        name: SparseDelta.from_changes(
            {"table.weight": (torch.arange(start, 40, 3), torch.full((n,), size))}, base
        )
        for name, start, n, size in (("en", 0, 14, 0.5), ("sw", 1, 13, -0.5))
    }


def test_sources_are_switched_for_each_batch_and_steps_are_on_the_weights_without() -> None:
    net, plain = network(), network()
    deltas = languages()
    tuner = finetuner(net, sources=deltas, selector="random")
    order = ["en", "sw", "sw", "en", "en"]

    def sparse(phase: Phase) -> None:
        optimizer = phase.optimizer(0.05, kind="sgd")
        for step, name in enumerate(order):
            optimizer.zero_grad()
            for micro in range(2):
                phase.use_source(name if micro else order[step - 1])
                outputs(net, batch(step)[0]).square().mean().backward()
            optimizer.step()

    delta = tuner.fit(None, sparse)
    for step, name in enumerate(order):
        gradients = [torch.zeros_like(p) for p in plain.parameters()]
        for source in (order[step - 1], name):
            shifted = copy.deepcopy(plain)
            with torch.no_grad():
                indices, values = deltas[source].changes("table.weight")
                shifted["table"].weight.view(-1)[indices.long()] += values
            outputs(shifted, batch(step)[0]).square().mean().backward()
            for total, param in zip(gradients, shifted.parameters(), strict=True):
                total += param.grad
        with torch.no_grad():
            for (key, param), gradient in zip(plain.named_parameters(), gradients, strict=True):
                if key.startswith("head"):
                    param -= 0.05 * gradient
                elif key in tuner.indices:
                    param.view(-1)[tuner.indices[key]] -= 0.05 * gradient.view(-1)[tuner.indices[key]]
    for (key, mine), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=key)
    assert delta.entries > 0
    with pytest.raises(ValueError, match=r"'fr' is none of the sources, \['en', 'sw'\]"):
        finetuner(network(), sources=deltas, selector="random").fit(
            None, lambda phase: phase.use_source("fr")
        )


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("selector", ["magnitude", "random"])
def test_a_run_that_is_interrupted_at_any_step_gives_the_same_bits(selector: str) -> None:
    options = {"iterations": 2, "l1": (1.0, 0.5), "selector": selector}
    wanted = finetuner(network(), **options).fit(train(3), train(3, kind="adamw"))
    tuners: list[LotterySparseFinetuner] = []
    for at in range(12):
        saved: dict[str, Any] = {}
        count = iter(range(100))

        def stop(phase: Phase, at: int = at, count: Any = count, saved: Any = saved) -> None:
            if next(count) == at:
                saved.update(through_a_file(tuners[-1].state_dict()))
                raise Interrupted

        tuners.append(finetuner(network(), **options))
        with pytest.raises(Interrupted):
            tuners[-1].fit(train(3, stop=stop), train(3, stop=stop))
        again = finetuner(network(), **options)
        again.load_state_dict(saved)
        delta = again.fit(train(3), train(3))
        assert torch.equal(delta.values, wanted.values)
        assert torch.equal(delta.support.indices, wanted.support.indices)
        assert all(torch.equal(delta.full[name], wanted.full[name]) for name in wanted.full)


def test_states_that_do_not_fit_are_refused() -> None:
    state = finetuner(network()).state_dict()
    with pytest.raises(ValueError, match="the state was made with k=20, here it is 5"):
        finetuner(network(), k=5).load_state_dict(state)
    with pytest.raises(ValueError, match="the state was made from other weights"):
        finetuner(network(seed=1)).load_state_dict(state)


def test_the_best_weights_are_kept_in_both_phases() -> None:
    net = network()
    best: dict[str, dict[str, torch.Tensor]] = {}

    def phase(phase: Phase) -> None:
        optimizer = phase.optimizer(0.05)
        for step, metric in enumerate([0.5, 0.9, 0.9, 0.1]):
            optimizer.zero_grad()
            outputs(net, batch(step)[0]).square().mean().backward()
            optimizer.step()
            if phase.keep_if_best(metric):
                best[phase.kind] = {name: p.detach().clone() for name, p in net.named_parameters()}
        assert not phase.keep_if_best(0.9)
        assert phase.keep_if_best(0.95, higher_is_better=False) is False

    tuner = finetuner(net)
    chosen: list[torch.Tensor] = []
    largest = tuner._largest

    def look(names: Any, params: Any, wanted: int) -> Any:
        chosen.extend(p.detach().clone() for p in params)
        return largest(names, params, wanted)

    tuner._largest = look  # type: ignore[method-assign]
    tuner.fit(phase, phase)
    assert all(
        torch.equal(x, best["full"][name]) for x, name in zip(chosen, tuner.roles.maskable, strict=True)
    )
    assert all(torch.equal(p, best["sparse"][name]) for name, p in net.named_parameters())
