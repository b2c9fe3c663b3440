"""The gate on what kernels cost: no spills, coalesced accesses, and ``bench/ptxas.json`` in step with the code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench import ptxas
from tests.native import simt_program

needs_compiler = pytest.mark.skipif(simt_program.compiler() is None, reason="no C++ compiler on PATH")
needs_nvcc = pytest.mark.skipif(ptxas.nvcc() is None, reason="no nvcc on PATH (CUDA toolkit not installed)")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(ptxas.RECORD.read_text())


@pytest.fixture(scope="module")
def usage() -> ptxas.Table:
    return ptxas.resource_usage()


@needs_nvcc
def test_no_kernel_spills(usage: ptxas.Table) -> None:
    spilling = {
        (kernel, arch): row
        for kernel, by_arch in usage.items()
        for arch, row in by_arch.items()
        if row["stack"] + row["spill_stores"] + row["spill_loads"] > 0
        and not ptxas.reason(kernel, ptxas.SPILL_REASONS)
    }
    assert not spilling


@needs_nvcc
def test_registers_are_as_recorded(usage: ptxas.Table, recorded: dict[str, Any]) -> None:
    if (version := ptxas.nvcc_version()) != recorded["nvcc"]:
        pytest.skip(f"bench/ptxas.json was made with nvcc {recorded['nvcc']}, here is {version}")
    assert usage.keys() == recorded["kernels"].keys()
    for kernel, by_arch in usage.items():
        for arch, row in by_arch.items():
            noted = {key: recorded["kernels"][kernel][arch][key] for key in row}
            assert row == noted, f"{kernel} on {arch}: run python -m bench.ptxas --write and read the diff"


@needs_compiler
def test_accesses_are_as_recorded(recorded: dict[str, Any]) -> None:
    for kernel, row in ptxas.access_counts().items():
        assert row == {key: recorded["kernels"][kernel][key] for key in row}, kernel


@pytest.mark.parametrize(
    ("kinds", "reasons"),
    [(("load", "store"), ptxas.SECTOR_REASONS), (("shared",), ptxas.BANK_REASONS)],
    ids=["sectors", "banks"],
)
def test_accesses_cost_what_they_must(
    recorded: dict[str, Any], kinds: tuple[str, ...], reasons: dict[str, str]
) -> None:
    for kernel, row in recorded["kernels"].items():
        for kind in kinds:
            _, cost, floor = row[kind]
            assert cost <= ptxas.MAX_COST * floor or ptxas.reason(kernel, reasons), (kernel, kind)


@pytest.mark.parametrize(
    ("registers", "threads", "shared_bytes", "arch", "wanted"),
    [  # the CUDA occupancy calculator's answers
        (32, 256, 0, "sm_80", 1.0),
        (40, 256, 0, "sm_90", 0.75),
        (64, 512, 0, "sm_90", 0.5),
        (32, 512, 67096, "sm_80", 0.5),
        (32, 512, 67096, "sm_90", 0.75),
        (255, 1024, 0, "sm_80", 0.0),
    ],
)
def test_occupancy(registers: int, threads: int, shared_bytes: int, arch: str, wanted: float) -> None:
    assert ptxas.occupancy(registers, threads, shared_bytes, arch) == wanted
