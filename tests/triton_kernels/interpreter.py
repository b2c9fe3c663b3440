"""Runs a launcher of ``graftwork.triton_kernels`` on CPU tensors under Triton's interpreter, in a process of its own.

Triton chooses between interpreter and compiler when it is imported, and a test process may need both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def interpret(module: str, function: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results of ``graftwork.triton_kernels.<module>.<function>`` for each tuple of arguments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "calls.pt")
        torch.save(list(calls), path)
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.triton_kernels.interpreter",
            module,
            function,
            str(path),
        ]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the interpreter failed:\n{done.stderr}")
        return torch.load(path, weights_only=True)


def main(module: str, function: str, path: str) -> None:
    call = getattr(import_module(f"graftwork.triton_kernels.{module}"), function)
    torch.save([call(*arguments) for arguments in torch.load(path, weights_only=True)], path)


if __name__ == "__main__":
    main(*sys.argv[1:])
