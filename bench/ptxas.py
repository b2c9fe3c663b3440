"""Registers, spills, occupancy, memory sectors and bank conflicts of every CUDA kernel, without a GPU.

    python -m bench.ptxas            compare with bench/ptxas.json
    python -m bench.ptxas --write    measure anew and write it

Registers and spills come from ``nvcc -Xptxas -v``; threads, shared memory and accesses from running the kernels on
the host through the SIMT shim (``tests/native/simt``). Occupancy is the share of a multiprocessor's threads that the
three resources allow. ``tests/native/test_ptxas.py`` is the gate.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.native import simt_program

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "bench" / "ptxas.json"
PROGRAMS = (
    *("ordinal_planes", "delta_stats", "ordinal_rans"),
    *("sparse_steps", "sparse_values", "topk_absdiff", "merge_deltas"),
)
ARCHITECTURES = ("sm_80", "sm_90")
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024}  # of a multiprocessor
MAX_COST = 1.1  # of a kind of access, times its floor

#: Kernels (by regular expression) whose loads and stores may touch more sectors than MAX_COST allows, and why.
SECTOR_REASONS = {
    r"_ordinal_planes_kernel<\d, \w+, false>": (
        "the path of odd sizes and misaligned views: planes then start inside a sector, which costs one more a warp"
    ),
    r"delta_stats_kernel<\w+, false>": (
        "the path of misaligned views: a thread reads its 16 bytes word by word, to sum in the order of the aligned "
        "path; the L1 cache serves all but the first access"
    ),
    r"cut_pair_kernel<\d>": "each thread searches two lists for where its tile begins; a thread a tile is little work",
}
#: Kernels whose shared-memory accesses may take more passes than MAX_COST allows, and why.
BANK_REASONS = {
    r"delta_stats_kernel<\w+, \w+>": "histogram bins lie where the data puts them",
    r"decode_ordinal_rans_kernel<\w+>": "the states of a warp's lanes choose cells and records at random",
    r"count_scores_kernel": "histogram bins lie where the data puts them",
    r"write_chosen_kernel<\d>": "what is chosen goes where its rank sends it, in 2 bytes, mostly a few of a warp's lanes",
    r"count_shared_kernel<\d>": "each lane searches the other support's keys for its own",
    r"merge_deltas_kernel<\d>": "each lane searches the other support's keys for its own, and its rank sends it on",
    r"swap_values_kernel<\d>": "each lane searches the other support's keys for its own",
}
#: Kernels that may spill or have a stack frame, and why.
SPILL_REASONS: dict[str, str] = {}
REASONS = {"sectors": SECTOR_REASONS, "banks": BANK_REASONS, "spills": SPILL_REASONS}

Table = dict[str, dict[str, Any]]


def reason(kernel: str, reasons: dict[str, str]) -> str | None:
    return next((why for pattern, why in reasons.items() if re.fullmatch(f".*{pattern}", kernel)), None)


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    return shutil.which("nvcc")


def nvcc_version() -> str:
    text = subprocess.run([nvcc() or "nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    if found is None:
        raise RuntimeError(f"no version in the output of nvcc --version: {text}")
    return found[1]


def resource_usage() -> Table:
    """kernel -> architecture -> registers, stack and spills, as ptxas reports them."""
    table: Table = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "csrc" / "cuda").glob("*/*.cu")):
            codes = [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in ARCHITECTURES]
            flags = ["-std=c++17", "-O3", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}", *codes]
            command = [
                nvcc() or "nvcc",
                *flags,
                "-c",
                str(source),
                "-o",
                str(Path(folder, source.name + ".o")),
            ]
            log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
            for kernel, arch, usage in parse_ptxas(demangle(log)):
                table.setdefault(kernel, {})[arch] = usage
    return table


def demangle(text: str) -> str:
    return subprocess.run(["c++filt"], input=text, check=True, capture_output=True, text=True).stdout


def parse_ptxas(log: str) -> list[tuple[str, str, dict[str, int]]]:
    """(kernel, architecture, usage) of every entry function in a demangled ptxas log."""
    pattern = (
        r"Compiling entry function '(?P<name>[^'\n]+)' for '(?P<arch>sm_\d+)'"
        r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers"
    )
    return [
        (
            kernel_name(match["name"]),
            match["arch"],
            {
                "registers": int(match["registers"]),
                "stack": int(match["stack"]),
                "spill_stores": int(match["stores"]),
                "spill_loads": int(match["loads"]),
            },
        )
        for match in re.finditer(pattern, log, re.DOTALL)
    ]


def kernel_name(text: str) -> str:
    """A kernel's name and template arguments, from either compiler's spelling."""
    text = re.sub(r"graftwork::|cuda::|\(anonymous namespace\)::|\{anonymous\}::", "", text)
    return text.removeprefix("void ").partition("(")[0]


def access_counts() -> Table:
    """kernel -> threads, shared bytes, and {kind: [groups, cost, floor]} from the SIMT shim."""
    table: Table = {}
    for name in PROGRAMS:
        counted = simt_program.run(simt_program.build(name, ()), "counters")
        table |= {kernel_name(kernel): row for kernel, row in json.loads(counted.stdout).items()}
    return table


def occupancy(registers: int, threads: int, shared_bytes: int, arch: str) -> float:
    """Resident threads over the 2048 that a multiprocessor of sm_80 and sm_90 can hold."""
    warps = -(-threads // 32)
    registers_of_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // registers_of_warp // 4 * 4 // warps  # each of the 4 schedulers owns a quarter
    by_shared = SHARED_BYTES[arch] // (-(-shared_bytes // 128) * 128 + 1024)  # 1 KiB a block is the system's
    blocks = min(32, 64 // warps, by_registers, by_shared)
    return blocks * warps / 64


def measure() -> dict[str, Any]:
    usage, counts = resource_usage(), access_counts()
    if missing := usage.keys() ^ counts.keys():
        raise RuntimeError(f"kernels that only one of nvcc and the SIMT programs knows: {sorted(missing)}")
    kernels: Table = {}
    for kernel in sorted(usage):
        row = dict(counts[kernel])
        for arch, resources in sorted(usage[kernel].items()):
            share = occupancy(resources["registers"], row["threads"], row["shared_bytes"], arch)
            row[arch] = {**resources, "occupancy": share}
        for key, reasons in REASONS.items():
            if why := reason(kernel, reasons):
                row[f"why_{key}"] = why
        kernels[kernel] = row
    return {"nvcc": nvcc_version(), "kernels": kernels}


def to_json(record: dict[str, Any]) -> str:
    """One line per fact of a kernel, so that a jump shows in a diff."""
    blocks = []
    for kernel, row in record["kernels"].items():
        facts = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items())
        blocks.append(f"  {json.dumps(kernel)}: {{\n{facts}\n  }}")
    return f'{{\n "nvcc": {json.dumps(record["nvcc"])},\n "kernels": {{\n' + ",\n".join(blocks) + "\n }\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ptxas", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--write", action="store_true", help="write bench/ptxas.json instead of comparing with it"
    )
    arguments = parser.parse_args()
    if nvcc() is None:
        print("bench.ptxas needs nvcc on PATH", file=sys.stderr)
        return 2
    text = to_json(measure())
    if arguments.write:
        RECORD.write_text(text)
        return 0
    if text == RECORD.read_text():
        return 0
    print(
        "bench/ptxas.json is out of date; run python -m bench.ptxas --write and read the diff",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
