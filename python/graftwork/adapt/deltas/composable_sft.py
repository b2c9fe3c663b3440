"""Deltas in the form that the authors of LT-SFT released (github.com/cambridgeltl/composable-sft).

``pytorch_diff.bin`` is a torch pickle of ``{"diffs": {NAME: {"size", "index_steps", "values"}}, "abs": {NAME: tensor}}``:
column-major flat indices (the first dimension runs fastest) as first index and steps, and tensors tuned in full.
"""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from graftwork.adapt.deltas.arrangement import no_support
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.tuned_tensor import TunedTensor
from graftwork.errors import CheckpointError
from graftwork.ops.sparse_update import Support

FILE = "pytorch_diff.bin"
_FORM = '{"diffs": {name: {"size", "index_steps", "values"}}, "abs": {name: tensor}}'


def read_composable_sft(folder: str | os.PathLike[str], *, trust: bool) -> SparseDelta:
    """See `SparseDelta.from_composable_sft`."""
    path = Path(folder)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError("there is no such file", file=path, wanted=f"a folder with {FILE}")
    if trust is not True:
        raise CheckpointError(
            "the file is a pickle",
            file=path,
            remedy="pass trust=True to have it read by torch's restricted unpickler, which makes only tensors and numbers",
        )
    content = _unpickle(path)
    diffs, full = _dictionary(content, "diffs", path), _dictionary(content, "abs", path)
    tensors, indices, values = [], [], []
    for name, diff in diffs.items():
        shape, mine, change = _difference(name, diff, path)
        tensors.append(TunedTensor(name, shape, torch.float32))
        indices.append(mine)
        values.append(change)
    for name, tensor in full.items():
        if not isinstance(tensor, Tensor):
            _refuse(path, tensor=name, got=type(tensor).__name__, wanted="a tensor")
    return SparseDelta(
        tensors,
        Support(indices, [tensor.numel for tensor in tensors]) if tensors else no_support(),
        torch.cat(values) if values else torch.empty(0),
        full={name: tensor.detach().contiguous() for name, tensor in full.items()},
    )


def _unpickle(path: Path) -> object:
    numbers: list[Any] = [np.dtype, np.dtypes.Int64DType, np.dtypes.Int32DType]
    scalar = np.int64(0).__reduce__()[
        0
    ]  # makes the first index; files name it as the numpy that wrote them did
    numbers += [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals(numbers):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the pickle holds more than tensors and numbers, or is damaged: {reason}",
            file=path,
            wanted=_FORM,
            remedy="do not load it in another way unless you trust whoever made it",
        ) from error


def _refuse(path: Path, **details: Any) -> NoReturn:
    raise CheckpointError("the file is not a delta of composable-sft", file=path, **details)


def _dictionary(content: object, key: str, path: Path) -> dict[str, Any]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        _refuse(path, got=f"no {key!r} by name", wanted=_FORM)
    return found


def _difference(name: str, diff: object, path: Path) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Shape, sorted row-major indices and values of a tensor."""
    try:
        shape = tuple(int(size) for size in diff["size"])  # type: ignore[index]
        steps = torch.tensor([int(step) for step in diff["index_steps"]], dtype=torch.int64)  # type: ignore[index]
        values = diff["values"]  # type: ignore[index]
        fits = values.shape == steps.shape and values.is_floating_point()
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        _refuse(path, tensor=name, got=repr(error), wanted=_FORM)
    columns = steps.cumsum(0)
    numel = math.prod(shape)
    in_order = not len(steps) or (int(steps[0]) >= 0 and bool((columns[1:] > columns[:-1]).all()))
    if not fits or not in_order or (len(steps) and int(columns[-1]) >= numel):
        _refuse(
            path,
            tensor=name,
            got=f"{len(steps)} steps to {int(columns[-1]) if len(steps) else 0}, values {list(values.shape)}",
            wanted=f"ascending indices below {numel}, and a value for each",
        )
    indices, order = to_row_major(columns, shape).sort()
    return shape, indices, values.detach().float()[order]


def to_row_major(indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat indices in which the last dimension runs fastest, from those in which the first does."""
    rows = torch.zeros_like(indices)
    stride = math.prod(shape)
    for size in shape if len(indices) else ():
        stride //= size
        rows += indices % size * stride
        indices = indices // size
    return rows
