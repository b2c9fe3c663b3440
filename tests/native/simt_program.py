"""Builds and runs the host programs in ``tests/native/simt``: CUDA kernels compiled as C++ through the SIMT shim."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "simt"
FLAGS = (
    *("-std=c++20", "-O1", "-ffp-contract=off", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"),
)
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiler() -> str | None:
    """The host C++ compiler, or None."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Where the programs go."""
    return tempfile.TemporaryDirectory(prefix="graftwork-simt-")  # removed when Python ends


@functools.cache
def build(name: str, flags: tuple[str, ...]) -> Path:
    """Compile ``simt/<name>.cpp`` once; raises CalledProcessError with the compiler's messages."""
    program = Path(folder().name, "-".join([name, *(flag.strip("-").replace(",", "_") for flag in flags)]))
    command = [compiler() or "g++", *FLAGS, *flags, str(SOURCES / f"{name}.cpp"), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120)
