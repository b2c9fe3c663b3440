"""Every registered operation: opcheck, compilation, gradients, devices, fallbacks, threads, the table."""

from __future__ import annotations

import doctest
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from graftwork import ops
from graftwork.ops import FallbackWarning, _native, entropy_delta, lossless_delta, table, thread_limit
from graftwork.ops._native import GRAIN, NATIVE, threads_for
from tests.generators.weights import pair
from tests.ops.merge.merge_arguments import MERGE_OPERATIONS, merge_arguments
from tests.ops.quantized_delta.gptq_cases import block_case
from tests.ops.quantized_delta.linear_cases import LINEAR_OPERATIONS, linear_arguments
from tests.ops.quantized_delta.quantized_cases import QUANTIZED_OPERATIONS, quantized_arguments
from tests.ops.sparse_update.delta_arguments import DELTA_OPERATIONS, delta_arguments
from tests.ops.sparse_update.selection_arguments import SELECTION_OPERATIONS, selection_arguments
from tests.ops.sparse_update.value_arguments import VALUE_OPERATIONS, value_arguments

ROOT = Path(__file__).parents[2]


def arguments(name: str, dtype: torch.dtype, device: str, requires_grad: bool = False) -> tuple:
    if name in MERGE_OPERATIONS:
        return merge_arguments(name, dtype, device)
    if name == "gptq_block":
        return block_case((5, 7), "asym", 4, device)
    if name in LINEAR_OPERATIONS:
        return linear_arguments(dtype, device, requires_grad)
    if name in QUANTIZED_OPERATIONS:
        return quantized_arguments(name, dtype, device)
    if name in DELTA_OPERATIONS:
        return delta_arguments(name, dtype, device, requires_grad)
    if name in SELECTION_OPERATIONS:
        return selection_arguments(name, dtype, device, requires_grad)
    if name in VALUE_OPERATIONS:
        return value_arguments(name, dtype, device)
    base, tuned = (t.to(device).requires_grad_(requires_grad) for t in pair(37, dtype))
    planes = torch.zeros(dtype.itemsize, 37, dtype=torch.uint8, device=device)
    if "ordinal_rans" in name or "sparse_delta" in name:
        return coded_arguments(name, base.float(), tuned.float())
    return {
        "encode_ordinal_planes": (base, tuned, planes),
        "decode_ordinal_planes": (base, planes, tuned.detach()),
        "delta_stats": (base, tuned),
        "update_survival": (base, tuned, torch.bfloat16),
    }[name]


def coded_arguments(name: str, base: torch.Tensor, tuned: torch.Tensor) -> tuple:
    base, tuned = base.detach(), tuned.detach()
    return {
        "encode_ordinal_rans": (base, tuned, 16),
        "decode_ordinal_rans": (base, entropy_delta.encode_ordinal_rans(base, tuned), tuned),
        "encode_sparse_delta": (base, tuned, 37),
        "decode_sparse_delta": (base, entropy_delta.encode_sparse_delta(base, tuned, 1.0), tuned),
        "apply_sparse_delta": (base, entropy_delta.encode_sparse_delta(base, tuned, 1.0), False),
    }[name]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", sorted(NATIVE))
def test_opcheck(name: str, dtype: torch.dtype, requires_grad: bool, device: str) -> None:
    operation = getattr(torch.ops.graftwork, name).default
    torch.library.opcheck(operation, arguments(name, dtype, device, requires_grad))


def test_compiles_in_full(device: str) -> None:
    def everything(base: torch.Tensor, tuned: torch.Tensor) -> tuple:
        planes = lossless_delta.encode_ordinal_planes(base, tuned)
        restored = lossless_delta.decode_ordinal_planes(base, planes)
        survival = lossless_delta.update_survival(base, restored, torch.float16)
        return planes, restored, lossless_delta.delta_stats(base, restored), survival

    base, tuned = (tensor.to(device) for tensor in pair(1000, torch.bfloat16))
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(base, tuned), everything(base, tuned), strict=True):
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_never_require_gradients(dtype: torch.dtype, device: str) -> None:
    base, tuned = (t.to(device).requires_grad_() for t in pair(100, dtype))
    assert not lossless_delta.delta_stats(base, tuned).sums.requires_grad
    assert not torch.ops.graftwork.delta_stats(base, tuned)[1].requires_grad
    planes = lossless_delta.encode_ordinal_planes(base, tuned)
    parameter = torch.nn.Parameter(torch.zeros_like(tuned))
    assert lossless_delta.decode_ordinal_planes(base, planes, parameter) is parameter
    assert torch.equal(parameter, tuned)


def test_meta_tensors_give_shapes() -> None:
    base = torch.empty(3, 5, dtype=torch.float16, device="meta")
    assert lossless_delta.encode_ordinal_planes(base, base).shape == (2, 15)
    stats = lossless_delta.delta_stats(base, base)
    assert [tensor.shape for tensor in stats] == [(5,), (4,), (32, 33)]
    assert [tensor.dtype for tensor in stats] == [torch.int64, torch.float64, torch.int64]


def test_fallback_for_a_dtype_warns_once_and_only_when_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_warned", set())
    small, large = torch.zeros(10, dtype=torch.float64), torch.zeros(GRAIN, dtype=torch.float64)
    lossless_delta.delta_stats(small, small)
    with pytest.warns(
        FallbackWarning, match=r"delta_stats runs by its reference for torch.float64 on cpu: .*ops.table"
    ):
        lossless_delta.delta_stats(large, large)
    lossless_delta.delta_stats(large, large)


def test_without_the_native_core(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = pair(GRAIN, torch.bfloat16)
    native = lossless_delta.encode_ordinal_planes(base, tuned), *lossless_delta.delta_stats(base, tuned)
    monkeypatch.setattr(_native, "_missing", lambda module: f"graftwork.{module} is not available (test)")
    monkeypatch.setattr(_native, "_warned", set())
    with pytest.warns(
        FallbackWarning, match=r"graftwork\._core is not available \(test\); install graftwork"
    ):
        planes = lossless_delta.encode_ordinal_planes(base, tuned)
    with pytest.warns(FallbackWarning):
        stats = lossless_delta.delta_stats(base, tuned)
    assert torch.equal(planes, native[0])
    assert torch.equal(stats.histogram, native[3])
    assert ops.isa_level() is None


def test_thread_limit() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        assert [threads_for(n) for n in (0, GRAIN, 3 * GRAIN, 100 * GRAIN)] == [1, 1, 3, 5]
        with thread_limit(2):
            assert threads_for(100 * GRAIN) == 2
            with thread_limit(9):
                assert threads_for(100 * GRAIN) == 5
            other: list[int] = []
            worker = threading.Thread(target=lambda: other.append(threads_for(100 * GRAIN)))
            worker.start()
            worker.join()
            assert other == [5]
        assert threads_for(100 * GRAIN) == 5
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"), thread_limit(0):
        pass


def test_the_native_core_names_the_operation_in_its_errors() -> None:
    core = pytest.importorskip("graftwork._core", reason="the native core is not built")
    with pytest.raises(ValueError, match="encode_ordinal_planes: word_bytes must be 1, 2, 4 or 8"):
        core.encode_ordinal_planes(0, 0, 0, 0, 3, True, 1)
    with pytest.raises(ValueError, match="delta_stats: a weight format must be 0"):
        core.delta_stats(0, 0, 0, 3, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="update_survival: save_format must be float16 or bfloat16"):
        core.update_survival(0, 0, 0, 2, 2, 0, 0, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_one_openmp_runtime() -> None:
    """The core shares torch's thread pool: a second libgomp would bring a second pool of threads."""
    code = """
import pathlib, torch
from graftwork.ops import lossless_delta
x = torch.zeros(1 << 20)
torch.set_num_threads(2)
lossless_delta.encode_ordinal_planes(x, x + x)
maps = pathlib.Path("/proc/self/maps").read_text()
print(*{line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libomp" in line}, sep="\\n")
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(found) == 1
    assert Path(found[0]).is_relative_to(Path(torch.__file__).parent.parent)


def test_the_table_is_in_step() -> None:
    assert (ROOT / "docs" / "operations.md").read_text() == table.markdown(), "run `make docs`"


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(lossless_delta, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
