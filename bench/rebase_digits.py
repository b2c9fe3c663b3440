"""Two versions of small digit classifiers, a fine-tune of the first, and every way in which a second may relate to it."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.models.installed import package_folder

INSTALL = "pip install --no-deps scikit-learn==1.9.1"
BATCH = 64
RATE, CONTINUED_RATE, TUNED_RATE = 1e-3, 3e-4, 1e-3
FIRST, MORE, TUNED = 600, 400, 800  # steps of the old base, of the new one after it, of the fine-tune

Weights = dict[str, Tensor]
Data = tuple[Tensor, Tensor]


@cache
def digits() -> tuple[Data, Data]:
    """scikit-learn's 8 × 8 digits in [0, 1], for training and held out: 1347 and 450 of them."""
    file = package_folder("sklearn", INSTALL) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(file) as source:
        table = torch.from_numpy(np.loadtxt(source, delimiter=","))
    images, labels = table[:, :64].float() / 16, table[:, 64].long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[450:], order[:450]
    return (images[train], labels[train]), (images[test], labels[test])


def _turned(images: Tensor) -> Tensor:
    return images.view(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, 64)


def _shuffled(images: Tensor) -> Tensor:
    return images[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))]


TASKS: dict[str, Callable[[Data], Data]] = {
    "inverted": lambda data: (1 - data[0], data[1]),
    "turned": lambda data: (_turned(data[0]), data[1]),
    "mirrored": lambda data: (data[0].view(-1, 8, 8).flip(2).reshape(-1, 64), data[1]),
    "relabelled": lambda data: (data[0], (data[1] + 3) % 10),
    "shuffled": lambda data: (_shuffled(data[0]), data[1]),
}


@dataclass(frozen=True)
class Shape:
    """The layers of a classifier: widths of the hidden ones, and whether they are normalised and residual."""

    name: str
    hidden: tuple[int, ...] = (128, 128)
    residual: bool = False


class Classifier(nn.Module):
    """Pixels to logits."""

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        generator = torch.random.get_rng_state()
        torch.manual_seed(seed)
        sizes = (64, *shape.hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in shape.hidden if shape.residual)
        self.head = nn.Linear(sizes[-1], 10)
        torch.random.set_rng_state(generator)

    def hidden(self, images: Tensor) -> list[Tensor]:
        """What every hidden layer says."""
        states = []
        for number, layer in enumerate(self.layers):
            added = layer(self.norms[number](images) if self.norms and number else images).relu()
            images = images + added if self.norms and number else added
            states.append(images)
        return states

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden(images)[-1])


def train(model: Classifier, data: Data, steps: int, rate: float, seed: int, decay: float = 0.01) -> Weights:
    """AdamW with a constant rate on random batches; the weights at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data[1]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
    return copied(model)


def copied(model: nn.Module) -> Weights:
    """A copy of a model's weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@dataclass
class World:
    """One shape and seed: the old base, and its fine-tune on one task."""

    shape: Shape
    task: str
    seed: int
    known: Mapping[str, Tensor] | None = None
    quick: bool = False

    def steps(self, count: int) -> int:
        """Steps of a training: a few if it shall be quick."""
        return 2 if self.quick else count

    @cached_property
    def train_set(self) -> Data:
        """The task's digits for training."""
        return TASKS[self.task](digits()[0])

    @cached_property
    def test_set(self) -> Data:
        """The task's digits that are held out."""
        return TASKS[self.task](digits()[1])

    def model(self, weights: Mapping[str, Tensor] | None = None, seed: int | None = None) -> Classifier:
        """A model with these weights, or fresh ones."""
        model = Classifier(self.shape, self.seed if seed is None else seed)
        if weights is not None:
            model.load_state_dict(dict(weights))
        return model

    @cached_property
    def old(self) -> Weights:
        """The old base; the one that is known, if one was given."""
        if self.known is not None:
            return dict(self.known)
        return train(self.model(), digits()[0], self.steps(FIRST), RATE, self.seed)

    @cached_property
    def tuned(self) -> Weights:
        """Its fine-tune."""
        return self.finetune(self.old)

    def finetune(self, start: Mapping[str, Tensor], steps: int = TUNED, seed: int = 7) -> Weights:
        """The task, learnt from these weights."""
        return train(
            self.model(start), self.train_set, self.steps(steps), TUNED_RATE, 1000 * seed + self.seed
        )

    def accuracy(self, weights: Mapping[str, Tensor], data: Data | None = None) -> float:
        """Percent of the held-out digits of the task."""
        images, labels = data or self.test_set
        with torch.no_grad():
            return 100 * (self.model(weights)(images).argmax(1) == labels).double().mean().item()

    def loss(self, weights: Mapping[str, Tensor], data: Data) -> float:
        """Mean cross-entropy."""
        with torch.no_grad():
            return cross_entropy(self.model(weights)(data[0]), data[1]).item()

    def continued(self, steps: int, rate: float, data: Data | None = None) -> Weights:
        """The old base, trained on."""
        return train(self.model(self.old), data or digits()[0], self.steps(steps), rate, 100 + self.seed)

    def news(self, shared: dict[str, tuple[bool, Weights]]) -> Iterator[tuple[str, bool, Weights]]:
        """Second versions: a name, whether it descends from the old base, and its weights.

        Those that do not depend on the task are made once, and kept in ``shared``.
        """
        for name, related, make in self._makers():
            if name not in shared:
                shared[name] = related, make()
            yield name, *shared[name]
        yield "the fine-tune's own data", True, self.finetune(self.old, 100, 9)

    def _makers(self) -> Iterator[tuple[str, bool, Callable[[], Weights]]]:
        plain = digits()[0]
        half = plain[1] < 5
        some = plain[0][half], plain[1][half]
        rates = {"": CONTINUED_RATE, " at 1e-3": 1e-3, " at 3e-3": 3e-3, " at 1e-2": 1e-2, " at 3e-2": 3e-2}
        for name, rate in rates.items():
            yield f"continued{name}", True, partial(self.continued, MORE, rate)
        yield "continued long", True, partial(self.continued, 8 * MORE, 1e-3)
        yield "continued on half the digits", True, partial(self.continued, MORE, 1e-3, some)
        yield (
            "continued on noisy digits",
            True,
            partial(self.continued, MORE, 1e-3, (_noisy(plain[0]), plain[1])),
        )
        yield (
            "continued on shuffled pixels",
            True,
            partial(self.continued, MORE, 1e-3, TASKS["shuffled"](plain)),
        )
        for share in (0.1, 0.3, 1.0):
            yield f"noise of {share:g}", True, partial(noisy, self.old, share, self.seed)
        yield "another order of training", True, partial(self._trained, self.seed, FIRST, 50 + self.seed)
        yield "trained from an early state", True, self._from_early
        yield "another seed", False, partial(self._trained, self.seed + 70, FIRST, self.seed)
        yield "another seed, more steps", False, partial(self._trained, self.seed + 71, 2 * FIRST, self.seed)
        yield "units in another order", False, partial(permuted, self.old, self.shape, 1.0, self.seed)
        yield (
            "half the units in another order",
            False,
            partial(permuted, self.old, self.shape, 0.5, self.seed),
        )

    def _trained(self, seed: int, steps: int, order: int) -> Weights:
        """A base of its own from a seed."""
        return train(self.model(seed=seed), digits()[0], self.steps(steps), RATE, order)

    def _from_early(self) -> Weights:
        """A sibling: it left the old base's path after a sixth of the steps."""
        early = train(self.model(), digits()[0], self.steps(FIRST // 6), RATE, self.seed)
        return train(self.model(early), digits()[0], self.steps(FIRST), RATE, 60 + self.seed)


def _noisy(images: Tensor) -> Tensor:
    return images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))


def noisy(weights: Mapping[str, Tensor], share: float, seed: int) -> Weights:
    """Weights with Gaussian noise of a share of each tensor's own norm."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + share * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
    }


def permuted(weights: Mapping[str, Tensor], shape: Shape, share: float, seed: int) -> Weights:
    """The same function with a share of the hidden units of every layer in other places."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: tensor.clone() for name, tensor in weights.items()}
    last = len(shape.hidden) - 1
    whole: Tensor | None = None
    for number, width in enumerate(shape.hidden):
        if whole is None or not shape.residual:
            moved = torch.randperm(width, generator=generator)[: int(share * width)]
            whole = torch.arange(width)
            whole[moved] = moved.roll(1)
        order = whole
        for part in ("weight", "bias"):
            found[f"layers.{number}.{part}"] = found[f"layers.{number}.{part}"][order]
            if shape.residual and number + 1 <= last:
                name = f"norms.{number + 1}.{part}"
                found[name] = found[name][order]
        after = "head.weight" if number == last else f"layers.{number + 1}.weight"
        found[after] = found[after][:, order]
    if shape.residual:
        for part in ("weight", "bias"):
            found[f"norms.0.{part}"] = found[f"norms.0.{part}"][whole]
    return found
