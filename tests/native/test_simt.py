"""CUDA kernels on the host: every schedule gives the same, right bits, also under AddressSanitizer and UBSan.

What this cannot show stands in ``csrc/cuda/support/simt.h``: time, occupancy, races between blocks, fences.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.native import simt_program
from tests.native.simt_program import SANITIZE

pytestmark = pytest.mark.skipif(simt_program.compiler() is None, reason="no C++ compiler on PATH")

UCONTEXT = ("-DSIMT_UCONTEXT",)
KERNELS = (
    *("ordinal_planes", "delta_stats", "ordinal_rans"),
    *("sparse_steps", "sparse_values", "topk_absdiff", "merge_deltas"),
)
BUILDS = [
    *((name, ()) for name in KERNELS),
    *((name, SANITIZE) for name in KERNELS),
    ("shim", ()),
    ("shim", SANITIZE),
    ("shim", UCONTEXT),
]


@pytest.fixture(scope="module", autouse=True)
def all_built() -> Iterator[None]:
    """Compiles the programs two at a time from the first test on, in the order in which tests need them."""
    simt_program.folder()
    with ThreadPoolExecutor(2) as pool:
        _BUILT.update({key: pool.submit(simt_program.build, *key) for key in BUILDS})
        yield


_BUILT: dict[tuple[str, tuple[str, ...]], Future[Path]] = {}


def run(name: str, *arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    try:
        return simt_program.run(_BUILT[name, flags].result(), *arguments)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{name} does not compile:\n{error.stderr}")


@pytest.mark.parametrize("flags", [(), SANITIZE], ids=["plain", "sanitized"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_kernels_are_right_under_every_schedule(kernels: str, flags: tuple[str, ...]) -> None:
    result = run(kernels, flags=flags)
    assert (result.returncode, result.stdout) == (0, "all checks hold\n"), result.stdout + result.stderr


@pytest.mark.parametrize("flags", [(), UCONTEXT, SANITIZE], ids=["assembly", "ucontext", "sanitized"])
def test_shim_runs_right_kernels(flags: tuple[str, ...]) -> None:
    schedules = "lockstep right\nforward right\nreverse right\nrandom right\n"
    assert run("shim", "barrier", flags=flags).stdout == schedules
    assert run("shim", "collectives", flags=flags).stdout == "right\n"


def test_missing_barrier_shows() -> None:
    assert "wrong" in run("shim", "missing_barrier").stdout


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (
            "divergent_barrier",
            "deadlock in block (0,0,0): of 64 threads 57 wait at __syncthreads, 0 wait for lanes of their warp mask, "
            "7 have returned",
        ),
        (
            "lanes_never_come",
            "deadlock in block (0,0,0): of 32 threads 0 wait at __syncthreads, 16 wait for lanes of their warp mask, "
            "16 have returned",
        ),
        ("mask_without_caller", "it calls a warp collective whose mask leaves it out"),
        ("misaligned", "an access of 8 bytes is misaligned"),
        ("too_much_shared", "diverge: not a shape that a device would launch"),
    ],
)
def test_broken_kernels_are_reported(experiment: str, message: str) -> None:
    output = run("shim", experiment).stdout
    assert output.startswith("caught: ")
    assert message in output


@pytest.mark.parametrize("kernel", ["overrun_global", "overrun_shared"])
def test_overrun_is_named(kernel: str) -> None:
    result = run("shim", kernel, flags=SANITIZE)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert f" in {kernel}" in result.stderr


def test_stale_shared_memory_is_poisoned() -> None:
    assert run("shim", "stale_shared").stdout == "ffffffff\n"


def test_blocks_run_in_both_orders() -> None:
    assert run("shim", "block_order").stdout.split() == ["4", "10"]


@pytest.mark.parametrize(
    ("experiment", "load", "shared"),
    [
        ("coalesced", [1, 4, 4], [1, 1, 1]),
        ("strided", [1, 32, 4], [1, 32, 1]),  # one sector a lane, and all lanes in one bank
        ("padded", [1, 32, 4], [1, 1, 1]),  # one word of padding a row spreads the banks
    ],
)
def test_counters_see_sectors_and_bank_conflicts(experiment: str, load: list[int], shared: list[int]) -> None:
    (counts,) = json.loads(run("shim", experiment).stdout).values()
    assert (counts["load"], counts["shared"]) == (load, shared)
