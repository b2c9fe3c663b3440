"""The tensors of a sparse delta, and what is checked of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.checkpoint.dtypes import code_of
from graftwork.errors import DeltaError
from graftwork.ops.sparse_update import Support

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of tensors whose weights can be tuned."""


@dataclass(frozen=True, slots=True)
class TunedTensor:
    """A tensor that a delta may change.

    ``digest`` is that of the base's content (`graftwork.checkpoint.digest`), or None where nobody took it: then the
    base is not checked.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    digest: str | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def check_tensors(tensors: Sequence[TunedTensor], support: Support) -> None:
    """Require that the support is one of these tensors, and that their weights can be tuned."""
    if support.numels != tuple(tensor.numel for tensor in tensors):
        raise DeltaError(
            "the support is not one of these tensors",
            got=f"{support.tensors} tensors of {support.numels[:8]} elements",
            wanted=f"{len(tensors)} of {[tensor.numel for tensor in tensors[:8]]}",
        )
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise DeltaError(
                "a tensor's weights cannot be tuned",
                tensor=tensor.name,
                got=tensor.dtype,
                wanted=", ".join(map(str, DTYPES)),
                remedy="keep it in full",
            )


def check_names(tensors: Sequence[TunedTensor], full: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Require that every name stands for one tensor, and that tensors tuned in full can be stored."""
    own = [tensor.name for tensor in tensors]
    known: set[str] = set()
    for name in [*own, *full, *tied]:
        if not isinstance(name, str) or not name or name in known:
            raise DeltaError("two tensors of a delta have one name, or one has none", tensor=str(name))
        known.add(name)
    for other, first in tied.items():
        if first not in full and first not in own:
            raise DeltaError("a tensor is tied to one that the delta lacks", tensor=other, got=first)
    for name, tensor in full.items():
        if tensor.layout != torch.strided or tensor.is_meta or code_of(tensor.dtype) is None:
            raise DeltaError("a tensor tuned in full is not dense, or no file can hold it", tensor=name)
        if not tensor.is_contiguous():
            raise DeltaError(
                "a tensor tuned in full is not contiguous", tensor=name, remedy="call contiguous() on it"
            )


def check_finite(tensors: Sequence[TunedTensor], support: Support, values: Tensor) -> None:
    """Require finite changes."""
    if bool(torch.isfinite(values).all()):
        return
    for tensor, mine in zip(tensors, support.split(values), strict=True):
        wrong = mine[~torch.isfinite(mine)]
        if len(wrong):
            raise DeltaError(
                "a change is not finite",
                tensor=tensor.name,
                got=f"{len(wrong)} of {len(mine)}, the first {wrong[0].item()}",
                remedy="look for the step at which training diverged",
            )
