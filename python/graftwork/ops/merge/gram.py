"""Inner products of tensors: all that slerp, spherical means and model stock need to know of them.

GPU: on copies on the host for now. None is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.merge import arguments as args
from graftwork.ops.merge.arguments import FORMATS, held_weights, table_on_host
from graftwork.reference.merge import sums as reference


def merge_gram(tensors: Sequence[Tensor], base: Tensor | None = None, rowwise: bool = False) -> Tensor:
    """The Gram matrix of tensors, or of their differences from a base: G_ij = Σ (x_i − base)·(x_j − base).

    Parameters
    ----------
    tensors : sequence of Tensor
        At least one, float16, bfloat16 or float32, of one shape, on one device; dtypes may differ. Views are copied.
    base : Tensor, optional
        As the tensors. None: the products of the tensors themselves.
    rowwise : bool
        One matrix for each index of the first dimension.

    Returns
    -------
    Tensor
        float64 ``[n, n]``, or ``[rows, n, n]``, symmetric, on the host.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Differences are float32, products exact and sums float64, in 16 lanes and a fixed order: the bits do not depend on
    ISA level or threads. NaN and infinity come out in the rows and columns of the tensors that have them.

    Examples
    --------
    >>> merge_gram([torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])]).tolist()
    [[25.0, 3.0], [3.0, 1.0]]
    """
    args.check_donors("merge_gram", "tensors", tensors, base)
    if rowwise and tensors[0].dim() == 0:
        raise ValueError("merge_gram: rowwise needs tensors with at least one dimension, got none")
    return torch.ops.graftwork.merge_gram(
        [tensor.detach() for tensor in tensors], None if base is None else base.detach(), rowwise
    )


def _gram(tensors: list[Tensor], base: Tensor | None, rowwise: bool) -> Tensor:
    held, told = held_weights(tensors, base)
    count, numel, rows = len(tensors), tensors[0].numel(), tensors[0].shape[0] if rowwise else 1
    gram = torch.empty(rows, count, count, dtype=torch.float64)
    threads = _native.threads_for(numel)
    nbytes = _native.load("_core").gram_workspace_bytes(count, numel, rows, threads)
    workspace = _native.buffer("workspace", nbytes)
    _native.call("merge_gram", *told, count, numel, rows, gram, workspace, like=held[0], threads=threads)
    return gram if rowwise else gram[0].clone()


def _gram_fake(tensors: list[Tensor], base: Tensor | None, rowwise: bool) -> Tensor:
    shape = (tensors[0].shape[0],) if rowwise else ()
    return torch.empty(*shape, len(tensors), len(tensors), dtype=torch.float64)


_native.register(
    "merge_gram",
    "(Tensor[] tensors, Tensor? base, bool rowwise) -> Tensor",
    reference=reference.merge_gram,
    fake=_gram_fake,
    cpu=_native.Route("_core", FORMATS, _gram),
    cuda=_native.Route("_core", FORMATS, table_on_host(_gram)),
)
