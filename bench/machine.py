"""What a benchmark ran on, whether the machine was quiet enough to measure, and which commit it measured."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def describe(device: str = "cpu") -> dict[str, Any]:
    """The machine's parts that a time depends on, and the versions of what ran."""
    import torch

    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": core_count(),
        "isa_level": isa_level(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def slug(facts: dict[str, Any]) -> str:
    """The folder name of a machine's records: its GPU, or else its CPU and core count.

    >>> slug({"cpu": "AMD EPYC", "cores": 2})
    'amd-epyc-2c'
    >>> slug({"cpu": "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", "cores": 28})
    'intel-xeon-e5-2680-v4-28c'
    >>> slug({"cpu": "AMD EPYC", "cores": 16, "gpu": "NVIDIA H100 80GB HBM3"})
    'nvidia-h100'
    """
    if "gpu" in facts:
        return "-".join(re.split(r"[\s-]+", facts["gpu"].lower())[:2])
    name = re.sub(
        r"\((R|TM|C)\)|\bCPU\b|\bProcessor\b|\b\d+-Core\b|@.*$", " ", facts["cpu"], flags=re.IGNORECASE
    )
    return "-".join([*re.findall(r"[a-z0-9]+", name.lower()), f"{facts['cores']}c"])


def cpu_name() -> str:
    """The processor's model name as the system gives it."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", table.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def isa_level() -> str:
    """The level that the native core chose, or a dash where the core is not built."""
    try:
        from graftwork import _core
    except ImportError:
        return "-"
    return str(_core.isa_level())


def commit() -> tuple[str, bool]:
    """The checked-out commit (``"unknown"`` outside a repository) and whether the tree differs from it.

    Records, and the README's tables that come from them, do not count as a difference.
    """
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head, bool(_git("status", "--porcelain", "--", ".", ":!bench/results", ":!README.md"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def canary(repeats: int = 9) -> dict[str, Any] | None:
    """Time one torch matrix product at 2 threads against 1; None on a single core, where nothing is compared.

    When 2 threads are the slower, somebody else holds a core and no time of this run means anything.
    """
    import torch

    if core_count() < 2:
        return None
    factor = torch.ones(1024, 1024)
    before = torch.get_num_threads()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for threads, times in seconds.items():
            torch.set_num_threads(threads)
            start = time.perf_counter()
            factor @ factor
            times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    one, two = (statistics.median(times) for times in seconds.values())
    return {
        "operation": "fp32 matmul 1024",
        "seconds_1_thread": one,
        "seconds_2_threads": two,
        "speedup": one / two,
    }


def is_busy(reading: dict[str, Any] | None) -> bool:
    """Whether a canary's reading says that a neighbour took a core."""
    return reading is not None and reading["speedup"] <= 1.0
