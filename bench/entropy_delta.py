"""Operations of ``entropy_delta`` on one large tensor: ours, the reference on a small one, and packages in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.measure import Job, combine_probe, copy_probe, read_probe, settle, thread_counts
from bench.peers import MemoryPeer, memory_peers, same_bits
from bench.record import Contest, Measurement, Options, Row, Target
from bench.updates import MAIN_UPDATE, STEP_UPDATE, UPDATES

TESTS = ("tests/ops", "tests/reference")
ALL = tuple(UPDATES)
FULL = (
    (torch.bfloat16, 128 << 20, ALL),
    (torch.float16, 16 << 20, (MAIN_UPDATE,)),
    (torch.float32, 16 << 20, (MAIN_UPDATE,)),
)
QUICK = (
    (torch.bfloat16, 2 << 20, ALL),
    (torch.float16, 1 << 20, (MAIN_UPDATE,)),
    (torch.float32, 1 << 20, (MAIN_UPDATE,)),
)
ROW = 1024  # elements: the scales of an update may differ from row to row
SLOW_NUMEL = 128 << 10  # the size at which the reference is timed: it takes about a second there
PEERS = ("zstd -1 on XOR planes", "ZipNN on XOR")
LINE = 64  # bytes of a cache line
NOTES = [
    "speeds count the fine-tune's bytes; base N(0, 0.02^2), rows of 1024",
    "bytes_moved: what the call must read and write once: base, fine-tune and payload; for apply_sparse_delta_ the "
    "payload and twice the cache lines that hold a changed word",
    "peak: the fastest of torch's copy, its XOR of two arrays into a third and its int64 sum that moves bytes_moved "
    "on the same threads in the same run",
    "memcpy_percent_N: the time of torch's copy of the fine-tune (`copy`) in percent of the call's, both on N threads",
    "encode_ordinal_rans and the peers make a payload of their own; decode_ordinal_rans writes into a pre-touched "
    "tensor, apply_sparse_delta_ changes the base in place (restored outside of the clock); peers have bytes as input",
    "graftwork, best segment: encode_ordinal_rans(segment=None), which tries all segment sizes",
    "bound: the entropy of the ordinal difference's class given the base's exponent, plus the bits below its leading one",
]

Check = Callable[[], str | None]  # what is wrong with a round trip, if anything


@dataclass
class Pair:
    """A base and its fine-tune, and everything that is timed on them."""

    case: str
    base: torch.Tensor
    tuned: torch.Tensor
    device: str
    contest: Contest
    checks: list[Check]

    def row(self, operation: str, implementation: str, version: str = "", moved: int = 0) -> Row:
        dtype = str(self.tuned.dtype).removeprefix("torch.")
        shape = (self.tuned.numel(),)
        row = Row(
            operation, implementation, dtype, shape, self.case, bytes=self.tuned.nbytes, version=version
        )
        if moved:
            row.facts["bytes_moved"] = moved
        return row

    def labels(self) -> dict[str, int]:
        return {"cuda": 1} if self.device == "cuda" else {str(count): count for count in thread_counts()}

    def enter(
        self,
        row: Row,
        run: Callable[[], object],
        prepare: Callable[[], object] | None = None,
        peaks: dict[str, list[Job]] | None = None,
    ) -> None:
        """Time ``run`` at every thread count (on a GPU: there)."""
        for label, threads in self.labels().items():
            probes = peaks[label] if peaks else ()
            self.contest.add(row, label, Job(run, threads, prepare, self.device), probes)

    def peaks(self, moved: int) -> dict[str, list[Job]]:
        """The probes that move as many bytes, for every thread count."""
        probes = [make(moved, self.device) for make in (copy_probe, combine_probe, read_probe)]
        return {
            label: [Job(probe, threads, device=self.device) for probe in probes]
            for label, threads in self.labels().items()
        }


def measure(options: Options) -> Measurement:
    """Time both codes and the peers on every tensor, and the reference on a small one."""
    taken = Measurement([], notes=NOTES)
    generator = torch.Generator(options.device).manual_seed(0)
    for dtype, numel, cases in QUICK if options.quick else FULL:
        shape = (numel // ROW, ROW)
        base = torch.randn(shape, generator=generator, device=options.device).mul_(0.02).to(dtype)
        for case in cases:
            tuned = UPDATES[case](base, generator)
            _measure_case(Pair(case, base, tuned, options.device, Contest(), []), taken, options)
            if case == MAIN_UPDATE and dtype == torch.bfloat16 and options.device == "cpu":
                rows = SLOW_NUMEL // ROW
                small = Pair(case, base[:rows], tuned[:rows], "cpu", Contest(), [])
                _measure_case(small, taken, options, reference=True)
    if options.device == "cpu":
        taken.targets += _targets(taken.rows)
    return taken


def _measure_case(pair: Pair, taken: Measurement, options: Options, *, reference: bool = False) -> None:
    touched = torch.zeros_like(pair.tuned)
    copy = pair.row("copy", "floor", moved=2 * pair.tuned.nbytes)
    pair.enter(copy, lambda: touched.copy_(pair.tuned))
    _ordinal_rans(pair)
    if reference:
        _reference(pair)
    elif options.device == "cpu":
        if pair.case == STEP_UPDATE:
            _sparse_delta(pair)
        for peer in memory_peers(copy.dtype):
            if peer.name in PEERS and peer.version is None:
                taken.rows.append(_not_installed(pair, peer))
            elif peer.name in PEERS:
                _peer(pair, peer)
    rows = pair.contest.run(rounds=2 if options.quick else 5, budget=4.0, min_repeats=2)
    settle()
    taken.failures += [
        f"{pair.case} {copy.dtype}: {problem}" for check in pair.checks if (problem := check())
    ]
    bound = _bound(pair)
    for row in rows:
        _add_ratios(row, copy, bound)
    taken.rows += [*rows, bound]


def _add_ratios(row: Row, copy: Row, bound: Row) -> None:
    if row is not copy:
        for label, run in row.runs.items():
            share = copy.runs[label].seconds.median / run.seconds.median
            row.facts[f"memcpy_percent_{label}"] = 100 * share
    if "size_percent" in row.facts:
        row.facts["ratio_to_bound"] = row.facts["size_percent"] / bound.facts["size_percent"]


def _bound(pair: Pair) -> Row:
    from graftwork.ops.lossless_delta import conditional_entropy_bits, delta_stats

    row = pair.row("encode", "bound")
    bits = conditional_entropy_bits(delta_stats(pair.base, pair.tuned).histogram)
    row.facts["size_percent"] = 100 * bits / 8 / row.bytes
    return row


# ---- graftwork ----


def _ordinal_rans(pair: Pair) -> None:
    from graftwork.ops.entropy_delta import decode_ordinal_rans, encode_ordinal_rans

    base, tuned, restored = pair.base, pair.tuned, torch.zeros_like(pair.tuned)
    payload, smallest = encode_ordinal_rans(base, tuned), encode_ordinal_rans(base, tuned, None)
    moved = base.nbytes + tuned.nbytes + len(payload)
    peaks = pair.peaks(moved)
    encoding = pair.row("encode_ordinal_rans", "graftwork", moved=moved)
    choosing = pair.row("encode_ordinal_rans", "graftwork, best segment", moved=moved)
    decoding = pair.row("decode_ordinal_rans", "graftwork", moved=moved)
    pair.enter(encoding, lambda: encode_ordinal_rans(base, tuned), peaks=peaks)
    pair.enter(choosing, lambda: encode_ordinal_rans(base, tuned, None), peaks=peaks)
    pair.enter(decoding, lambda: decode_ordinal_rans(base, payload, restored), peaks=peaks)
    encoding.facts["size_percent"] = 100 * len(payload) / tuned.nbytes
    choosing.facts["size_percent"] = 100 * len(smallest) / tuned.nbytes

    def check() -> str | None:
        same = same_bits(restored, tuned) and same_bits(decode_ordinal_rans(base, smallest), tuned)
        return None if same else "decode_ordinal_rans restored something else"

    pair.checks.append(check)


def _sparse_delta(pair: Pair) -> None:
    from graftwork.ops.entropy_delta import apply_sparse_delta_, encode_sparse_delta

    base, tuned, words = pair.base, pair.tuned, pair.base.clone()
    payload = encode_sparse_delta(base, tuned)
    if payload is None:
        raise ValueError(f"encode_sparse_delta gave up on {pair.case}")
    changed = (base != tuned).view(-1, LINE // base.itemsize).any(dim=1).sum().item()
    encoding = pair.row("encode_sparse_delta", "graftwork", moved=base.nbytes + tuned.nbytes + len(payload))
    applying = pair.row("apply_sparse_delta_", "graftwork", moved=len(payload) + 2 * LINE * int(changed))
    encoding.facts["size_percent"] = 100 * len(payload) / tuned.nbytes
    for row, run, prepare in (
        (encoding, lambda: encode_sparse_delta(base, tuned), None),
        (applying, lambda: apply_sparse_delta_(words, payload), lambda: words.copy_(base)),
    ):
        pair.enter(row, run, prepare, pair.peaks(row.facts["bytes_moved"]))

    def check() -> str | None:
        there = same_bits(words, tuned)
        back = same_bits(apply_sparse_delta_(words, payload, reverse=True), base)
        return None if there and back else "apply_sparse_delta_ made something else"

    pair.checks.append(check)


def _reference(pair: Pair) -> None:
    from graftwork.reference.entropy_delta import decode_ordinal_rans, encode_ordinal_rans

    base, tuned, restored = pair.base, pair.tuned, torch.zeros_like(pair.tuned)
    payload = encode_ordinal_rans(base, tuned, 20)
    encoding = pair.row("encode_ordinal_rans", "reference")
    pair.enter(encoding, lambda: encode_ordinal_rans(base, tuned, 20))
    decoding = pair.row("decode_ordinal_rans", "reference")
    pair.enter(decoding, lambda: decode_ordinal_rans(base, payload, restored))
    encoding.facts["size_percent"] = 100 * len(payload) / tuned.nbytes
    pair.checks.append(
        lambda: None if same_bits(restored, tuned) else "the reference restored something else"
    )


# ---- peers ----


def _not_installed(pair: Pair, peer: MemoryPeer) -> Row:
    row = pair.row("encode", peer.name)
    row.status = "not installed"
    return row


def _peer(pair: Pair, peer: MemoryPeer) -> None:
    """A peer on the tensors' bytes; each call gets bytes of its own, since ZipNN writes into them."""
    held: dict[str, Any] = {}

    def renew() -> None:
        held.update(base=_bytes(pair.base), tuned=_bytes(pair.tuned))

    def encode(threads: int) -> None:
        held["payload"] = bytes(peer.compress(held["base"], held["tuned"], threads))

    def decode(threads: int) -> None:
        held["restored"] = peer.decompress(held["base"], held["payload"], threads)

    encoding, decoding = (pair.row(job, peer.name, peer.version or "") for job in ("encode", "decode"))
    for label, threads in pair.labels().items():
        pair.contest.add(encoding, label, Job(partial(encode, threads), threads, renew))
        pair.contest.add(decoding, label, Job(partial(decode, threads), threads, renew))

    def check() -> str | None:
        encoding.facts["size_percent"] = 100 * len(held["payload"]) / encoding.bytes
        same = bytes(held["restored"]) == _bytes(pair.tuned)
        held.clear()
        return None if same else f"{peer.name} restored something else"

    pair.checks.append(check)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.uint8).numpy().tobytes()


# ---- targets ----


def _targets(rows: Sequence[Row]) -> list[Target]:
    """Sizes of the 16-bit cases, and the speeds on the main one."""
    ours = [row for row in rows if row.implementation == "graftwork" and row.dtype == "bfloat16"]
    largest = max(row.shape[0] for row in ours)
    found = {(row.operation, row.case): row for row in ours if row.shape[0] == largest}
    targets = [
        Target(
            f"size by ordinal_rans, {case}",
            found["encode_ordinal_rans", case].facts["ratio_to_bound"],
            1.05,
            "x the entropy given the exponent",
        )
        for case in UPDATES
        if case != STEP_UPDATE
    ]
    step = found["encode_sparse_delta", STEP_UPDATE].facts["size_percent"]
    targets.append(Target(f"size by sparse_delta, {STEP_UPDATE}", step, 0.65, "% of the tensor"))
    for operation, limit in (("encode_ordinal_rans", 400), ("decode_ordinal_rans", 800)):
        run = found[operation, MAIN_UPDATE].runs.get("2")
        if run and run.bytes_per_second:
            speed = run.bytes_per_second / 1e6
            targets.append(Target(f"{operation}, 2 threads", speed, limit, "MB/s", at_least=True))
    return targets
