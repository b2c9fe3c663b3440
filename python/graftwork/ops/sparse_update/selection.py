"""Which weights to tune: the largest of many tensors, exactly, or some at random.

The largest are found by one reading of the tensors. A sample says about where the k-th largest is; what is clearly
larger or near it is collected in passing, and only that is looked at again. If the sample misled, histograms of all
scores say where it is, and the result is the same.

GPU: CUDA, since histograms in shared memory and an ordered write are no Triton loops: histograms of the scores' bits,
without a sample, and the scratch memory is 16 bytes for 4096 weights. None is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.sparse_update.support import Support
from graftwork.reference.sparse_update import selection as reference

#: The dtypes of weights, in the order of the native code's numbers.
FORMATS = (torch.float16, torch.bfloat16, torch.float32)
_WIDE = 1 << 31  # elements from which indices are int64


def topk_absdiff(tensors: Sequence[Tensor], bases: Sequence[Tensor], k: int) -> tuple[float, list[Tensor]]:
    """The k weights of all tensors together that are furthest from their base.

    The score of a weight is |θ − θ⁰|, the float32 difference of the two values. Of equal scores those of the first
    tensor, and in it those with the lowest index, are taken first, so that there are exactly k.

    Parameters
    ----------
    tensors, bases : sequence of Tensor
        Pairs of float16, bfloat16 or float32, each of one shape and dtype; contiguous, all on one device. Different
        pairs may have different dtypes.
    k : int
        Weights to choose: 0 to as many as there are.

    Returns
    -------
    tuple
        ``(threshold, indices)``: the smallest score that was chosen, infinity for k = 0; and for every tensor the
        row-major flat indices of its chosen weights, sorted, views of one int32 tensor. They are int64 if a tensor
        has 2^31 elements or more. ``Support(indices, numels)`` takes them as they are.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or a score is NaN. An infinite score is the largest.

    Notes
    -----
    Deterministic: the result does not depend on device, ISA level or threads. The difference is never stored: the
    scratch memory is about a megabyte and 11 bytes for each chosen weight, and none where more than about a fifth is
    chosen. This is the selection of LT-SFT (Ansell et al. 2022). Differs from the authors' code: exactly k where scores
    are equal.

    Examples
    --------
    >>> base = torch.zeros(2, 3)
    >>> tuned = torch.tensor([[0.0, 3.0, -1.0], [0.0, -5.0, 3.0]])
    >>> topk_absdiff([tuned], [base], 2)
    (3.0, [tensor([1, 4], dtype=torch.int32)])
    """
    wide = _check_weights("topk_absdiff", tensors)
    if len(bases) != len(tensors):
        raise ValueError(f"topk_absdiff: bases must be {len(tensors)} tensors, got {len(bases)}")
    for number, (tensor, base) in enumerate(zip(tensors, bases, strict=True)):
        _checks.check_tensor("topk_absdiff", f"bases[{number}]", base)
        _checks.check_same("topk_absdiff", f"bases[{number}]", base, f"tensors[{number}]", tensor)
        _check_contiguous("topk_absdiff", f"bases[{number}]", base)
    total = sum(tensor.numel() for tensor in tensors)
    if not 0 <= k <= total:
        raise ValueError(f"topk_absdiff: k must be in [0, {total}], the number of weights, got {k}")
    threshold, indices, counts = torch.ops.graftwork.topk_absdiff(list(tensors), list(bases), k, wide)
    return threshold.item(), list(indices.split(counts.tolist()))


def topk_abs(tensors: Sequence[Tensor], ks: Sequence[int]) -> list[Tensor]:
    """The ks[t] largest elements of each tensor t, by magnitude.

    Parameters
    ----------
    tensors : sequence of Tensor
        float16, bfloat16 or float32; contiguous, all on one device.
    ks : sequence of int
        Elements to choose in each tensor: 0 to as many as it has.

    Returns
    -------
    list of Tensor
        For every tensor the row-major flat indices of its chosen elements, sorted, int32 (int64 if a tensor has 2^31
        elements or more). Of equal magnitudes those with the lowest index are taken first.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or an element is NaN. An infinite one is the largest.

    Notes
    -----
    Deterministic: the result does not depend on device, ISA level or threads. These are the candidates of SpIEL
    (Ansell et al. 2024), of the gradients of its modules.

    Examples
    --------
    >>> topk_abs([torch.tensor([1.0, -3.0, 2.0]), torch.tensor([0.0, 7.0])], [2, 1])
    [tensor([1, 2], dtype=torch.int32), tensor([1], dtype=torch.int32)]
    """
    wide = _check_weights("topk_abs", tensors)
    _check_counts("topk_abs", ks, [tensor.numel() for tensor in tensors])
    indices = torch.ops.graftwork.topk_abs(list(tensors), list(ks), wide)
    return list(indices.split(list(ks)))


def random_support(
    numels: Sequence[int], ks: int | Sequence[int], generator: torch.Generator | None = None
) -> Support:
    """Weights chosen at random, every set of them as likely as any other.

    Parameters
    ----------
    numels : sequence of int
        Elements of each tensor.
    ks : int or sequence of int
        Weights to choose: of all tensors together, or of each tensor.
    generator : torch.Generator, optional
        Where chance comes from; the indices are on its device. None: torch's own of the CPU.

    Returns
    -------
    Support
        With int32 indices (int64 if a tensor has 2^31 elements or more).

    Raises
    ------
    ValueError
        A number is negative, or more is to be chosen than there is.

    Notes
    -----
    The same state of a generator on the CPU gives the same support. Memory and time go with the number that is chosen,
    not with the number of elements. This is LT-SFT's random baseline, and where SpIEL starts.

    Examples
    --------
    >>> support = random_support([100, 10], [5, 10], torch.Generator().manual_seed(0))
    >>> support.offsets.tolist()
    [0, 5, 15]
    """
    if not numels or min(numels) < 0:
        raise ValueError(
            f"random_support: numels must be at least one number, none negative, got {list(numels)}"
        )
    dtype = torch.int64 if max(numels) >= _WIDE else torch.int32
    ends = list(accumulate(numels))
    if isinstance(ks, int):
        if not 0 <= ks <= ends[-1]:
            raise ValueError(f"random_support: ks must be in [0, {ends[-1]}], got {ks}")
        chosen = reference.random_subset(ends[-1], ks, generator)
        cuts = torch.searchsorted(chosen, torch.tensor(ends, device=chosen.device)).cpu()
        starts = torch.tensor([0, *ends[:-1]]).repeat_interleave(cuts.diff(prepend=torch.zeros(1).long()))
        indices, counts = chosen - starts.to(chosen.device), cuts.tolist()
        return Support.trusted(indices.to(dtype), torch.tensor([0, *counts]), numels)
    _check_counts("random_support", ks, numels)
    pieces = [
        reference.random_subset(numel, k, generator).to(dtype) for numel, k in zip(numels, ks, strict=True)
    ]
    return Support.trusted(torch.cat(pieces), torch.tensor([0, *accumulate(ks)]), numels)


def _check_weights(operation: str, tensors: Sequence[Tensor]) -> bool:
    """Check the tensors to choose from; True if one needs int64 indices."""
    if not tensors:
        raise ValueError(f"{operation}: tensors must be at least one tensor, got none")
    for number, tensor in enumerate(tensors):
        name = f"tensors[{number}]"
        _checks.check_tensor(operation, name, tensor)
        _checks.check_dtype(operation, name, tensor, FORMATS, "cast it first, or leave it out")
        _check_contiguous(operation, name, tensor)
        _checks.check_device(operation, name, tensor, "tensors[0]", tensors[0])
    return max(tensor.numel() for tensor in tensors) >= _WIDE


def _check_contiguous(operation: str, name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"{operation}: {name} must be contiguous, got strides {tensor.stride()}; indices are row-major"
        )


def _check_counts(operation: str, ks: Sequence[int], numels: Sequence[int]) -> None:
    if len(ks) != len(numels):
        raise ValueError(f"{operation}: ks must be {len(numels)} numbers, one for each tensor, got {len(ks)}")
    for number, (k, numel) in enumerate(zip(ks, numels, strict=True)):
        if not 0 <= k <= numel:
            raise ValueError(
                f"{operation}: ks[{number}] must be in [0, {numel}], the tensor's elements, got {k}"
            )


def _table(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """The tensors as the native code takes them: themselves, to be held, pointers, where each starts, formats."""
    held = [_native.packed(tensor) for tensor in tensors]
    offsets = torch.tensor([0, *accumulate(tensor.numel() for tensor in held)])
    formats = torch.tensor([FORMATS.index(tensor.dtype) for tensor in held], dtype=torch.int32)
    return held, _native.pointers(held), offsets, formats


def _topk_absdiff(
    tensors: Sequence[Tensor], bases: Sequence[Tensor], k: int, wide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    held, pointers, offsets, formats = _table(tensors)
    held_bases = [_native.packed(base) for base in bases]
    base_pointers, total = _native.pointers(held_bases), int(offsets[-1])
    threads = _native.threads_for(total)
    nbytes = _native.load("_core").selection_workspace_bytes(total, k, threads)
    workspace = _native.buffer("workspace", nbytes)
    indices = torch.empty(k, dtype=torch.int64 if wide else torch.int32)
    threshold, counts, nan = torch.empty(()), torch.empty(len(held)).long(), torch.empty(1).long()
    where = pointers, base_pointers, offsets, formats, len(held), k
    what = indices, indices.itemsize, counts, threshold, nan, workspace, nbytes
    _native.call("topk_absdiff", *where, *what, like=indices, threads=threads)
    reference.refuse_nan("topk_absdiff", int(nan))
    return threshold, indices, counts


def _topk_abs(tensors: Sequence[Tensor], ks: Sequence[int], wide: bool) -> Tensor:
    held, pointers, offsets, formats = _table(tensors)
    core, threads = _native.load("_core"), _native.threads_for(max(tensor.numel() for tensor in held))
    nbytes = max(
        core.selection_workspace_bytes(tensor.numel(), k, threads) for tensor, k in zip(held, ks, strict=True)
    )
    workspace, nan = _native.buffer("workspace", nbytes), torch.empty(1).long()
    indices = torch.empty(sum(ks), dtype=torch.int64 if wide else torch.int32)
    counts = torch.tensor(ks, dtype=torch.int64)
    where = pointers, offsets, formats, len(held), counts
    what = indices, indices.itemsize, nan, workspace, nbytes
    _native.call("topk_abs", *where, *what, like=indices, threads=threads)
    reference.refuse_nan("topk_abs", int(nan))
    return indices


def _select_on_gpu(
    tensors: Sequence[Tensor], bases: Sequence[Tensor], k: int, wide: bool
) -> tuple[Tensor, Tensor]:
    """Indices, and the report of topk_absdiff.cuh; of |x| without `bases`."""
    held, held_bases = [_native.packed(x) for x in tensors], [_native.packed(base) for base in bases]
    like, tile = held[0], _native.load("_cuda").selection_tile
    tiles = [0, *accumulate(-(-tensor.numel() // tile) for tensor in held)]
    formats = [FORMATS.index(tensor.dtype) for tensor in held]
    sizes = [torch.tensor(numbers) for numbers in ([tensor.numel() for tensor in held], tiles, formats)]
    tables = _native.where_read(like, _native.pointers(held), _native.pointers(held_bases), *sizes)
    indices, report = _new_indices(held, [k], wide), like.new_empty(2 * len(held) + 1, dtype=torch.int64)
    workspace = _native.cuda_workspace("topk_absdiff", tiles[-1], like=like)
    what = len(held), tiles[-1], k, indices, indices.itemsize, report, workspace
    _native.call("topk_absdiff", *tables, *what, like=like)
    return indices, report


def _topk_absdiff_cuda(
    tensors: Sequence[Tensor], bases: Sequence[Tensor], k: int, wide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    indices, report = _select_on_gpu(tensors, bases, k, wide)
    counts, nans, threshold = report.cpu().split([len(tensors), len(tensors), 1])
    reference.refuse_nan("topk_absdiff", next(iter(nans.nonzero().view(-1).tolist()), -1))
    score = threshold.int().view(torch.float32)[0] if k else torch.tensor(torch.inf)
    return score, indices, counts


def _topk_abs_cuda(tensors: Sequence[Tensor], ks: Sequence[int], wide: bool) -> Tensor:
    chosen = [_select_on_gpu([tensor], [], k, wide) for tensor, k in zip(tensors, ks, strict=True)]
    nans = torch.stack([report[1] for _, report in chosen]).cpu()
    reference.refuse_nan("topk_abs", next(iter(nans.nonzero().view(-1).tolist()), -1))
    return torch.cat([indices for indices, _ in chosen])


def _new_absdiff(
    tensors: Sequence[Tensor], bases: Sequence[Tensor], k: int, wide: bool
) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.empty(len(tensors), dtype=torch.int64)
    return torch.empty(()), _new_indices(tensors, [k], wide), counts


def _new_indices(tensors: Sequence[Tensor], ks: Sequence[int], wide: bool) -> Tensor:
    return tensors[0].new_empty(sum(ks), dtype=torch.int64 if wide else torch.int32)


_native.register(
    "topk_absdiff",
    "(Tensor[] tensors, Tensor[] bases, int k, bool wide) -> (Tensor, Tensor, Tensor)",
    reference=reference.topk_absdiff,
    fake=_new_absdiff,
    cpu=_native.Route("_core", FORMATS, _topk_absdiff),
    cuda=_native.Route("_cuda", FORMATS, _topk_absdiff_cuda),
)
_native.register(
    "topk_abs",
    "(Tensor[] tensors, int[] ks, bool wide) -> Tensor",
    reference=reference.topk_abs,
    fake=_new_indices,
    cpu=_native.Route("_core", FORMATS, _topk_abs),
    cuda=_native.Route("_cuda", FORMATS, _topk_abs_cuda),
)
