"""How a support and the tensors that go with it reach the operations; what they check in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from graftwork.ops import _native

#: Dtypes of weights, in the order of the native code's numbers.
FORMATS = (torch.float16, torch.bfloat16, torch.float32)
#: Entries that a thread has at least.
GRAIN = 1 << 12


def detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [without_grad(tensor) for tensor in tensors]


def without_grad(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def check_number(
    operation: str, name: str, value: float, low: float = -math.inf, high: float = math.inf
) -> None:
    """Require a finite number in [low, high)."""
    if math.isfinite(value) and low <= value < high:
        return
    limits = f"in [{low:g}, {high:g})" if high < math.inf else f"at least {low:g} and finite"
    raise ValueError(f"{operation}: {name} must be {limits if low > -math.inf else 'finite'}, got {value}")


def threads_for(entries: Tensor) -> int:
    return _native.threads_for(entries.numel(), GRAIN)


def support_arguments(
    tensors: Sequence[Tensor], indices: Tensor, offsets: Tensor
) -> tuple[Any, Tensor, int, Tensor, int]:
    """Tensors and support, as a native function takes them."""
    if not indices.is_cuda:
        return _native.host_pointers(tensors), indices, indices.itemsize, offsets, len(tensors)
    table, starts = _native.where_read(indices, _native.pointers(tensors), offsets)
    return table, indices, indices.itemsize, starts, len(tensors)


def size_of(entries: Tensor) -> tuple[int, ...]:
    """What a native function of a GPU takes beside, since it has no offsets at hand: the number of entries."""
    return (entries.numel(),) if entries.is_cuda else ()


def check_apart(operation: str, **arrays: Tensor | Sequence[Tensor] | None) -> None:
    """Require that no two of these tensors share memory: one is written while another is read."""
    flat, end = _flat(arrays.values()), 0
    ranges = [
        (start, start + tensor.nbytes) for start, tensor in zip(_native.addresses(flat), flat, strict=True)
    ]
    for start, stop in sorted(ranges):
        if start < end and start < stop:
            _refuse_overlap(operation, ranges, arrays)
        if stop > end:
            end = stop


def _refuse_overlap(
    operation: str, ranges: Sequence[tuple[int, int]], arrays: Mapping[str, Tensor | Sequence[Tensor] | None]
) -> NoReturn:
    names = [
        f"{name}[{number}]" if isinstance(value, Sequence) else name
        for name, value in arrays.items()
        if value is not None
        for number in range(len(value) if isinstance(value, Sequence) else 1)
    ]
    named = sorted((*found, name) for found, name in zip(ranges, names, strict=True) if found[0] < found[1])
    name, other = next(
        (name, other) for (_, end, name), (start, _, other) in itertools.pairwise(named) if start < end
    )
    raise ValueError(
        f"{operation}: {other} overlaps {name} in memory; list a tied tensor once, and pass separate arrays"
    )


def mark_written(*arrays: Tensor | Sequence[Tensor] | None) -> None:
    """Tell autograd that native code wrote these: a backward pass that saved one of them must fail, not be wrong."""
    torch.autograd.graph.increment_version(_flat(arrays))


def _flat(arrays: Iterable[Tensor | Sequence[Tensor] | None]) -> list[Tensor]:
    flat: list[Tensor] = []
    for value in arrays:
        if isinstance(value, Tensor):
            flat.append(value)
        elif value is not None:
            flat += value
    return flat


def check_output(operation: str, out: Tensor, name: str, tensors: Sequence[Tensor]) -> None:
    """Require that `out` shares no memory with what is read; the tensors may be tied to each other."""
    start = _native.addresses([out])[0]
    stop = start + out.nbytes
    for number, (place, tensor) in enumerate(zip(_native.addresses(tensors), tensors, strict=True)):
        if place < stop and start < place + tensor.nbytes:
            raise ValueError(f"{operation}: out overlaps {name}[{number}] in memory; pass a separate output")


def on_host_copies(run: Callable[..., Any], *written: int) -> Callable[..., Any]:
    """The CUDA route of an operation without GPU code: its CPU route on copies; `written` arguments are copied back."""

    def copied(*arguments: Any) -> Any:
        copies = [_to(argument, "cpu") for argument in arguments]
        result = run(*copies)
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        for place in written:
            _copy_back(arguments[place], copies[place])
        return _to(result, first.device)

    return copied


def _to(argument: Any, device: torch.device | str) -> Any:
    if isinstance(argument, Tensor):
        return argument.to(device)
    if isinstance(argument, list | tuple):
        return type(argument)(_to(item, device) for item in argument)
    return argument


def _copy_back(argument: Any, copy: Any) -> None:
    if isinstance(argument, Tensor):
        argument.copy_(copy)
    elif argument is not None:
        for one, other in zip(argument, copy, strict=True):
            one.copy_(other)
