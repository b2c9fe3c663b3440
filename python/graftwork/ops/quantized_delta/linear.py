"""A linear layer for a batch whose rows belong to different fine-tunes of one weight.

GPU: on copies on the host. The base's product is torch's everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.quantized_delta import _linear_native
from graftwork.ops.quantized_delta.formats import PackedDelta
from graftwork.ops.quantized_delta.lowrank import LowRankPack
from graftwork.ops.sparse_update import _arena

DTYPES = _linear_native.DTYPES
INDEX_DTYPES = (torch.int32, torch.int64)

Pack = PackedDelta | LowRankPack | None


class PackList:
    """Packs of matrices of one shape, checked and laid out once for many calls of :func:`delta_linear`.

    Parameters
    ----------
    packs : sequence of PackedDelta, LowRankPack or None
        All of one shape and on one device. None adds nothing.

    Attributes
    ----------
    packs : tuple
        As given.
    shape : tuple of int or None
        (O, I); None where there is no pack.

    Raises
    ------
    TypeError, ValueError
        A pack is not as above.
    """

    def __init__(self, packs: Sequence[Pack]) -> None:
        self.packs = tuple(packs)
        self.shape: tuple[int, int] | None = None
        self.device: torch.device | None = None
        for number, pack in enumerate(self.packs):
            if pack is not None:
                self._check(f"packs[{number}]", pack)
        self.flat = _linear_native.flatten(self.packs, self.device or torch.device("cpu"))

    def _check(self, name: str, pack: PackedDelta | LowRankPack) -> None:
        if not isinstance(pack, PackedDelta | LowRankPack):
            raise TypeError(
                f"delta_linear: {name} must be a PackedDelta, a LowRankPack or None, got {type(pack).__name__}"
            )
        self.shape = self.shape or pack.shape
        if pack.shape != self.shape:
            raise ValueError(
                f"delta_linear: {name} must have the shape of the packs before, {self.shape}, got {pack.shape}"
            )
        for part, device in _linear_native.devices_of(pack):
            self.device = self.device or device
            if device != self.device:
                raise ValueError(
                    f"delta_linear: {name}.{part} must be on the device of the packs before, {self.device}, got {device}"
                )

    def __len__(self) -> int:
        return len(self.packs)


def delta_linear(
    x: Tensor,
    weight: Tensor | None,
    packs: Sequence[Pack] | PackList,
    ids: Tensor | None = None,
    *,
    indptr: Tensor | None = None,
    bias: Tensor | None = None,
    scales: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Multiply with one weight and, row by row, the packed delta of a fine-tune: y_t = x_t·Wᵀ + b + λ·x_t·Δ̂ᵀ.

    The delta of row t is that of the pack that `ids` or `indptr` name for it. All packs stay packed: what is read is
    the base once, and the codes of the packs in use once for every 16 of their rows.

    Parameters
    ----------
    x : Tensor
        float32, bfloat16 or float16 ``[T, I]``. A view is copied.
    weight : Tensor or None
        The base ``[O, I]``, of the dtype and device of x. None: the deltas alone.
    packs : sequence of PackedDelta, LowRankPack or None, or PackList
        Of matrices ``[O, I]``, on the device of x; of any formats side by side. None adds nothing. A :class:`PackList`
        spares a small product the checks.
    ids : Tensor, optional
        int32 or int64 ``[T]``: the number of each row's pack, or −1 for the base alone. Any order and repetitions.
    indptr : Tensor, optional
        Instead of `ids`, int32 or int64 ``[len(packs) + 1]``: pack m has the rows ``indptr[m]`` to ``indptr[m + 1]``, which
        may be none. From 0, not decreasing, to T.
    bias : Tensor, optional
        ``[O]``, or ``[T, O]`` with one for each row; of the dtype of x or float32, on its device.
    scales : sequence of float, or Tensor, optional
        λ, finite: a number for each pack, or float32 ``[T]`` with one for each row. None: 1. A row of λ = 0 gets the
        base alone.

    Returns
    -------
    Tensor
        ``[T, O]`` of the dtype of x.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or weight is None and so are all packs.

    Notes
    -----
    Deltas are multiplied and added up in float32. They, with the bias, are what the base's product starts from, whose sums
    are float32: the result is rounded once, and the delta once before that where x is not float32.

    Deterministic: what a delta gives for a row does not depend on the other rows of the batch nor on threads, bit for bit;
    with AVX2 and AVX-512 it is the same, and packs of 1 to 3 bits give it at every level. The base's product is as
    deterministic as torch's. On other devices than the CPU the reference's products may depend on the batch. A value
    that is not finite in a row of x makes its results not finite, and no others.

    Not differentiable: a pack has no gradient, and the result never requires one.

    For 1-bit codes the sum of ±x over four columns is looked up among the sixteen that are possible, which are made once
    for a row of x and all O outputs. Differs from the identity Σ s(2m − 1)x = s(2·Σ_{m=1} x − Σ x) of BitDelta-like
    kernels in that nothing cancels.

    Examples
    --------
    >>> from graftwork.ops.quantized_delta import PackFormat, delta_quantize
    >>> pack, _ = delta_quantize(torch.tensor([[1.0, -1.0], [2.0, 2.0]]), None, PackFormat(1, "sign", 0))
    >>> delta_linear(torch.ones(2, 2), torch.eye(2), [pack], torch.tensor([-1, 0])).tolist()
    [[1.0, 1.0], [1.0, 5.0]]
    """
    listed = packs if isinstance(packs, PackList) else PackList(packs)
    rows = _check_matrices(x, weight, bias, listed)
    if ids is not None and indptr is None:
        _check_vector("ids", ids, INDEX_DTYPES, x.shape[0], "the rows of x", x)
    elif ids is None and indptr is not None:
        ids = _ids_of(indptr, x, len(listed))
    else:
        raise ValueError(
            "delta_linear: give either ids, a pack for each row, or indptr, the rows of each pack"
        )
    factors = _factors(scales, ids, x, len(listed))
    return _native.invoke("delta_linear", x, weight, bias, ids, factors, *listed.flat, rows)


def _check_matrices(x: Tensor, weight: Tensor | None, bias: Tensor | None, packs: PackList) -> int:
    """Check what has rows and columns; returns O."""
    _checks.check_tensor("delta_linear", "x", x)
    _checks.check_dtype("delta_linear", "x", x, DTYPES, "convert it first")
    if x.dim() != 2:
        raise ValueError(
            f"delta_linear: x must have two dimensions, got shape {tuple(x.shape)}; reshape it to [rows, columns] and "
            f"repeat its ids"
        )
    shape = packs.shape
    if weight is not None:
        _check_like_x("weight", weight, x, (x.dtype,), (2,))
        if shape is not None and weight.shape != shape:
            raise ValueError(
                f"delta_linear: weight must have the shape of the packs, {shape}, got {tuple(weight.shape)}"
            )
        shape = weight.shape[0], weight.shape[1]
    if shape is None:
        raise ValueError("delta_linear: weight must be given where no pack is, for the shape of the result")
    if shape[1] != x.shape[1]:
        name = "packs" if weight is None else "weight"
        raise ValueError(
            f"delta_linear: {name} must have the {x.shape[1]} columns of x, [O, I], got shape {shape}"
        )
    if packs.device is not None and packs.device != x.device:
        raise ValueError(
            f"delta_linear: packs must be on the device of x, {x.device}, got {packs.device}; call their .to()"
        )
    if bias is not None:
        _check_like_x("bias", bias, x, (x.dtype, torch.float32), (1, 2))
        wanted = (shape[0],) if bias.dim() == 1 else (x.shape[0], shape[0])
        if bias.shape != wanted:
            raise ValueError(
                f"delta_linear: bias must have shape {(shape[0],)} or {(x.shape[0], shape[0])}, got {tuple(bias.shape)}"
            )
    return shape[0]


def _check_like_x(
    name: str, value: Tensor, x: Tensor, dtypes: Sequence[torch.dtype], dimensions: Sequence[int]
) -> None:
    _checks.check_tensor("delta_linear", name, value)
    _checks.check_dtype("delta_linear", name, value, dtypes, f"x is {x.dtype}, and nothing is cast silently")
    if value.dim() not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise ValueError(
            f"delta_linear: {name} must have {wanted} dimensions, got shape {tuple(value.shape)}"
        )
    _checks.check_device("delta_linear", name, value, "x", x)


def _check_vector(
    name: str, value: Tensor, dtypes: Sequence[torch.dtype], length: int, of: str, x: Tensor
) -> None:
    _checks.check_tensor("delta_linear", name, value)
    _checks.check_dtype("delta_linear", name, value, dtypes, "convert it first")
    if value.shape != (length,):
        raise ValueError(
            f"delta_linear: {name} must be one-dimensional of {length} elements, for {of}, got shape {tuple(value.shape)}"
        )
    _checks.check_device("delta_linear", name, value, "x", x)


def _ids_of(indptr: Tensor, x: Tensor, packs: int) -> Tensor:
    _check_vector("indptr", indptr, INDEX_DTYPES, packs + 1, "the packs and the end", x)
    lengths = indptr.diff()
    given = None if torch.compiler.is_compiling() else indptr.tolist()  # else repeat_interleave looks at it
    if given is not None and (sorted(given) != given or given[0] != 0 or given[-1] != x.shape[0]):
        raise ValueError(
            f"delta_linear: indptr must go from 0 to the {x.shape[0]} rows of x and never down, got {given}"
        )
    return torch.arange(packs, device=x.device).repeat_interleave(lengths, output_size=x.shape[0])


def _factors(scales: Sequence[float] | Tensor | None, ids: Tensor, x: Tensor, packs: int) -> Tensor:
    """λ of each row, float32 [T]."""
    if scales is None:
        return torch.ones(x.shape[0], device=x.device)
    if isinstance(scales, Tensor):
        _check_vector("scales", scales, (torch.float32,), x.shape[0], "the rows of x", x)
        if not torch.compiler.is_compiling() and not bool(scales.isfinite().all()):
            raise ValueError("delta_linear: scales must be finite")
        return scales.detach()
    if len(scales) != packs:
        raise ValueError(
            f"delta_linear: scales must be {packs} numbers, one for each pack, got {len(scales)}"
        )
    for number, scale in enumerate(scales):
        _arena.check_number("delta_linear", f"scales[{number}]", scale)
    table = torch.tensor([*scales, 0.0], dtype=torch.float32, device=x.device)  # the last for -1
    return table[ids.clamp(-1, packs - 1).long()]
