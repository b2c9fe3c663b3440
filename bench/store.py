"""The store end to end, from files in the page cache to files: sizes and speeds, beside floors and peers."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bench.checkpoints import Case, real_cases, synthetic_cases, work_folder
from bench.measure import Job, cores, settle, thread_counts
from bench.peers import Data, Peer, all_peers
from bench.record import Contest, Measurement, Options, Row

Check = Callable[[], str | None]  # what is wrong with a round trip, if anything
Counts = Sequence[int]

TESTS = ("tests/store", "tests/delta")
CODECS = ("fast", "auto", "small")
MAIN_CASE = "gaussian 2e-4"  # the case whose speeds are measured; the others are there for their sizes
LEAF_BYTES = 1 << 20
NOTES = [
    "every call reads its inputs from files in the page cache and writes its output to files, with fsync; the "
    "work folder is in memory (tmpfs) unless --workdir says otherwise, so no disk's speed is in the figures",
    "speeds count the fine-tune file's bytes; in graftwork's times are the SHA-256 digests of base and fine-tune "
    "(pack) or of base and result (checkout), and the chunk checksums (tensor)",
    f"speeds are measured on {MAIN_CASE}; every other case is packed and checked out once, for its size",
    "copy: the fine-tune's bytes copied in memory; sha256: its 1 MiB leaves hashed; write: written with fsync",
    "size: everything in the store, or the payload, in percent of the fine-tune file; bound: the entropy of the "
    "ordinal difference's class given the base's exponent, plus the bits below its leading one, which it takes for "
    "noise: where they are not (a float32 fine-tune with trailing zeros, say), a codec may end below it",
    "every round trip is compared after the timing: all bytes of all files; for fireworks all tensors' bits",
]


def measure(options: Options) -> Measurement:
    """Time every codec and peer on every case."""
    taken = Measurement([], notes=NOTES)
    with work_folder(options.workdir) as folder:
        for case in synthetic_cases(folder, quick=options.quick):
            _measure_case(case, folder, taken, quick=options.quick)
        real = list(real_cases())
        for case in real:
            _measure_case(case, folder, taken, quick=options.quick)
    if not real:
        taken.rows.append(Row("pack", "graftwork fast", case="real", status="not measured"))
    return taken


def _measure_case(case: Case, folder: Path, taken: Measurement, *, quick: bool) -> None:
    contest, counts = Contest(), thread_counts()
    thorough = case.name == MAIN_CASE
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
    taken.rows += [*rows, _bound(case)]


def _row(operation: str, implementation: str, case: Case, version: str = "", status: str = "measured") -> Row:
    nbytes = case.tuned_file.stat().st_size
    row = Row(operation, implementation, case.dtype, (nbytes,), case.name, bytes=nbytes)
    row.version, row.status = version, status
    return row


# ---- floors: what the bytes cost whatever one does with them ----


def _floors(contest: Contest, case: Case, folder: Path) -> None:
    case.base_file.read_bytes()  # both files are in the page cache from here on
    data, target = case.tuned_file.read_bytes(), folder / "written"
    source = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
    touched = torch.ones_like(source)
    copy, sha256, write = (_row(name, "floor", case) for name in ("copy", "sha256", "write"))
    for threads in thread_counts():
        contest.add(copy, str(threads), Job(lambda: touched.copy_(source), threads))
        contest.add(sha256, str(threads), Job(partial(_hash_leaves, data, threads), threads))
    contest.add(write, "1", Job(lambda: _write(target, data), prepare=lambda: _remove(target)))


def _hash_leaves(data: bytes, threads: int) -> None:
    view = memoryview(data)
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(data), LEAF_BYTES)
        list(pool.map(lambda start: hashlib.sha256(view[start : start + LEAF_BYTES]).digest(), starts))


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
        stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        packing.facts["size_percent"] = 100 * stored / packing.bytes
        names = sorted(str(path.relative_to(case.tuned)) for path in case.tuned.rglob("*") if path.is_file())
        same, *_ = filecmp.cmpfiles(case.tuned, restored, names, shallow=False)
        wanted = load_file(case.tuned_file)
        with open_store(store, base=case.base) as opened:
            differing = [
                key for key in wanted if not _same_bits(opened.tensor(case.tuned.name, key), wanted[key])
            ]
        for path in (store, restored):
            _remove(path)
        return None if len(same) == len(names) and not differing else f"{name} restored something else"

    return check


def _same_bits(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.equal(got.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8))


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

    def compress(threads: int) -> None:
        _write(payload, peer.compress(case.base_file.read_bytes(), case.tuned_file.read_bytes(), threads))

    def decompress(threads: int) -> None:
        _write(restored, peer.decompress(case.base_file.read_bytes(), payload.read_bytes(), threads))

    for threads in peer.threads(counts):
        label = str(threads)
        contest.add(packing, label, Job(partial(compress, threads), threads, lambda: _remove(payload)))
        contest.add(
            checking_out, label, Job(partial(decompress, threads), threads, lambda: _remove(restored))
        )

    def check() -> str | None:
        packing.facts["size_percent"] = 100 * payload.stat().st_size / packing.bytes
        same = peer.same(restored.read_bytes(), case.tuned_file.read_bytes())
        for path in (payload, restored):
            _remove(path)
        return None if same else f"{peer.name} restored something else"

    return check


# ---- files ----


def _write(path: Path, data: Data) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
