"""Which weights to tune next: the least moved are dropped, and as many grown where the gradient asks for it.

Everything is sorted, so that it is a merge of two lists: memory and time go with the tuned weights and the candidates,
not with the tensors.

GPU: on copies on the host. None is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.sparse_update.support import Support
from graftwork.reference.sparse_update import reselection as reference

#: The dtypes of arrays that :func:`take_entries` takes.
ENTRY_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64),
)


class Reselection(NamedTuple):
    """A new support, and for each of its entries where it came from."""

    support: Support
    source: Tensor


def reselect(
    support: Support, values: Tensor, candidates: Support, growth: Tensor, drops: Sequence[int]
) -> Reselection:
    """Drop tuned weights that moved little, and tune others instead, as many in every tensor.

    In every tensor t, D are the drops[t] entries of smallest |value|. A candidate is valid if it is not tuned, or in D.
    G are the min(drops[t], valid) valid candidates of largest |growth|. What is in both D and G stays as it is. Of the
    rest of D the smallest |value| are dropped, as many as the rest of G has, and the rest of G comes in.

    Parameters
    ----------
    support : Support
        The weights that are tuned now.
    values : Tensor
        float32 ``[support.entries]``: how far each has moved.
    candidates : Support
        Weights that might be tuned, of the same tensors, with indices of the same dtype and on the same device.
    growth : Tensor
        float32 ``[candidates.entries]``: the score of each, such as its summed gradient.
    drops : sequence of int
        How many to drop in each tensor: 0 to as many as it has.

    Returns
    -------
    Reselection
        ``support``, with as many entries in every tensor as before; and ``source``, int64 ``[entries]``: the number of
        an entry of the old support, or −1 − c for candidate c. :func:`take_entries` makes arrays of it.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or a value or a growth is NaN.

    Notes
    -----
    Of equal values, and of equal growths, those with the lowest index come first. Deterministic: the result does not
    depend on device, ISA level or threads. This is the drop-and-grow of SpIEL (Ansell et al. 2024). Differs from
    the authors' code: indices stay sorted, ties have an order, no mask has the size of a tensor.

    Examples
    --------
    >>> support = Support([torch.tensor([1, 4])], [8])
    >>> candidates = Support([torch.tensor([4, 6])], [8])
    >>> new, source = reselect(support, torch.tensor([0.1, -2.0]), candidates, torch.tensor([9.0, 1.0]), [1])
    >>> new.indices.tolist(), source.tolist()
    ([4, 6], [1, -2])
    """
    support.check_entries("reselect", "values", values, torch.float32)
    candidates.check_entries("reselect", "growth", growth, torch.float32)
    if candidates.numels != support.numels:
        raise ValueError("reselect: candidates must be of the same tensors as support, got other numels")
    if candidates.indices.dtype != support.indices.dtype:
        raise TypeError(
            f"reselect: candidates must have the dtype of support, {support.indices.dtype}, "
            f"got {candidates.indices.dtype}; convert one of them first"
        )
    _checks.check_device(
        "reselect", "candidates.indices", candidates.indices, "support.indices", support.indices
    )
    if len(drops) != support.tensors:
        raise ValueError(
            f"reselect: drops must be {support.tensors} numbers, one for each tensor, got {len(drops)}"
        )
    for number, (drop, entries) in enumerate(zip(drops, support.offsets.diff().tolist(), strict=True)):
        if not 0 <= drop <= entries:
            raise ValueError(
                f"reselect: drops[{number}] must be in [0, {entries}], the tuned weights of the tensor, got {drop}"
            )
    mine, theirs = (support.indices, support.offsets), (candidates.indices, candidates.offsets)
    indices, source = torch.ops.graftwork.reselect(values, *mine, growth, *theirs, list(drops))
    return Reselection(Support.trusted(indices, support.offsets, support.numels), source)


def take_entries(source: Tensor, old: Tensor, fresh: Tensor | float) -> Tensor:
    """An array for a new support, from those of the old one and of the candidates.

    result[i] = old[source[i]] where source[i] ≥ 0, else fresh[−1 − source[i]].

    Parameters
    ----------
    source : Tensor
        int64 ``[entries]``, of :func:`reselect`.
    old : Tensor
        ``[entries of the old support]``: a float or an integer of 8 to 64 bits; contiguous, on the device of `source`.
    fresh : Tensor or number
        ``[candidates]``, like `old`; or one number for all that came in.

    Returns
    -------
    Tensor
        ``[entries]``, of the dtype of `old`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or a source is outside `old` or `fresh`.

    Examples
    --------
    >>> take_entries(torch.tensor([1, -2]), torch.tensor([5.0, 6.0]), torch.tensor([7.0, 8.0]))
    tensor([6., 8.])
    >>> take_entries(torch.tensor([1, -2]), torch.tensor([5, 6]), 0)
    tensor([6, 0])
    """
    _check_array("source", source, (torch.int64,), "it comes from reselect")
    _check_array("old", old, ENTRY_DTYPES, "convert it first")
    _checks.check_device("take_entries", "old", old, "source", source)
    if not isinstance(fresh, Tensor):
        if not old.is_floating_point() and not isinstance(fresh, int):
            raise TypeError(f"take_entries: fresh must be a whole number for {old.dtype}, got {fresh}")
        fresh = old.new_full((), fresh)
    else:
        _check_array("fresh", fresh, (old.dtype,), "convert it to the dtype of old")
        _checks.check_device("take_entries", "fresh", fresh, "source", source)
    taken: Tensor = torch.ops.graftwork.take_entries(old, source, fresh)
    return taken


def _check_array(name: str, value: Tensor, dtypes: Sequence[torch.dtype], fix: str) -> None:
    _checks.check_tensor("take_entries", name, value)
    _checks.check_dtype("take_entries", name, value, dtypes, fix)
    if value.dim() != 1 or not value.is_contiguous():
        raise ValueError(
            f"take_entries: {name} must be contiguous with one dimension, got shape {tuple(value.shape)}, "
            f"strides {value.stride()}"
        )


def _reselect(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    growth: Tensor,
    candidates: Tensor,
    candidate_offsets: Tensor,
    drops: Sequence[int],
) -> tuple[Tensor, Tensor]:
    new, source = torch.empty_like(indices), torch.empty(indices.shape, dtype=torch.int64)
    counts, nan = torch.tensor(drops, dtype=torch.int64), torch.empty(2).long()
    workspace = _native.buffer("workspace", 4 * (indices.numel() + candidates.numel()))
    mine, theirs = (values, indices, offsets), (growth, candidates, candidate_offsets)
    _native.call(
        "reselect",
        *(*mine, *theirs, counts, len(drops), indices.itemsize, new, source, nan, workspace),
        like=indices,
        threads=_native.threads_for(indices.numel() + candidates.numel(), 1 << 15),
    )
    reference.refuse_nan("values" if nan[0] else "growth" if nan[1] else None)
    return new, source


def _reselect_cuda(
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    growth: Tensor,
    candidates: Tensor,
    candidate_offsets: Tensor,
    drops: Sequence[int],
) -> tuple[Tensor, Tensor]:
    mine, theirs = (values.cpu(), indices.cpu(), offsets), (growth.cpu(), candidates.cpu(), candidate_offsets)
    new, source = _reselect(*mine, *theirs, drops)
    return new.to(indices.device), source.to(indices.device)


def _take_entries(old: Tensor, source: Tensor, fresh: Tensor) -> Tensor:
    taken, outside = torch.empty_like(source, dtype=old.dtype), torch.empty(1).long()
    entries, step = source.numel(), 1 if fresh.dim() else 0
    arrays = source, entries, old, old.numel(), fresh, fresh.numel(), step, old.itemsize
    _native.call(
        "take_entries", *arrays, taken, outside, like=taken, threads=_native.threads_for(entries, 1 << 15)
    )
    reference.refuse_source(bool(outside))
    return taken


_native.register(
    "reselect",
    "(Tensor values, Tensor indices, Tensor offsets, Tensor growth, Tensor candidates, Tensor candidate_offsets, "
    "int[] drops) -> (Tensor, Tensor)",
    reference=reference.reselect,
    fake=lambda values, indices, *rest: (
        torch.empty_like(indices),
        torch.empty_like(indices, dtype=torch.int64),
    ),
    cpu=_native.Route("_core", (torch.float32,), _reselect),
    cuda=_native.Route("_core", (torch.float32,), _reselect_cuda),
)
_native.register(
    "take_entries",
    "(Tensor old, Tensor source, Tensor fresh) -> Tensor",
    reference=reference.take_entries,
    fake=lambda old, source, fresh: torch.empty_like(source, dtype=old.dtype),
    cpu=_native.Route("_core", ENTRY_DTYPES, _take_entries),
    cuda=_native.Route("_core", ENTRY_DTYPES, _native.on_the_host(_take_entries)),
)
