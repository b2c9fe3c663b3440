"""Differences of matrices, or matrices themselves, as codes of a few bits.

GPU: on copies on the host. Not differentiable.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.quantized_delta.formats import SCALE_DTYPES, PackedDelta, PackFormat
from graftwork.ops.sparse_update import _arena
from graftwork.reference.quantized_delta import quantize as reference

#: The dtypes of weights, in the order of the native code's numbers.
FORMATS = (torch.float16, torch.bfloat16, torch.float32)
MAX_ITERATIONS = 16


def delta_quantize(
    tuned: Tensor,
    base: Tensor | None,
    format: PackFormat,
    *,
    mse_iters: int | None = None,
    out: PackedDelta | None = None,
) -> tuple[PackedDelta, Tensor]:
    """Pack the difference of two matrices: extract, quantise and pack in one pass.

    With Δ = tuned − base in float32, the largest magnitude a of a block, and half = 2^(bits − 1), the scale s is, before
    it is rounded to its dtype:

    - "sign": the mean of |Δ|, which has the least squared error.
    - "sym": a / (half − 1).
    - "midrise": p · a / half.
    - "asym": p · (max − min) / (2^bits − 1), the range extended to hold 0; zero = round(−p · min / s).
    - "nf4": a.

    Codes are the nearest level's ("midrise": the interval's), found with Δ · (1/s) in float32, half-way cases to the even
    code ("nf4": to the lower). The scale is rounded first, so that codes are those of the scale that is stored; a
    positive one never to zero. A block of zeros has the scale 0 and the code of 0.

    Parameters
    ----------
    tuned : Tensor
        float16, bfloat16 or float32 ``[O, I]``.
    base : Tensor or None
        Of the dtype, shape and device of `tuned`. None: `tuned` itself is packed.
    format : PackFormat
        How.
    mse_iters : int, optional
        Refits of a search for the scale of least squared error: 16 fractions p from .3 to 1.05 of the scale above, then
        so many times the least-squares scale for the codes at hand; the best is kept. 0: no search, p = 1. None: 2 for
        "midrise", 0 for the others. At most 16, and 0 for "sign".
    out : PackedDelta, optional
        Memory to fill, of this format and shape; what is returned shares it. Undefined after an error.

    Returns
    -------
    tuple of (PackedDelta, Tensor)
        The pack, and Σ (Δ − Δ̂)² as a float64 number; squares are float32: those of errors below 1e-22 are lost.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above; a difference is not finite (the message has its index); a scale is above what its
        dtype can hold.

    Notes
    -----
    Deterministic: bytes and errors do not depend on ISA level or threads. Blocks of up to 2048 elements are read from
    memory once; longer ones, and rows, once more for the codes; a search on them as often as it has steps. "sign" is
    BitDelta (Liu et al. 2024, arXiv 2402.10193). Differs from the paper: the code of an exact zero is 0, not 1.

    Examples
    --------
    >>> delta = torch.tensor([[0.03, -0.01, 0.02, -0.04, 0, 0.01, -0.02, 0.05]])
    >>> pack, error = delta_quantize(delta, None, PackFormat(4, "sym", 0, torch.float32))
    >>> bytes(pack.codes[0].tolist()).hex()
    '7c2b98f5'
    """
    _check_matrix("delta_quantize", "tuned", tuned)
    if base is not None:
        _checks.check_tensor("delta_quantize", "base", base)
        _checks.check_same("delta_quantize", "base", base, "tuned", tuned)
    iterations = _iterations(format, mse_iters)
    rows, columns = tuned.shape
    if out is None:
        out = PackedDelta.empty(format, rows, columns, tuned.device)
    elif out.format != format or out.shape != (rows, columns):
        raise ValueError(
            f"delta_quantize: out must have the format and shape {format}, {(rows, columns)}, got {out.format}, {out.shape}"
        )
    _checks.check_device("delta_quantize", "out", out.codes, "tuned", tuned)
    how = format.bits, format.scheme_number, format.block, iterations
    error, exponent = torch.ops.graftwork.delta_quantize(tuned, base, *how, out.codes, out.scales, out.zeros)
    return replace(out, scale_exp=int(exponent)), error


def _iterations(format: PackFormat, wanted: int | None) -> int:
    if wanted is None:
        return 2 if format.scheme == "midrise" else 0
    if type(wanted) is not int or not 0 <= wanted <= MAX_ITERATIONS:
        raise ValueError(
            f"delta_quantize: mse_iters must be in [0, {MAX_ITERATIONS}] or None, got {wanted!r}"
        )
    if wanted and format.scheme == "sign":
        raise ValueError(
            f'delta_quantize: mse_iters must be 0 for "sign", whose scale is the best already, got {wanted}'
        )
    return wanted


def _check_matrix(operation: str, name: str, value: Tensor) -> None:
    _checks.check_tensor(operation, name, value)
    _checks.check_dtype(operation, name, value, FORMATS, "cast it first, or leave it out")
    if value.dim() != 2:
        raise ValueError(
            f"{operation}: {name} must have two dimensions, got shape {tuple(value.shape)}; reshape it to [rows, columns]"
        )


def _quantize(
    tuned: Tensor,
    base: Tensor | None,
    bits: int,
    scheme: int,
    block: int,
    iterations: int,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
) -> tuple[Tensor, Tensor]:
    tuned, rows, columns = _native.packed(tuned), tuned.shape[0], tuned.shape[1]
    if base is not None:
        base = _native.packed(base)
        _native.check_output("delta_quantize", "out", codes, tuned=tuned, base=base)
    error, report = torch.empty((), dtype=torch.float64), torch.empty(3, dtype=torch.int64)
    room = _native.buffer("scales", 4 * scales.numel())
    arguments = (
        *(tuned, 0 if base is None else base, rows, columns, FORMATS.index(tuned.dtype)),
        *(bits, scheme, block, iterations, codes, codes.shape[1]),
        *(scales, SCALE_DTYPES.index(scales.dtype), 0 if zeros is None else zeros, room, error, report),
    )
    _native.call("delta_quantize", *arguments, like=tuned)
    nonfinite, unstorable, exponent = report.tolist()
    reference.refuse_nonfinite("delta_quantize", nonfinite, tuned, base)
    reference.refuse_scale("delta_quantize", unstorable)
    _arena.mark_written(codes, scales, zeros)
    return error, torch.tensor(exponent)


_native.register(
    "delta_quantize",
    "(Tensor tuned, Tensor? base, int bits, int scheme, int block, int iterations, Tensor(a!) codes, "
    "Tensor(b!) scales, Tensor(c!)? zeros) -> (Tensor, Tensor)",
    reference=reference.quantize,
    fake=lambda tuned, *rest: (
        tuned.new_empty((), dtype=torch.float64),
        torch.empty((), dtype=torch.int64),
    ),
    cpu=_native.Route("_core", FORMATS, _quantize),
    cuda=_native.Route("_core", FORMATS, _arena.on_host_copies(_quantize, 6, 7, 8)),
)
