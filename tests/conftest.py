"""Set-up of every test: poisoned uninitialised memory, hypothesis profile, the devices at hand."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch

NAN_FOR = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)

hypothesis.settings.register_profile("graftwork", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("graftwork")


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill fresh memory with NaN (floats) or 0xA5 (all else), so that an element nobody writes shows in a test."""
    if type(tensor) is not torch.Tensor or tensor.device.type not in ("cpu", "cuda"):
        return tensor
    if tensor.dtype in NAN_FOR:
        return tensor.fill_(float("nan"))
    tensor.untyped_storage().fill_(0xA5)
    return tensor


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        return tensor if torch.compiler.is_compiling() else poison(tensor)

    return poisoned


def pytest_configure() -> None:
    torch.empty = _poisoned(torch.empty)
    torch.empty_like = _poisoned(torch.empty_like)
    torch.Tensor.new_empty = _poisoned(torch.Tensor.new_empty)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that this machine has."""
    return request.param
