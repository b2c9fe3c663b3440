"""Weights of any kind: a state dict, a module, or a checkpoint, seen the same way."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, cast

from graftwork.checkpoint import Checkpoint, open_checkpoint
from graftwork.checkpoint.dtypes import DTYPES, code_of
from graftwork.delta.source import CheckpointSource, TensorMeta, TensorSource
from graftwork.delta.tensor_memory import TensorMemory, overlaps_itself
from graftwork.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

    Stateful = Mapping[str, Tensor] | nn.Module | str | os.PathLike[str] | Checkpoint
else:
    Stateful = Any


@dataclass(frozen=True, slots=True)
class Meta:
    """Name, safetensors dtype code, shape and size in bytes of a tensor in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class StateSource:
    """Tensors in memory as a source, looked at where they lie."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.memories = {name: TensorMemory(tensor) for name, tensor in tensors.items()}
        self.metas: Mapping[str, TensorMeta] = {name: _meta(name, held) for name, held in tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor itself."""
        return self.tensors[name]

    def view(self, name: str, offset: int, length: int) -> memoryview | None:
        """See `ViewableSource`."""
        return self.memories[name].view(offset, length)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See `TensorSource`."""
        self.memories[name].read_into(offset, buffer)


class _Holder(Protocol):
    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Weights:
    """Named tensors from any place.

    ``source`` holds each distinct tensor under its first name; ``tied`` maps the other names of tied tensors
    to it. ``what`` says in errors where they are.
    """

    what: str
    source: TensorSource
    tied: Mapping[str, str]
    _groups: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.source.metas:
            self._groups[name] = [name]
        for name, first in self.tied.items():
            self._groups[first].append(name)

    @property
    def names(self) -> list[str]:
        """All names, those of tied tensors too."""
        return [name for names in self._groups.values() for name in names]

    def first_name(self, name: str) -> str | None:
        """The name under which ``source`` holds the tensor called ``name``; None if there is none."""
        return name if name in self.source.metas else self.tied.get(name)

    def tensor(self, name: str) -> Tensor:
        """The tensor that ``source`` holds under this name, to be read; that of a checkpoint is memory-mapped."""
        return cast(_Holder, self.source).tensor(name)

    def tied_to(self, name: str) -> Sequence[str]:
        """All names of the tensor whose first name is ``name``."""
        return self._groups[name]


@dataclass(frozen=True)
class StateWeights(Weights):
    """Named tensors in memory."""

    source: StateSource


@contextmanager
def open_weights(given: Stateful, role: str) -> Iterator[Weights]:
    """``given`` as `Weights`; a path is opened here, and its files must not change meanwhile.

    ``role`` is the argument's name, for errors.
    """
    if isinstance(given, str | os.PathLike):
        with open_checkpoint(given) as checkpoint:
            yield checkpoint_weights(checkpoint)
            checkpoint.check_unchanged()
    elif isinstance(given, Checkpoint):
        yield checkpoint_weights(given)
        given.check_unchanged()
    else:
        yield state_weights(given, role)


def state_weights(
    given: Mapping[str, Tensor] | nn.Module, role: str, only: Collection[str] | None = None
) -> StateWeights:
    """A state dict's or module's tensors as `Weights`; tensors with one place in memory are tied.

    With ``only``, tensors of other names are left out, whatever they are.
    """
    from graftwork.ops._native import memory_range

    firsts: dict[object, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in _tensors_of(given, role).items():
        if only is not None and name not in only:
            continue
        _check(name, tensor, role)
        place = (memory_range(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        first = firsts.setdefault(place, name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor
        else:
            tied[name] = first
    return StateWeights(role, StateSource(tensors), tied)


def checkpoint_weights(checkpoint: Checkpoint) -> Weights:
    """An open checkpoint's tensors as `Weights`."""
    tied = {name: first for name, first in checkpoint.tied.items() if first in checkpoint.tensors}
    return Weights(str(checkpoint.path), CheckpointSource(checkpoint), tied)


def _tensors_of(given: Mapping[str, Tensor] | nn.Module, role: str) -> Mapping[str, Tensor]:
    from torch import nn

    if isinstance(given, nn.Module):
        return _module_tensors(given, role)
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{role} must be a mapping of names to tensors, a module, or the path of a checkpoint, "
            f"got {type(given).__name__}"
        )
    return given


def _module_tensors(module: nn.Module, role: str) -> Mapping[str, Tensor]:
    """The state dict of a module, which must be its parameters and buffers themselves and not copies of them."""
    from torch import Tensor

    from graftwork.ops._native import memory_range

    def dense(held: object) -> TypeGuard[Tensor]:
        return isinstance(held, Tensor) and not hasattr(held, "__tensor_flatten__")

    own = {memory_range(held) for held in (*module.parameters(), *module.buffers()) if dense(held)}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if dense(tensor) and tensor.numel() and memory_range(tensor) not in own:
            raise CheckpointError(
                "a module's state_dict() makes a copy of a tensor, which cannot stand for the tensor itself",
                file=role,
                tensor=name,
                remedy="give a mapping of names to the tensors that are meant",
            )
    return state


def _check(name: object, tensor: object, role: str) -> None:
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{role} must map names to tensors, got {name!r}: {type(tensor).__name__}")
    code = code_of(tensor.dtype)
    fault = None
    if tensor.layout != torch.strided or tensor.is_meta or hasattr(tensor, "__tensor_flatten__"):
        fault = "not one piece of dense memory"
    elif code is None or (DTYPES[code].packed > 1 and not tensor.shape):
        fault = f"of dtype {tensor.dtype}"
    elif tensor.is_conj() or tensor.is_neg():
        fault = "a lazy conjugate"
    elif overlaps_itself(tensor):
        fault = f"in memory where elements overlap (strides {tensor.stride()})"
    if fault:
        raise CheckpointError(
            "a tensor cannot be read and written where it lies",
            file=role,
            tensor=name,
            got=f"it is {fault}",
            wanted="a dense tensor of a safetensors dtype",
            remedy="give its local, dense part",
        )


def _meta(name: str, tensor: Tensor) -> Meta:
    code = code_of(tensor.dtype)
    if code is None:
        raise CheckpointError("a tensor has a dtype that no file can hold", tensor=name, got=tensor.dtype)
    shape, packed = tuple(tensor.shape), DTYPES[code].packed
    if packed > 1:
        shape = (*shape[:-1], shape[-1] * packed)
    return Meta(name, code, shape, tensor.nbytes)
