"""What a plan can ask for a tensor: left out, raw, sparse, quantised, or the quantised factors of its SVD."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from graftwork.errors import RecipeError

__all__ = ["SVD", "Codec", "Drop", "Prune", "Quantize", "Raw", "Sparse", "default_scheme"]

Value = Literal["fp16", "int8", "sign"]
RawDtype = Literal["fp16", "bf16", "fp32"]
ScaleDtype = Literal["fp16", "bf16", "fp32"]
Scheme = Literal["sign", "sym", "midrise", "asym", "nf4"]

_BITS = (1, 2, 3, 4, 8)
_SCHEMES: dict[str, tuple[int, ...]] = {
    "sign": (1,),
    "sym": (2, 3, 4, 8),
    "midrise": (1, 2, 3, 4, 8),
    "asym": (1, 2, 3, 4, 8),
    "nf4": (4,),
}


def default_scheme(bits: int) -> Scheme:
    """The element quantiser of smallest error for so many bits on bell-shaped values."""
    choices: dict[int, Scheme] = {1: "sign", 2: "midrise", 3: "midrise", 4: "asym", 8: "sym"}
    return choices[bits]


def _refuse(what: str, got: object, wanted: str) -> RecipeError:
    return RecipeError(what, got=got, wanted=wanted)


def _check_share(what: str, share: float) -> None:
    if not (isinstance(share, float | int) and 0.0 <= share <= 1.0):
        raise _refuse(f"{what} is no share", share, "a number from 0 to 1")


def _check_block(block: int) -> None:
    if type(block) is not int or block < -1 or block % 8 not in (0, 7 if block == -1 else 0):
        raise _refuse("a block has a strange length", block, "a multiple of 8, 0 (a row) or -1 (the tensor)")


@dataclass(frozen=True, slots=True)
class Drop:
    """The tensor's change is left out: its reconstruction is zero."""


@dataclass(frozen=True, slots=True)
class Raw:
    """The change itself, rounded to ``dtype``: for norms and biases, which are few."""

    dtype: RawDtype = "fp16"

    def __post_init__(self) -> None:
        if self.dtype not in ("fp16", "bf16", "fp32"):
            raise _refuse("raw changes have no such dtype", self.dtype, "fp16, bf16 or fp32")


@dataclass(frozen=True, slots=True)
class Prune:
    """The share ``keep`` of the entries of largest magnitude; ``value`` says how these are stored."""

    keep: float
    value: Value = "fp16"

    def __post_init__(self) -> None:
        _check_share("keep", self.keep)
        _check_value(self.value)


@dataclass(frozen=True, slots=True)
class Sparse:
    """Some entries by another rule than magnitude alone.

    ``mode`` is ``dare`` (each entry is kept with probability ``keep`` and divided by it, drawn from ``seed`` and the
    tensor's name), ``2:4`` (the two larger of every four) or ``topk`` (as `Prune`).
    """

    mode: Literal["dare", "2:4", "topk"] = "dare"
    keep: float = 0.1
    value: Value = "fp16"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("dare", "2:4", "topk"):
            raise _refuse("no such rule for a sparse change", self.mode, "dare, 2:4 or topk")
        _check_share("keep", self.keep)
        _check_value(self.value)
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise _refuse("the seed is out of range", self.seed, "a whole number from 0 to 2^63 - 1")


def _check_value(value: str) -> None:
    if value not in ("fp16", "int8", "sign"):
        raise _refuse("sparse values have no such form", value, "fp16, int8 or sign")


@dataclass(frozen=True, slots=True)
class Quantize:
    """Every entry in ``bits`` bits, with a scale for each ``block`` of a row (0: the row, -1: the tensor).

    ``scheme`` is the best for the bits by default: sign, midrise with a searched scale, asym, or sym.
    """

    bits: int
    scheme: Scheme | None = None
    block: int = 128
    scale_dtype: ScaleDtype = "fp16"

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        _check_block(self.block)
        _check_scheme(self.scheme, self.bits)
        _check_scale_dtype(self.scale_dtype)


@dataclass(frozen=True, slots=True)
class SVD:
    """The largest singular triples, in groups of falling precision.

    ``bits`` lists (how many triples, bits of their factors): 16 are halves, 0 leaves out, and None stands for the rest.
    The number of triples is ``rank``, or the least that holds the share ``energy`` of the squared change, or as many as
    ``bpw`` bits a weight pay for; of several, the smallest. With none of them it is full. ``block`` and ``scale_dtype``
    are of the factors' codes, by default those of `FACTOR_FORMATS`.
    """

    rank: int | None = None
    energy: float | None = None
    bpw: float | None = None
    bits: tuple[tuple[int | None, int], ...] = field(default=((2, 8), (32, 3), (None, 2)))
    block: int | None = None
    scale_dtype: ScaleDtype | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and (type(self.rank) is not int or self.rank < 0):
            raise _refuse("the rank is no number of triples", self.rank, "0 or more")
        if self.energy is not None:
            _check_share("energy", self.energy)
        if self.bpw is not None and not (math.isfinite(self.bpw) and self.bpw > 0):
            raise _refuse("bpw is no budget", self.bpw, "a positive number of bits a weight")
        if self.block is not None:
            _check_block(self.block)
        if self.scale_dtype is not None:
            _check_scale_dtype(self.scale_dtype)
        object.__setattr__(self, "bits", tuple(tuple(group) for group in self.bits))
        if not self.bits:
            raise _refuse("there are no groups of triples", self.bits, "at least one (count, bits)")
        for at, (count, bits) in enumerate(self.bits):
            if bits not in (0, *_BITS, 16):
                raise _refuse("a group of triples has strange bits", bits, "0, 1, 2, 3, 4, 8 or 16")
            if count is None and at + 1 < len(self.bits):
                raise _refuse(
                    "only the last group of triples can be the rest", self.bits, "a count before it"
                )
            if count is not None and (type(count) is not int or count < 1):
                raise _refuse("a group of triples has a strange count", count, "1 or more")


def _check_bits(bits: int) -> None:
    if type(bits) is not int or bits not in _BITS:
        raise _refuse("a code has strange bits", bits, "1, 2, 3, 4 or 8")


def _check_scheme(scheme: str | None, bits: int) -> None:
    if scheme is not None and bits not in _SCHEMES.get(scheme, ()):
        wanted = ", ".join(name for name, widths in _SCHEMES.items() if bits in widths)
        raise _refuse(f"there is no scheme {scheme!r} of {bits} bits", scheme, wanted)


def _check_scale_dtype(dtype: str) -> None:
    if dtype not in ("fp16", "bf16", "fp32"):
        raise _refuse("scales have no such dtype", dtype, "fp16, bf16 or fp32")


Codec = Drop | Raw | Prune | Sparse | Quantize | SVD
