"""From tensors to the native modules: the only place that touches pointers, and that registers operations.

``_core`` (CPU) is loaded at the first call on a CPU tensor, ``_cuda`` and Triton at the first on a CUDA tensor.
Where a native module is missing, or an operation has no native code for a dtype, the reference runs instead and a
:class:`FallbackWarning` says so once, if the tensor is large enough for it to matter.
"""

from __future__ import annotations

import threading
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

_KEPT_BYTES = 32 << 20
_PLAIN = (Tensor, torch.nn.Parameter)
GRAIN = 1 << 17  # elements a thread: below this a second thread does not pay
_LIBRARY = torch.library.Library("graftwork", "DEF")
_local = threading.local()
_warned: set[tuple[str, str, torch.dtype]] = set()


class FallbackWarning(UserWarning):
    """An operation runs by its reference, slower than natively."""


@dataclass(frozen=True, slots=True)
class Route:
    """The native way of one operation on one device: who implements it, for which dtypes of the first argument.

    Where the first argument is a list of tensors, which is not empty, they have one dtype.
    """

    module: str
    dtypes: tuple[torch.dtype, ...]
    call: Callable[..., Any]


#: operation -> device type -> route; filled by :func:`register`, read by :mod:`graftwork.ops.table`.
NATIVE: dict[str, dict[str, Route]] = {}


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    cpu: Route,
    cuda: Route,
) -> None:
    """Define ``torch.ops.graftwork.<name>``: the reference on any device, `cpu` and `cuda` where they apply.

    Nothing is differentiable: the result never requires a gradient, as under :class:`torch.no_grad`.
    """
    reference = torch.no_grad()(reference)
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    NATIVE[name] = {"cpu": cpu, "cuda": cuda}
    for device, route in NATIVE[name].items():
        _LIBRARY.impl(name, _routed(name, device, route, reference), device.upper())
    torch.library.register_fake(f"graftwork::{name}", fake, lib=_LIBRARY)


def _routed(name: str, device: str, route: Route, reference: Callable[..., Any]) -> Callable[..., Any]:
    def run(first: Tensor | list[Tensor], *rest: Any) -> Any:
        sample = first if isinstance(first, Tensor) else first[0]
        if sample.dtype in route.dtypes and _missing(route.module) is None:
            return route.call(first, *rest)
        if sample.numel() >= GRAIN:
            _warn_fallback(name, device, route, sample.dtype)
        return reference(first, *rest)

    return run


def invoke(name: str, first: Tensor | list[Tensor], *rest: Any) -> Any:
    """``torch.ops.graftwork.<name>``, by its CPU route at once where nothing but that could come of it.

    The dispatcher takes four microseconds, more than a gather of some thousand words does. It is asked where somebody
    listens to what is called (compilation, tracing, transforms, fake tensors), and for every other device and dtype.
    """
    sample = first if isinstance(first, Tensor) else first[0]
    route = NATIVE[name]["cpu"]
    if (
        type(sample) in _PLAIN
        and sample.is_cpu
        and sample.dtype in route.dtypes
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and _missing(route.module) is None
    ):
        return route.call(first, *rest)
    return getattr(torch.ops.graftwork, name)(first, *rest)


def _warn_fallback(name: str, device: str, route: Route, dtype: torch.dtype) -> None:
    if (name, device, dtype) in _warned:
        return
    _warned.add((name, device, dtype))
    if dtype not in route.dtypes:
        reason = "it has no native code for this dtype (see `python -m graftwork.ops.table`)"
    else:
        reason = f"{_missing(route.module)}; {_REMEDY[device]}"
    warnings.warn(
        f"{name} runs by its reference for {dtype} on {device}: {reason}", FallbackWarning, stacklevel=4
    )


_REMEDY = {
    "cpu": "install graftwork with a C++20 compiler at hand (`pip install .`)",
    "cuda": "reinstall graftwork with GRAFTWORK_CUDA=ON and nvcc on PATH, and with triton installed",
}


@cache
def load(module: str) -> Any:
    """A native module of this package, imported when it is first used."""
    return import_module(f"graftwork.{module}")


@cache
def _missing(module: str) -> str | None:
    """Why a native module cannot be used, or None if it can."""
    try:
        load(module)
    except ImportError as error:
        return f"graftwork.{module} is not available ({error})"
    return None


def isa_level() -> str | None:
    """The CPU level in use: "baseline", "avx2" or "avx512"; None where the native core is missing."""
    return None if _missing("_core") else load("_core").isa_level()


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Let operations that this Python thread calls use at most `threads` threads each.

    Without it they use :func:`torch.get_num_threads`, which stays the upper bound. Results do not depend on it.
    """
    if threads < 1:
        raise ValueError(f"thread_limit: threads must be at least 1, got {threads}")
    before = getattr(_local, "limit", None)
    _local.limit = threads
    try:
        yield
    finally:
        _local.limit = before


def threads_for(numel: int, grain: int = GRAIN) -> int:
    """Threads for an operation on `numel` elements, of which each thread has `grain` at least."""
    if numel < 2 * grain:
        return 1
    limit = getattr(_local, "limit", None)
    allowed = torch.get_num_threads()
    return min(allowed if limit is None else min(limit, allowed), numel // grain)


def call(name: str, *arguments: Any, like: Tensor, threads: int | None = None) -> None:
    """Call the native function of the device of `like`: tensors as pointers; then threads (CPU) or the stream (CUDA).

    `threads` are those for the elements of `like`, unless they are given.
    """
    if like.is_cpu:
        query("_core", name, *arguments, threads or threads_for(like.numel()))
        return
    with torch.cuda.device(like.device):
        query("_cuda", name, *arguments, torch.cuda.current_stream().cuda_stream)


def query(module: str, name: str, *arguments: Any) -> Any:
    """What a function of a native module returns; tensors and arrays are passed as pointers."""
    # Most are integers, which isinstance() would find to be no tensors slowly.
    values = [argument if type(argument) is int else _passed(argument) for argument in arguments]
    return getattr(load(module), name)(*values)


def _passed(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return argument.buffer_info()[0] if type(argument) is array else argument


def address(data: memoryview) -> int:
    """Where a buffer of bytes starts; it must live for as long as the address is in use."""
    return np.frombuffer(data, np.uint8).__array_interface__["data"][0] if data else 0


def is_there(module: str) -> bool:
    """Whether a native module can be used."""
    return _missing(module) is None


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where the tensors start."""
    return [tensor.data_ptr() for tensor in tensors]


def pointers(tensors: Sequence[Tensor]) -> Tensor:
    """Where the tensors start, as a native function takes many of them: int64 ``[len(tensors)]`` on the host.

    The tensors must live for as long as the table is in use.
    """
    return torch.tensor(addresses(tensors), dtype=torch.int64)


def host_pointers(tensors: Sequence[Tensor]) -> array[int]:
    """The same where only the host reads it: made in a tenth of the time."""
    return array("q", addresses(tensors))


def where_read(like: Tensor, *tables: Tensor) -> list[Tensor]:
    """Host tables of int64 numbers, where the native function of the device of `like` reads them.

    On a GPU they arrive in one copy, for which the host does not wait.
    """
    if not like.is_cuda:
        return list(tables)
    packed = torch.cat(tables).pin_memory().to(like.device, non_blocking=True)
    return list(packed.split([table.numel() for table in tables]))


def cuda_workspace(name: str, *sizes: int, like: Tensor) -> Tensor:
    """The scratch memory that ``_cuda.<name>`` asks for."""
    return like.new_empty(getattr(load("_cuda"), f"{name}_workspace_bytes")(*sizes), dtype=torch.uint8)


def packed(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, contiguous and aligned to its elements (a memory-mapped file need not be)."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % tensor.itemsize else tensor


def memory_range(tensor: Tensor) -> tuple[str, int, int]:
    """Device, and first and past-the-last address, of the memory that a tensor's elements span."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():  # far quicker to say
        return str(tensor.device), start, start + tensor.nbytes
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.device), start, start + (reach + 1) * tensor.itemsize if tensor.numel() else start


def is_same_place(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have the same words: they start at one address, and have one dtype."""
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype


def check_output(operation: str, name: str, output: Tensor, **inputs: Tensor) -> None:
    """Raise ValueError if a contiguous output is not aligned to its elements or shares memory with an input."""
    start, stop = output.data_ptr(), output.data_ptr() + output.nbytes
    if start % output.itemsize:
        raise ValueError(f"{operation}: {name} must start at a multiple of {output.itemsize} bytes in memory")
    for input_name, tensor in inputs.items():
        if tensor.data_ptr() < stop and start < tensor.data_ptr() + tensor.nbytes:
            raise ValueError(f"{operation}: {name} overlaps {input_name} in memory; pass a separate output")


def buffer(role: str, nbytes: int) -> Tensor:
    """At least `nbytes` bytes of host memory for a native function, this thread's until its next call for `role`.

    What is not too large is kept, since fresh pages are slow.
    """
    held: dict[str, Tensor] = _local.__dict__.setdefault("buffers", {})
    found = held.get(role)
    if found is None or found.numel() < nbytes:
        found = torch.empty(nbytes, dtype=torch.uint8)
        if nbytes <= _KEPT_BYTES:
            held[role] = found
    return found


def on_the_host(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The CUDA route of an operation that has no GPU code: its CPU route on copies, which is faster than the reference."""

    def copied(first: Tensor, *rest: Any) -> Tensor:
        copies = (argument.cpu() if isinstance(argument, Tensor) else argument for argument in rest)
        return run(first.cpu(), *copies).to(first.device)

    return copied
