"""Singular triples to a pack: V first, then U for the V that came out. Products and solutions are torch's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graftwork.ops import _checks
from graftwork.ops.quantized_delta.formats import PackedDelta, PackFormat
from graftwork.ops.quantized_delta.gptq import gptq_quantize
from graftwork.ops.quantized_delta.gptq_factor import GptqFactor
from graftwork.ops.quantized_delta.lowrank import (
    Groups,
    LowRankGroup,
    LowRankPack,
    factor_format,
    resolve_groups,
    unpacked,
)
from graftwork.ops.quantized_delta.quantize import delta_quantize

QUANTIZERS = ("rtn", "mse", "gptq")
_ITERATIONS = 2  # of the search for scales
_TOGETHER = 8  # triples whose columns of U are quantised at a time
_SHORTEST = 1e-9  # of the longest: what errors that are passed on to a triple are at least divided by
_HALF_MAX = 65504.0


def lowrank_quantize(
    left: Tensor,
    values: Tensor,
    right: Tensor,
    groups: Groups,
    *,
    formats: Mapping[int, PackFormat] | None = None,
    quantizer: str = "mse",
    hessian: Tensor | None = None,
    factor: GptqFactor | None = None,
    damp: float = 0.01,
    refit: bool = True,
) -> LowRankPack:
    """Quantise singular triples, the larger ones to more bits: Δ̂ = Û·diag(S)·V̂ᵀ.

    V first. Then U for the V̂ at hand: M = U·S·Vᵀ·H·V̂·(V̂ᵀ·H·V̂)⁻¹ is the best that can stand before V̂ᵀ, and its columns,
    of unit length, are quantised; their lengths are the new S, which is kept in float32.

    Parameters
    ----------
    left, values, right : Tensor
        U ``[O, r]``, S ``[r]`` and V ``[I, r]``, float32, as :func:`svd_delta` gives them.
    groups : sequence of (int or None, int)
        Triples and the bits of their factors, as for :func:`resolve_groups`: 16, 8, 4, 3, 2, 1, or 0 to leave them out.
    formats : mapping of int to PackFormat, optional
        How factors of so many bits are stored, instead of :data:`FACTOR_FORMATS`. 16 bits are float16.
    quantizer : str
        ``"rtn"``: scales from the extremes; ``"mse"``: scales of least squared error; ``"gptq"``: these, with codes by
        :func:`gptq_quantize`, V for `hessian`, and U for the inputs that V̂ gives.
    hessian : Tensor, optional
        ``[I, I]`` float32 or float64: (2/n)·Σ x·xᵀ of the layer's inputs. None: the identity.
    factor : GptqFactor, optional
        Of the Hessian, where it has been made already for another matrix with the same inputs. Unless given it is made
        with ``act_order=True``.
    damp : float
        So many times the mean of the Hessian's diagonal is added to it.
    refit : bool
        Whether U is fitted to V̂. Else it is U itself, with the S given.

    Returns
    -------
    LowRankPack
        Of shape (O, I).

    Raises
    ------
    TypeError, ValueError
        An argument is not as above or not finite.

    Notes
    -----
    For one V̂ the error in the norm of H before U is quantised is the least there is. Codes are deterministic for given
    factors up to the last bits of torch's products.

    Papers: Delta-CoMe, arXiv 2406.08903, and "Knowledge Grafting of LLMs", arXiv 2505.18502. Differs from them: blocks of
    a scale run along O and I, not across the triples; U is fitted to V̂, and its errors pass from larger to smaller
    triples across all groups.

    Examples
    --------
    >>> from graftwork.ops.quantized_delta import svd_delta
    >>> delta = torch.outer(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0]))
    >>> pack = lowrank_quantize(*svd_delta(delta, None, rank=2), [(1, 16), (None, 0)])
    >>> pack.rank, pack.groups[0].values.tolist()
    (1, [5.0])
    """
    rank = _check_triples(left, values, right)
    if quantizer not in QUANTIZERS:
        raise ValueError(
            f"lowrank_quantize: quantizer must be one of {', '.join(map(repr, QUANTIZERS))}, got {quantizer!r}"
        )
    kept = resolve_groups(groups, rank)
    shape = left.shape[0], right.shape[0]
    if hessian is not None and hessian.shape != (shape[1], shape[1]):
        raise ValueError(
            f"lowrank_quantize: hessian must be {[shape[1], shape[1]]}, got {tuple(hessian.shape)}; it is that of the "
            f"layer's inputs"
        )
    if not kept or 0 in shape:
        return LowRankPack(shape, ())
    if hessian is not None and factor is None and quantizer == "gptq":
        factor = GptqFactor.of(hessian, damp=damp, act_order=True)
    with torch.no_grad():
        run = _Run(left, values, right, kept, formats, quantizer)
        run.quantise_right(factor if quantizer == "gptq" else None)
        run.fit_left(hessian, _damping(hessian, factor, damp), refit)
        return run.quantise_left()


def _damping(hessian: Tensor | None, factor: GptqFactor | None, damp: float) -> float:
    """What is added to the diagonal of the Hessian: the factor's, or as it would be."""
    if hessian is None:
        return 0.0
    if factor is not None:
        return factor.damping
    diagonal = hessian.diagonal()
    alive = diagonal[diagonal != 0]
    return damp * float(alive.double().mean()) if alive.numel() else 0.0


def _check_triples(left: Tensor, values: Tensor, right: Tensor) -> int:
    for name, value in (("left", left), ("values", values), ("right", right)):
        _checks.check_tensor("lowrank_quantize", name, value)
        _checks.check_dtype("lowrank_quantize", name, value, (torch.float32,), "convert it first")
        _checks.check_device("lowrank_quantize", name, value, "left", left)
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"lowrank_quantize: {name} must be finite; decompose with svd_delta, which checks the delta"
            )
    rank = values.numel()
    if values.dim() != 1 or any(x.dim() != 2 or x.shape[1] != rank for x in (left, right)):
        raise ValueError(
            f"lowrank_quantize: left, values and right must be [O, r], [r] and [I, r], got {tuple(left.shape)}, "
            f"{tuple(values.shape)} and {tuple(right.shape)}"
        )
    return rank


class _Run:
    def __init__(
        self,
        left: Tensor,
        values: Tensor,
        right: Tensor,
        kept: list[tuple[int, int, int]],
        formats: Mapping[int, PackFormat] | None,
        quantizer: str,
    ) -> None:
        self.left, self.values, self.right = left, values, right
        self.kept, self.formats, self.quantizer = kept, formats, quantizer
        self.packed_right: list[PackedDelta | Tensor] = []
        #: The rows of Uᵀ, their lengths, and V̂ᵀ·H·V̂, once V̂ is there.
        self.unit = self.lengths = self.inner = values

    def _nearest(self, rows: Tensor, bits: int) -> PackedDelta | Tensor:
        if bits == 16:
            return rows.clamp(-_HALF_MAX, _HALF_MAX).half()
        format = factor_format(bits, self.formats)
        return delta_quantize(rows.contiguous(), None, format, mse_iters=self._iterations(format))[0]

    def _iterations(self, format: PackFormat) -> int:
        return 0 if self.quantizer == "rtn" or format.scheme == "sign" else _ITERATIONS

    def quantise_right(self, factor: GptqFactor | None) -> None:
        for start, count, bits in self.kept:
            rows = self.right[:, start : start + count].mT.contiguous()
            if factor is None or bits == 16:
                self.packed_right.append(self._nearest(rows, bits))
                continue
            format = factor_format(bits, self.formats)
            iterations = self._iterations(format)
            found = gptq_quantize(rows, factor, format, static_groups=True, mse_iters=iterations)
            self.packed_right.append(found.pack)

    def fit_left(self, hessian: Tensor | None, damping: float, refit: bool) -> None:
        """Set the rows of Uᵀ to be quantised, their lengths, and V̂ᵀ·H·V̂, for the V̂ that is packed."""
        rows = torch.cat([unpacked(factor) for factor in self.packed_right])
        seen = rows if hessian is None else rows @ hessian.float() + damping * rows
        self.inner = (seen @ rows.mT).double()
        self.inner = (self.inner + self.inner.mT) / 2
        fitted = self._fitted((self.left * self.values).mT, seen) if refit else None
        if fitted is None:
            chosen = [torch.arange(start, start + count) for start, count, _ in self.kept]
            kept = torch.cat(chosen).to(rows.device)
            self.unit, self.lengths = self.left.mT[kept], self.values[kept]
            return
        lengths = fitted.norm(dim=1)
        self.lengths = lengths.clamp(min=_SHORTEST * float(lengths.max()))
        self.unit = fitted / torch.where(self.lengths > 0, self.lengths, 1.0)[:, None]

    def _fitted(self, own: Tensor, seen: Tensor) -> Tensor | None:
        """The rows of M, or None if V̂ does not determine them."""
        across = (seen @ self.right).double()
        lower, failed = torch.linalg.cholesky_ex(self._raised(1e-9))
        if int(failed):
            return None
        return torch.cholesky_solve(across, lower).float() @ own

    def _raised(self, part: float) -> Tensor:
        """V̂ᵀ·H·V̂ with a little more on its diagonal; rows of zeros have a one there."""
        diagonal = self.inner.diagonal()
        return self.inner + torch.diag(torch.where(diagonal == 0, 1.0, diagonal * part))

    def quantise_left(self) -> LowRankPack:
        packs = self._pack_left(self.unit)
        if self.quantizer == "gptq":
            targets, loss = self._targets_with_errors()
            made = torch.cat([unpacked(pack) for pack in packs])
            if loss < _loss(self.inner, (self.unit - made) * self.lengths[:, None]):
                packs = self._pack_left(targets)
        groups, row = [], 0
        for (start, count, _), left, right in zip(self.kept, packs, self.packed_right, strict=True):
            groups.append(LowRankGroup(start, left, right, self.lengths[row : row + count].clone()))
            row += count
        return LowRankPack((self.left.shape[0], self.right.shape[0]), tuple(groups))

    def _pack_left(self, targets: Tensor) -> list[PackedDelta | Tensor]:
        packs, row = [], 0
        for _, count, bits in self.kept:
            packs.append(self._nearest(targets[row : row + count], bits))
            row += count
        return packs

    def _targets_with_errors(self) -> tuple[Tensor, float]:
        """What the rows of Uᵀ are quantised from if the errors of those before them are passed on, and their loss."""
        factor = GptqFactor.of(self.inner)
        targets, errors = torch.empty_like(self.unit), torch.zeros_like(self.unit)
        lengths = self.lengths[:, None]
        divisors = torch.where(lengths > 0, lengths, 1.0)
        row, loss = 0, 0.0
        for _, count, bits in self.kept:
            for begin in range(row, row + count, _TOGETHER):
                some = slice(begin, min(begin + _TOGETHER, row + count))
                passed_on = factor.feedback[:begin, some].mT @ errors[:begin]
                targets[some] = self.unit[some] + passed_on / divisors[some]
                made = unpacked(self._nearest(targets[some], bits))
                errors[some] = (self.unit[some] - made) * lengths[some]
                seen = passed_on + factor.feedback[some, some].mT @ errors[some]
                loss += float((seen * factor.diagonal[some, None]).double().square().sum())
            row += count
        return targets, loss - factor.damping * float(errors.double().square().sum())


def _loss(inner: Tensor, errors: Tensor) -> float:
    """tr((M − Û·S)·V̂ᵀ·H·V̂·(M − Û·S)ᵀ), the errors as rows of the transpose."""
    return float((inner.float() @ errors * errors).double().sum())
