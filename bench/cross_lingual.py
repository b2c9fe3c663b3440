"""Zero-shot cross-lingual transfer by adding deltas: a task learnt in English, German read, no German label seen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from bench.corpora import manual_pages
from bench.corpora.labelled import LabelledText, manual_sections
from bench.models import minilm
from bench.models.encoder import SentenceEncoder
from bench.record import Measurement, Options, Row
from bench.tiny.classifier import TextClassifier, batches, loss_of
from bench.tiny.masked_lm import MaskedLM, windows
from graftwork.adapt import LotterySparseFinetuner, Phase, SparseDelta

TESTS = ("tests/adapt",)
SOURCE, TARGET = "", "de"
LANGUAGES = {SOURCE: "English", TARGET: "German"}
SEEDS = 3
STEPS = 150  # of every phase
DENSITY = 0.04
LANGUAGE_RATE, TASK_RATE, HEAD_RATE = 2e-4, 2e-4, 1e-2
BATCH = 16  # windows of 64 tokens
PAGES = 400  # of manual pages of a language, for its language model
ARMS = ("lottery", "random", "dense")
NOTES = [
    "all-MiniLM-L6-v2, an English encoder; task: which section (1, 5, 7 or 8) a piece of 300 characters of a manual page "
    "is from; the pieces that are scored are of pages of which no translation was trained on for the task",
    "language deltas: masked language modelling on manual pages of English and of German, those of the scored pages "
    "left out; the task is trained on the base with English added; scored: base + task delta, alone and with a language",
    "lottery: LT-SFT, 4 % of the weights for each delta, both phases as long; random: the same number of weights chosen "
    "at random; dense: the differences of full fine-tunes, added up",
    "accuracy: mean over the seeds and its standard error; `most frequent` is the share of the commonest section",
]

Ids = list[list[int]]


@dataclass
class World:
    """Texts of both languages, tokenised."""

    sentences: SentenceEncoder
    labels: list[str]
    language: dict[str, Ids]
    train: tuple[Ids, Tensor]
    tests: dict[str, tuple[Ids, Tensor]]

    @classmethod
    def load(cls, *, quick: bool) -> World:
        """Read and tokenise all that is needed."""
        sentences = SentenceEncoder(minilm())
        splits = {SOURCE: manual_sections(SOURCE, TARGET), TARGET: manual_sections(TARGET, SOURCE)}
        labels = sorted({text.label for text in splits[SOURCE].train})
        number = {label: at for at, label in enumerate(labels)}
        count = 64 if quick else None

        def texts(part: Sequence[LabelledText]) -> tuple[Ids, Tensor]:
            part = part[:count]
            return sentences.tokenise([text.text for text in part]), torch.tensor(
                [number[t.label] for t in part]
            )

        language = {}
        for locale, split in splits.items():
            scored = {text.text for text in split.held_out}
            pages = [page for page in manual_pages(locale).values() if not _holds(page, scored)]
            language[locale] = windows(sentences, sorted(pages, key=len)[-PAGES if not quick else -8 :])
        tests = {locale: texts(split.held_out) for locale, split in splits.items()}
        return cls(sentences, labels, language, texts(splits[SOURCE].train), tests)


def _holds(page: str, pieces: set[str]) -> bool:
    body = " ".join(page.split())
    return any(body[at : at + 300] in pieces for at in range(150, len(body) - 299, 300))


class Trial:
    """One seed of one arm."""

    def __init__(self, world: World, start: Mapping[str, Tensor], arm: str, seed: int, steps: int) -> None:
        self._world, self._start, self._arm, self._seed, self._steps = world, start, arm, seed, steps

    def _fresh(self) -> None:
        self._world.sentences.model.load_state_dict(self._start)
        for param in self._world.sentences.model.parameters():
            param.requires_grad_(True)

    def language(self, locale: str) -> SparseDelta:
        """The delta of a language, by masked language modelling from the pretrained weights."""
        self._fresh()
        model, ids = MaskedLM(self._world.sentences), self._world.language[locale]
        generator = torch.Generator().manual_seed(self._seed)
        return self._tuned(
            model,
            LANGUAGE_RATE,
            lambda rows: model.loss([ids[row] for row in rows], generator),
            (len(ids), BATCH),
        )

    def task(self, source: SparseDelta) -> tuple[TextClassifier, SparseDelta]:
        """The task's delta, trained on the pretrained weights with the source language added, and its head."""
        self._fresh()
        model, (ids, targets) = (
            TextClassifier(self._world.sentences, self._world.labels, self._seed),
            self._world.train,
        )
        source.apply_(model)
        delta = self._tuned(
            model, TASK_RATE, lambda rows: loss_of(model, ids, targets, rows), (len(ids), BATCH)
        )
        self._fresh()
        return model, delta

    def _tuned(
        self, model: nn.Module, rate: float, loss: Callable[[list[int]], Tensor], size: tuple[int, int]
    ) -> SparseDelta:
        def train(phase: Phase) -> None:
            lr = rate / 2 if phase.kind == "full" else rate
            optimizer = phase.optimizer(lr=lr)
            optimizer.param_groups[-1]["lr"] = HEAD_RATE if isinstance(model, TextClassifier) else lr
            schedule = phase.scheduler(lambda made: LambdaLR(made, lambda step: 1 - step / self._steps))
            for rows in batches(size[0], self._steps, self._seed, size[1]):
                optimizer.zero_grad()
                loss(rows).backward()
                optimizer.step()
                schedule.step()

        everything = self._arm == "dense"
        finetuner = LotterySparseFinetuner(
            model,
            density=1.0 if everything else DENSITY,
            maskable="encoder.*",
            full="head.*",
            selector="magnitude" if self._arm == "lottery" else "random",
            seed=self._seed,
        )
        return finetuner.fit(train if self._arm == "lottery" else None, train)


def scores(world: World, start: Mapping[str, Tensor], arm: str, seed: int, steps: int) -> dict[str, float]:
    """Accuracy of every combination on both languages, in percent."""
    trial = Trial(world, start, arm, seed, steps)
    languages = {locale: trial.language(locale) for locale in LANGUAGES}
    model, task = trial.task(languages[SOURCE])
    found = {}
    applied = task.apply_(model, with_full=True, check_base=False)  # relative to the base with English added
    for locale, (ids, targets) in world.tests.items():
        found[f"{LANGUAGES[locale]}, task alone"] = 100 * model.accuracy(ids, targets)
        for added, name in LANGUAGES.items():
            with languages[added].applied(model, check_base=False):
                found[f"{LANGUAGES[locale]}, task + {name}"] = 100 * model.accuracy(ids, targets)
    applied.revert_()
    return found


def measure(options: Options) -> Measurement:
    """Every arm with every seed."""
    world = World.load(quick=options.quick)
    start = {name: weight.clone() for name, weight in world.sentences.model.state_dict().items()}
    steps, seeds = (2, 1) if options.quick else (STEPS, SEEDS)
    taken = Measurement([], notes=NOTES)
    for arm in ARMS:
        by_seed = [scores(world, start, arm, seed, steps) for seed in range(seeds)]
        for case in by_seed[0]:
            taken.rows.append(_row(arm, case, [found[case] for found in by_seed]))
    for locale, (_, targets) in world.tests.items():
        share = 100 * targets.bincount().max().item() / len(targets)
        taken.rows.append(_row("most frequent", f"{LANGUAGES[locale]}, task alone", [share]))
    return taken


def _row(arm: str, case: str, found: Sequence[float]) -> Row:
    row = Row("transfer", arm, "float32", (), case)
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
    row.facts = {"accuracy": statistics.mean(found), "standard_error": error, "accuracies": list(found)}
    return row
