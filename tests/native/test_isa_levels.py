"""Every ISA level gives the same bits, and no level's code reaches into a narrower one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graftwork import ops

ROOT = Path(__file__).parents[2]
LEVELS = ("baseline", "avx2", "avx512")
WIDEST = ops.isa_level()

pytestmark = pytest.mark.skipif(WIDEST is None, reason="the native core is not built")

DIGESTS = """
import hashlib, json, torch
from graftwork.ops import entropy_delta, isa_level, lossless_delta
from tests.generators.weights import LARGE, pair, random_words, special_pair

digests = {}
def record(name, *tensors):
    digests[name] = [hashlib.sha256(t.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest() for t in tensors]

for dtype in lossless_delta.WORDS:
    base, tuned = random_words((4097,), dtype, 1), random_words((4097,), dtype, 2)
    planes = lossless_delta.encode_ordinal_planes(base, tuned)
    record(f"planes {dtype}", planes, lossless_delta.decode_ordinal_planes(base, planes))
for dtype in lossless_delta.FORMATS:
    for name, (base, tuned) in {"weights": pair(LARGE, dtype), "special": special_pair(dtype)}.items():
        record(f"stats {name} {dtype}", *lossless_delta.delta_stats(base, tuned))
        for save in lossless_delta.SAVE_DTYPES:
            record(f"survival {name} {dtype} {save}", *lossless_delta.update_survival(base, tuned, save))
    for step in (1e-5, 1e-3):
        base, tuned = pair(150_001, dtype, step=step)
        for segment in (None, 1 << 16, 1 << 20):
            payload = entropy_delta.encode_ordinal_rans(base, tuned, segment)
            record(f"rans {dtype} {step} {segment}", payload, entropy_delta.decode_ordinal_rans(base, payload))
        payload = entropy_delta.encode_sparse_delta(base, tuned, 1.0)
        record(f"sparse {dtype} {step}", payload, entropy_delta.apply_sparse_delta_(base.clone(), payload))
print(json.dumps({"level": isa_level(), "digests": digests}))
"""


def run(code: str, level: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GRAFTWORK_SIMD": level, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def lines_by_level(code: str) -> dict[str, list[str]]:
    """What `code` prints at every level that this CPU has; its first line must be the level."""
    printed = {}
    for level in LEVELS[: LEVELS.index(WIDEST or "baseline") + 1]:
        process = run(code, level)
        assert process.returncode == 0, process.stderr
        name, *printed[level] = process.stdout.splitlines()
        assert name == level
    return printed


def test_every_level_gives_the_same_bits() -> None:
    """Sums too: no level uses FMA here, and all add in 16 lanes."""
    results = {}
    for level in LEVELS[: LEVELS.index(WIDEST) + 1]:
        process = run(DIGESTS, level)
        assert process.returncode == 0, process.stderr
        results[level] = json.loads(process.stdout)
        assert results[level]["level"] == level
    for result in results.values():
        assert result["digests"] == results["baseline"]["digests"]


@pytest.mark.parametrize("level", ["AVX2", "sse", *LEVELS[LEVELS.index(WIDEST or "avx512") + 1 :]])
def test_a_level_that_is_not_there_is_refused(level: str) -> None:
    code = (
        "import torch; from graftwork.ops import lossless_delta as d; x = torch.zeros(3); d.delta_stats(x, x)"
    )
    process = run(code, level)
    assert process.returncode == 1
    assert f"ValueError: delta_stats: GRAFTWORK_SIMD={level}" in process.stderr


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder with the object files of every level, made with the flags of CMakeLists.txt."""
    if WIDEST == "baseline":
        pytest.skip("one level has nothing to keep apart")
    if not all(map(shutil.which, ("cmake", "ninja", "objdump", "nm"))):
        pytest.skip("needs cmake, ninja and binutils")
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed (the extra `dev` brings it)")
    build = tmp_path_factory.mktemp("build")
    options = [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", build, "-DGRAFTWORK_CUDA=OFF", *options],
        check=True,
        capture_output=True,
    )
    targets = [f"graftwork_{level}" for level in LEVELS]
    subprocess.run(
        ["cmake", "--build", build, "--parallel", "2", "--target", *targets], check=True, capture_output=True
    )
    return build


def test_levels_use_their_own_registers(objects: Path) -> None:
    """No wide register in the baseline's objects, dispatchers included; the wider levels do use theirs."""
    found = {}
    for level in LEVELS:
        files = sorted((objects / "CMakeFiles" / f"graftwork_{level}.dir").rglob("*.o"))
        assert files
        code = subprocess.run(["objdump", "-d", *files], check=True, capture_output=True, text=True).stdout
        found[level] = {name for name in ("ymm", "zmm") if f"%{name}" in code}
    assert found == {"baseline": set(), "avx2": {"ymm"}, "avx512": {"ymm", "zmm"}}


def test_no_weak_symbol_outside_its_level(objects: Path) -> None:
    """A weak function is merged across objects by the linker, whichever level compiled it."""
    for level in LEVELS:
        files = sorted((objects / "CMakeFiles" / f"graftwork_{level}.dir").rglob("*.o"))
        symbols = subprocess.run(["nm", "-C", *files], check=True, capture_output=True, text=True).stdout
        weak = [line for line in symbols.splitlines() if re.search(r" [Wu] ", line)]
        assert weak
        assert [line for line in weak if f"graftwork::{level}::" not in line] == []
