"""Where the tuned weights of several tensors are: checked once, then trusted by every operation on them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from graftwork.ops import _checks

INDEX_DTYPES = (torch.int32, torch.int64)
_PLAIN = (Tensor, torch.nn.Parameter)
_SORT = "sort and deduplicate them: torch.unique(indices)"


class Support:
    """The positions of the tuned weights of a list of tensors, side by side.

    Entries ``offsets[t]`` to ``offsets[t + 1]`` are those of tensor ``t``: row-major flat indices into it, sorted
    and unique. All arrays that go with a support (values, optimizer states, base words) have one entry for each,
    in this order, and all operations on it are one loop, however many tensors there are.

    Parameters
    ----------
    indices : sequence of Tensor
        For each tensor its indices: one-dimensional, int32 or int64 (all the same), on one device; contiguous.
    numels : sequence of int
        Elements of each tensor.

    Attributes
    ----------
    indices : Tensor
        All of them, ``[entries]``.
    offsets : Tensor
        int64 ``[tensors + 1]``, on the host.
    numels : tuple of int
        As given.

    Raises
    ------
    TypeError
        Indices are not int32 or int64, or not all alike.
    ValueError
        They are not one-dimensional, sorted, unique, or one is out of range; lengths differ.

    Examples
    --------
    >>> support = Support([torch.tensor([0, 5]), torch.tensor([2])], [6, 3])
    >>> support.entries, support.offsets.tolist()
    (3, [0, 2, 3])
    """

    __slots__ = ("indices", "numels", "offsets")

    def __init__(self, indices: Sequence[Tensor], numels: Sequence[int]) -> None:
        if len(indices) != len(numels) or not indices:
            raise ValueError(
                f"Support: wanted as many tensors of indices as numbers of elements, and at least one, got "
                f"{len(indices)} and {len(numels)}"
            )
        for number, (mine, numel) in enumerate(zip(indices, numels, strict=True)):
            _check_indices(f"indices[{number}]", mine, indices[0], numel)
        self.indices = torch.cat(list(indices)) if len(indices) > 1 else indices[0].contiguous()
        self.offsets = torch.tensor([0, *accumulate(len(mine) for mine in indices)])
        self.numels = tuple(numels)

    @classmethod
    def trusted(cls, indices: Tensor, offsets: Tensor, numels: Sequence[int]) -> Support:
        """A support of arrays that an operation made, and that need no check."""
        made = cls.__new__(cls)
        made.indices, made.offsets, made.numels = indices, offsets, tuple(numels)
        return made

    @property
    def entries(self) -> int:
        """Tuned weights in all."""
        return self.indices.numel()

    @property
    def tensors(self) -> int:
        """Tensors, also those without a tuned weight."""
        return len(self.numels)

    def split(self, entries: Tensor) -> list[Tensor]:
        """An array with one entry for each tuned weight, cut into views: one for each tensor."""
        return list(entries.split(self.offsets.diff().tolist()))

    def to(self, device: torch.device | str) -> Support:
        """The same support with its indices on another device."""
        return Support.trusted(self.indices.to(device), self.offsets, self.numels)

    def check_entries(self, operation: str, name: str, value: Tensor, dtype: torch.dtype) -> None:
        """Require a contiguous array of ``dtype`` on the support's device with one entry for each tuned weight."""
        indices = self.indices
        if (
            type(value) is Tensor
            and value.dtype == dtype
            and value.shape == indices.shape
            and value.is_contiguous()
            and value.device == indices.device
        ):
            return  # the usual case, quickly: the rest is to say what is wrong
        _checks.check_tensor(operation, name, value)
        _checks.check_dtype(operation, name, value, (dtype,), "convert it first")
        if value.shape != self.indices.shape or not value.is_contiguous():
            raise ValueError(
                f"{operation}: {name} must be contiguous with one entry for each of the {self.entries} tuned weights, "
                f"got shape {tuple(value.shape)}, strides {value.stride()}"
            )
        _checks.check_device(operation, name, value, "the support's indices", self.indices)

    def check_tensors(
        self, operation: str, name: str, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]
    ) -> None:
        """Require the tensors that the indices are for: dense, contiguous, of one dtype, on the indices' device."""
        if len(tensors) != self.tensors:
            raise ValueError(f"{operation}: {name} must be {self.tensors} tensors, got {len(tensors)}")
        device, dtype = self.indices.device, tensors[0].dtype if isinstance(tensors[0], Tensor) else None
        for number, (tensor, numel) in enumerate(zip(tensors, self.numels, strict=True)):
            if (
                type(tensor) in _PLAIN
                and tensor.dtype == dtype
                and dtype in dtypes
                and tensor.numel() == numel
                and tensor.is_contiguous()
                and tensor.device == device
            ):
                continue  # as above
            mine = f"{name}[{number}]"
            _checks.check_tensor(operation, mine, tensor)
            _checks.check_dtype(operation, mine, tensor, dtypes, "cast the model, or leave it out")
            if tensor.dtype != tensors[0].dtype:
                raise TypeError(
                    f"{operation}: {mine} must have the dtype of {name}[0], {tensors[0].dtype}, got {tensor.dtype}; "
                    f"make one support for each dtype"
                )
            if tensor.numel() != numel:
                raise ValueError(f"{operation}: {mine} must have {numel} elements, got {tensor.numel()}")
            if not tensor.is_contiguous():
                raise ValueError(
                    f"{operation}: {mine} must be contiguous, got strides {tensor.stride()}; indices are row-major"
                )
            _checks.check_device(operation, mine, tensor, "the support's indices", self.indices)


def _check_indices(name: str, mine: Tensor, first: Tensor, numel: int) -> None:
    _checks.check_tensor("Support", name, mine)
    _checks.check_dtype("Support", name, mine, INDEX_DTYPES, "convert them")
    if mine.dtype != first.dtype:
        raise TypeError(f"Support: {name} must have the dtype of indices[0], {first.dtype}, got {mine.dtype}")
    if mine.dim() != 1:
        raise ValueError(f"Support: {name} must have one dimension, got shape {tuple(mine.shape)}")
    _checks.check_device("Support", name, mine, "indices[0]", first)
    if not mine.numel():
        return
    if not bool((mine[1:] > mine[:-1]).all()):
        raise ValueError(f"Support: {name} must be sorted and without duplicates; {_SORT}")
    low, high = int(mine[0]), int(mine[-1])
    if low < 0 or high >= numel:
        raise ValueError(
            f"Support: {name} must be in [0, {numel}), got {low if low < 0 else high}; they are row-major flat indices "
            f"of the tensor"
        )
