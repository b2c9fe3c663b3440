"""Lossless differences between a base tensor and its fine-tune.

Three operations. The ordinal planes store a fine-tune bit for bit as its distance from the base; delta_stats measures
in one pass what changed, and how few bits could say it; update_survival measures how much of an update outlives
saving in a 16-bit format.

GPU: the planes and delta_stats are CUDA (bit manipulation, byte scatter, shared-memory histograms); update_survival
is Triton (an elementwise chain with one reduction, which Triton fuses as well as hand-written code would).

None is differentiable: inputs may require gradients, results never do, as under :class:`torch.no_grad`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.reference import lossless_delta as reference
from graftwork.reference.lossless_delta import EXPONENT_BITS, INTEGERS

WORDS = (*EXPONENT_BITS, *INTEGERS)
#: The float formats of the native code, in the order of its numbers.
FORMATS = (torch.float16, torch.bfloat16, torch.float32)
SURVIVAL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SAVE_DTYPES = (torch.bfloat16, torch.float16)
_NO_WORD = "view complex numbers with torch.view_as_real, packed types as bytes with .view(torch.uint8)"


class DeltaStats(NamedTuple):
    """What :func:`delta_stats` returns, on the device of its inputs.

    Attributes
    ----------
    counts : Tensor
        int64 ``[5]``: elements whose bits differ; NaN in base; Inf in base; NaN in tuned; Inf in tuned.
    sums : Tensor
        float64 ``[4]``: Σd², Σbase², Σtuned², max|d| with d = tuned − base, over pairs that are both finite.
    histogram : Tensor
        int64 ``[2^exponent bits, 16 itemsize + 1]``: elements by the base's biased exponent field (one row for
        integers) and by class, column 8·itemsize + sign(d)·bit_length(|d|) of the ordinal difference d.
    """

    counts: Tensor
    sums: Tensor
    histogram: Tensor


class UpdateSurvival(NamedTuple):
    """What :func:`update_survival` returns, on the device of its inputs; the properties copy it to the host.

    Attributes
    ----------
    counts : Tensor
        int64 ``[3]``: changed (w ≠ 0); lost (w ≠ 0 and s = 0); overflow (the saved fine-tune is infinite).
    sums : Tensor
        float64 ``[3]``: Σw², Σs², Σw·s of the wanted updates w and the saved updates s.

    Counts and sums of several tensors may be added before the properties are read.
    """

    counts: Tensor
    sums: Tensor

    @property
    def lost_share(self) -> float:
        """Share of the changed elements whose update is gone; 0 where nothing changed."""
        changed, lost, _ = self.counts.tolist()
        return lost / changed if changed else 0.0

    @property
    def retained_norm(self) -> float:
        """‖s‖ / ‖w‖; 1 where nothing changed."""
        wanted, saved, _ = self.sums.tolist()
        return math.sqrt(saved / wanted) if wanted else 1.0

    @property
    def cosine(self) -> float:
        """w·s / (‖w‖ ‖s‖); 1 where nothing changed, 0 where nothing survived."""
        wanted, saved, product = self.sums.tolist()
        if not wanted:
            return 1.0
        return product / (math.sqrt(wanted) * math.sqrt(saved)) if saved else 0.0


def encode_ordinal_planes(base: Tensor, tuned: Tensor, planes: Tensor | None = None) -> Tensor:
    """Store a fine-tune as its bit-exact distance from the base, split into byte planes.

    A float's word u has the position k(u) = u ^ (all ones if the sign is set, else the sign bit alone): its order
    among all bit patterns. Integers keep k(u) = u. With W = itemsize,

        d = k(tuned) − k(base) mod 2^8W,   z = zigzag(d),   planes[j, i] = byte j of z_i, least significant first.

    A bijection on bit patterns: −0, subnormals, infinities and NaN payloads come back exactly.

    Parameters
    ----------
    base, tuned : Tensor
        Same shape, dtype and device; any float, integer or bool dtype of 1, 2, 4 or 8 bytes. Views are copied.
    planes : Tensor, optional
        uint8 ``[W, numel]``, contiguous, apart from the inputs in memory; overwritten. None: a new tensor.

    Returns
    -------
    Tensor
        `planes`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the bytes do not depend on device, ISA level or threads. Map and zigzag: FM-Delta and fpzip's
    ordering of floats, with the map made a bijection (theirs merges −0 with +0).

    Examples
    --------
    >>> base = torch.tensor([0.02, -0.02], dtype=torch.bfloat16)
    >>> tuned = torch.tensor([0.0203, -0.0198], dtype=torch.bfloat16)
    >>> encode_ordinal_planes(base, tuned).tolist()
    [[4, 4], [0, 0]]
    """
    _checks.check_pair("encode_ordinal_planes", base, tuned, WORDS, _NO_WORD)
    if planes is None:
        planes = torch.empty(base.itemsize, base.numel(), dtype=torch.uint8, device=base.device)
    else:
        _check_planes("encode_ordinal_planes", planes, base)
        _checks.check_output("encode_ordinal_planes", "planes", planes)
    torch.ops.graftwork.encode_ordinal_planes(base.detach(), tuned.detach(), planes)
    return planes


def decode_ordinal_planes(
    base: Tensor, planes: Tensor, tuned: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """Restore a fine-tune from its base and :func:`encode_ordinal_planes`, bit for bit.

    Parameters
    ----------
    base : Tensor
        The tensor that the planes were made against. A view is copied.
    planes : Tensor
        uint8 ``[itemsize, numel]`` on the device of `base`.
    tuned : Tensor, optional
        Like `base`, contiguous, apart from the inputs in memory; overwritten. None: a new tensor.
    reverse : bool
        Take the differences away instead of adding them: gives the base for the fine-tune.

    Returns
    -------
    Tensor
        `tuned`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic and exact for every bit pattern; any planes are valid, so a wrong base goes unnoticed here.

    Examples
    --------
    >>> base, tuned = torch.randn(2, 3), torch.randn(2, 3)
    >>> torch.equal(decode_ordinal_planes(base, encode_ordinal_planes(base, tuned)), tuned)
    True
    """
    _checks.check_tensor("decode_ordinal_planes", "base", base)
    _checks.check_dtype("decode_ordinal_planes", "base", base, WORDS, _NO_WORD)
    _check_planes("decode_ordinal_planes", planes, base)
    if tuned is None:
        tuned = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    else:
        _checks.check_pair("decode_ordinal_planes", base, tuned, WORDS, _NO_WORD)
        _checks.check_output("decode_ordinal_planes", "tuned", tuned)
    torch.ops.graftwork.decode_ordinal_planes(base.detach(), planes, tuned.detach(), reverse)
    return tuned


def delta_stats(base: Tensor, tuned: Tensor) -> DeltaStats:
    """Measure in one pass what a fine-tune changed: counts, norms, and ordinal differences by class and exponent.

    The class of an element is sign(d)·bit_length(|d|) of its ordinal difference d (:func:`encode_ordinal_planes`),
    in −8W … 8W for W = itemsize. The class and the |class| − 1 bits below the leading one give d back, so the
    histogram bounds what a codec of classes in the context of the base's exponent can reach
    (:func:`conditional_entropy_bits`).

    Parameters
    ----------
    base, tuned : Tensor
        Same shape, dtype and device; any float, integer or bool dtype of 1, 2, 4 or 8 bytes. Views are copied.

    Returns
    -------
    DeltaStats
        On the device of the inputs.

    Raises
    ------
    TypeError, ValueError
        The arguments do not match.

    Notes
    -----
    Sums are float64 (64-bit integers are rounded to it). Natively the same bits come out for any number of threads
    and at any ISA level: fixed chunks, combined in order. The counts and the histogram are exact on every device.

    Examples
    --------
    >>> base = torch.tensor([0.02, 1.0], dtype=torch.bfloat16)
    >>> stats = delta_stats(base, torch.tensor([0.0203, 1.0], dtype=torch.bfloat16))
    >>> stats.counts.tolist(), stats.histogram[121, 16 + 2].item()
    ([1, 0, 0, 0, 0], 1)
    """
    _checks.check_pair("delta_stats", base, tuned, WORDS, _NO_WORD)
    return DeltaStats(*torch.ops.graftwork.delta_stats(base.detach(), tuned.detach()))


def update_survival(base: Tensor, tuned: Tensor, save_dtype: torch.dtype) -> UpdateSurvival:
    """Measure how much of an update survives when weights are saved as `save_dtype`.

    Over pairs that are both finite, with the wanted update w and the saved update s,

        w = tuned − base,   s = round(tuned) − round(base),   s = 0 where a rounded weight is infinite,

    rounding to the nearest value of `save_dtype`, ties to even. An update smaller than half the spacing of the saved
    format around its weight is lost.

    Parameters
    ----------
    base, tuned : Tensor
        float64, float32, bfloat16 or float16; same shape, dtype and device. Views are copied.
    save_dtype : torch.dtype
        ``torch.bfloat16`` or ``torch.float16``.

    Returns
    -------
    UpdateSurvival
        On the device of the inputs.

    Raises
    ------
    TypeError, ValueError
        The arguments do not match, or the dtypes are not as above.

    Notes
    -----
    Sums are float64; natively the same bits come out for any number of threads and at any ISA level. float64 runs
    by the reference and rounds as torch converts, by way of float32.

    Examples
    --------
    >>> base = torch.tensor([1.0, 1.0])
    >>> update_survival(base, base + torch.tensor([1e-4, 1e-2]), torch.bfloat16).lost_share
    0.5
    """
    _checks.check_pair("update_survival", base, tuned, SURVIVAL_DTYPES, _NO_WORD)
    if save_dtype not in SAVE_DTYPES:
        raise TypeError(
            f"update_survival: save_dtype must be one of {_checks.dtype_names(SAVE_DTYPES)}, got {save_dtype}"
        )
    return UpdateSurvival(*torch.ops.graftwork.update_survival(base.detach(), tuned.detach(), save_dtype))


def conditional_entropy_bits(histogram: Tensor) -> float:
    """Least size of a tensor's ordinal differences when classes are coded in the context of the base's exponent.

        Σ_rows Σ_classes n log2(n_row / n)  +  Σ_classes n · max(|class| − 1, 0)

    Parameters
    ----------
    histogram : Tensor
        int64 ``[rows, columns]`` of :class:`DeltaStats`; histograms of one dtype may be added first.

    Returns
    -------
    float
        Bits in all: the classes' entropy given the row, and the bits below each leading one stored as they are.
    """
    return _coded_bits(histogram.double().cpu())


def order0_entropy_bits(histogram: Tensor) -> float:
    """:func:`conditional_entropy_bits` with one context for all elements."""
    return _coded_bits(histogram.double().cpu().sum(0, keepdim=True))


def _coded_bits(counts: Tensor) -> float:
    nats = torch.special.entr(counts).sum() - torch.special.entr(counts.sum(1)).sum()
    largest = counts.shape[1] // 2
    below = (torch.arange(-largest, largest + 1).abs() - 1).clamp(min=0)
    return nats.item() / math.log(2) + (counts.sum(0) * below).sum().item()


def _check_planes(operation: str, planes: Tensor, base: Tensor) -> None:
    _checks.check_tensor(operation, "planes", planes)
    _checks.check_dtype(operation, "planes", planes, (torch.uint8,), "planes are bytes")
    wanted = (base.itemsize, base.numel())
    if planes.shape != wanted:
        raise ValueError(
            f"{operation}: planes must have the shape [itemsize, numel] of base, {wanted}, got {tuple(planes.shape)}"
        )
    _checks.check_device(operation, "planes", planes, "base", base)


def _encode(base: Tensor, tuned: Tensor, planes: Tensor) -> None:
    base, tuned = _native.packed(base), _native.packed(tuned)
    _native.check_output("encode_ordinal_planes", "planes", planes, base=base, tuned=tuned)
    word = base.numel(), base.itemsize, base.dtype in EXPONENT_BITS
    _native.call("encode_ordinal_planes", base, tuned, planes, *word, like=base)


def _decode(base: Tensor, planes: Tensor, tuned: Tensor, reverse: bool = False) -> None:
    base, planes = _native.packed(base), _native.packed(planes)
    _native.check_output("decode_ordinal_planes", "tuned", tuned, base=base, planes=planes)
    word = base.numel(), base.itemsize, base.dtype in EXPONENT_BITS
    _native.call("decode_ordinal_planes", base, planes, tuned, *word, reverse, like=base)


def _new_stats(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = 1 << EXPONENT_BITS.get(base.dtype, 0), 16 * base.itemsize + 1
    return (
        base.new_empty(5, dtype=torch.int64),
        base.new_empty(4, dtype=torch.float64),
        base.new_empty(rows, columns, dtype=torch.int64),
    )


def _stats(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    base, tuned, stats = _native.packed(base), _native.packed(tuned), _new_stats(base, tuned)
    size = base.numel(), FORMATS.index(base.dtype)
    scratch = (_native.cuda_workspace("delta_stats", *size, like=base),) if base.is_cuda else ()
    _native.call("delta_stats", base, tuned, *size, *stats, *scratch, like=base)
    return stats


def _new_survival(base: Tensor, tuned: Tensor, save_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return base.new_empty(3, dtype=torch.int64), base.new_empty(3, dtype=torch.float64)


def _survival(base: Tensor, tuned: Tensor, save_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    base, tuned = _native.packed(base), _native.packed(tuned)
    if base.is_cuda:
        return _native.load("triton_kernels.lossless_delta").update_survival(base, tuned, save_dtype)
    survival = _new_survival(base, tuned, save_dtype)
    formats = FORMATS.index(base.dtype), FORMATS.index(save_dtype)
    _native.call("update_survival", base, tuned, base.numel(), *formats, *survival, like=base)
    return survival


def _filled_by(make: Callable[..., Tensor]) -> Callable[..., None]:
    def fill(first: Tensor, second: Tensor, output: Tensor, *options: bool) -> None:
        output.copy_(make(first, second, *options))

    return fill


_native.register(
    "encode_ordinal_planes",
    "(Tensor base, Tensor tuned, Tensor(a!) planes) -> ()",
    reference=_filled_by(reference.encode_ordinal_planes),
    fake=lambda base, tuned, planes: None,
    cpu=_native.Route("_core", WORDS, _encode),
    cuda=_native.Route("_cuda", WORDS, _encode),
)
_native.register(
    "decode_ordinal_planes",
    "(Tensor base, Tensor planes, Tensor(a!) tuned, bool reverse=False) -> ()",
    reference=_filled_by(reference.decode_ordinal_planes),
    fake=lambda base, planes, tuned, reverse=False: None,
    cpu=_native.Route("_core", WORDS, _decode),
    cuda=_native.Route("_cuda", WORDS, _decode),
)
_native.register(
    "delta_stats",
    "(Tensor base, Tensor tuned) -> (Tensor counts, Tensor sums, Tensor histogram)",
    reference=reference.delta_stats,
    fake=_new_stats,
    cpu=_native.Route("_core", FORMATS, _stats),
    cuda=_native.Route("_cuda", FORMATS, _stats),
)
_native.register(
    "update_survival",
    "(Tensor base, Tensor tuned, ScalarType save_dtype) -> (Tensor counts, Tensor sums)",
    reference=reference.update_survival,
    fake=_new_survival,
    cpu=_native.Route("_core", FORMATS, _survival),
    cuda=_native.Route("triton_kernels.lossless_delta", FORMATS, _survival),
)
