"""The store end to end, from files in the page cache to files: sizes and speeds, beside floors and peers."""

from __future__ import annotations

import filecmp
import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bench.checkpoints import SMOLLM2_CASE, Case, real_cases, synthetic_cases, work_folder
from bench.measure import Job, cores, settle, thread_counts
from bench.peers import Peer, all_peers, same_bits, write_file
from bench.record import Contest, Measurement, Options, Row, Target
from bench.updates import MAIN_UPDATE, STEP_UPDATE

Check = Callable[[], str | None]  # what is wrong with a round trip, if anything
Counts = Sequence[int]

TESTS = ("tests/store", "tests/delta")
CODECS = ("fast", "auto", "small")
LEAF_BYTES = 1 << 20
NOTES = [
    "every call reads its inputs from files in the page cache and writes its output to files, with fsync; the "
    "work folder is in memory (tmpfs) unless --workdir says otherwise, so no disk's speed is in the figures",
    "speeds count the fine-tune file's bytes; in graftwork's times are the SHA-256 digests of base, fine-tune and "
    "what is stored (pack) or of base and result (checkout), and the chunk checksums (tensor)",
    f"speeds are measured on {MAIN_UPDATE}; every other case is packed and checked out once, for its size",
    "copy: the fine-tune's bytes copied in memory; sha256: its 1 MiB leaves hashed; digests: those of base and "
    "fine-tune hashed, which pack and checkout do on the way; write: written with fsync",
    "digests_percent_N: the time of `digests` in percent of a call's, both on N threads",
    "size: everything in the store, or the payload, in percent of the fine-tune file; for graftwork also the files "
    "beside the weights (other_files_percent), which no peer holds and the ratio to the bound leaves out",
    "bound: the entropy of the ordinal difference's class given the base's exponent, plus the bits below its leading "
    "one, which it takes for noise: where they are not (a float32 fine-tune with trailing zeros, say), a codec may "
    "end below it; and below it gets, too, who sees that neighbours change alike (rows of different scales)",
    "lmzip beside the base: the fine-tune added to an archive that holds the base, and what the archive grows by",
    "every round trip is compared after the timing: all bytes of all files; for fireworks all tensors' bits",
]


def measure(options: Options) -> Measurement:
    """Time every codec and peer on every case."""
    taken = Measurement([], notes=NOTES)
    with work_folder(options.workdir) as folder:
        for case in synthetic_cases(folder, quick=options.quick):
            _measure_case(case, folder, taken, quick=options.quick)
        found = list(real_cases())
        for case in found:
            _measure_case(case, folder, taken, quick=options.quick)
    taken.rows += [Row("pack", "graftwork auto", case=name, status="not measured") for name in missing(found)]
    taken.targets += _speed_targets(taken.rows)
    return taken


def missing(found: Sequence[Case]) -> list[str]:
    """Names of the real cases that are not there: nobody ran the demo, or the example, before."""
    names = [case.name for case in found]
    absent = [] if SMOLLM2_CASE in names else [SMOLLM2_CASE]
    return absent if set(names) - {SMOLLM2_CASE} else ["real: the demo's", *absent]


def _measure_case(case: Case, folder: Path, taken: Measurement, *, quick: bool) -> None:
    contest, counts = Contest(), thread_counts()
    thorough = case.name == MAIN_UPDATE
    if thorough:
        _floors(contest, case, folder)
    else:
        counts = counts[-1:]
    checks = [_ours(codec, contest, case, folder, counts) for codec in CODECS]
    for peer in all_peers(case.dtype):
        if peer.version is None:
            taken.rows.append(_row("pack", peer.name, case, status="not installed"))
        elif peer.aligned and not case.aligned:
            taken.rows.append(_row("pack", peer.name, case, status="not applicable"))
        else:
            checks.append(_peer(contest, peer, case, folder, counts))
    rounds = 1 if quick or not thorough else 5
    rows = contest.run(rounds=rounds, budget=4.0, min_repeats=2)
    settle()
    for check in checks:
        problem = check()
        if problem:
            taken.failures.append(f"{case.name}: {problem}")
    _add_digest_shares(rows)
    bound = _bound(case)
    taken.rows += [*rows, bound]
    taken.targets += _size_targets(case, rows, bound)


def _add_digest_shares(rows: Sequence[Row]) -> None:
    """How much of a pack or a checkout the digests take, where they were timed."""
    alone = next((row for row in rows if row.operation == "digests"), None)
    if alone is None:
        return
    for row in rows:
        if row.implementation.startswith("graftwork") and row.operation in ("pack", "checkout"):
            for label, run in row.runs.items():
                share = alone.runs[label].seconds.median / run.seconds.median
                row.facts[f"digests_percent_{label}"] = 100 * share


def _size_targets(case: Case, rows: Sequence[Row], bound: Row) -> list[Target]:
    (ours,) = (row for row in rows if (row.operation, row.implementation) == ("pack", "graftwork small"))
    if case.name == STEP_UPDATE:
        return [Target(f"size by small, {case.name}", ours.facts["size_percent"], 0.65, "% of the file")]
    weights = ours.facts["size_percent"] - ours.facts["other_files_percent"]
    ratio = weights / bound.facts["size_percent"]
    return [Target(f"size by small, {case.name}", ratio, 1.05, "x the entropy given the exponent")]


def _speed_targets(rows: Sequence[Row]) -> list[Target]:
    found = {(row.operation, row.implementation): row.runs for row in rows if row.case == MAIN_UPDATE}
    return [
        Target(f"{job} by small, 2 threads", runs["2"].bytes_per_second / 1e6, limit, "MB/s", at_least=True)
        for job, limit in (("pack", 250), ("checkout", 500))
        if "2" in (runs := found[job, "graftwork small"])
    ]


def _row(operation: str, implementation: str, case: Case, version: str = "", status: str = "measured") -> Row:
    nbytes = case.tuned_file.stat().st_size
    row = Row(operation, implementation, case.dtype, (nbytes,), case.name, bytes=nbytes)
    row.version, row.status = version, status
    return row


# ---- floors: what the bytes cost whatever one does with them ----


def _floors(contest: Contest, case: Case, folder: Path) -> None:
    base, data = case.base_file.read_bytes(), case.tuned_file.read_bytes()  # in the page cache from here on
    target = folder / "written"
    source = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
    touched = torch.ones_like(source)
    copy, sha256, digests, write = (
        _row(name, "floor", case) for name in ("copy", "sha256", "digests", "write")
    )
    for threads in thread_counts():
        label = str(threads)
        contest.add(copy, label, Job(lambda: touched.copy_(source), threads))
        contest.add(sha256, label, Job(partial(_hash_leaves, (data,), threads), threads))
        contest.add(digests, label, Job(partial(_hash_leaves, (base, data), threads), threads))
    contest.add(write, "1", Job(lambda: write_file(target, data), prepare=lambda: _remove(target)))


def _hash_leaves(files: Sequence[bytes], threads: int) -> None:
    leaves = [
        view[start : start + LEAF_BYTES]
        for view in map(memoryview, files)
        for start in range(0, len(view), LEAF_BYTES)
    ]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda leaf: hashlib.sha256(leaf).digest(), leaves))


# ---- graftwork ----


def _ours(codec: str, contest: Contest, case: Case, folder: Path, counts: Counts) -> Check:
    from graftwork.store import open_store, pack

    store, restored, name = folder / f"store-{codec}", folder / f"restored-{codec}", f"graftwork {codec}"
    packing, checking_out, loading = (
        _row(operation, name, case) for operation in ("pack", "checkout", "tensor")
    )
    with safe_open(case.tuned_file, "pt") as header:
        keys = list(header.keys())

    def pack_with(threads: int) -> None:
        pack(case.base, case.tuned, out=store, codec=codec, threads=threads)

    def checkout_with(threads: int) -> None:
        with open_store(store, base=case.base) as opened:
            opened.checkout(case.tuned.name, restored, threads=threads)

    def load_with(threads: int) -> None:
        with cores(threads), open_store(store, base=case.base) as opened:
            for key in keys:
                opened.tensor(case.tuned.name, key)

    for threads in counts:
        label = str(threads)
        contest.add(packing, label, Job(partial(pack_with, threads), threads, lambda: _remove(store)))
        contest.add(
            checking_out, label, Job(partial(checkout_with, threads), threads, lambda: _remove(restored))
        )
        contest.add(loading, label, Job(partial(load_with, threads), threads))

    def check() -> str | None:
        packing.facts["size_percent"] = _percent(store.rglob("*"), packing)
        packing.facts["other_files_percent"] = _percent(store.glob("objects/*/*.zst"), packing)
        names = sorted(str(path.relative_to(case.tuned)) for path in case.tuned.rglob("*") if path.is_file())
        same, *_ = filecmp.cmpfiles(case.tuned, restored, names, shallow=False)
        wanted = load_file(case.tuned_file)
        with open_store(store, base=case.base) as opened:
            differing = [
                key for key in wanted if not same_bits(opened.tensor(case.tuned.name, key), wanted[key])
            ]
        for path in (store, restored):
            _remove(path)
        return None if len(same) == len(names) and not differing else f"{name} restored something else"

    return check


def _percent(paths: Iterable[Path], row: Row) -> float:
    return 100 * sum(path.stat().st_size for path in paths if path.is_file()) / row.bytes


def _bound(case: Case) -> Row:
    from graftwork.ops.lossless_delta import conditional_entropy_bits, delta_stats

    base, tuned = load_file(case.base_file), load_file(case.tuned_file)
    bits = 0.0
    for name, tensor in tuned.items():
        if name in base and base[name].shape == tensor.shape:
            bits += conditional_entropy_bits(delta_stats(base[name], tensor).histogram)
        else:
            bits += 8 * tensor.nbytes
    row = _row("pack", "bound", case)
    row.facts["size_percent"] = 100 * bits / 8 / row.bytes
    return row


# ---- peers ----


def _peer(contest: Contest, peer: Peer, case: Case, folder: Path, counts: Counts) -> Check:
    payload, restored = (folder / f"{peer.name.replace(' ', '-')}.{kind}" for kind in ("payload", "restored"))
    packing, checking_out = (
        _row(operation, peer.name, case, version=peer.version or "") for operation in ("pack", "checkout")
    )
    begin = partial(peer.begin, case.base_file, payload)
    for threads in peer.threads(counts):
        label = str(threads)
        pack = partial(peer.pack, case.base_file, case.tuned_file, payload, threads)
        checkout = partial(peer.checkout, case.base_file, payload, restored, threads)
        contest.add(packing, label, Job(pack, threads, begin))
        contest.add(checking_out, label, Job(checkout, threads, lambda: _remove(restored)))

    def check() -> str | None:
        packing.facts["size_percent"] = 100 * peer.stored_bytes(payload) / packing.bytes
        same = peer.same(restored.read_bytes(), case.tuned_file.read_bytes())
        peer.end(payload)
        _remove(restored)
        return None if same else f"{peer.name} restored something else"

    return check


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
