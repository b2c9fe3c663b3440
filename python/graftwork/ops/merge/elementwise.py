"""Merges that look at one weight at a time: adding a difference to another base, NearSwap.

GPU: on copies on the host for now. None is differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.merge import arguments as args
from graftwork.ops.merge.arguments import (
    FORMATS,
    Key,
    MergeCounts,
    Nonfinite,
    Rounding,
    held_weights,
    table_on_host,
)
from graftwork.ops.sparse_update import _arena
from graftwork.reference.merge import elementwise as reference
from graftwork.reference.merge.merge_many import Options


def add_diff(
    minuend: Tensor, subtrahend: Tensor, onto: Tensor, scale: float = 1.0, out: Tensor | None = None
) -> Tensor:
    """Add what one tensor has over another to a third: out = round(onto + scale·(minuend − subtrahend)).

    Parameters
    ----------
    minuend, subtrahend, onto : Tensor
        float16, bfloat16 or float32, of one shape, on one device; dtypes may differ. Views are copied.
    scale : float
        Finite.
    out : Tensor, optional
        Contiguous, overwritten; it may be one of the inputs, but share memory with none otherwise. None: a new tensor
        with the dtype of `onto`.

    Returns
    -------
    Tensor
        `out`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Differences, products and sums are float32 and rounded once, to the nearest, ties to even. Exact where it should
    be: the word of `onto` stays where the scaled difference is 0, and with a scale of 1 the minuend's word comes out
    where `subtrahend` and `onto` are the same. NaN and infinity take part in the formula. The bits
    do not depend on ISA level or threads. This is the diff vector of Lin et al. 2025 (arXiv 2503.20110). Differs from the
    authors' code: float32, where theirs has float64 and the same one rounding.

    Examples
    --------
    >>> old, tuned, new = (torch.tensor([x], dtype=torch.bfloat16) for x in (1.0, 1.5, 2.0))
    >>> add_diff(tuned, old, new).item()
    2.5
    """
    args.check_weights("add_diff", "minuend", minuend)
    args.check_weights("add_diff", "subtrahend", subtrahend, "minuend", minuend)
    args.check_weights("add_diff", "onto", onto, "minuend", minuend)
    args.check_finite("add_diff", "scale", scale)
    inputs = {"minuend": minuend, "subtrahend": subtrahend, "onto": onto}
    out = args.output("add_diff", onto, out, None, None, inputs)
    torch.ops.graftwork.add_diff(
        minuend.detach(), subtrahend.detach(), onto.detach(), float(scale), out.detach()
    )
    _arena.mark_written(out)
    return out


def nearswap(
    base: Tensor,
    donor: Tensor,
    t: float,
    *,
    nonfinite: Nonfinite = "propagate",
    rounding: Rounding = "nearest",
    key: Key | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> tuple[Tensor, MergeCounts]:
    """Take the donor's weights where they are near the base's, and less of them the further they are.

        out = round(w·donor + (1 − w)·base),  w = min(1, t / |donor − base|)

    Parameters
    ----------
    base, donor : Tensor
        float16, bfloat16 or float32, of one shape, on one device; dtypes may differ.
    t : float
        Distance up to which the donor's weight is taken as it is; at least 0, finite.
    nonfinite, rounding, key, dtype, out, residual_out
        As in :func:`graftwork.ops.merge.merge_many`; with "zero" the base is taken where the donor is not finite.

    Returns
    -------
    tuple of (Tensor, MergeCounts)
        `out`, and what was met and lost.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    In float32 and rounded once; the bits do not depend on ISA level or threads. Differs from mergekit: distances below
    1e-6 are not taken for 1e-6.

    Examples
    --------
    >>> nearswap(torch.tensor([1.0, 1.0]), torch.tensor([1.25, 2.0]), 0.5)[0].tolist()
    [1.25, 1.5]
    """
    args.check_donors("nearswap", "donor", [donor], base)
    args.check_finite("nearswap", "t", t)
    if t < 0:
        raise ValueError(f"nearswap: t must be at least 0, got {t}")
    zero = args.zero_nonfinite("nearswap", nonfinite)
    stochastic = args.rounding_key("nearswap", rounding, key)
    out = args.output("nearswap", base, out, residual_out, dtype, {"base": base, "donor": donor})
    options = Options(
        zero_nonfinite=int(zero),
        stochastic=int(stochastic is not None),
        key0=stochastic[0] if stochastic else 0,
        key1=stochastic[1] if stochastic else 0,
    )
    table = torch.ops.graftwork.nearswap(
        donor.detach(), base.detach(), float(t), list(options), out.detach(), residual_out
    )
    _arena.mark_written(out, residual_out)
    return out, MergeCounts(table)


def _add_diff(minuend: Tensor, subtrahend: Tensor, onto: Tensor, scale: float, out: Tensor) -> None:
    held, told = held_weights([minuend, subtrahend, onto], None)
    _native.call("add_diff", *told, out.numel(), scale, out, FORMATS.index(out.dtype), like=held[0])


def _add_diff_fake(minuend: Tensor, subtrahend: Tensor, onto: Tensor, scale: float, out: Tensor) -> None:
    return None


def _nearswap(
    donor: Tensor, base: Tensor, t: float, options: list[int], out: Tensor, residual: Tensor | None
) -> Tensor:
    held, told = held_weights([donor], base)
    counts, table = torch.empty(7, dtype=torch.int64), torch.tensor(options, dtype=torch.int64)
    where = out, FORMATS.index(out.dtype), residual if residual is not None else 0
    _native.call("nearswap", *told, out.numel(), t, table, *where, counts, like=held[0])
    return counts


def _nearswap_fake(
    donor: Tensor, base: Tensor, t: float, options: list[int], out: Tensor, residual: Tensor | None
) -> Tensor:
    return torch.empty(7, dtype=torch.int64)


_native.register(
    "add_diff",
    "(Tensor minuend, Tensor subtrahend, Tensor onto, float scale, Tensor(a!) out) -> ()",
    reference=reference.add_diff,
    fake=_add_diff_fake,
    cpu=_native.Route("_core", FORMATS, _add_diff),
    cuda=_native.Route("_core", FORMATS, _arena.on_host_copies(_add_diff, 4)),
)
_native.register(
    "nearswap",
    "(Tensor donor, Tensor base, float t, int[] options, Tensor(a!) out, Tensor(b!)? residual) -> Tensor",
    reference=reference.nearswap,
    fake=_nearswap_fake,
    cpu=_native.Route("_core", FORMATS, _nearswap),
    cuda=_native.Route("_core", FORMATS, table_on_host(_nearswap, 4, 5)),
)
