"""Merging of several donors in one streaming pass: task arithmetic, TIES, DARE, DELLA, breadcrumbs, SCE.

A method is a row: which differences take part (:class:`graftwork.ops.merge.Sparsify`), whether donors must agree on a
sign, and whether the sum is divided by the weights that went into it.

GPU: on copies on the host for now. None is differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

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
from graftwork.ops.merge.sparsify import Sparsify, prepare, row_length
from graftwork.ops.sparse_update import _arena
from graftwork.reference.merge import merge_many as reference
from graftwork.reference.merge.merge_many import LEAST_DIVISOR, NO_CONSENSUS, Options

Consensus = Literal["none", "sum", "count"]


def merge_many(
    base: Tensor | None,
    donors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    sparsify: Sparsify | None = None,
    consensus: Consensus = "none",
    normalize: bool = False,
    scale: float = 1.0,
    nonfinite: Nonfinite = "propagate",
    rounding: Rounding = "nearest",
    key: Key | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> tuple[Tensor, MergeCounts]:
    """Add the weighted differences of several donors to their base, where they agree on a sign.

        d_k = donor_k − base,  v_k = w_k·r_k·d_k where the rule keeps d_k, else 0
        A = all donors, or those whose v_k has the sign of the vote, Σ v_k ("sum") or Σ sign(v_k) ("count")
        out = round(base + scale · Σ_A v_k [/ Σ_A w_k])

    r_k is the rule's rescaling. A vote of 0 counts as positive; v_k = 0 agrees with nothing. A Σ_A w_k below 1e-8 in
    magnitude is not divided by.

    Parameters
    ----------
    base : Tensor or None
        float16, bfloat16 or float32. None: the donors themselves are added.
    donors : sequence of Tensor
        At least one, as the base; of one shape, on one device; dtypes may differ, each is read as it is. Views are
        copied.
    weights : sequence of float
        One for each donor, finite; may be negative.
    sparsify : Sparsify, optional
        Which differences take part. None: all.
    consensus : {"none", "sum", "count"}
        Whose sign counts.
    normalize : bool
        Divide by the weights that took part.
    scale : float
        Multiplies the merged difference: TIES' λ.
    nonfinite : {"propagate", "zero"}
        What is done with NaN and infinity. They take part in the formulas; a NaN is kept by a magnitude, and is never
        outvoted. Or: the donor's difference is 0 there, and the base's element is 0.
    rounding : {"nearest", "stochastic"}
        To the nearest, ties to even; or up or down at random so that the expectation is the exact value: small updates
        outlive a 16-bit format on average. Without effect for float32.
    key : tuple of (int, int), optional
        Philox key of stochastic rounding; element i uses word i of its stream.
    dtype : torch.dtype, optional
        Of the output. None: that of `out`, or the base, or the first donor.
    out : Tensor, optional
        Contiguous, overwritten; it may be the base or a donor, but share memory with none otherwise. None: a new one.
    residual_out : Tensor, optional
        float32, contiguous, overwritten: what rounding took away, so that out + residual is the exact value.

    Returns
    -------
    tuple of (Tensor, MergeCounts)
        `out`, and what was met and lost.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; or `normalize` without a consensus, and the weights sum to 0.

    Notes
    -----
    Differences, products and sums are float32, in the order of the donors, and are rounded once to the output's dtype:
    the bits do not depend on ISA level or threads. Where nothing is added, the base's word stays, −0 too; every NaN
    that comes out is the same. A difference of 16-bit weights of similar size is exact; where donor and base differ by
    more than 2^16 in size, base + (donor − base) may differ from the donor by 2^−24 of the base.

    Task arithmetic (Ilharco et al. 2023) is the default. TIES (Yadav et al. 2023): `Sparsify.magnitude`, "sum",
    normalize. DARE (Yu et al. 2024): `Sparsify.random`. Differs from the TIES paper: the weights take part in the vote,
    as in mergekit. Differs from mergekit: all is float32 and rounded once; of equal magnitudes the first are kept; what
    a rule drops has no influence, where mergekit multiplies by 0 and a dropped NaN stays one.

    Examples
    --------
    >>> base, donors = torch.zeros(3), [torch.tensor([1.0, -2.0, 4.0]), torch.tensor([3.0, 1.0, -1.0])]
    >>> ties = merge_many(base, donors, [1.0, 1.0], sparsify=Sparsify.magnitude([2, 2]), consensus="sum", normalize=True)
    >>> ties[0].tolist(), ties[1].changed
    ([3.0, -2.0, 4.0], 3)
    """
    args.check_donors("merge_many", "donors", donors, base)
    args.check_numbers("merge_many", "weights", weights, len(donors))
    args.check_finite("merge_many", "scale", scale)
    agreement = args.check_choice("merge_many", "consensus", consensus, ("none", "sum", "count"))
    if normalize and agreement == NO_CONSENSUS and abs(math.fsum(weights)) < LEAST_DIVISOR:
        raise ValueError(
            f"merge_many: weights sum to {math.fsum(weights):g}, which nothing can be divided by; pass normalize=False, or "
            f"other weights"
        )
    zero = args.zero_nonfinite("merge_many", nonfinite)
    stochastic = args.rounding_key("merge_many", rounding, key)
    inputs = {"base": base, **args.named("donors", donors)}
    like = donors[0] if base is None else base
    out = args.output("merge_many", like, out, residual_out, dtype, inputs)
    rule = prepare("merge_many", sparsify or Sparsify.none(), donors, base, zero)
    table = torch.tensor(
        [[weight * by for weight, by in zip(weights, rule.scales, strict=True)]], dtype=torch.float32
    )
    options = Options(
        kind=rule.kind,
        columns=row_length(donors[0]),
        by_probability=int(rule.by_probability),
        consensus=agreement,
        normalize=int(normalize),
        zero_nonfinite=int(zero),
        stochastic=int(stochastic is not None),
        key0=stochastic[0] if stochastic else 0,
        key1=stochastic[1] if stochastic else 0,
    )
    counts = run_merge(donors, base, table, weights, rule.limits, scale, options, out, residual_out)
    return out, counts


def run_merge(
    donors: Sequence[Tensor],
    base: Tensor | None,
    coefficients: Tensor,
    weights: Sequence[float],
    limits: Tensor,
    scale: float,
    options: Options,
    out: Tensor,
    residual_out: Tensor | None,
) -> MergeCounts:
    """The streaming pass, with all that was looked for before."""
    table = torch.ops.graftwork.merge_many(
        [donor.detach() for donor in donors],
        None if base is None else base.detach(),
        coefficients,
        torch.tensor(list(weights), dtype=torch.float32),
        limits,
        float(scale),
        list(options),
        out.detach(),
        residual_out,
    )
    _arena.mark_written(out, residual_out)
    return MergeCounts(table)


def combine(
    tensors: Sequence[Tensor],
    coefficients: Sequence[float] | Tensor,
    base: Tensor | None = None,
    *,
    nonfinite: Nonfinite = "propagate",
    rounding: Rounding = "nearest",
    key: Key | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> tuple[Tensor, MergeCounts]:
    """A linear combination of tensors, or of their differences from a base, with coefficients for all or for each row.

        out = round(base + Σ_k c_k·(x_k − base)),  or round(Σ_k c_k·x_k)

    With :func:`graftwork.ops.merge.merge_gram` this is every merge whose result lies in the span of its inputs: slerp,
    spherical means, model stock.

    Parameters
    ----------
    tensors : sequence of Tensor
        At least one, float16, bfloat16 or float32, of one shape, on one device; dtypes may differ.
    coefficients : sequence of float, or Tensor
        ``[n]``, or ``[rows, n]`` with a row for each index of the first dimension; any float dtype, rounded to float32.
    base : Tensor, optional
        As the tensors.
    nonfinite, rounding, key, dtype, out, residual_out
        As in :func:`merge_many`.

    Returns
    -------
    tuple of (Tensor, MergeCounts)
        `out`, and what was met and lost.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or a coefficient is not finite.

    Notes
    -----
    Deterministic, in float32 and rounded once, as :func:`merge_many`.

    Examples
    --------
    >>> combine([torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])], [0.5, 0.25])[0].tolist()
    [1.25, 0.5]
    """
    args.check_donors("combine", "tensors", tensors, base)
    table = _coefficient_table(tensors, coefficients)
    zero = args.zero_nonfinite("combine", nonfinite)
    stochastic = args.rounding_key("combine", rounding, key)
    inputs = {"base": base, **args.named("tensors", tensors)}
    like = tensors[0] if base is None else base
    out = args.output("combine", like, out, residual_out, dtype, inputs)
    options = Options(
        columns=row_length(tensors[0]),
        zero_nonfinite=int(zero),
        stochastic=int(stochastic is not None),
        key0=stochastic[0] if stochastic else 0,
        key1=stochastic[1] if stochastic else 0,
    )
    count = len(tensors)
    limits = torch.zeros(count, 4, dtype=torch.int64)
    counts = run_merge(tensors, base, table, [0.0] * count, limits, 1.0, options, out, residual_out)
    return out, counts


def _coefficient_table(tensors: Sequence[Tensor], coefficients: Sequence[float] | Tensor) -> Tensor:
    """float32 ``[1 or rows, n]`` on the host."""
    table = torch.as_tensor(coefficients, dtype=torch.float64, device="cpu").to(torch.float32).contiguous()
    count, rows = len(tensors), tensors[0].shape[0] if tensors[0].dim() else 1
    if table.shape != (count,) and table.shape != (rows, count):
        raise ValueError(
            f"combine: coefficients must have shape ({count},), or ({rows}, {count}) for each row, got "
            f"{tuple(table.shape)}"
        )
    if not bool(table.isfinite().all()):
        raise ValueError("combine: coefficients must be finite in float32")
    return table.view(-1, count)


def _merge(
    donors: list[Tensor],
    base: Tensor | None,
    coefficients: Tensor,
    weights: Tensor,
    limits: Tensor,
    scale: float,
    options: list[int],
    out: Tensor,
    residual: Tensor | None,
) -> Tensor:
    held, told = held_weights(donors, base)
    count, numel, plan = len(donors), out.numel(), Options(*options)
    counts = torch.empty(2 * count + 5, dtype=torch.int64)
    threads = _native.threads_for(numel)
    nbytes = _native.load("_core").merge_workspace_bytes(count, plan.kind, plan.columns, threads)
    table = torch.tensor(options, dtype=torch.int64)
    what = coefficients, len(coefficients), weights, limits, float(scale), table
    where = out, FORMATS.index(out.dtype), residual if residual is not None else 0
    workspace = _native.buffer("workspace", nbytes)
    _native.call(
        "merge_many", *told, count, numel, *what, *where, counts, workspace, like=held[0], threads=threads
    )
    return counts


def _merge_fake(
    donors: list[Tensor],
    base: Tensor | None,
    coefficients: Tensor,
    weights: Tensor,
    limits: Tensor,
    scale: float,
    options: list[int],
    out: Tensor,
    residual: Tensor | None,
) -> Tensor:
    return torch.empty(2 * len(donors) + 5, dtype=torch.int64)


_native.register(
    "merge_many",
    "(Tensor[] donors, Tensor? base, Tensor coefficients, Tensor weights, Tensor limits, float scale, int[] options, "
    "Tensor(a!) out, Tensor(b!)? residual) -> Tensor",
    reference=reference.merge_many,
    fake=_merge_fake,
    cpu=_native.Route("_core", FORMATS, _merge),
    cuda=_native.Route("_core", FORMATS, table_on_host(_merge, 7, 8)),
)
