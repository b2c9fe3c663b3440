"""How a quantised matrix is stored: the format, and one packed matrix. The bytes in memory are those on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graftwork.ops import _checks
from graftwork.reference.quantized_delta.bits import code_bytes
from graftwork.reference.quantized_delta.levels import LARGEST_EXP, LEAST_EXP, SCHEMES, scale_values

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BITS = (1, 2, 3, 4, 8)
#: Widths of a code that a scheme has.
SCHEME_BITS = {"sign": (1,), "sym": (2, 3, 4, 8), "midrise": BITS, "asym": BITS, "nf4": (4,)}
_ALIGNED_FROM = 256  # columns from which rows start at multiples of _ALIGN bytes
_ALIGN = 16


@dataclass(frozen=True, slots=True)
class PackFormat:
    """How the elements of a matrix ``[O, I]`` become codes of a few bits and scales.

    With the block's scale s and half = 2^(bits − 1):

    - ``"sign"`` (1 bit): s if the code is 1, −s if it is 0; the code is 1 for elements above 0.
    - ``"sym"`` (2, 3, 4, 8 bits): (code − half) · s; the code −half is not used.
    - ``"midrise"`` (any): (code − half + ½) · s; no code stands for 0.
    - ``"asym"`` (any): (code − zero) · s, with a zero for each block, in a byte.
    - ``"nf4"`` (4 bits): the sixteen levels of NF4 (Dettmers et al. 2023) times s.

    Parameters
    ----------
    bits : int
        1, 2, 3, 4 or 8.
    scheme : str
        One of the above.
    block : int
        Elements of a row that share a scale: a multiple of 8; the last block of a row may be shorter. 0 is the whole
        row, −1 the whole matrix.
    scale_dtype : torch.dtype
        float16 (divided by a power of two for the whole matrix, ``scale_exp``), bfloat16 or float32.
    row_align : int, optional
        Rows of codes start at multiples of so many bytes: a power of two up to 4096. None: 16 from 256 columns on,
        else 1.

    Raises
    ------
    TypeError, ValueError
        A value is not as above.

    Notes
    -----
    Element j of a row is in the bits ``(j·bits) mod 8`` and following of byte ``⌊j·bits/8⌋``, the least significant
    first. Three bits are a plane of the two low bits, then a plane of the high bits, which starts at a byte.

    Examples
    --------
    >>> PackFormat(4, "sym", 64).bits_per_weight(4096, 4096)
    4.25
    """

    bits: int
    scheme: str
    block: int = 64
    scale_dtype: torch.dtype = torch.float16
    row_align: int | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"PackFormat: scheme must be one of {', '.join(map(repr, SCHEMES))}, got {self.scheme!r}"
            )
        if self.bits not in SCHEME_BITS[self.scheme]:
            wanted = ", ".join(map(str, SCHEME_BITS[self.scheme]))
            raise ValueError(f"PackFormat: {self.scheme!r} has codes of {wanted} bits, got {self.bits}")
        if type(self.block) is not int or self.block < -1 or (self.block > 0 and self.block % 8):
            raise ValueError(
                f"PackFormat: block must be a multiple of 8, 0 (a whole row) or -1 (the whole matrix), got {self.block!r}"
            )
        if self.scale_dtype not in SCALE_DTYPES:
            raise TypeError(
                f"PackFormat: scale_dtype must be one of {_checks.dtype_names(SCALE_DTYPES)}, got {self.scale_dtype}"
            )
        align = self.row_align
        if align is not None and (type(align) is not int or not 1 <= align <= 4096 or align & (align - 1)):
            raise ValueError(
                f"PackFormat: row_align must be a power of two from 1 to 4096, or None, got {align!r}"
            )

    @property
    def scheme_number(self) -> int:
        """The scheme as native code knows it."""
        return SCHEMES.index(self.scheme)

    def row_bytes(self, columns: int) -> int:
        """Bytes from a row of codes to the next."""
        align = self.row_align or (_ALIGN if columns >= _ALIGNED_FROM else 1)
        return -(-code_bytes(self.bits, columns) // align) * align

    def blocks(self, columns: int) -> int:
        """Scales of a row; 1 where the whole matrix has one."""
        if self.block == -1:
            return 1
        return min(columns, 1) if self.block == 0 else -(-columns // self.block)

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales, and of the zeros of "asym"."""
        return (1, 1) if self.block == -1 else (rows, self.blocks(columns))

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of codes, scales and zeros."""
        of_scales = self.scale_dtype.itemsize + (self.scheme == "asym")
        count, per_row = self.scale_shape(rows, columns)
        return rows * self.row_bytes(columns) + count * per_row * of_scales

    def bits_per_weight(self, rows: int, columns: int) -> float:
        """All bits for each element; 0 if there is none."""
        return 8 * self.nbytes(rows, columns) / (rows * columns) if rows * columns else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class PackedDelta:
    """One packed matrix.

    Attributes
    ----------
    format : PackFormat
        How.
    shape : tuple of int
        (O, I).
    codes : Tensor
        uint8 ``[O, format.row_bytes(I)]``, contiguous; the bits behind a row's last element are zero.
    scales : Tensor
        ``format.scale_dtype`` ``format.scale_shape(O, I)``, contiguous; not negative, finite.
    zeros : Tensor or None
        uint8 of the shape of the scales, for "asym" alone.
    scale_exp : int
        A float16 scale is the stored number times 2^scale_exp, with scale_exp in [−120, 113]; else 0.

    Raises
    ------
    TypeError, ValueError
        A tensor is not as the format wants it. The numbers in them are not looked at: see :meth:`check_scales`.
    """

    format: PackFormat
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    scale_exp: int = 0

    def __post_init__(self) -> None:
        rows, columns = self.shape
        made = self.format
        _check_field("codes", self.codes, torch.uint8, (rows, made.row_bytes(columns)), self.codes)
        _check_field("scales", self.scales, made.scale_dtype, made.scale_shape(rows, columns), self.codes)
        if (self.zeros is None) == (made.scheme == "asym"):
            raise ValueError(
                f'PackedDelta: zeros go with "asym", and only with it; the scheme is {made.scheme!r}'
            )
        if self.zeros is not None:
            _check_field("zeros", self.zeros, torch.uint8, made.scale_shape(rows, columns), self.codes)
        low, high = (LEAST_EXP, LARGEST_EXP) if made.scale_dtype == torch.float16 else (0, 0)
        if type(self.scale_exp) is not int or not low <= self.scale_exp <= high:
            raise ValueError(
                f"PackedDelta: scale_exp must be in [{low}, {high}] for scales of {made.scale_dtype}, "
                f"got {self.scale_exp!r}"
            )

    @classmethod
    def empty(
        cls, format: PackFormat, rows: int, columns: int, device: torch.device | str = "cpu"
    ) -> PackedDelta:
        """Memory for a pack, to be filled by :func:`delta_quantize`."""
        shape = format.scale_shape(rows, columns)
        return cls(
            format,
            (rows, columns),
            torch.empty(rows, format.row_bytes(columns), dtype=torch.uint8, device=device),
            torch.empty(shape, dtype=format.scale_dtype, device=device),
            torch.empty(shape, dtype=torch.uint8, device=device) if format.scheme == "asym" else None,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.format.nbytes(*self.shape)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.codes.device

    def scale_values(self) -> Tensor:
        """The scales as float32, with their power of two."""
        return scale_values(self.scales, self.scale_exp)

    def check_scales(self) -> None:
        """Raise ValueError if a scale is negative or not finite, as only a damaged file has them."""
        good = (self.scales >= 0) & self.scales.isfinite()
        if not bool(good.all()):
            index = int((~good).view(-1).nonzero()[0])
            raise ValueError(
                f"PackedDelta: scales must be finite and not negative, got {self.scales.view(-1)[index].item()} at "
                f"{index}; the pack is damaged"
            )

    def to(self, device: torch.device | str) -> PackedDelta:
        """The same pack with its tensors on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device), zeros=zeros)

    def rows(self, start: int, stop: int) -> PackedDelta:
        """Rows `start` to `stop`, as views."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(
                f"PackedDelta: rows must be 0 <= start <= stop <= {self.shape[0]}, got {start} and {stop}"
            )
        part = slice(None) if self.format.block == -1 else slice(start, stop)
        return replace(
            self,
            shape=(stop - start, self.shape[1]),
            codes=self.codes[start:stop],
            scales=self.scales[part],
            zeros=None if self.zeros is None else self.zeros[part],
        )


def _check_field(name: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, int], codes: Tensor) -> None:
    _checks.check_tensor("PackedDelta", name, value)
    _checks.check_dtype(
        "PackedDelta", name, value, (dtype,), "the bytes are those of a file, nothing is cast"
    )
    if value.shape != shape or not value.is_contiguous():
        raise ValueError(
            f"PackedDelta: {name} must be contiguous of shape {shape}, got {tuple(value.shape)} with strides "
            f"{value.stride()}"
        )
    _checks.check_device("PackedDelta", name, value, "codes", codes)
