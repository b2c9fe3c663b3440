"""The two-process example does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "weight_sync.py"


def test_two_processes_over_a_socket() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == [
        f"step {i}" for i in range(1, 6)
    ]
    assert sum("refused" in line and "stays at version 2" in line for line in lines) == 1
    assert lines[-1] == "both processes hold version 5, bit for bit"
