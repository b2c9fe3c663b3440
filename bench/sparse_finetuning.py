"""Sparse fine-tuning of MiniLM on sayings of twelve topics: accuracy, tuned weights, memory and time, by method."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.corpora.labelled import LabelledText, fortune_topics
from bench.models import minilm
from bench.models.encoder import SentenceEncoder
from bench.record import Measurement, Options, Row
from bench.tiny.classifier import BATCH, TextClassifier, batches, loss_of
from graftwork.adapt import LotterySparseFinetuner, Phase, SparseDelta, SpIELFinetuner

TESTS = ("tests/adapt",)
SEEDS = 3
STEPS = 150  # one epoch
DENSITIES = (0.01, 0.04, 0.08)
MAIN_DENSITY = 0.04
#: Learning rates, chosen on seed 0 with a part of the training texts held out (`python -m bench.sparse_finetuning`).
RATES = {"full": 3e-4, "head": 1e-2, "lottery": 2e-4, "SpIEL": 3e-4, "bias": 4e-3}
NOTES = [
    "all-MiniLM-L6-v2 with a linear head on sayings of twelve topics (Debian's `fortunes`): 2433 texts for training, "
    "1167 held out, which nothing was chosen on; batch 16, AdamW without decay, linear decay of the learning rate",
    "every method has the same steps in its last phase; LT-SFT has as many before it, in which all weights are tuned",
    "tuned: weights of the encoder that may change; normalisations and the head's weights are not counted, the head is "
    "tuned in full by every method",
    "accuracy: mean over the seeds (of order, head and chance) and its standard error; with 1167 texts, one accuracy "
    "alone has a sampling error of 1.3 points, which is the same texts' for all methods",
    "optimizer_mb: memory of the optimizer's state in the last phase, the head's included; step_ms: median of a step "
    "(forward, backward and update), the machine's two cores, and update_ms: of the update alone",
]

Ids = list[list[int]]


@dataclass
class Texts:
    """Tokenised texts and their classes."""

    ids: Ids
    targets: Tensor


@dataclass
class Outcome:
    """What one training gave."""

    tuned: int
    accuracy: float = 0.0
    optimizer_bytes: int = 0
    delta_bytes: int = 0
    steps: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)


class Trial:
    """One seed: a fresh model for every method, the same batches for all."""

    def __init__(
        self, sentences: SentenceEncoder, train: Texts, labels: Sequence[str], seed: int, steps: int
    ) -> None:
        self._start = {name: weight.clone() for name, weight in sentences.model.state_dict().items()}
        self._sentences, self._labels = sentences, labels
        self.train, self.seed, self.steps = train, seed, steps

    def model(self) -> TextClassifier:
        """The pretrained encoder with this seed's new head."""
        self._sentences.model.load_state_dict(self._start)
        for param in self._sentences.model.parameters():
            param.requires_grad_(True)
        return TextClassifier(self._sentences, self._labels, self.seed)

    def run(
        self, model: TextClassifier, optimizer: torch.optim.Optimizer, outcome: Outcome | None = None
    ) -> None:
        """All steps, with linear decay of the learning rate; times go into ``outcome``."""
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self.steps)
        for rows in batches(len(self.train.ids), self.steps, self.seed):
            begin = time.perf_counter()
            optimizer.zero_grad()
            loss_of(model, self.train.ids, self.train.targets, rows).backward()
            middle = time.perf_counter()
            optimizer.step()
            end = time.perf_counter()
            schedule.step()
            if outcome is not None:
                outcome.steps.append(end - begin)
                outcome.updates.append(end - middle)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory of an optimizer's state."""
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def _groups(model: TextClassifier, rate: float, chosen: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Parameters of the encoder by name, and the head, each with its learning rate; all others are frozen."""
    for name, param in model.encoder.named_parameters():
        param.requires_grad_(chosen(name))
    encoder = [param for param in model.encoder.parameters() if param.requires_grad]
    return [{"params": encoder, "lr": rate}] * bool(encoder) + [
        {"params": model.head.parameters(), "lr": RATES["head"]}
    ]


def _dense(
    chosen: Callable[[str], bool], rate: str
) -> Callable[[Trial], Iterator[tuple[str, TextClassifier, Outcome]]]:
    def method(trial: Trial) -> Iterator[tuple[str, TextClassifier, Outcome]]:
        model = trial.model()
        groups = _groups(model, RATES[rate], chosen)
        tuned = sum(param.numel() for group in groups[:-1] for param in group["params"])
        outcome = Outcome(tuned)
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        trial.run(model, optimizer, outcome)
        outcome.optimizer_bytes = state_bytes(optimizer)
        yield "", model, outcome

    return method


def _lottery(trial: Trial) -> Iterator[tuple[str, TextClassifier, Outcome]]:
    """One full phase a seed: the masks of every density come from it, and the random one needs none."""
    after: dict[str, Tensor] = {}
    for selector, density in (*(("magnitude", d) for d in DENSITIES), ("random", MAIN_DENSITY)):
        model = trial.model()
        yield f"{selector} {100 * density:g} %", model, _one_lottery(trial, model, selector, density, after)


def _one_lottery(
    trial: Trial, model: TextClassifier, selector: str, density: float, after: dict[str, Tensor]
) -> Outcome:
    """``after`` holds the weights after the full phase, and is filled by the first that needs them."""
    finetuner = LotterySparseFinetuner(
        model, density=density, maskable="encoder.*", full="head.*", selector=selector, seed=trial.seed
    )
    outcome = Outcome(finetuner.k)

    def full_phase(phase: Phase) -> None:
        if not after:
            optimizer = torch.optim.AdamW(_both(phase, "full"), weight_decay=0.0, fused=True)
            trial.run(model, phase.adopt(optimizer))
            after.update({name: param.detach().clone() for name, param in phase.parameters()})
        with torch.no_grad():
            for name, param in phase.parameters():
                param.copy_(after[name])

    def sparse_phase(phase: Phase) -> None:
        optimizer = phase.optimizer(lr=RATES["lottery"])
        optimizer.param_groups[-1]["lr"] = RATES["head"]
        trial.run(model, optimizer, outcome)
        outcome.optimizer_bytes = state_bytes(optimizer)

    delta = finetuner.fit(full_phase if selector == "magnitude" else None, sparse_phase)
    outcome.delta_bytes = _stored(delta)
    return outcome


def _both(phase: Phase, rate: str) -> list[dict[str, Any]]:
    named = phase.parameters()
    return [
        {"params": [param for name, param in named if not name.startswith("head.")], "lr": RATES[rate]},
        {"params": [param for name, param in named if name.startswith("head.")], "lr": RATES["head"]},
    ]


def _spiel(trial: Trial) -> Iterator[tuple[str, TextClassifier, Outcome]]:
    model = trial.model()
    wanted = int(
        MAIN_DENSITY * sum(p.numel() for n, p in model.encoder.named_parameters() if "LayerNorm" not in n)
    )
    finetuner = SpIELFinetuner(
        model, k=wanted, targets=["encoder.*"], full="head.*", total_steps=trial.steps, seed=trial.seed
    )
    outcome = Outcome(wanted)
    optimizer = finetuner.optimizer(lr=RATES["SpIEL"])
    optimizer.param_groups[-1]["lr"] = RATES["head"]
    trial.run(model, optimizer, outcome)
    outcome.optimizer_bytes = state_bytes(optimizer)
    outcome.delta_bytes = _stored(finetuner.delta())
    finetuner.close()
    yield "", model, outcome


def _stored(delta: SparseDelta) -> int:
    from bench.checkpoints import work_folder

    with work_folder(None) as folder:
        delta.save(folder / "delta.safetensors")
        return (folder / "delta.safetensors").stat().st_size


METHODS: dict[str, Callable[[Trial], Iterator[tuple[str, TextClassifier, Outcome]]]] = {
    "head alone": _dense(lambda name: False, "full"),
    "biases": _dense(lambda name: name.endswith(".bias"), "bias"),
    "full fine-tune": _dense(lambda name: "LayerNorm" not in name, "full"),
    "LT-SFT": _lottery,
    "SpIEL": _spiel,
}


def outcomes(trial: Trial, test: Texts, names: Sequence[str] = tuple(METHODS)) -> dict[str, Outcome]:
    """Every method on one seed, by method and setting."""
    found = {}
    for name in names:
        for setting, model, outcome in METHODS[name](trial):
            outcome.accuracy = model.accuracy(test.ids, test.targets)
            found[f"{name} {setting}".strip()] = outcome
    return found


def load() -> tuple[SentenceEncoder, list[str], Texts, Texts]:
    """The encoder, the labels, the texts for training and those held out."""
    split = fortune_topics()
    sentences = SentenceEncoder(minilm())
    labels = sorted({text.label for text in split.train})
    number = {label: at for at, label in enumerate(labels)}

    def texts(part: Sequence[LabelledText]) -> Texts:
        ids = sentences.tokenise([text.text for text in part])
        return Texts(ids, torch.tensor([number[text.label] for text in part]))

    return sentences, labels, texts(split.train), texts(split.held_out)


def measure(options: Options) -> Measurement:
    """Train everything with every seed and tabulate."""
    sentences, labels, train, test = load()
    if options.quick:
        train, test = (Texts(part.ids[:BATCH], part.targets[:BATCH]) for part in (train, test))
    steps, seeds = (2, 1) if options.quick else (STEPS, SEEDS)
    by_seed = [outcomes(Trial(sentences, train, labels, seed, steps), test) for seed in range(seeds)]
    rows = [_row(name, [found[name] for found in by_seed]) for name in by_seed[0]]
    return Measurement(rows, notes=NOTES)


def _row(name: str, found: Sequence[Outcome]) -> Row:
    row = Row("fine-tune", name, "float32", (found[0].tuned,), "sayings by topic")
    scores = [100 * outcome.accuracy for outcome in found]
    row.facts = {
        "accuracy": statistics.mean(scores),
        "standard_error": statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0,
        "accuracies": scores,
        "tuned": found[0].tuned,
        "optimizer_mb": found[0].optimizer_bytes / 1e6,
        "delta_mb": found[0].delta_bytes / 1e6,
        "step_ms": 1e3 * statistics.median(found[0].steps),
        "update_ms": 1e3 * statistics.median(found[0].updates),
    }
    return row


#: What is tried for each rate: the method that it is for, and the settings of that method to look at.
GRID = {
    "bias": ("biases", (1e-3, 4e-3)),
    "full": ("full fine-tune", (1e-4, 3e-4)),
    "SpIEL": ("SpIEL", (3e-4, 1e-3, 3e-3)),
    "lottery": ("LT-SFT", (2e-4, 6e-4)),
}


def choose_rates() -> None:
    """Print each method's accuracy on a quarter of the training texts, trained on the others, by learning rate."""
    sentences, labels, train, _ = load()
    cut = 3 * len(train.ids) // 4
    known, other = Texts(train.ids[:cut], train.targets[:cut]), Texts(train.ids[cut:], train.targets[cut:])
    for rate, (method, values) in GRID.items():
        chosen = RATES[rate]
        for value in values:
            RATES[rate] = value
            found = outcomes(Trial(sentences, known, labels, 0, STEPS * 3 // 4), other, [method])
            for name, outcome in found.items():
                print(f"{name}: {rate} {value:g}: {100 * outcome.accuracy:.2f} %", flush=True)
        RATES[rate] = chosen


if __name__ == "__main__":
    choose_rates()
