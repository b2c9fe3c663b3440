"""What several operations check at their door. A message says: operation, argument, wanted, got, and the fix."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor


def dtype_names(dtypes: Collection[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_tensor(operation: str, name: str, value: object) -> None:
    """Require a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(
            f"{operation}: {name} must be dense, got layout {value.layout}; call {name}.to_dense()"
        )


def check_dtype(operation: str, name: str, value: Tensor, wanted: Collection[torch.dtype], fix: str) -> None:
    if value.dtype not in wanted:
        raise TypeError(f"{operation}: {name} must be one of {dtype_names(wanted)}, got {value.dtype}; {fix}")


def check_same(operation: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Require the dtype, shape and device of another argument."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{operation}: {name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}; "
            f"convert one of them first, nothing is cast silently"
        )
    if value.shape != other.shape:
        raise ValueError(
            f"{operation}: {name} must have the shape of {other_name}, {tuple(other.shape)}, "
            f"got {tuple(value.shape)}; slice or reshape one of them first"
        )
    check_device(operation, name, value, other_name, other)


def check_pair(
    operation: str, base: Tensor, tuned: Tensor, dtypes: Collection[torch.dtype], fix: str
) -> None:
    """Require two dense tensors that differ in their elements alone, of one of these dtypes."""
    check_tensor(operation, "base", base)
    check_tensor(operation, "tuned", tuned)
    check_same(operation, "tuned", tuned, "base", base)
    check_dtype(operation, "base", base, dtypes, fix)


def check_device(operation: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{operation}: {name} must be on the device of {other_name}, {other.device}, got {value.device}; "
            f"call {name}.to({str(other.device)!r})"
        )


def check_output(operation: str, name: str, value: Tensor) -> None:
    """Require memory that a kernel can fill: contiguous, and no leaf that autograd watches."""
    if not value.is_contiguous():
        raise ValueError(
            f"{operation}: {name} is written in place and must be contiguous, got strides {value.stride()}; "
            f"pass a contiguous tensor, or None to get a new one"
        )
