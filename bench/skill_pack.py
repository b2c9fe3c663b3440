"""Skill packs of small fine-tunes: size, error of the change and score of the task by codec; packs chosen by a router."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.checkpoints import work_folder
from bench.rebase_digits import Shape, World, digits
from bench.rebase_texts import Classifiers
from bench.record import Measurement, Options, Row, Target
from graftwork.store import SkillPack, mount
from graftwork.store.skill_pack import (
    SVD,
    CompressionPlan,
    Prune,
    Quantize,
    Raw,
    SkillRouter,
    SkillSet,
    Sparse,
    distill_scales,
)

TESTS = ("tests/store/skill_pack",)
SEEDS = 3
SHAPE = Shape("512, 512", (512, 512))
DIGITS, TEXTS = "digits turned by 90°", "sayings by topic"
TASKS = ("turned", "inverted", "mirrored")
CALIBRATION = 4  # batches
MIXED = ((2, 8), (14, 3), (None, 2))
KEPT = 0.95  # of the fine-tune's gain over the base that mixed SVD shall keep on the digits at about a bit
NOTES = [
    "digits: scikit-learn's, 8 × 8; a network of 64-512-512-10 learns them, and its fine-tune learns them turned by 90°; "
    "means over three seeds. Sayings: MiniLM tuned on those of twelve topics, one seed, 600 held-out texts",
    "bits_per_weight: of all stored fields, for each weight that changed; what the plan's name says is of the hidden "
    "matrices; the classifier, norms and biases are raw 16-bit numbers. file_kb: with its header",
    "every score is of the base with the pack mounted from its file, and afterwards the base was compared with what it was",
    "retained: of the fine-tune's gain over the base; relative_error: ‖Δ̂−Δ‖/‖Δ‖",
    "distilled: one factor for each matrix, fitted to the fine-tune's outputs on training data; GPTQ: calibrated on "
    f"{CALIBRATION} batches of training data, layer after layer",
    "selection: packs of three tasks at 1 bit, on the held-out digits of all three. Route: a router that learned from the "
    "losses of each pack on training digits, of pixels alone, decides for each digit; task: the task is known",
]

Weights = Mapping[str, Tensor]
Data = Sequence[Any]


@dataclass(frozen=True)
class Case:
    """A base, a fine-tune, and how to score weights. ``batches`` are for `calibrated`, which runs on them."""

    name: str
    base: Weights
    tuned: Weights
    score: Callable[[Weights], float]
    calibrated: nn.Module
    teacher: nn.Module
    batches: Data


def digits_case(seed: int, *, quick: bool) -> Case:
    """The digits, turned."""
    world = World(SHAPE, "turned", seed, quick=quick)
    images = world.train_set[0]
    batches = list(images.split(64))[: 2 if quick else CALIBRATION]
    model, teacher = world.model(world.old), world.model(world.tuned)
    return Case(DIGITS, world.old, world.tuned, world.accuracy, model, teacher, batches)


def texts_case(*, quick: bool) -> Case:
    """MiniLM without its head, which the fine-tune alone has."""
    world = Classifiers(quick)
    head = {name: tensor for name, tensor in world.tuned.items() if name.startswith("head.")}
    tuned = {name: tensor for name, tensor in world.tuned.items() if name not in head}
    part = tuple(rows[: 32 if quick else 600] for rows in world.test_set)

    def score(weights: Weights) -> float:
        return world.accuracy({**weights, **head}, part)  # type: ignore[arg-type]

    starts = range(0, 16 * (1 if quick else CALIBRATION), 16)
    batches = [{"ids": world.train_set[0][at : at + 16]} for at in starts]
    model, teacher = (_Sentences(world.sentences, weights) for weights in (world.old, tuned))
    return Case(TEXTS, world.old, tuned, score, model, teacher, batches)


class _Sentences(nn.Module):
    """An encoder that takes token ids; its weights have the encoder's own names."""

    def __init__(self, sentences: Any, weights: Weights) -> None:
        super().__init__()
        own = copy.copy(sentences)
        own.model = copy.deepcopy(sentences.model)
        own.model.load_state_dict(dict(weights))
        object.__setattr__(self, "_sentences", own)
        for name, child in own.model.named_children():
            self.add_module(name, child)

    def forward(self, ids: Any) -> Tensor:
        return self._sentences.embed(ids)


def plan_of(codec: Any) -> CompressionPlan:
    """A codec for the matrices; what is small, and the classifier, is raw."""
    return CompressionPlan({"@norm|bias|vector|head": Raw(), "": codec})


PLANS: dict[str, Any] = {
    "1 bit, a scale a matrix": Quantize(1, block=-1),
    "1 bit, blocks of 64": Quantize(1, block=64),
    "2 bit, extremes": Quantize(2, "sym", block=64),
    "2 bit, least squares": Quantize(2, block=64),
    "3 bit, least squares": Quantize(3, block=64),
    "4 bit": Quantize(4, block=64),
    "8 bit": Quantize(8, block=64),
    "SVD rank 8, 16 bit": SVD(rank=8, bits=((None, 16),)),
    "SVD 8+3+2 bit, 1 bit a weight": SVD(bpw=1.0, bits=MIXED),
    "SVD 8+3+2 bit, 2 bits a weight": SVD(bpw=2.0, bits=MIXED),
    "the largest tenth": Prune(0.1),
    "DARE, half": Sparse("dare", keep=0.5),
    "DARE, a tenth": Sparse("dare", keep=0.1),
}
BUDGETS = (0.5, 1.0, 2.0, 4.0)
CAREFUL = ("2 bit, least squares", "SVD 8+3+2 bit, 1 bit a weight")
DISTILLED = "1 bit, a scale a matrix"


def packs_of(case: Case, *, quick: bool) -> Iterator[tuple[str, str, SkillPack]]:
    """Every pack: operation, implementation, pack."""
    for name, codec in PLANS.items():
        yield "codec", name, SkillPack.build(case.tuned, case.base, plan_of(codec))
    for name in CAREFUL:
        plan = plan_of(PLANS[name])
        pack = SkillPack.build(
            case.tuned, case.base, plan, quantizer="gptq", calibration=case.batches, model=case.calibrated
        )
        yield "codec", f"{name}, GPTQ", pack
    pack = SkillPack.build(case.tuned, case.base, plan_of(PLANS[DISTILLED]))
    steps = 2 if quick else 30
    pack, _ = distill_scales(pack, case.calibrated, case.batches, teacher=case.teacher, steps=steps)
    yield "codec", f"{DISTILLED}, distilled", pack
    for bpw in BUDGETS:
        yield "auto", f"{bpw:g} bits a weight", SkillPack.build(case.tuned, case.base, bpw=bpw)


def facts_of(case: Case, pack: SkillPack, seconds: float, gain: tuple[float, float]) -> dict[str, Any]:
    """What a pack is worth, mounted from a file."""
    weights = {name: tensor.clone() for name, tensor in case.base.items()}
    with work_folder(None) as folder:
        pack.save(folder / "skill.safetensors")
        nbytes = (folder / "skill.safetensors").stat().st_size
        with SkillPack.open(folder / "skill.safetensors") as opened, mount(weights, opened):
            score = case.score(weights)
    if not all(torch.equal(weights[name], tensor) for name, tensor in case.base.items()):
        raise RuntimeError("the base is not what it was")
    base, tuned = gain
    return {
        "accuracy": score,
        "retained": 100 * (score - base) / (tuned - base) if tuned > base else 0.0,
        "bits_per_weight": pack.bits_per_weight,
        "file_kb": nbytes / 1e3,
        "relative_error": pack.report().relative_error,
        "build_s": seconds,
    }


def rows_of(cases: Sequence[Case], *, quick: bool) -> list[Row]:
    """One row a pack, means over the cases of one kind."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    weights = sum(tensor.numel() for tensor in cases[0].base.values())
    for case in cases:
        gain = case.score(case.base), case.score(case.tuned)
        for which, score in zip(("base", "fine-tune"), gain, strict=True):
            found.setdefault(("model", which), []).append({"accuracy": score})
        begin = time.perf_counter()
        for operation, name, pack in packs_of(case, quick=quick):
            seconds = time.perf_counter() - begin
            found.setdefault((operation, name), []).append(facts_of(case, pack, seconds, gain))
            begin = time.perf_counter()
    rows = []
    for (operation, name), facts in found.items():
        row = Row(operation, name, "float32", (weights,), cases[0].name)
        row.facts = {key: statistics.mean(fact[key] for fact in facts) for key in facts[0]}
        row.facts["accuracies"] = [fact["accuracy"] for fact in facts]
        rows.append(row)
    return rows


def selections(seed: int, *, quick: bool) -> list[Row]:
    """Three packs over one base, and who says which of them a digit gets."""
    first = World(SHAPE, TASKS[0], seed, quick=quick)
    worlds = {task: World(SHAPE, task, seed, first.old, quick=quick) for task in TASKS}
    packs = {task: SkillPack.build(world.tuned, first.old, bpw=1.0) for task, world in worlds.items()}
    weights = {name: tensor.clone() for name, tensor in first.old.items()}
    features = torch.cat([world.train_set[0] for world in worlds.values()])
    labels = torch.cat([world.train_set[1] for world in worlds.values()])
    losses, logits = [], {}
    test = {task: world.test_set for task, world in worlds.items()}
    for task, pack in packs.items():
        with mount(weights, pack), torch.no_grad():
            model = first.model(weights)
            losses.append(cross_entropy(model(features), labels, reduction="none"))
            logits[task] = {other: model(data[0]) for other, data in test.items()}
    router = SkillRouter.fit(features, torch.stack(losses, 1), names=list(packs), steps=20 if quick else 300)
    skills = SkillSet(packs, tasks={task: [task] for task in packs}, router=router)
    with skills.mount(weights, skills.all(1 / len(packs))):
        summed = {task: first.accuracy(weights, data) for task, data in test.items()}

    def right(task: str, chosen: Tensor) -> Tensor:
        found = torch.stack([logits[name][task] for name in packs])[chosen, torch.arange(len(chosen))]
        return (found.argmax(1) == test[task][1]).double()

    every = {name: at for at, name in enumerate(packs)}
    routed = {task: 100 * right(task, router.select(data[0])).mean().item() for task, data in test.items()}
    known = {
        task: 100 * right(task, torch.full((len(data[1]),), every[task])).mean().item()
        for task, data in test.items()
    }
    best = {
        name: statistics.mean(
            100 * right(task, torch.full((len(data[1]),), at)).mean().item() for task, data in test.items()
        )
        for name, at in every.items()
    }
    own = {task: world.accuracy(world.tuned) for task, world in worlds.items()}
    rows = []
    for name, scores in {
        "the fine-tunes themselves": own,
        "task": known,
        "route": routed,
        "sum, a third of each": summed,
        "the best single pack": {"all": max(best.values())},
    }.items():
        row = Row("selection", name, "float32", (), "three tasks of digits")
        row.facts = {"accuracy": statistics.mean(scores.values())}
        rows.append(row)
    return rows


def measure(options: Options) -> Measurement:
    """Build, mount and score everything."""
    digits()
    cases = [digits_case(seed, quick=options.quick) for seed in range(1 if options.quick else SEEDS)]
    rows = rows_of(cases, quick=options.quick)
    rows += rows_of([texts_case(quick=options.quick)], quick=options.quick)
    rows += selections(0, quick=options.quick)
    kept = {
        row.implementation: row.facts["retained"]
        for row in rows
        if row.case == DIGITS and row.operation == "codec"
    }
    name = "SVD 8+3+2 bit, 1 bit a weight"
    target = Target(f"{name}: retained on the digits", kept[name], 100 * KEPT, "%", at_least=True)
    return Measurement(rows, [target], NOTES)
