"""A trained family: what the papers and the verdict say comes out, on images drawn by chance, in seconds."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from graftwork.rebase import Evaluation, preflight, transfer_state
from tests.generators.glyphs import glyphs

State = dict[str, Tensor]


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def train(state: State | int, images: Tensor, labels: Tensor, steps: int, rate: float, seed: int) -> State:
    """The weights after AdamW steps from a state, or from a seed's fresh weights."""
    model = network(state if isinstance(state, int) else 0)
    if not isinstance(state, int):
        model.load_state_dict(state)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def accuracy(state: State, data: tuple[Tensor, Tensor]) -> float:
    model = network(0)
    model.load_state_dict(state)
    with torch.no_grad():
        return (model(data[0]).argmax(1) == data[1]).double().mean().item()


@cache
def family() -> tuple[State, State, State, State]:
    """The old base, its fine-tune on inverted images, the base trained on, and a base of another seed."""
    images, labels = glyphs(1400, 0)
    old = train(0, images, labels, 400, 1e-3, 1)
    tuned = train(old, 1 - images, labels, 400, 1e-3, 2)
    new = train(old, images, labels, 250, 3e-4, 3)
    stranger = train(77, images, labels, 400, 1e-3, 4)
    return old, tuned, new, stranger


def test_a_continued_base_takes_the_fine_tune_and_a_stranger_does_not() -> None:
    old, tuned, new, stranger = family()
    images, labels = glyphs(600, 1)
    task = (1 - images, labels)
    gain = accuracy(tuned, task) - accuracy(old, task)
    assert gain > 0.5
    for base, verdict in ((new, "go"), (stranger, "dont")):
        found = preflight(old, tuned, base)
        result = transfer_state(old, tuned, base)
        retained = (accuracy(result, task) - accuracy(base, task)) / gain
        assert found.verdict == verdict, found.reasons
        assert retained > 0.8 if verdict == "go" else retained < 0.4
        assert found.predicted is not None and abs(found.predicted - retained) < 0.4


def test_examples_say_the_same() -> None:
    old, tuned, new, stranger = family()
    images, labels = glyphs(300, 2)

    def loss(weights: State) -> Evaluation:
        model = network(0)
        model.load_state_dict(weights)
        with torch.no_grad():
            logits = model(1 - images)
        right = (logits.argmax(1) == labels).double().mean().item()
        return Evaluation(cross_entropy(logits, labels).item(), right)

    near, far = (preflight(old, tuned, base, loss=loss) for base in (new, stranger))
    assert near.verdict == "go" and far.verdict == "dont"
    assert near.evidence is not None and (near.evidence.relative_barrier or 0.0) < 0.2


def test_a_start_with_the_difference_learns_sooner() -> None:
    old, tuned, new, _ = family()
    images, labels = glyphs(1400, 0)
    test_images, test_labels = glyphs(600, 1)
    task = (1 - test_images, test_labels)
    scores = [
        accuracy(train(start, 1 - images, labels, 10, 1e-3, 5), task)
        for start in (new, transfer_state(old, tuned, new))
    ]
    assert scores[1] > scores[0] + 0.3
