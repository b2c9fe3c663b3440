"""Compiles a Triton kernel to machine code without a GPU, and reads its registers and spills.

``triton.compile`` on an ``ASTSource`` is no frozen interface: this is the one place that uses it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Resources:
    registers: int
    stack: int  # bytes a thread: register spills live there


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    capability: int,
) -> Resources:
    """Resources of `kernel` for compute capability `capability` (80, 90).

    `signature` gives a Triton type (``"*bf16"``, ``"i64"``) for each argument that is no constant.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    compiled = triton.compile(
        ASTSource(kernel, signature=types, constexprs=dict(constants)),
        target=GPUTarget("cuda", capability, 32),
        options=dict(options),
    )
    return read_resources(compiled.asm["cubin"])


def read_resources(cubin: bytes) -> Resources:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", text)}
    return Resources(numbers["REG"], numbers["STACK"])
