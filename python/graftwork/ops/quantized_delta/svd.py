"""The largest singular triples of deltas, by a randomised range finder; matrix products and QR are torch's.

GPU: the same torch calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from graftwork.ops import _checks
from graftwork.reference.quantized_delta import svd as reference
from graftwork.reference.quantized_delta.quantize import refuse_nonfinite

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

#: The share of the smaller side up to which the range finder is the faster, measured from 1024 to 2048; at 256 it is 0.55.
NEAR_FULL = 0.65
_ALIGNED = 8  # columns of Ω are rounded up to: products in float32 are half as fast again as with any number
_FIRST_GUESS = 32  # triples that the energy rule starts from; doubled until there is enough
_STACKED = 1 << 26  # elements of equal matrices that are decomposed at a time
_NEAR_ONE = 30  # a largest entry within 2^±30 leaves room for the sums of squares
_LARGEST_POWER = 120


class SingularTriples(NamedTuple):
    """Δ ≈ U·diag(S)·Vᵀ, float32: U ``[O, r]``, S ``[r]`` descending, V ``[I, r]``; columns are orthonormal."""

    left: Tensor
    values: Tensor
    right: Tensor


def rank_for_energy(values: Tensor, energy: float, total: float | None = None) -> int:
    """Find the smallest k with Σ_{j≤k} σ_j² ≥ energy·Σ_j σ_j².

    Parameters
    ----------
    values : Tensor
        The singular values σ, descending, one-dimensional.
    energy : float
        In [0, 1].
    total : float, optional
        Σ_j σ_j² of the whole matrix, where `values` are only its largest.

    Returns
    -------
    int
        0 for a matrix of zeros; all of them if they have less than `energy` of the total.

    Raises
    ------
    ValueError
        `energy` is not in [0, 1].

    Notes
    -----
    Sums are float64. Paper: "Knowledge Grafting of LLMs", arXiv 2505.18502, the compression of MLP matrices.

    Examples
    --------
    >>> values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    >>> [rank_for_energy(values, energy) for energy in (0.7, 0.9, 0.95)]
    [1, 2, 3]
    """
    _check_energy("rank_for_energy", energy)
    found = reference.rank_for_energy(values, energy, total)
    return values.numel() if found is None else found


@overload
def svd_delta(
    tuned: Tensor,
    base: Tensor | None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    oversample: int = 8,
    iterations: int = 2,
    seed: int = 0,
) -> SingularTriples: ...


@overload
def svd_delta(
    tuned: Sequence[Tensor],
    base: Sequence[Tensor] | None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    oversample: int = 8,
    iterations: int = 2,
    seed: int = 0,
) -> list[SingularTriples]: ...


def svd_delta(
    tuned: Tensor | Sequence[Tensor],
    base: Tensor | Sequence[Tensor] | None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    oversample: int = 8,
    iterations: int = 2,
    seed: int = 0,
) -> SingularTriples | list[SingularTriples]:
    """Decompose Δ = tuned − base into its largest singular triples: Δ ≈ U·diag(S)·Vᵀ.

    A randomised range finder: Q = orth(Δ·Ω) for a normal Ω of ``rank + oversample`` columns; `iterations` times
    Q = orth(Δ·orth(Δᵀ·Q)); then the decomposition of the small matrix Qᵀ·Δ.

    Parameters
    ----------
    tuned : Tensor or sequence of Tensor
        ``[O, I]``: float32, bfloat16 or float16, on any device. Several of one shape are decomposed together.
    base : Tensor, sequence of Tensor or None
        As `tuned`, of its shapes and dtypes; None: `tuned` is the delta.
    rank : int, optional
        How many triples, from 0 to min(O, I).
    energy : float, optional
        As many as :func:`rank_for_energy` says, in [0, 1]. With `rank` too, at most that many.
    oversample : int
        Columns of Ω beyond the rank, at least 0; the sum is rounded up to a multiple of eight.
    iterations : int
        Power iterations, at least 0: 2 is within some percent of the best error even for a flat spectrum.
    seed : int
        Of Ω.

    Returns
    -------
    SingularTriples or list of SingularTriples
        One for each delta. The largest entry of each column of V is positive.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or a difference is not finite: the message has its index.

    Notes
    -----
    The difference and the factors are float32; a difference far from one is scaled by a power of two first, so that
    neither large nor tiny deltas leave the range. All products but the last two, which settle the result, are of bfloat16
    where that is faster (:func:`multiplies_bfloat16`): the error is then up to 1 % larger. Where ``rank + oversample`` is
    above :data:`NEAR_FULL` of the smaller side, and where the energy rule comes to it, :func:`torch.linalg.svd` runs. The
    same call gives the same bits on one machine with one number of threads; BLAS and LAPACK may differ in the last bits
    elsewhere. Not differentiable.

    Paper: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, algorithm 4.4. Differs from it:
    before and within an iteration columns are spread by an LU decomposition; they are orthogonalised after it. Differs
    from Delta-CoMe and GraftLLM: they decompose the whole matrix.

    Examples
    --------
    >>> tuned = torch.outer(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0]))
    >>> u, s, v = svd_delta(tuned, None, rank=1)
    >>> (u * s @ v.T).round(decimals=4).tolist()
    [[0.0, 3.0, 0.0], [0.0, 4.0, 0.0]]
    """
    many = not isinstance(tuned, Tensor)
    deltas, bases = _listed(tuned, base)
    _check_arguments(rank, energy, oversample, iterations)
    for number, delta in enumerate(deltas):
        _check_matrix(f"tuned[{number}]" if many else "tuned", delta, deltas[0], rank)
        if bases is not None:
            _checks.check_tensor("svd_delta", "base", bases[number])
            _checks.check_same("svd_delta", "base", bases[number], "tuned", delta)
    found: list[SingularTriples] = []
    with torch.no_grad():
        for begin in range(0, len(deltas), step := _together(deltas, energy)):
            chosen = slice(begin, begin + step)
            own = [None] * step if bases is None else bases[chosen]
            scaled = [_difference(*pair) for pair in zip(deltas[chosen], own, strict=False)]
            stack = scaled[0][0][None] if len(scaled) == 1 else torch.stack([delta for delta, _ in scaled])
            powers = [power for _, power in scaled]
            del scaled
            found += _decompose(stack, powers, rank, energy, oversample, iterations, seed)
    return found if many else found[0]


def _listed(
    tuned: Tensor | Sequence[Tensor], base: Tensor | Sequence[Tensor] | None
) -> tuple[list[Tensor], list[Tensor] | None]:
    if isinstance(tuned, Tensor):
        if base is not None and not isinstance(base, Tensor):
            raise TypeError(
                f"svd_delta: base must be a torch.Tensor as tuned is, got {type(base).__name__}; pass it alone"
            )
        return [tuned], None if base is None else [base]
    if isinstance(base, Tensor) or (base is not None and len(base) != len(tuned)):
        raise ValueError(
            f"svd_delta: base must have one matrix for each of the {len(tuned)} of tuned, got "
            f"{1 if isinstance(base, Tensor) else len(base)}; pass a list, or None for deltas"
        )
    return list(tuned), None if base is None else list(base)


def _check_arguments(rank: int | None, energy: float | None, oversample: int, iterations: int) -> None:
    if rank is None and energy is None:
        raise ValueError("svd_delta: rank or energy must be given; rank=min(O, I) keeps everything")
    for name, value in (("rank", rank), ("oversample", oversample), ("iterations", iterations)):
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"svd_delta: {name} must be an int, got {type(value).__name__}; round it first")
        if value < 0:
            raise ValueError(f"svd_delta: {name} must be at least 0, got {value}")
    if energy is not None:
        _check_energy("svd_delta", energy)


def _check_energy(operation: str, energy: float) -> None:
    if not 0 <= energy <= 1:
        raise ValueError(f"{operation}: energy must be in [0, 1], got {energy}; 0.95 keeps 95 % of Σ σ²")


def _check_matrix(name: str, delta: Tensor, first: Tensor, rank: int | None) -> None:
    _checks.check_tensor("svd_delta", name, delta)
    _checks.check_dtype("svd_delta", name, delta, DTYPES, "convert it first")
    if delta.dim() != 2:
        raise ValueError(
            f"svd_delta: {name} must be a matrix [O, I], got shape {tuple(delta.shape)}; reshape a convolution to "
            f"[O, I·kh·kw], and take the experts of a 3-D tensor one by one"
        )
    if delta.shape != first.shape or delta.device != first.device:
        raise ValueError(
            f"svd_delta: {name} must have the shape and device of tuned[0], {tuple(first.shape)} on {first.device}, got "
            f"{tuple(delta.shape)} on {delta.device}; decompose each shape in a call of its own"
        )
    if rank is not None and rank > min(delta.shape):
        raise ValueError(
            f"svd_delta: rank must be at most min(O, I) = {min(delta.shape)}, got {rank}; "
            f"rank_for_bpw gives one that fits the shape"
        )


def _together(deltas: list[Tensor], energy: float | None) -> int:
    """How many matrices are decomposed at a time: those of the energy rule have ranks of their own."""
    if energy is not None or not deltas:
        return 1
    return max(1, _STACKED // max(1, deltas[0].numel()))


def _difference(tuned: Tensor, base: Tensor | None) -> tuple[Tensor, int]:
    """Δ in float32, and the power of two that brings it near one: 0 where it is near enough."""
    delta = tuned.float() if base is None else tuned.float() - base.float()
    if not delta.numel():
        return delta, 0
    largest = max(map(abs, map(float, delta.aminmax())))
    if not math.isfinite(largest):  # LAPACK would fail without a hint, or never end
        bad = int((~delta.isfinite()).view(-1).nonzero()[0])
        refuse_nonfinite("svd_delta", bad, tuned, base)
    power = math.frexp(largest)[1]
    if abs(power) <= _NEAR_ONE:
        return delta, 0
    power = min(max(power, -_LARGEST_POWER), _LARGEST_POWER)
    return delta * 2.0**-power, power


def _decompose(
    stack: Tensor,
    powers: list[int],
    rank: int | None,
    energy: float | None,
    oversample: int,
    iterations: int,
    seed: int,
) -> list[SingularTriples]:
    """The triples of each matrix of float32 ``[n, O, I]``, which is to be multiplied by a power of two."""
    count, rows, columns = stack.shape
    if min(rows, columns) == 0 or rank == 0:
        kept = 0
        left, values, right = (stack.new_empty(count, *size) for size in ((rows, 0), (0,), (columns, 0)))
    elif energy is None and rank is not None:
        kept = rank
        left, values, right = _largest(stack, rank, oversample, iterations, seed)
    else:
        share = 1.0 if energy is None else energy
        left, values, right, kept = _by_energy(stack, rank, share, oversample, iterations, seed)
    found = []
    for u, s, v, power in zip(left, values, right, powers, strict=True):
        u, s, v = u[:, :kept], s[:kept], v[:, :kept]
        if kept:
            signs = v.gather(0, v.abs().argmax(0, keepdim=True)).sign()
            u, v = u * signs, v * signs
        found.append(SingularTriples(u.contiguous(), s * 2.0**power, v.contiguous()))
    return found


def _largest(
    stack: Tensor, rank: int, oversample: int, iterations: int, seed: int, start: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """At least `rank` triples of each; `start` [n, I, k] is where the range finder knows the rows to lie."""
    smaller = min(stack.shape[1:])
    columns = -(-(rank + oversample) // _ALIGNED) * _ALIGNED
    if columns > NEAR_FULL * smaller:
        left, values, rows = torch.linalg.svd(stack, full_matrices=False)
        return left, values, rows.mT
    generator = torch.Generator().manual_seed(seed)
    test = torch.randn(stack.shape[2], columns, generator=generator).to(stack.device)
    sample = test.expand(len(stack), -1, -1)
    if start is not None:
        sample = torch.cat((start, sample[:, :, start.shape[2] :]), 2)
    rough = _Rough(stack) if multiplies_bfloat16(stack.device) else stack
    basis = _spread(rough @ sample) if iterations else torch.linalg.qr(stack @ sample).Q
    for number in range(iterations):
        rows = _spread(rough.mT @ basis)
        basis = torch.linalg.qr((stack if number == iterations - 1 else rough) @ rows).Q
    across, core = torch.linalg.qr(stack.mT @ basis)  # (Qᵀ·Δ)ᵀ
    left, values, rows = torch.linalg.svd(core)
    return basis @ rows.mT, values, across @ left


class _Rough:
    """A stack of matrices that multiplies in bfloat16, three times as fast as in float32."""

    def __init__(self, stack: Tensor) -> None:
        self._stack = stack.bfloat16()

    @property
    def mT(self) -> _Rough:
        turned = object.__new__(_Rough)
        turned._stack = self._stack.mT
        return turned

    def __matmul__(self, other: Tensor) -> Tensor:
        if len(self._stack) == 1:  # a batch of turned matrices takes twice as long
            return (self._stack[0] @ other[0].bfloat16()).float()[None]
        return (self._stack @ other.bfloat16()).float()


def _spread(columns: Tensor) -> Tensor:
    """Columns that span the same space and are far from dependent: the L of P·L·U, in a third of the time of a QR."""
    packed, pivots, _ = torch.linalg.lu_factor_ex(columns)
    lower = torch.lu_unpack(packed, pivots, unpack_pivots=False)[1]
    spread = torch.empty_like(lower)
    for mine, exchanged, whole in zip(lower, pivots.tolist(), spread, strict=True):
        order = list(range(columns.shape[1]))
        for row, other in enumerate(exchanged, start=1):
            order[row - 1], order[other - 1] = order[other - 1], order[row - 1]
        whole[torch.tensor(order, device=whole.device)] = mine
    return spread


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32."""
    return device.type == "cuda" or (device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported()))


def _by_energy(
    stack: Tensor, rank: int | None, energy: float, oversample: int, iterations: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The triples of one matrix that have `energy`: twice as many are looked for until they do."""
    total = _energy(stack[0])
    smaller = min(stack.shape[1:])
    most = smaller if rank is None else rank
    guess, start = min(_FIRST_GUESS, most), None
    while True:
        left, values, right = _largest(stack, guess, oversample, iterations, seed, start)
        whole = values.shape[1] == smaller
        certain = most if whole else guess  # the values beyond are those of the oversampling
        kept = reference.rank_for_energy(values[0, :certain], energy, _energy(values) if whole else total)
        if kept is not None or certain == most:
            return left, values, right, most if kept is None else kept
        guess, start = min(2 * guess, most), right


def _energy(values: Tensor) -> float:
    """The sum of squares in float64, without a float64 copy of a large matrix."""
    return math.fsum(float(part.double().square().sum()) for part in values.split(256))
