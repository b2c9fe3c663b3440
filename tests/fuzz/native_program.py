"""Builds and runs the native fuzz targets: with clang and libFuzzer where they are, else with g++ and our own driver."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "fuzz"  # git ignores it
CORE = ROOT / "csrc" / "core"

#: The targets, which have the names of the operations. An operation is compiled once per ISA level.
TARGETS = ("ordinal_planes", "ordinal_rans", "sparse_delta", "index_codec")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
SANITIZE = (
    "-g",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)


class Toolchain(NamedTuple):
    """How a target becomes a program."""

    name: str
    compiler: str
    watched: tuple[str, ...]  # flags of the code whose coverage guides the fuzzer
    link: tuple[str, ...]
    driver: tuple[Path, ...]  # sources of a driver that the compiler does not bring


@functools.cache
def toolchain(wanted: str | None = None) -> Toolchain:
    """libFuzzer if a clang here can link it, else g++ (or CXX) with `standalone_main.cpp`.

    ``wanted``, or else the variable GRAFTWORK_FUZZER, asks for ``libfuzzer`` or ``standalone``.
    """
    wanted = wanted or os.environ.get("GRAFTWORK_FUZZER")
    clang = None if wanted == "standalone" else _clang_with_libfuzzer()
    if clang:
        # Without the tracing of comparisons, which takes three quarters of the time and has no magic numbers to find.
        watched = ("-fsanitize-coverage=inline-8bit-counters,pc-table",)
        return Toolchain("libfuzzer", clang, watched, ("-fsanitize=fuzzer",), ())
    if wanted == "libfuzzer":
        raise FileNotFoundError("libFuzzer was asked for, but no clang++ here links -fsanitize=fuzzer")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"
    watched = ("-fsanitize-coverage=trace-pc", "-Wno-maybe-uninitialized")  # the latter as in CMakeLists.txt
    return Toolchain("standalone", compiler, watched, (), (HERE / "standalone_main.cpp",))


@functools.cache
def _clang_with_libfuzzer() -> str | None:
    names = ["clang++", *(f"clang++-{version}" for version in range(30, 13, -1))]
    for path in filter(None, map(shutil.which, names)):
        probe = "#include <cstdint>\n#include <cstddef>\n#include <span>\n"
        probe += 'extern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }\n'
        flags = ("-std=c++20", "-fsanitize=fuzzer,address,undefined", "-x", "c++")
        command = [path, *flags, "-", "-o", os.devnull]
        if subprocess.run(command, input=probe, capture_output=True, text=True).returncode == 0:
            return path
    return None


@functools.cache
def level_flags() -> dict[str, tuple[str, ...]]:
    """ISA level -> its flags, as CMakeLists.txt has them."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.findall(r"set\(GRAFTWORK_FLAGS_(\w+) (.*)\)", text)
    flags = {level: tuple(value.strip('"').split()) for level, value in found}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {"baseline": flags["baseline"]}
    return flags


class _Step(NamedTuple):
    """One call of the compiler: the output is named by all that it depends on, so it is made once."""

    command: tuple[str, ...]
    output: Path

    def make(self) -> None:
        if self.output.exists():
            return
        partial = self.output.with_suffix(f".{os.getpid()}.partial")
        subprocess.run([*self.command, "-o", str(partial)], check=True, capture_output=True, text=True)
        partial.replace(self.output)


@functools.cache
def _sources_digest() -> str:
    """Changes with any file that a target may include."""
    files = sorted(
        path for folder in (CORE, HERE) for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".inl")
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _step(stem: str, *command: str) -> _Step:
    version = subprocess.run([command[0], "--version"], check=True, capture_output=True, text=True).stdout
    key = hashlib.sha256("\0".join([version, _sources_digest(), *command]).encode()).hexdigest()[:16]
    return _Step(command, BUILD / "programs" / f"{stem}-{key}")


def build(target: str, tools: Toolchain | None = None) -> Path:
    """The target's program, compiled if it is not there; CalledProcessError with the compiler's messages."""
    tools, levels = tools or toolchain(), level_flags()
    (BUILD / "programs").mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", *WARNINGS, *SANITIZE, f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
    if len(levels) > 1:
        flags.append("-DGRAFTWORK_X86_LEVELS")
    steps = []
    for source in CORE.glob(f"*/{target}.cpp"):
        for level, own in levels.items():
            defines = (f"-DGRAFTWORK_LEVEL={level}", f"-DGRAFTWORK_LEVEL_IS_{level}")
            compiled = (*flags, *tools.watched, *own, *defines, "-ffp-contract=off", "-c", str(source))
            steps.append(_step(f"{source.stem}.{level}.o", tools.compiler, *compiled))
    own_watch = () if target in TARGETS else tools.watched  # of a target only the library's code is watched
    steps.append(_step(f"{target}.o", tools.compiler, *flags, *own_watch, "-c", str(HERE / f"{target}.cpp")))
    steps += [_step(f"{path.stem}.o", tools.compiler, *flags, "-c", str(path)) for path in tools.driver]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_Step.make, steps))
    objects = [str(step.output) for step in steps]
    program = _step(f"{target}.{tools.name}", tools.compiler, *SANITIZE, *tools.link, *objects)
    program.make()
    return program.output


@functools.cache
def has_libfuzzer() -> bool:
    """Whether a clang here brings libFuzzer."""
    return _clang_with_libfuzzer() is not None


def environment() -> dict[str, str]:
    """The environment of a run: what stops the program does so by SIGABRT, at which the fuzzer keeps the input.

    Leaks are not looked for: the core allocates nothing.
    """
    options = {
        "ASAN_OPTIONS": "detect_leaks=0:handle_abort=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
    }
    return {**os.environ, **options}
