"""SCE: select where the donors differ most, weigh them by what they change there, erase the minority's signs.

GPU: on copies on the host for now. None is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
)
from graftwork.ops.merge.merge_many import run_merge
from graftwork.ops.merge.sparsify import row_length
from graftwork.ops.sparse_update import _arena
from graftwork.reference.merge import sums as reference
from graftwork.reference.merge.merge_many import UNWEIGHTED_SUM, Options
from graftwork.reference.merge.sparsify import NONE, VARIANCE
from graftwork.reference.merge.sums import selected


class SceResult(NamedTuple):
    """What :func:`sce` returns."""

    out: Tensor
    counts: MergeCounts
    #: What each donor's selected differences were weighed by; they sum to 1.
    weights: list[float]


def sce(
    base: Tensor,
    donors: Sequence[Tensor],
    select: float = 1.0,
    *,
    scale: float = 1.0,
    nonfinite: Nonfinite = "propagate",
    rounding: Rounding = "nearest",
    key: Key | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    residual_out: Tensor | None = None,
) -> SceResult:
    """Merge donors by SCE, the fusion of FuseChat: select, calculate, erase.

        d_k = donor_k − base
        S = the ⌊select · #(variance ≠ 0)⌋ weights where the variance of d over the donors is largest; all for 1
        w_k = Σ_S d_k² / Σ_j Σ_S d_j²
        A = the donors whose d_k has the sign of Σ d_k
        out = round(base + scale · Σ_A w_k d_k / Σ_A w_k) on S, base elsewhere

    Parameters
    ----------
    base, donors, scale, nonfinite, rounding, key, dtype, out, residual_out
        As in :func:`graftwork.ops.merge.merge_many`.
    select : float
        Share of the weights whose variance is not 0, in [0, 1].

    Returns
    -------
    SceResult
        ``(out, counts, weights)``.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    The variance is that of the population, float32, in two steps and in the order of the donors; of equal ones the
    first are selected. Energies are float64 sums in a fixed order. The bits do not depend on ISA level or threads.
    Wan et al. 2024 (arXiv 2408.07990). Differs from mergekit: weights are equal only where all energies are 0, not
    where they sum to less than 1e-6, which those of fine-tuned weights commonly do. Differs from FuseChat's code: the
    selection holds for what is merged too, as in the paper.

    Examples
    --------
    >>> donors = torch.tensor([[1.0, -2, 0.5, 0], [3, 1, 0.5, 0], [-1, 1, 0.4, 2]])
    >>> found = sce(torch.zeros(4), list(donors), 0.5)
    >>> [round(x, 5) for x in found.out.tolist()], [round(x, 5) for x in found.weights]
    ([2.33333, 1.0, 0.0, 0.0], [0.29412, 0.58824, 0.11765])
    """
    args.check_donors("sce", "donors", donors, base)
    args.check_share("sce", "select", select)
    args.check_finite("sce", "scale", scale)
    zero = args.zero_nonfinite("sce", nonfinite)
    stochastic = args.rounding_key("sce", rounding, key)
    inputs = {"base": base, **args.named("donors", donors)}
    out = args.output("sce", base, out, residual_out, dtype, inputs)
    limits, energies = torch.ops.graftwork.sce_select(list(donors), base, float(select), zero)
    total = float(energies.sum())
    weights = (energies / total if total > 0 else torch.full_like(energies, 1 / len(donors))).tolist()
    options = Options(
        kind=NONE if select >= 1 else VARIANCE,
        columns=row_length(base),
        consensus=UNWEIGHTED_SUM,
        normalize=1,
        zero_nonfinite=int(zero),
        stochastic=int(stochastic is not None),
        key0=stochastic[0] if stochastic else 0,
        key1=stochastic[1] if stochastic else 0,
    )
    table = torch.tensor([weights], dtype=torch.float32)
    rows = torch.cat([limits, torch.zeros(2, dtype=torch.int64)]).repeat(len(donors), 1)
    counts = run_merge(donors, base, table, weights, rows, scale, options, out, residual_out)
    return SceResult(out, counts, weights)


def _select(donors: list[Tensor], base: Tensor, select: float, zero_nonfinite: bool) -> tuple[Tensor, Tensor]:
    # The tensors that the pointers are of must live on.
    held, told = held_weights(donors, base)
    core, count, numel = _native.load("_core"), len(donors), base.numel()
    threads, zero = _native.threads_for(numel), int(zero_nonfinite)
    nbytes = max(
        core.threshold_workspace_bytes(count, numel, threads),
        core.merge_workspace_bytes(count, VARIANCE, 1, threads),
    )
    workspace, nonzero = _native.buffer("workspace", nbytes), torch.empty(1, dtype=torch.int64)
    where, like = (*told, count, numel), held[0]
    _native.call("count_variance", *where, zero, nonzero, workspace, like=like, threads=threads)
    keep, found = selected(select, int(nonzero), numel), torch.empty(3, dtype=torch.int64)
    _native.call("variance_threshold", *where, keep, zero, found, workspace, like=like, threads=threads)
    limits, sums = found[::2].contiguous(), torch.empty(count, 3, dtype=torch.float64)
    rows = torch.cat([limits, torch.zeros(2, dtype=torch.int64)]).repeat(count, 1)
    what = VARIANCE, rows, 1, zero, sums, workspace
    _native.call("sparsify_norms", *where, *what, like=like, threads=threads)
    return limits, sums[:, 2].clone()


def _select_fake(
    donors: list[Tensor], base: Tensor, select: float, zero_nonfinite: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty(2, dtype=torch.int64), torch.empty(len(donors), dtype=torch.float64)


def _select_cuda(
    donors: list[Tensor], base: Tensor, select: float, zero_nonfinite: bool
) -> tuple[Tensor, Tensor]:
    limits, energies = _arena.on_host_copies(_select)(donors, base, select, zero_nonfinite)
    return limits.cpu(), energies.cpu()


_native.register(
    "sce_select",
    "(Tensor[] donors, Tensor base, float select, bool zero_nonfinite) -> (Tensor, Tensor)",
    reference=reference.sce_select,
    fake=_select_fake,
    cpu=_native.Route("_core", FORMATS, _select),
    cuda=_native.Route("_core", FORMATS, _select_cuda),
)
