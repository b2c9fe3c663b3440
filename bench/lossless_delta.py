"""Operations of ``lossless_delta``: ours, the reference, and the torch and numpy chains of a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from bench.chains import NUMPY_CHAINS, TORCH_CHAINS
from bench.measure import Job, combine_probe, copy_probe, read_probe, thread_counts
from bench.record import Contest, Measurement, Options, Row

TESTS = ("tests/ops", "tests/reference")
SLOW_UP_TO = 16 << 20  # above this many elements ours is timed alone: the others take seconds a call
FULL = ((torch.bfloat16, 16 << 20), (torch.bfloat16, 128 << 20), (torch.float32, 16 << 20))
QUICK = ((torch.bfloat16, 1 << 20), (torch.float32, 1 << 20))
SAMPLE = 1 << 20
VERSIONS = {"torch chain": torch.__version__, "numpy chain": np.__version__}
NOTES = [
    "bytes: what the operation must read and write once; base is N(0, 0.02^2), the update N(0, 2e-4^2)",
    "peak: for the planes the faster of torch's copy and torch's XOR of two arrays into a third, for the "
    "statistics torch's int64 sum (reads only), with the operation's bytes, threads and device in the same run",
    "outputs of ours, the reference and the probes are pre-touched; the chains write into a pre-touched output "
    "last and allocate what lies between, as a user's would",
]


@dataclass(frozen=True)
class Operation:
    """How to call one operation and what it moves, per element of ``width`` bytes."""

    name: str
    bytes_moved: Callable[[int], int]
    flops: int
    writes: bool
    arguments: Callable[[torch.Tensor, torch.Tensor], tuple[Any, ...]]


def measure(options: Options) -> Measurement:
    """Time every operation on every shape."""
    rows: list[Row] = []
    for dtype, numel in QUICK if options.quick else FULL:
        base, tuned = pair(numel, dtype, options.device)
        for operation in OPERATIONS:
            rows += _measure_operation(operation, base, tuned, options)
    return Measurement(rows, notes=NOTES)


def pair(numel: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A base and its fine-tune: N(0, 0.02^2), plus N(0, 2e-4^2), rounded to ``dtype``."""
    generator = torch.Generator(device).manual_seed(0)
    base = torch.randn(numel, generator=generator, device=device).mul_(0.02)
    tuned = torch.randn(numel, generator=generator, device=device).mul_(2e-4).add_(base)
    return base.to(dtype), tuned.to(dtype)


def _planes(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    from graftwork.ops.lossless_delta import encode_ordinal_planes

    return encode_ordinal_planes(base, tuned)


OPERATIONS: Sequence[Operation] = (
    Operation(
        "encode_ordinal_planes",
        lambda width: 3 * width,
        0,
        True,
        lambda base, tuned: (
            base,
            tuned,
            torch.ones(base.element_size(), base.numel(), dtype=torch.uint8, device=base.device),
        ),
    ),
    Operation(
        "decode_ordinal_planes",
        lambda width: 3 * width,
        0,
        True,
        lambda base, tuned: (base, _planes(base, tuned), torch.ones_like(tuned)),
    ),
    Operation("delta_stats", lambda width: 2 * width, 8, False, lambda base, tuned: (base, tuned)),
    Operation(
        "update_survival",
        lambda width: 2 * width,
        8,
        False,
        lambda base, tuned: (base, tuned, torch.bfloat16 if base.dtype == torch.float32 else torch.float16),
    ),
)


def _measure_operation(
    operation: Operation, base: torch.Tensor, tuned: torch.Tensor, options: Options
) -> list[Row]:
    _check_equal(operation, base[:SAMPLE], tuned[:SAMPLE])
    arguments = operation.arguments(base, tuned)
    nbytes = operation.bytes_moved(base.element_size()) * base.numel()
    labels = {"cuda": 1} if options.device == "cuda" else {str(count): count for count in thread_counts()}
    makers = (copy_probe, combine_probe) if operation.writes else (read_probe,)
    probes = [make(nbytes, options.device) for make in makers]
    peaks = {
        label: [Job(probe, threads, device=options.device) for probe in probes]
        for label, threads in labels.items()
    }
    contest = Contest()
    for implementation, call in _implementations(operation, options.device).items():
        if implementation != "graftwork" and base.numel() > SLOW_UP_TO:
            continue
        row = Row(
            operation.name,
            implementation,
            str(base.dtype).removeprefix("torch."),
            tuple(base.shape),
            bytes=nbytes,
            flops=operation.flops * base.numel(),
            version=VERSIONS.get(implementation, ""),
        )
        run = partial(call, *arguments)
        run()
        for label, threads in labels.items():
            if implementation != "numpy chain" or threads == 1:  # numpy has one thread
                contest.add(row, label, Job(run, threads, device=options.device), peaks[label])
    return contest.run(rounds=3 if options.quick else 11, budget=1.5, min_repeats=2)


def _implementations(operation: Operation, device: str) -> dict[str, Callable[..., Any]]:
    from graftwork.ops import lossless_delta as ours
    from graftwork.reference import lossless_delta

    reference = getattr(lossless_delta, operation.name)

    def reference_into(*arguments: Any) -> Any:
        return arguments[-1].copy_(reference(*arguments[:-1]))

    found: dict[str, Callable[..., Any]] = {
        "graftwork": getattr(ours, operation.name),
        "reference": reference_into if operation.writes else reference,
        "torch chain": TORCH_CHAINS[operation.name],
    }
    return found if device == "cuda" else {**found, "numpy chain": NUMPY_CHAINS[operation.name]}


def _check_equal(operation: Operation, base: torch.Tensor, tuned: torch.Tensor) -> None:
    """All implementations agree; sums in double precision up to their order, everything else exactly."""
    results = {
        implementation: call(*operation.arguments(base, tuned))
        for implementation, call in _implementations(operation, base.device.type).items()
    }
    expected = results.pop("reference")
    for implementation, got in results.items():
        name = f"{operation.name} by {implementation}"
        for found, wanted in zip(_parts(got), _parts(expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0.0, msg=lambda m, n=name: f"{n}: {m}")


def _parts(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)
