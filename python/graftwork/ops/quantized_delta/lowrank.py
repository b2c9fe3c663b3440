"""Deltas as quantised singular triples: how they are stored, and how many of them a budget buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graftwork.ops import _checks
from graftwork.ops.quantized_delta.dequantize import dequantize
from graftwork.ops.quantized_delta.formats import PackedDelta, PackFormat
from graftwork.reference.quantized_delta import lowrank as reference

#: Widths of a group of triples: 16 is float16 as it is, 0 leaves the group out.
GROUP_BITS = (16, 8, 4, 3, 2, 1, 0)
#: How a factor of so many bits is stored unless the caller says otherwise.
FACTOR_FORMATS: Mapping[int, PackFormat] = {
    8: PackFormat(8, "sym", 128, torch.bfloat16),
    4: PackFormat(4, "midrise", 128, torch.bfloat16),
    3: PackFormat(3, "midrise", 128, torch.bfloat16),
    2: PackFormat(2, "midrise", 128, torch.bfloat16),
    1: PackFormat(1, "sign", 128, torch.bfloat16),
}

#: (triples, bits) in the order of the singular values; None is all that are left.
Groups = Sequence[tuple[int | None, int]]


@dataclass(frozen=True, slots=True, eq=False)
class LowRankGroup:
    """Consecutive singular triples of one width: Σ_k s_k·u_k·v_kᵀ.

    Attributes
    ----------
    start : int
        The number of the first triple of the decomposition.
    left : PackedDelta or Tensor
        Uᵀ, one triple a row: packed ``[n, O]``, or float16.
    right : PackedDelta or Tensor
        Vᵀ: packed ``[n, I]``, or float16.
    values : Tensor
        S: float32 ``[n]``.

    Raises
    ------
    TypeError, ValueError
        The fields do not belong together.
    """

    start: int
    left: PackedDelta | Tensor
    right: PackedDelta | Tensor
    values: Tensor

    def __post_init__(self) -> None:
        _checks.check_tensor("LowRankGroup", "values", self.values)
        _checks.check_dtype("LowRankGroup", "values", self.values, (torch.float32,), "S is never quantised")
        if self.values.dim() != 1 or self.start < 0:
            raise ValueError(
                f"LowRankGroup: values must be one-dimensional and start at least 0, got {tuple(self.values.shape)} "
                f"and {self.start}"
            )
        for name, factor in (("left", self.left), ("right", self.right)):
            if isinstance(factor, Tensor):
                _checks.check_dtype("LowRankGroup", name, factor, (torch.float16,), "pack it otherwise")
            elif not isinstance(factor, PackedDelta):
                raise TypeError(
                    f"LowRankGroup: {name} must be a PackedDelta or float16, got {type(factor).__name__}"
                )
            if len(factor.shape) != 2 or factor.shape[0] != self.values.numel():
                raise ValueError(
                    f"LowRankGroup: {name} must have a row for each of {self.values.numel()} triples, got shape "
                    f"{tuple(factor.shape)}"
                )

    @property
    def count(self) -> int:
        """How many triples."""
        return self.values.numel()

    @property
    def bits(self) -> int:
        """The width of the codes of Vᵀ; 16 for float16."""
        return 16 if isinstance(self.right, Tensor) else self.right.format.bits

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.left.nbytes + self.right.nbytes + self.values.nbytes

    def to(self, device: torch.device | str) -> LowRankGroup:
        """The same group with its tensors on another device."""
        left, right = self.left.to(device), self.right.to(device)
        return replace(self, left=left, right=right, values=self.values.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class LowRankPack:
    """A matrix ``[O, I]`` as groups of quantised singular triples, Δ̂ = Σ_k s_k·u_k·v_kᵀ.

    Attributes
    ----------
    shape : tuple of int
        (O, I).
    groups : tuple of LowRankGroup
        In the order of the triples, without overlaps; triples that were left out are missing. May be empty: zeros.

    Raises
    ------
    ValueError
        A group does not fit the shape or the group before.
    """

    shape: tuple[int, int]
    groups: tuple[LowRankGroup, ...]

    def __post_init__(self) -> None:
        end = 0
        for number, group in enumerate(self.groups):
            found = group.left.shape[1], group.right.shape[1]
            if found != self.shape:
                raise ValueError(
                    f"LowRankPack: groups[{number}] must be of a matrix of shape {self.shape}, got {found}"
                )
            if group.start < end:
                raise ValueError(
                    f"LowRankPack: groups[{number}] must start at triple {end} or later, got {group.start}; order them"
                )
            end = group.start + group.count

    @property
    def rank(self) -> int:
        """How many triples are kept."""
        return sum(group.count for group in self.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(group.nbytes for group in self.groups)

    @property
    def bits_per_weight(self) -> float:
        """All bits for each element of the matrix; 0 if there is none."""
        numel = self.shape[0] * self.shape[1]
        return 8 * self.nbytes / numel if numel else 0.0

    def to(self, device: torch.device | str) -> LowRankPack:
        """The same pack with its tensors on another device."""
        return replace(self, groups=tuple(group.to(device) for group in self.groups))

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Uᵀ ``[rank, O]``, S ``[rank]`` and Vᵀ ``[rank, I]``, dequantised to float32."""
        if not self.groups:
            return torch.empty(0, self.shape[0]), torch.empty(0), torch.empty(0, self.shape[1])
        left = torch.cat([unpacked(group.left) for group in self.groups])
        right = torch.cat([unpacked(group.right) for group in self.groups])
        return left, torch.cat([group.values for group in self.groups]), right


def unpacked(factor: PackedDelta | Tensor) -> Tensor:
    """A factor as float32."""
    return factor.float() if isinstance(factor, Tensor) else dequantize(factor)


def resolve_groups(groups: Groups, rank: int) -> list[tuple[int, int, int]]:
    """Cut `rank` triples into groups: (start, count, bits) of each, those of 0 bits left out.

    Parameters
    ----------
    groups : sequence of (int or None, int)
        Triples and their width, one of :data:`GROUP_BITS`, in the order of the singular values. None is all that are
        left, in the last group only. Triples beyond the groups are left out; groups beyond the triples are cut.
    rank : int
        How many triples there are.

    Raises
    ------
    TypeError, ValueError
        A group is not as above.

    Examples
    --------
    >>> resolve_groups([(2, 8), (32, 3), (None, 2)], 100)
    [(0, 2, 8), (2, 32, 3), (34, 66, 2)]
    """
    found, start = [], 0
    for number, (count, bits) in enumerate(groups):
        if bits not in GROUP_BITS:
            raise ValueError(
                f"groups[{number}] must have bits of {', '.join(map(str, GROUP_BITS))}, got {bits!r}; 0 leaves it out"
            )
        if count is None and number != len(groups) - 1:
            raise ValueError(
                f"groups[{number}] must have a number of triples; only the last may take what is left"
            )
        if count is not None and (type(count) is not int or count < 0):
            raise ValueError(f"groups[{number}] must have a number of triples of at least 0, got {count!r}")
        taken = rank - start if count is None else min(count, rank - start)
        if taken and bits:
            found.append((start, taken, bits))
        start += taken
    return found


def rank_for_bpw(
    shape: tuple[int, int],
    bpw: float,
    groups: Groups,
    *,
    formats: Mapping[int, PackFormat] | None = None,
    codes_only: bool = False,
) -> int:
    """Find the largest rank that a budget of bits for each weight buys.

    The triples are taken in their order, each with the bits of its group, while bits_total ≤ bpw·O·I, and at most
    min(O, I) of them.

    Parameters
    ----------
    shape : tuple of int
        (O, I).
    bpw : float
        The budget, at least 0.
    groups : sequence of (int or None, int)
        As for :func:`resolve_groups`.
    formats : mapping of int to PackFormat, optional
        As for :func:`lowrank_quantize`.
    codes_only : bool
        Count Σ_g n_g·b_g·(O + I) alone, as papers do. Else all that is stored: scales, padding and S too.

    Returns
    -------
    int
        A rank for :func:`svd_delta`. Triples of groups of 0 bits are counted where others follow them.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Differs from GraftLLM, whose rank does not depend on the shape: 1000 triples of its widths are 1.21 bits for each
    weight of 4096 × 4096, but 3.03 for 1024 × 4096.

    Examples
    --------
    >>> groups = [(2, 8), (32, 3), (None, 2)]
    >>> [rank_for_bpw((4096, 4096), 1.0, groups, codes_only=codes_only) for codes_only in (True, False)]
    [1002, 941]
    """
    rows, columns = shape
    if rows < 0 or columns < 0:
        raise ValueError(f"rank_for_bpw: shape must not be negative, got {shape}")
    if not bpw >= 0:
        raise ValueError(f"rank_for_bpw: bpw must be at least 0, got {bpw}")
    most, left = min(rows, columns), bpw * rows * columns
    rank = 0
    for start, count, bits in resolve_groups(groups, most):
        each = reference.bits_total([(1, bits)], rows, columns)
        if not codes_only:
            each = 8 * triple_bytes(rows, columns, bits, formats)
        taken = min(count, int(left / each + 1e-9))  # a budget that was divided and multiplied again
        rank = start + taken if taken else rank
        left -= taken * each
        if taken < count:
            break
    return rank


def triple_bytes(rows: int, columns: int, bits: int, formats: Mapping[int, PackFormat] | None = None) -> int:
    """Bytes of one singular triple of a matrix ``[rows, columns]``: codes, scales, padding and its value."""
    if bits == 16:
        return 2 * (rows + columns) + 4
    format = factor_format(bits, formats)
    return format.nbytes(1, rows) + format.nbytes(1, columns) + 4


def factor_format(bits: int, formats: Mapping[int, PackFormat] | None) -> PackFormat:
    """The format of the factors of a group of so many bits."""
    format = FACTOR_FORMATS[bits] if formats is None or bits not in formats else formats[bits]
    if format.bits != bits:
        raise ValueError(f"formats[{bits}] must have codes of {bits} bits, got {format.bits}")
    return format
