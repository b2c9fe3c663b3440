"""Inner products and energies of differences in plain torch, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.reference.merge.sparsify import above, difference, scores, threshold, variance


def merge_gram(tensors: Sequence[Tensor], base: Tensor | None, rowwise: bool) -> Tensor:
    """float64 ``[n, n]``, or ``[rows, n, n]``, on the host: the inner products of the differences."""
    rows = tensors[0].shape[0] if rowwise else 1
    columns = tensors[0].numel() // max(rows, 1)
    each = [difference(tensor, base, False).double().view(rows, columns) for tensor in tensors]
    stacked = torch.stack(each, 1)
    gram = (stacked @ stacked.transpose(1, 2)).cpu()
    return gram if rowwise else gram[0]


def selected(select: float, nonzero: int, numel: int) -> int:
    """How many weights SCE selects, of those whose variance is not 0."""
    return numel if select >= 1 else int(select * nonzero)


def sce_select(
    donors: Sequence[Tensor], base: Tensor, select: float, zero_nonfinite: bool
) -> tuple[Tensor, Tensor]:
    """``(limits, energies)``: the variance's threshold, bits and cut; float64 ``[donors]``: Σd² of what is selected."""
    differences = [difference(donor, base, zero_nonfinite) for donor in donors]
    mine = scores(variance(differences))
    bits, _, cut = threshold(mine, selected(select, int((mine != 0).sum()), mine.numel()))
    kept = above(mine, bits, cut)
    energies = [torch.where(kept, values.double(), 0.0).square().sum() for values in differences]
    return torch.tensor([bits, cut]), torch.stack(energies).cpu()
