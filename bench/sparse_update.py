"""Operations of ``sparse_update`` on one large tensor: ours, and what users of plain torch, numpy or eager code do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.measure import Job, combine_probe, copy_probe, read_probe, settle, thread_counts
from bench.record import Contest, Measurement, Options, Row, Target
from graftwork.ops.sparse_update import (
    Support,
    gather_values,
    merge_deltas,
    random_support,
    restore_values_,
    sparse_adamw_,
    swap_values_,
    topk_absdiff,
    write_values_,
)

TESTS = ("tests/ops/sparse_update",)
FULL, QUICK = 64 << 20, 1 << 20
DENSITY = 0.04
DENSITIES = (0.005, 0.01, 0.04, 0.08)
SCATTERED = (1 << 10, 1 << 13, 1 << 15, 600_000)  # entries; the last case is the main density's
LINE = 64  # bytes of a cache line
ALONE, OTHER_BYTES = (
    "gradient alone",
    20,
)  # of an entry, of values and moments, beside the 4 that a gather writes
LR, BETAS, EPS = 1e-4, (0.9, 0.999), 1e-8
NOTES = [
    "one fp32 tensor, uniform random support with sorted int32 indices; speeds count bytes_moved",
    "bytes_moved: what the call must read and write once; a weight or gradient at a random place costs the share of "
    "its 64-byte line that falls to it, L = 64 (1 - (1 - p)^16) / (16 p) bytes at density p",
    "peak: the fastest of torch's copy, its XOR of two arrays into a third and its int64 sum that moves bytes_moved "
    "on the same threads in the same run",
    "all results are written into memory that was touched before, except where an operation returns its result",
    "step: reads the dense gradient at the support, updates both moments and the values, writes the weights; the peers "
    "multiply the dense gradient by a mask and step all weights",
    "values: the same without writing weights; `gather + fused AdamW` steps a tensor of the values alone, `eager` is "
    "the chain of torch operations that an optimizer written in Python runs; `gradient alone`: gather_values of the "
    "gradient. The step's bound is that and the other bytes, 20 an entry, at the peak: random lines come at a lower rate "
    "than the peak's",
    "topk: exact, indices sorted; np.partition gives the threshold alone",
    "short calls are repeated, as steps of a training are; `us` is the time of one call at the most threads",
]

Run = Callable[[], object]


@dataclass
class World:
    """One tensor, its base and its gradient, and everything that is timed on them."""

    numel: int
    generator: torch.Generator
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = torch.randn(self.numel, generator=self.generator).mul_(0.02)
        self.weights = self.base + torch.randn(self.numel, generator=self.generator).mul_(1e-3)
        self.gradient = torch.randn(self.numel, generator=self.generator)

    def support(self, entries: int) -> Support:
        return random_support([self.numel], [entries], self.generator)

    @contextmanager
    def contest(self, options: Options, budget: float = 4.0) -> Iterator[_Entries]:
        """What is entered inside is timed in turn when the block ends."""
        contest = Contest()
        yield _Entries(self, contest)
        self.rows += contest.run(rounds=2 if options.quick else 7, budget=budget, min_repeats=3)
        settle()

    def check(self, name: str, same: bool) -> None:
        if not same:
            self.failures.append(f"{name} made something else")


@dataclass
class _Entries:
    world: World
    contest: Contest

    def add(self, operation: str, name: str, case: str, run: Run, *, moved: int = 0, calls: int = 4) -> None:
        """Time ``run`` at every thread count; ``calls`` of them in a row count as one sample."""
        row = Row(operation, name, "float32", (self.world.numel,), case, bytes=moved * calls)
        row.facts["calls"] = calls
        probes = [make(moved * calls) for make in (copy_probe, combine_probe, read_probe)] if moved else []

        def repeated() -> None:
            for _ in range(calls):
                run()

        for threads in thread_counts():
            peaks = [Job(probe, threads) for probe in probes]
            self.contest.add(row, str(threads), Job(repeated if calls > 1 else run, threads), peaks)


def measure(options: Options) -> Measurement:
    """Time every operation beside its peers, and compare what they compute."""
    world = World(QUICK if options.quick else FULL, torch.Generator().manual_seed(0))
    _steps(world, options)
    for density in DENSITIES:
        _values(world, options, density)
    _selection(world, options)
    _merge(world, options)
    for entries in (*SCATTERED, int(DENSITY * world.numel)):
        _scattered(world, options, min(entries, world.numel // 4))
    for row in world.rows:
        timing = row.runs[str(max(thread_counts()))].seconds
        row.facts["us"] = 1e6 * timing.median / row.facts["calls"]
    return Measurement(world.rows, _targets(world), NOTES, world.failures)


def line_share(density: float, width: int = 4) -> float:
    """Bytes of cache lines that fall to one of the entries of a random support."""
    in_line = LINE / width
    return LINE * (1 - (1 - density) ** in_line) / (in_line * density)


def _percent(density: float) -> str:
    return f"{100 * density:g} %"


def _step_bytes(entries: int, density: float, *, writes: bool) -> int:
    """Index, value and moments (read and written), the gradient's lines; then the base and the weights' lines."""
    share = line_share(density)
    return int(entries * (28 + share + (4 + 2 * share if writes else 0)))


def _ours(world: World, support: Support, *, writes: bool) -> tuple[Run, list[Tensor]]:
    state = [torch.zeros(support.entries) for _ in range(3)]
    base = gather_values(support, [world.base])
    out: dict[str, Any] = {"weights": [world.weights], "base": base} if writes else {}

    def run() -> None:
        sparse_adamw_(
            support, [world.gradient], *state, step=1, lr=LR, betas=BETAS, eps=EPS, decay_mode="none", **out
        )

    return run, state


def _steps(world: World, options: Options) -> None:
    """The whole sparse step against a mask and a dense step, which is how the authors' code trains."""
    entries = int(DENSITY * world.numel)
    support = world.support(entries)
    mask = torch.zeros(world.numel, dtype=torch.bool)
    mask[support.indices.long()] = True
    gradient = world.gradient.clone()
    dense = torch.nn.Parameter(world.base.clone())
    dense.grad = gradient

    def masked(optimizer: torch.optim.AdamW) -> None:
        gradient.mul_(mask)
        optimizer.step()

    run, _ = _ours(world, support, writes=True)
    settings: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": 0.0}
    fused = torch.optim.AdamW([dense], **settings, fused=True)
    masked(fused)
    world.weights.copy_(world.base)
    run()
    world.check("the step", torch.allclose(world.weights, dense.detach(), rtol=1e-5, atol=1e-7))
    usual = torch.optim.AdamW([dense], **settings)
    case = _percent(DENSITY)
    with world.contest(options, budget=8.0) as entered:
        moved = _step_bytes(entries, DENSITY, writes=True)
        entered.add("step", "graftwork", case, run, moved=moved)
        entered.add("step", "mask + AdamW", case, partial(masked, usual), calls=1)
        entered.add("step", "mask + fused AdamW", case, partial(masked, fused))


def _eager_step(indices: Tensor, gradient: Tensor, state: Sequence[Tensor], ages: Tensor) -> None:
    """One step on the values, operation by operation, with an age for each value."""
    values, first, second = state
    found = gradient.take(indices)
    ages += 1
    first.mul_(BETAS[0]).add_(found, alpha=1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(found, found, value=1 - BETAS[1])
    correction = (1 - BETAS[1] ** ages).sqrt_()
    denominator = second.sqrt().add_(EPS).div_(correction).mul_(1 - BETAS[0] ** ages)
    values.addcdiv_(first, denominator, value=-LR)


def _values(world: World, options: Options, density: float) -> None:
    entries = int(density * world.numel)
    support = world.support(entries)
    run, state = _ours(world, support, writes=False)
    values = torch.nn.Parameter(torch.zeros(entries))
    values.grad = torch.zeros(entries)
    optimizer = torch.optim.AdamW([values], lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def gathered() -> None:
        torch.index_select(world.gradient, 0, support.indices, out=values.grad)
        optimizer.step()

    run()
    gathered()
    world.check("the step of values", torch.allclose(state[0], values.detach(), rtol=1e-5, atol=1e-9))
    eager_state, ages = [torch.zeros(entries) for _ in range(3)], torch.zeros(entries)
    wide = support.indices.long()
    read = torch.zeros(entries)
    with world.contest(options) as entered:
        moved = _step_bytes(entries, density, writes=False)
        entered.add("values", "graftwork", _percent(density), run, moved=moved)
        alone = partial(gather_values, support, [world.gradient], read)
        entered.add("values", ALONE, _percent(density), alone, moved=moved - OTHER_BYTES * entries)
        entered.add("values", "gather + fused AdamW", _percent(density), gathered)
        entered.add(
            "values",
            "eager",
            _percent(density),
            partial(_eager_step, wide, world.gradient, eager_state, ages),
        )


def _selection(world: World, options: Options) -> None:
    k = int(DENSITY * world.numel)
    world.weights.copy_(world.base).add_(world.gradient, alpha=1e-3)
    difference = torch.empty_like(world.base)

    def change() -> Tensor:
        return torch.sub(world.weights, world.base, out=difference).abs_()

    def topk() -> Tensor:
        return change().topk(k, sorted=False).indices

    def partition() -> np.ndarray:
        return np.partition(change().numpy(), world.numel - k)

    threshold, (indices,) = topk_absdiff([world.weights], [world.base], k)
    scores = change()
    world.check(
        "topk_absdiff", torch.equal(scores[indices.long()].sort().values, scores.topk(k).values.flip(0))
    )
    world.check("the threshold", threshold == float(scores[indices.long()].min()))
    case = _percent(DENSITY)
    with world.contest(options) as entered:
        moved = 8 * world.numel + 4 * k
        entered.add(
            "topk", "graftwork", case, lambda: topk_absdiff([world.weights], [world.base], k), moved=moved
        )
        entered.add("topk", "torch.topk", case, topk, calls=1)
        entered.add("topk", "np.partition", case, partition, calls=1)


def _merge(world: World, options: Options) -> None:
    entries = int(DENSITY * world.numel)
    supports = [world.support(entries) for _ in range(2)]
    values = [torch.randn(entries, generator=world.generator) for _ in supports]
    sparse = [
        torch.sparse_coo_tensor(
            support.indices.long()[None], mine, (world.numel,), check_invariants=False, is_coalesced=True
        )
        for support, mine in zip(supports, values, strict=True)
    ]
    merged, sums = merge_deltas(supports, values, [1.0, 1.0])
    wanted = (sparse[0] + sparse[1]).coalesce()
    world.check(
        "merge_deltas",
        torch.equal(merged.indices.long(), wanted.indices()[0]) and torch.equal(sums, wanted.values()),
    )
    with world.contest(options) as entered:
        moved = 8 * (2 * entries + merged.entries)
        ours = lambda: merge_deltas(supports, values, [1.0, 1.0])  # noqa: E731
        entered.add("merge", "graftwork", _percent(DENSITY), ours, moved=moved)
        entered.add(
            "merge", "torch add, coalesce", _percent(DENSITY), lambda: (sparse[0] + sparse[1]).coalesce()
        )


def _scattered(world: World, options: Options, entries: int) -> None:
    """Read and write weights at a support: torch's own operations, which take int64 to write."""
    support, other = world.support(entries), world.support(entries)
    share, wide = line_share(entries / world.numel), support.indices.long()
    saved, found, values = (torch.zeros(entries) for _ in range(3))
    gather_values(support, [world.base], out=saved)
    calls = max(4, min(200, 2_000_000 // entries))
    case = f"{entries} entries"
    other_wide, other_found = other.indices.long(), torch.zeros(entries)
    sums = torch.zeros(entries)

    def written() -> None:
        torch.add(saved, values, out=sums)
        world.weights.index_copy_(0, wide, sums)

    def switched() -> None:
        world.weights.index_copy_(0, wide, saved)
        torch.index_select(world.weights, 0, other.indices, out=other_found)
        torch.add(other_found, values, out=sums)
        world.weights.index_copy_(0, other_wide, sums)

    def select() -> None:
        torch.index_select(world.weights, 0, support.indices, out=found)

    with world.contest(options) as entered:
        add = partial(entered.add, case=case, calls=calls)
        gather = lambda: gather_values(support, [world.weights], out=found)  # noqa: E731
        add("gather", "graftwork", run=gather, moved=int(entries * (8 + share)))
        add("gather", "torch.index_select", run=select)
        restore = lambda: restore_values_(support, [world.weights], saved)  # noqa: E731
        add("restore", "graftwork", run=restore, moved=int(entries * (8 + 2 * share)))
        add("restore", "torch.index_copy_", run=lambda: world.weights.index_copy_(0, wide, saved))
        write = lambda: write_values_(support, [world.weights], saved, values)  # noqa: E731
        add("write", "graftwork", run=write, moved=int(entries * (12 + 2 * share)))
        add("write", "torch.add, index_copy_", run=written)
        swap = lambda: swap_values_([world.weights], support, saved, other, values)  # noqa: E731
        add("swap", "graftwork", run=swap, moved=int(entries * (20 + 4 * share)))
        add("swap", "torch: restore, gather, write", run=switched)


# ---- targets ----


def _targets(world: World) -> list[Target]:
    """Times of the peers over ours at the most threads; a peer's is its best over the thread counts."""
    most = str(max(thread_counts()))
    found = {(row.operation, row.implementation, row.case): row for row in world.rows}

    def best(row: Row) -> float:
        """Seconds a call."""
        return min(run.seconds.median for run in row.runs.values()) / row.facts["calls"]

    def ratio(operation: str, peer: str, case: str) -> float:
        ours = found[operation, "graftwork", case]
        return best(found[operation, peer, case]) / (ours.runs[most].seconds.median / ours.facts["calls"])

    def roofline(operation: str, case: str) -> float:
        return 100 * (found[operation, "graftwork", case].runs[most].roofline_fraction or 0.0)

    def of_bound(case: str) -> float:
        """Per cent of the least time that the step of values takes: its gradient's lines, and its other bytes."""
        ours, alone = found["values", "graftwork", case], found["values", ALONE, case]
        timing = ours.runs[most]
        share = (
            OTHER_BYTES
            * int(float(case.split()[0]) / 100 * world.numel)
            / (timing.peak_bytes_per_second or 1.0)
        )
        return 100 * (best(alone) + share) / (timing.seconds.median / ours.facts["calls"])

    main = _percent(DENSITY)
    limits = [("step", "mask + AdamW", main, 12.0), ("step", "mask + fused AdamW", main, 5.0)]
    for case in map(_percent, DENSITIES):
        limits += [("values", "eager", case, 6.0), ("values", "gather + fused AdamW", case, 1.0)]
    limits += [
        ("topk", "torch.topk", main, 15.0),
        ("topk", "np.partition", main, 5.0),
        ("merge", "torch add, coalesce", main, 5.0),
    ]
    targets = [
        Target(f"{operation} against {peer}, {case}", ratio(operation, peer, case), limit, "x", at_least=True)
        for operation, peer, case, limit in limits
    ]
    targets += [
        Target(f"{operation}, share of the peak, {main}", roofline(operation, main), 60, "%", at_least=True)
        for operation in ("step", "topk")
    ]
    targets += [
        Target(f"values, share of the bound, {case}", of_bound(case), 85, "%", at_least=True)
        for case in map(_percent, DENSITIES)
    ]
    for operation, peer, case in list(found):
        if operation not in ("gather", "restore", "write", "swap") or peer == "graftwork":
            continue
        entries = int(case.split()[0])
        if operation == "swap" and entries < 1 << 15:
            continue  # several calls of torch's
        if entries >= 1 << 15:
            targets.append(
                Target(
                    f"{operation} against {peer}, {case}",
                    ratio(operation, peer, case),
                    1.0,
                    "x",
                    at_least=True,
                )
            )
        else:
            ours, theirs = (found[operation, name, case] for name in ("graftwork", peer))
            above = ours.facts["us"] - 1e6 * best(theirs)
            targets.append(Target(f"{operation} above {peer}, {case}", above, 10.0, "us a call"))
    return targets
