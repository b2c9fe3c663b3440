"""What a merge will need, before it is done: measured on a piece of made-up weights of the same method and dtypes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from graftwork.compose.identity import content_digest
from graftwork.compose.memory import IN_MEMORY
from graftwork.compose.plan import Input, MergePlan, PlannedTensor
from graftwork.compose.result import Estimate

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["estimate"]

_SAMPLE = 1 << 20
_WORKSPACE = 48 << 20
"""What operations keep for themselves, and Python for names and digests."""


def estimate(plan: MergePlan, write_bytes: int, *, threads: int, timed: bool) -> Estimate:
    """Bytes and memory; with ``timed`` also the seconds, for which a sample is merged."""
    memory = max((_memory(plan, row) for row in plan.tensors.values()), default=0) + _WORKSPACE
    seconds = _seconds(plan, threads) if timed else 0.0
    return Estimate(plan.bytes_read, write_bytes, memory, seconds)


def _memory(plan: MergePlan, row: PlannedTensor) -> int:
    """Bytes that a tensor's merge holds, beside what is mapped from files."""
    numel = row.numel
    buffers = [row.form.nbytes]
    if (row.base is not None or plan.recipe.preserve != "none") and row.form.code != "F32":
        buffers.append(4 * numel)
    buffers += [part.nbytes for part in row.inputs if part.rows is not None]
    made = sum(part.nbytes for part in row.inputs if not _is_mapped(part))
    return made + sum(size for size in buffers if size <= IN_MEMORY)


def _is_mapped(part: Input) -> bool:
    """Whether a tensor is read where it lies: it is of a file, and no adapter changes it."""
    info = part.donor.model.tensors.get(part.name)
    meta = part.donor.metas[part.name]
    return hasattr(part.donor.weights.source, "tensor") and info is not None and info.dtype == meta.dtype


def _seconds(plan: MergePlan, threads: int) -> float:
    merged = [row for row in plan.tensors.values() if not row.copied and row.donors and row.numel]
    if not merged:
        return 0.0
    row = max(merged, key=lambda one: one.numel)
    numel = sum(one.numel for one in merged)
    per_number, per_byte = _measure(plan, row, threads)
    return numel * per_number + (plan.bytes_read + 2 * plan.bytes_written) * per_byte


def _measure(plan: MergePlan, row: PlannedTensor, threads: int) -> tuple[float, float]:
    """Seconds for an element of the output, and for a byte that is hashed."""
    import torch

    from graftwork.checkpoint.dtypes import torch_dtype
    from graftwork.compose.task import TensorTask
    from graftwork.delta.survival import measure_survival
    from graftwork.ops._native import thread_limit

    columns = row.form.shape[-1] if len(row.form.shape) > 1 else 1024
    shape = (max(1, _SAMPLE // columns), columns)
    source = torch.Generator().manual_seed(0)

    def made(part: Input) -> Tensor:
        dtype = torch_dtype(part.donor.metas[part.name].dtype)
        return (torch.randn(shape, generator=source) * 0.02).to(dtype)

    out_dtype = torch_dtype(row.form.code) or torch.float32
    base = None if row.base is None else made(row.base)
    task = TensorTask(
        row.name, base, [made(part) for part in row.donors], row.own, row.shared, torch.empty(shape),
        keys=[(number, 1) for number in range(len(row.donors))],
    )  # fmt: skip
    with thread_limit(threads):
        plan.recipe.method.merge(task)  # once for what is made at the first call
        begun = time.perf_counter()
        plan.recipe.method.merge(task)
        if base is not None and out_dtype != torch.float32:
            measure_survival(base, task.out, out_dtype)
        merged = time.perf_counter()
        content_digest(task.out, threads)
        hashed = time.perf_counter()
    return (merged - begun) / task.out.numel(), (hashed - merged) / task.out.nbytes
