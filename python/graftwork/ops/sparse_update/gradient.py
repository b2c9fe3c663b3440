"""Gradients of a few weights of a linear layer, without the gradient of all of them.

GPU: linear_gradient multiplies the matrices and gathers there, for tensor cores are ahead of a sampled product from
densities well below 1 % on; sddmm runs on copies on the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.sparse_update.support import INDEX_DTYPES
from graftwork.reference.sparse_update import gradient as reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # in the order of the native code's numbers
_GRAIN = 1 << 20  # products a thread

#: The share of a weight's elements up to which sddmm is the faster on a CPU with AVX-512, measured: 0.15 to 0.3 for
#: batches from 16 to 8192 and layers from 256 × 256 to 4096 × 4096.
BREAK_EVEN = 0.15
_FULL_BATCH = 16  # from which on that holds; a product of a few rows is little more than its output


def sddmm(x: Tensor, dy: Tensor, indices: Tensor) -> Tensor:
    """Take the gradient of chosen weights of y = x·Wᵀ: g_j = Σ_b dy[b, row_j]·x[b, column_j].

    A sampled dense-dense matrix product: 2·batch operations for each index, whatever the size of W.

    Parameters
    ----------
    x : Tensor
        The layer's input ``[..., in]``: float32, bfloat16 or float16. A view is copied.
    dy : Tensor
        The gradient of its output ``[..., out]``: the same leading sizes, dtype and device.
    indices : Tensor
        int32 or int64, one-dimensional: row-major positions ``row·in + column`` in W ``[out, in]``. Any order and
        repetitions are right; sorted ones are fast.

    Returns
    -------
    Tensor
        float32 ``[entries]``. Products and sums are float32.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the bits do not depend on ISA level or threads; sums are in blocks of the batch, of a length that
    depends on `in` alone, in 16 lanes. Not differentiable.

    Examples
    --------
    >>> x, dy = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    >>> sddmm(x, dy, torch.tensor([1, 4])).tolist()
    [2.0, 5.0]
    >>> (dy.T @ x).flatten()[[1, 4]].tolist()
    [2.0, 5.0]
    """
    x, dy = _check_layer("sddmm", x, dy, indices)
    return torch.ops.graftwork.sddmm(x, dy, indices)


def linear_gradient(x: Tensor, dy: Tensor, indices: Tensor) -> Tensor:
    """Take the gradient of chosen weights of y = x·Wᵀ by the faster of two ways.

    :func:`sddmm` on the CPU up to a density of :data:`BREAK_EVEN`, or in proportion less where the batch is below 16;
    else the whole gradient dyᵀ·x in float32, of which the indices are read: memory for ``out·in`` float32.

    Parameters
    ----------
    x, dy, indices : Tensor
        As for :func:`sddmm`, with indices in [0, out·in).

    Returns
    -------
    Tensor
        float32 ``[entries]``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    The ways differ in the order of the sums, and so in the last bits; each is as deterministic as its operation. Not
    differentiable.

    Examples
    --------
    >>> linear_gradient(torch.ones(4, 3), torch.ones(4, 2), torch.tensor([5])).tolist()
    [4.0]
    """
    x, dy = _check_layer("linear_gradient", x, dy, indices)
    numel = x.shape[1] * dy.shape[1]
    if x.device.type == "cpu" and indices.numel() <= BREAK_EVEN * numel * min(1, x.shape[0] / _FULL_BATCH):
        return torch.ops.graftwork.sddmm(x, dy, indices)
    with torch.no_grad():
        return _from_dense(x, dy, indices)


def _from_dense(x: Tensor, dy: Tensor, indices: Tensor) -> Tensor:
    numel = x.shape[1] * dy.shape[1]
    if not torch.compiler.is_compiling():  # which leaves it to index_select
        reference.refuse_outside("linear_gradient", bool(((indices < 0) | (indices >= numel)).any()), numel)
    gradient = dy.float().T @ x.float()
    return gradient.flatten().index_select(0, indices)


def _check_layer(operation: str, x: Tensor, dy: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Check the arguments; x and dy as matrices."""
    for name, value in (("x", x), ("dy", dy)):
        _checks.check_tensor(operation, name, value)
        _checks.check_dtype(operation, name, value, DTYPES, "convert both first")
        if value.dim() == 0:
            raise ValueError(f"{operation}: {name} must have one dimension at least, got a scalar")
    if dy.dtype != x.dtype:
        raise TypeError(f"{operation}: dy must have the dtype of x, {x.dtype}, got {dy.dtype}; convert one")
    if dy.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"{operation}: dy must have the leading sizes of x, {tuple(x.shape[:-1])}, got {tuple(dy.shape[:-1])}"
        )
    _checks.check_device(operation, "dy", dy, "x", x)
    _checks.check_tensor(operation, "indices", indices)
    _checks.check_dtype(operation, "indices", indices, INDEX_DTYPES, "convert them")
    if indices.dim() != 1:
        raise ValueError(f"{operation}: indices must have one dimension, got shape {tuple(indices.shape)}")
    _checks.check_device(operation, "indices", indices, "x", x)
    batch = math.prod(x.shape[:-1])
    return x.detach().reshape(batch, x.shape[-1]), dy.detach().reshape(batch, dy.shape[-1])


def _sddmm(x: Tensor, dy: Tensor, indices: Tensor) -> Tensor:
    x, dy, indices = _native.packed(x), _native.packed(dy), _native.packed(indices)
    (batch, columns), rows, entries = x.shape, dy.shape[1], indices.numel()
    gradients, outside = torch.empty(entries), torch.empty(1, dtype=torch.int64)
    nbytes = _native.load("_core").sddmm_workspace_bytes(columns, rows)
    sizes = batch, columns, rows, entries, DTYPES.index(x.dtype), indices.itemsize
    arguments = x, dy, indices, gradients, outside, _native.buffer("workspace", nbytes), *sizes
    threads = _native.threads_for(entries * batch, _GRAIN)
    _native.call("sddmm", *arguments, like=indices, threads=threads)
    reference.refuse_outside("sddmm", bool(outside), columns * rows)
    return gradients


_native.register(
    "sddmm",
    "(Tensor x, Tensor dy, Tensor indices) -> Tensor",
    reference=reference.sddmm,
    fake=lambda x, dy, indices: x.new_empty(indices.shape, dtype=torch.float32),
    cpu=_native.Route("_core", DTYPES, _sddmm),
    cuda=_native.Route("_core", DTYPES, _native.on_the_host(_sddmm)),
)
