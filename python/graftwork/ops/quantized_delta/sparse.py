"""Deltas of a few weights: which, and their values in few bits.

GPU: which are kept is found on copies on the host; the rest runs where the tensors are. Not differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.quantized_delta.dequantize import dequantize
from graftwork.ops.quantized_delta.formats import PackedDelta, PackFormat
from graftwork.ops.quantized_delta.quantize import FORMATS, _check_matrix, delta_quantize
from graftwork.ops.sparse_update import (
    Support,
    _arena,
    decode_indices,
    encode_indices,
    gather_values,
    topk_abs,
    topk_absdiff,
    write_values_,
)
from graftwork.reference.quantized_delta import sparse as reference
from graftwork.reference.quantized_delta.levels import (
    LARGEST_EXP,
    LEAST_EXP,
    scale_exponent,
    stored_scales,
    times_power,
)
from graftwork.reference.quantized_delta.quantize import difference, refuse_nonfinite

Mode = Literal["topk", "threshold", "2:4", "dare"]
Value = Literal["fp16", "int8", "sign"]
MODES = ("topk", "threshold", "2:4", "dare")
RESCALES = ("probability", "l1", "none")
#: How values other than halves are packed: as one row.
VALUE_FORMATS = {"int8": PackFormat(8, "sym", 128), "sign": PackFormat(1, "sign", 128)}
DRAWN = "drawn"
_DRAWS = 1 << 24  # a draw is a whole number below it


@dataclass(frozen=True, slots=True, eq=False)
class SparsePack:
    """Some entries of a delta.

    Attributes
    ----------
    shape : tuple of int
        (O, I).
    codec : str
        How the kept entries are stored: one of :func:`graftwork.ops.sparse_update.encode_indices`, or ``"drawn"``: they
        follow from `key` and `below` and are not stored.
    index : Tensor
        uint8, the bytes of that code; none if they are drawn.
    values : Tensor or PackedDelta
        In the order of their flat indices: float16 ``[count]``, to be multiplied by 2^scale_exp; or a pack of one row.
    scale_exp : int
        In [−120, 113]; 0 for a pack, which has its own.
    key : tuple of (int, int)
        Two 32-bit words, of the draws.
    below : int
        Entry i is kept if the upper 24 bits of word i of the key's Philox stream are below it.
    """

    shape: tuple[int, int]
    codec: str
    index: Tensor
    values: Tensor | PackedDelta
    scale_exp: int = 0
    key: tuple[int, int] = field(default=(0, 0))
    below: int = 0

    @property
    def count(self) -> int:
        """Kept entries."""
        return self.values.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of indices and values."""
        return self.index.nbytes + self.values.nbytes

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.index.device

    def bits_per_weight(self) -> float:
        """All bits for each element of the matrix; 0 if there is none."""
        numel = self.shape[0] * self.shape[1]
        return 8 * self.nbytes / numel if numel else 0.0

    def indices(self) -> Tensor:
        """The row-major flat indices of the kept entries, ascending: int32, or int64 from 2^31 elements on."""
        numel = self.shape[0] * self.shape[1]
        dtype = torch.int32 if numel < 1 << 31 else torch.int64
        if self.codec != DRAWN:
            return decode_indices(self.codec, self.index, numel, self.count, dtype)
        bitmap = self.index.new_empty((numel + 7) // 8)
        torch.ops.graftwork.mark_drawn(bitmap, numel, *self.key, self.below)
        return decode_indices("bitmap", bitmap, numel, self.count, dtype)

    def floats(self) -> Tensor:
        """The values, float32 ``[count]``."""
        if isinstance(self.values, PackedDelta):
            return dequantize(self.values).view(-1)
        return times_power(self.values.float(), self.scale_exp)

    def dense(self) -> Tensor:
        """The delta, float32 ``[O, I]``."""
        full = torch.zeros(self.shape, device=self.device)
        full.view(-1)[self.indices().long()] = self.floats()
        return full


def sparse_quant(
    tuned: Tensor,
    base: Tensor | None,
    *,
    mode: Mode,
    keep: float | int | None = None,
    seed: int | tuple[int, int] = 0,
    value: Value = "fp16",
    rescale: Literal["probability", "l1", "none"] = "probability",
) -> SparsePack:
    """Keep some entries of the difference Δ = tuned − base (float32), and pack their values.

    Parameters
    ----------
    tuned : Tensor
        float16, bfloat16 or float32 ``[O, I]``.
    base : Tensor or None
        Of the dtype, shape and device of `tuned`. None: `tuned` itself is packed.
    mode : str
        - ``"topk"``: the largest |Δ|, exactly; of equal ones those with the lowest flat index.
        - ``"threshold"``: those of at least a magnitude.
        - ``"2:4"``: the two largest of every four of a row, equal ones by index; the last of a row may be fewer.
        - ``"dare"``: each with a probability p (DARE, Yu et al. 2024, arXiv 2311.03099): entry i is kept if
          ``philox_uniform(key, i, 1) < p``, so the entries are not stored.
    keep : float or int, optional
        "topk": a share of the entries in [0, 1] (the number is rounded), or a whole number of them. "threshold": the
        magnitude, at least 0. "2:4": None. "dare": p, in (0, 1].
    seed : int or tuple of (int, int)
        The key of "dare": two 32-bit words, or a number below 2^64, whose lower half is the first of them.
    value : str
        ``"fp16"`` (divided by a power of two for the whole matrix), ``"int8"`` or ``"sign"`` (with a float16 scale for
        128 values).
    rescale : str
        What values of "dare" are multiplied by: ``"probability"``: 1/p; ``"l1"``: Σ|Δ| / Σ|kept Δ|; ``"none"``.

    Returns
    -------
    SparsePack
        On the device of `tuned`.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; a difference is not finite (the message has its index).

    Notes
    -----
    Deterministic: the bytes do not depend on device, ISA level or threads.

    Examples
    --------
    >>> delta = torch.tensor([[0.5, -4.0, 1.0, 2.0]])
    >>> sparse_quant(delta, None, mode="topk", keep=2).dense().tolist()
    [[0.0, -4.0, 0.0, 2.0]]
    """
    _check_matrix("sparse_quant", "tuned", tuned)
    if base is not None:
        _checks.check_tensor("sparse_quant", "base", base)
        _checks.check_same("sparse_quant", "base", base, "tuned", tuned)
    _check_choice("mode", mode, MODES)
    _check_choice("value", value, ("fp16", *VALUE_FORMATS))
    _check_choice("rescale", rescale, RESCALES)
    key = _key(seed)
    tuned = tuned.detach().contiguous()
    base = None if base is None else base.detach().contiguous()
    shape = (tuned.shape[0], tuned.shape[1])
    if mode == "topk":
        indices = _largest(tuned, base, _count(keep, tuned.numel()))
        codec, index = encode_indices(indices, tuned.numel())
        return _packed(shape, codec, index, _differences(tuned, base, indices), value)
    least, below = _limits(mode, keep)
    rule = {"threshold": reference.THRESHOLD, "2:4": reference.TWO_OF_FOUR, "dare": reference.DRAWN}[mode]
    bitmap, count = torch.ops.graftwork.mark_kept(tuned, base, rule, least, *key, below)
    indices = decode_indices("bitmap", bitmap, tuned.numel(), int(count), _index_dtype(tuned))
    values = _differences(tuned, base, indices)
    if mode != "dare":
        codec, index = encode_indices(indices, tuned.numel())
        return _packed(shape, codec, index, values, value)
    values *= _factor(rescale, below / _DRAWS, tuned, base, values)
    return _packed(shape, DRAWN, bitmap[:0].clone(), values, value, key, below)


def sparse_add_(weights: Tensor, pack: SparsePack, scale: float = 1.0) -> Tensor:
    """Put a sparse delta on weights, in place: weight[i] = round(weight[i] + scale · value), in float32, at its entries.

    Parameters
    ----------
    weights : Tensor
        float16, bfloat16 or float32 of the pack's shape, contiguous, on its device.
    pack : SparsePack
        As :func:`sparse_quant` makes it.
    scale : float
        Finite.

    Returns
    -------
    Tensor
        `weights`. No other entry is touched.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or the pack's indices are damaged.

    Notes
    -----
    Deterministic.

    Examples
    --------
    >>> pack = sparse_quant(torch.tensor([[0.5, -4.0, 1.0, 2.0]]), None, mode="2:4")
    >>> sparse_add_(torch.ones(1, 4), pack, 0.5).tolist()
    [[1.0, -1.0, 1.0, 2.0]]
    """
    _check_matrix("sparse_add_", "weights", weights)
    if not isinstance(pack, SparsePack):
        raise TypeError(f"sparse_add_: pack must be a SparsePack, got {type(pack).__name__}")
    if weights.shape != pack.shape:
        raise ValueError(
            f"sparse_add_: weights must have the shape of the pack, {pack.shape}, got {tuple(weights.shape)}"
        )
    _checks.check_device("sparse_add_", "weights", weights, "the pack", pack.index)
    _checks.check_output("sparse_add_", "weights", weights)
    _arena.check_number("sparse_add_", "scale", scale)
    indices = pack.indices()
    support = Support.trusted(indices, torch.tensor([0, len(indices)]), [weights.numel()])
    if scale and len(indices):
        write_values_(support, [weights], gather_values(support, [weights]), pack.floats(), scale)
    return weights


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"sparse_quant: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        )


def _key(seed: int | tuple[int, int]) -> tuple[int, int]:
    words = (seed & 0xFFFFFFFF, seed >> 32) if isinstance(seed, int) else tuple(seed)
    if len(words) != 2 or not all(type(word) is int and 0 <= word < 1 << 32 for word in words):
        raise ValueError(
            f"sparse_quant: seed must be a number in [0, 2^64) or two words in [0, 2^32), got {seed!r}"
        )
    return words[0], words[1]


def _count(keep: float | int | None, numel: int) -> int:
    if isinstance(keep, int) and not isinstance(keep, bool) and 0 <= keep <= numel:
        return keep
    if isinstance(keep, float) and 0 <= keep <= 1:
        return round(keep * numel)
    raise ValueError(
        f'sparse_quant: keep of "topk" must be a share in [0, 1] or a number in [0, {numel}], got {keep!r}'
    )


def _limits(mode: str, keep: float | int | None) -> tuple[float, int]:
    """The least magnitude, and what draws must be below."""
    if mode == "2:4":
        if keep is not None:
            raise ValueError(f'sparse_quant: keep must be None for "2:4", which keeps half, got {keep!r}')
        return 0.0, 0
    number = float("nan") if keep is None else float(keep)
    if mode == "threshold":
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f'sparse_quant: keep of "threshold" must be at least 0 and finite, got {keep!r}')
        return number, 0
    if not 0 < number <= 1:
        raise ValueError(f'sparse_quant: keep of "dare" must be a probability in (0, 1], got {keep!r}')
    return 0.0, math.ceil(torch.tensor(number, dtype=torch.float32).item() * _DRAWS)


def _index_dtype(tensor: Tensor) -> torch.dtype:
    return torch.int32 if tensor.numel() < 1 << 31 else torch.int64


def _largest(tuned: Tensor, base: Tensor | None, count: int) -> Tensor:
    if base is None:
        return topk_abs([tuned], [count])[0]
    return topk_absdiff([tuned], [base], count)[1][0]


def _differences(tuned: Tensor, base: Tensor | None, indices: Tensor) -> Tensor:
    support = Support.trusted(indices, torch.tensor([0, len(indices)]), [tuned.numel()])
    values = gather_values(support, [tuned]).float()
    if base is not None:
        values -= gather_values(support, [base]).float()
    bad = (~values.isfinite()).nonzero()
    refuse_nonfinite("sparse_quant", int(indices[bad[0]]) if bad.numel() else -1, tuned, base)
    return values


def _factor(rescale: str, probability: float, tuned: Tensor, base: Tensor | None, values: Tensor) -> float:
    if rescale == "probability":
        return 1 / probability
    kept = float(values.double().abs().sum())
    if rescale == "none" or kept == 0:
        return 1.0
    return float(difference(tuned, base).double().abs().sum()) / kept


def _packed(
    shape: tuple[int, int],
    codec: str,
    index: Tensor,
    values: Tensor,
    kind: str,
    key: tuple[int, int] = (0, 0),
    below: int = 0,
) -> SparsePack:
    if kind != "fp16":
        packed, _ = delta_quantize(values[None], None, VALUE_FORMATS[kind])
        return SparsePack(shape, codec, index, packed, 0, key, below)
    exponent = min(max(scale_exponent(values.abs()), LEAST_EXP), LARGEST_EXP)
    return SparsePack(
        shape, codec, index, stored_scales(values, torch.float16, exponent), exponent, key, below
    )


def _mark_kept(
    tuned: Tensor, base: Tensor | None, rule: int, least: float, key0: int, key1: int, below: int
) -> tuple[Tensor, Tensor]:
    if rule == reference.TWO_OF_FOUR and tuned.shape[1] % 4:
        return reference.mark_kept(tuned, base, rule, least, key0, key1, below)  # groups straddle bytes
    tuned, base = _native.packed(tuned), None if base is None else _native.packed(base)
    bitmap = torch.empty((tuned.numel() + 7) // 8, dtype=torch.uint8)
    report = torch.empty(2, dtype=torch.int64)
    arguments = (
        *(tuned, 0 if base is None else base, tuned.numel(), FORMATS.index(tuned.dtype)),
        *(rule, least, key0, key1, below, bitmap, report),
    )
    _native.call("mark_kept", *arguments, like=tuned)
    refuse_nonfinite("sparse_quant", int(report[1]), tuned, base)
    return bitmap, report[0]


def _mark_drawn(bitmap: Tensor, numel: int, key0: int, key1: int, below: int) -> None:
    threads = _native.threads_for(numel)
    _native.call("mark_drawn", numel, key0, key1, below, bitmap, like=bitmap, threads=threads)


_native.register(
    "mark_kept",
    "(Tensor tuned, Tensor? base, int rule, float least, int key0, int key1, int below) -> (Tensor, Tensor)",
    reference=reference.mark_kept,
    fake=lambda tuned, *rest: (
        tuned.new_empty((tuned.numel() + 7) // 8, dtype=torch.uint8),
        torch.empty((), dtype=torch.int64),
    ),
    cpu=_native.Route("_core", FORMATS, _mark_kept),
    cuda=_native.Route("_core", FORMATS, _arena.on_host_copies(_mark_kept)),
)
_native.register(
    "mark_drawn",
    "(Tensor(a!) bitmap, int numel, int key0, int key1, int below) -> ()",
    reference=reference.mark_drawn,
    fake=lambda bitmap, *rest: None,
    cpu=_native.Route("_core", (torch.uint8,), _mark_drawn),
    cuda=_native.Route("_core", (torch.uint8,), _arena.on_host_copies(_mark_drawn, 0)),
)
