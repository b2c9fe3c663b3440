"""The run of GPTQ over the columns of a matrix.

The loop over the columns of a block is native; between blocks the errors travel by a matrix product of torch's. GPU: the
loop on copies on the host.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.quantized_delta.bits import pack_bits, unpack_bits
from graftwork.ops.quantized_delta.formats import PackedDelta
from graftwork.ops.quantized_delta.gptq_factor import GptqFactor
from graftwork.ops.quantized_delta.quantize import delta_quantize
from graftwork.ops.sparse_update import _arena
from graftwork.reference.quantized_delta import gptq as reference
from graftwork.reference.quantized_delta.levels import round_scales, stored_scales

_COLUMNS = 128  # of a block, whose errors reach the columns behind it in one product
_GRAIN = 1 << 15  # elements a thread


class Columns:
    """One run over the columns of a matrix, in the factor's order."""

    def __init__(
        self,
        values: Tensor,
        factor: GptqFactor,
        nearest: PackedDelta,
        g_idx: Tensor | None,
        static_groups: bool,
        mse_iters: int | None,
    ) -> None:
        self.factor, self.nearest, self.mse_iters = factor, nearest, mse_iters
        self.weights = values if factor.order is None else values[:, factor.order]
        self.corrected = self.weights.clone()
        self.codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
        self.losses = torch.zeros(values.shape[0], dtype=torch.float64, device=values.device)
        format, columns = nearest.format, values.shape[1]
        self.moving = format.block > 0 and not (static_groups and factor.order is not None)
        self.scales = (
            nearest.scale_values().expand(values.shape[0], -1).clone()
        )  # written while `nearest` is kept
        zeros = nearest.zeros
        self.zeros = None if zeros is None else zeros.expand(values.shape[0], -1).clone()
        places = torch.arange(columns, device=values.device)
        if factor.order is not None and not self.moving:
            places = factor.order
        self.groups = (places // format.block if format.block > 0 else places * 0).int()
        self.storage = None if factor.order is None else _inverse(factor.order)
        if g_idx is not None and self.storage is not None:
            self.storage = self.storage[g_idx.argsort(stable=True)]
        self.counted = factor.diagonal.masked_fill(
            factor.dead if factor.order is None else factor.dead[factor.order], 0
        )

    def quantise(self) -> None:
        columns = self.weights.shape[1]
        begin = 0
        while begin < columns:
            end, pieces = self._pieces(begin, columns)
            errors = self.weights.new_empty(self.weights.shape[0], end - begin)
            for start, stop in pieces:
                errors[:, start - begin : stop - begin] = self._piece(start, stop)
                self._pass_on(errors[:, start - begin : stop - begin], start, stop, end)
            self._pass_on(errors, begin, end, columns, end)
            begin = end

    def _pieces(self, begin: int, columns: int) -> tuple[int, list[tuple[int, int]]]:
        """The end of the block that starts at `begin`, and its parts, none of which reaches into two groups."""
        block = self.nearest.format.block if self.moving else 0
        cuts = [begin]
        while cuts[-1] < columns and cuts[-1] - begin < _COLUMNS:
            longest = block - cuts[-1] % block if block else _COLUMNS
            cuts.append(min(cuts[-1] + min(longest, _COLUMNS), columns))
        return cuts[-1], list(itertools.pairwise(cuts))

    def _pass_on(self, errors: Tensor, begin: int, end: int, stop: int, start: int | None = None) -> None:
        """Add what the errors of columns begin … end make of columns start … stop."""
        start = end if start is None else start
        if start < stop:
            self.corrected[:, start:stop].addmm_(errors, self.factor.feedback[begin:end, start:stop])

    def _piece(self, start: int, stop: int) -> Tensor:
        format = self.nearest.format
        if self.moving and start % format.block == 0:
            self._take_scales(start, min(start + format.block, self.weights.shape[1]))
        codes, errors = torch.ops.graftwork.gptq_block(
            self.weights[:, start:stop],
            self.corrected[:, start:stop],
            self.factor.feedback[start:stop, start:stop],
            self.scales,
            self.zeros,
            self.groups[start:stop],
            self.counted[start:stop],
            self.factor.damping,
            format.bits,
            format.scheme_number,
            self.losses,
        )
        self.codes[:, start:stop] = codes
        return errors

    def _take_scales(self, start: int, stop: int) -> None:
        """The scales of a group, of its weights with the errors that have come to them."""
        format, group = self.nearest.format, int(self.groups[start])
        part, _ = delta_quantize(
            self.corrected[:, start:stop].contiguous(),
            None,
            replace(format, block=0, row_align=None),
            mse_iters=self.mse_iters,
        )
        scales = part.scale_values()[:, 0]
        if format.scale_dtype == torch.float16:  # one power of two for the whole matrix
            exponent = self.nearest.scale_exp
            limit = torch.finfo(torch.float16).max * 2.0**exponent
            scales = round_scales(scales.clamp(max=limit), torch.float16, exponent)
        self.scales[:, group] = scales
        if self.zeros is not None and part.zeros is not None:
            self.zeros[:, group] = part.zeros[:, 0]

    def merged(self, better: Tensor) -> PackedDelta:
        """The better rows of this run, the others rounded to nearest."""
        made, (_, columns) = self.nearest, self.nearest.shape
        mine = self.codes if self.storage is None else self.codes[:, self.storage]
        theirs = unpack_bits(made.codes, made.format.bits, columns)
        codes = torch.where(better[:, None], mine, theirs)
        packed = pack_bits(codes, made.format.bits, made.format.row_align)
        if not self.moving:
            return replace(made, codes=packed)
        scales = stored_scales(self.scales, made.format.scale_dtype, made.scale_exp)
        zeros = None
        if self.zeros is not None and made.zeros is not None:
            zeros = torch.where(better[:, None], self.zeros, made.zeros)
        return replace(
            made, codes=packed, scales=torch.where(better[:, None], scales, made.scales), zeros=zeros
        )


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return inverse


def _gptq_block(
    weights: Tensor,
    corrected: Tensor,
    feedback: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    groups: Tensor,
    diagonal: Tensor,
    damping: float,
    bits: int,
    scheme: int,
    losses: Tensor,
) -> tuple[Tensor, Tensor]:
    rows, columns = weights.shape
    if columns > _COLUMNS:
        raise ValueError(f"gptq_block: a block has at most {_COLUMNS} columns, got {columns}")
    weights, corrected = (x if x.stride(1) == 1 else x.contiguous() for x in (weights, corrected))
    across = feedback.mT.contiguous()  # what comes to a column, side by side
    scales, groups, diagonal = scales.contiguous(), groups.contiguous(), diagonal.contiguous()
    zeros = None if zeros is None else zeros.contiguous()
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    errors = torch.empty(rows, columns)
    arguments = (
        *(weights, weights.stride(0), corrected, corrected.stride(0), across, scales),
        *(0 if zeros is None else zeros, groups, scales.shape[1], diagonal, damping, bits, scheme),
        *(rows, columns, codes, errors, losses),
    )
    _native.call("gptq_block", *arguments, like=weights, threads=_native.threads_for(weights.numel(), _GRAIN))
    _arena.mark_written(losses)
    return codes, errors


_native.register(
    "gptq_block",
    "(Tensor weights, Tensor corrected, Tensor feedback, Tensor scales, Tensor? zeros, Tensor groups, Tensor diagonal, "
    "float damping, int bits, int scheme, Tensor(a!) losses) -> (Tensor, Tensor)",
    reference=reference.gptq_block,
    fake=lambda weights, *rest: (
        weights.new_empty(weights.shape, dtype=torch.uint8),
        weights.new_empty(weights.shape),
    ),
    cpu=_native.Route("_core", (torch.float32,), _gptq_block),
    cuda=_native.Route("_core", (torch.float32,), _arena.on_host_copies(_gptq_block, 10)),
)
