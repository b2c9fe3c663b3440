"""Where the largest differences of a donor end, exactly.

A sample brackets the score that is looked for, one reading counts the scores in the bracket, one more those in the bin
where it is; a bracket that misses it only costs another reading. Differences are never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.merge import arguments as args
from graftwork.ops.merge.arguments import FORMATS, Nonfinite, held_weights, table_on_host
from graftwork.reference.merge import sparsify as reference


class Threshold(NamedTuple):
    """The `keep` largest magnitudes of a difference: those above `bits`, and those at `bits` before `cut`."""

    #: The magnitude's float32 bits.
    bits: int
    #: How many of those that have it are kept.
    ties: int
    #: Flat index behind the last of these.
    cut: int


def magnitude_thresholds(
    donors: Sequence[Tensor],
    base: Tensor | None,
    keep: Sequence[int],
    *,
    nonfinite: Nonfinite = "propagate",
) -> list[Threshold]:
    """Where the `keep[k]` largest |donor_k − base| end, exactly, for several donors in the same readings.

    Parameters
    ----------
    donors : list of Tensor
        float16, bfloat16 or float32, of one shape, on one device; dtypes may differ. Views are copied.
    base : Tensor or None
        As the donors. None: the magnitudes are those of the donors themselves.
    keep : sequence of int
        For each donor, 0 to as many as it has.
    nonfinite : {"propagate", "zero"}
        A NaN difference is the largest of all, or one with an element that is not finite is 0.

    Returns
    -------
    list of Threshold
        For each donor. Of equal magnitudes those with the lowest flat index are kept, so that there are exactly
        `keep`; for 0 nothing is above the threshold.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    The magnitude is that of the float32 difference, also for 16-bit weights. Deterministic: the result does not depend
    on ISA level or threads. Two readings of the tensors as a rule, one where a single score has all that a sample says
    may be the threshold; differences are never stored.

    Examples
    --------
    >>> base = torch.zeros(5)
    >>> magnitude_thresholds([torch.tensor([3.0, -1.0, 2.0, 1.0, -2.0])], base, [2])
    [Threshold(bits=1073741824, ties=1, cut=3)]
    """
    args.check_donors("magnitude_thresholds", "donors", donors, base)
    args.check_numbers("magnitude_thresholds", "keep", keep, len(donors))
    check_keep("magnitude_thresholds", "keep", keep, donors[0].numel())
    found = torch.ops.graftwork.magnitude_thresholds(
        list(donors), base, list(keep), args.zero_nonfinite("magnitude_thresholds", nonfinite)
    )
    return [Threshold(*row) for row in found.tolist()]


def magnitude_threshold(tuned: Tensor, base: Tensor | None, keep: int) -> Threshold:
    """:func:`magnitude_thresholds` of one tensor."""
    return magnitude_thresholds([tuned], base, [keep])[0]


def check_keep(operation: str, name: str, keep: Sequence[int], numel: int) -> None:
    for number, count in enumerate(keep):
        if not 0 <= count <= numel:
            raise ValueError(
                f"{operation}: {name}[{number}] must be in [0, {numel}], the tensor's elements, got {count}"
            )


def _thresholds(donors: list[Tensor], base: Tensor | None, keeps: list[int], zero_nonfinite: bool) -> Tensor:
    held, told = held_weights(donors, base)
    count, numel = len(donors), donors[0].numel()
    found = torch.empty(count, 3, dtype=torch.int64)
    threads = _native.threads_for(numel)
    nbytes = _native.load("_core").threshold_workspace_bytes(count, numel, threads)
    what = torch.tensor(keeps), int(zero_nonfinite), found, _native.buffer("workspace", nbytes)
    _native.call("magnitude_thresholds", *told, count, numel, *what, like=held[0], threads=threads)
    return found


def _thresholds_fake(
    donors: list[Tensor], base: Tensor | None, keeps: list[int], zero_nonfinite: bool
) -> Tensor:
    return torch.empty(len(donors), 3, dtype=torch.int64)


_native.register(
    "magnitude_thresholds",
    "(Tensor[] donors, Tensor? base, int[] keeps, bool zero_nonfinite) -> Tensor",
    reference=reference.magnitude_thresholds,
    fake=_thresholds_fake,
    cpu=_native.Route("_core", FORMATS, _thresholds),
    cuda=_native.Route("_core", FORMATS, table_on_host(_thresholds)),
)
