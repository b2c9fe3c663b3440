"""What several codecs cost for one tensor and leave of it: of quantisers, what they leave of a sample of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops.quantized_delta import lowrank_dequant_add, lowrank_quantize, svd_delta
from graftwork.ops.quantized_delta.lowrank import resolve_groups, triple_bytes
from graftwork.store.skill_pack.codecs import SVD, Codec, Drop, Prune, Quantize, Raw
from graftwork.store.skill_pack.compress import Settings, compress, error_of, format_of
from graftwork.store.skill_pack.low_rank import group_formats, most_triples
from graftwork.store.skill_pack.pieces import Outline, stored_bytes

__all__ = ["Trial", "candidates", "try_codecs", "uniform_codecs"]

SAMPLE_ROWS = 512
_LARGEST_ROWS = 64
"""So many of a sample are the rows that changed most; of an embedding often few rows have all of the change."""

_MIXES: tuple[tuple[tuple[int | None, int], ...], ...] = (
    ((2, 8), (32, 3), (None, 2)),
    ((None, 4),),
    ((None, 8),),
)
_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5)
"""Budgets of an SVD in parts of the average: a tensor may get several times as much, or little."""


class Trial(NamedTuple):
    """A codec, the bytes that it takes for the whole tensor, and an estimate of the squared error that it leaves."""

    codec: Codec
    nbytes: int
    error: float


def uniform_codecs() -> list[Codec]:
    """The codecs that could be every tensor's: what an automatic plan is held against."""
    return [Quantize(bits, block=block) for bits in (1, 2, 3, 4, 8) for block in (0, 128, 64)]


def candidates(outline: Outline, bpw: float) -> list[Codec]:
    """What is worth trying for a tensor when the budget is ``bpw`` bits a weight on average."""
    found: list[Codec] = [Drop(), *uniform_codecs(), Raw("fp16")]
    if min(outline.rows, outline.columns) < 2:
        return found
    found += [Prune(keep, "int8") for keep in (0.01, 0.03, 0.1)]
    return found + [SVD(bpw=share * bpw, bits=mix) for share in _SHARES for mix in _MIXES]


def try_codecs(
    codecs: Sequence[Codec], delta: Tensor, outline: Outline, energy: float, settings: Settings, name: str
) -> list[Trial]:
    """A trial of each codec on ``delta``, float32 of the outline's shape with Σ Δ² = ``energy``."""
    sample = _Sample(delta)
    trials = [Trial(codec, 0, energy) for codec in codecs if isinstance(codec, Drop)]
    for codec in codecs:
        if isinstance(codec, Quantize | Raw):
            trials.append(sample.trial(codec, outline, settings, name))
        elif isinstance(codec, Prune):  # the largest entries of a sample are not those of the tensor
            piece = compress(codec, delta, outline, settings, name=name)
            trials.append(Trial(codec, stored_bytes(piece), error_of(piece, delta, energy).squared))
    trials += _low_rank(
        [codec for codec in codecs if isinstance(codec, SVD)], delta, outline, sample, settings
    )
    return trials


class _Sample:
    """Some rows: all if there are few; else those of most change, and of the others every so many."""

    def __init__(self, delta: Tensor) -> None:
        rows = delta.shape[0]
        self.rows = torch.arange(rows)
        self.weights = torch.ones(rows, dtype=torch.float64)
        if rows > SAMPLE_ROWS:
            order = delta.square().sum(1).argsort(descending=True, stable=True)
            rest = order[_LARGEST_ROWS:].sort().values
            count = SAMPLE_ROWS - _LARGEST_ROWS
            chosen = rest[torch.arange(count) * len(rest) // count]
            self.rows = torch.cat((order[:_LARGEST_ROWS], chosen))
            self.weights = torch.ones(SAMPLE_ROWS, dtype=torch.float64)
            self.weights[_LARGEST_ROWS:] = len(rest) / count
        self.whole = rows
        self.delta = delta[self.rows].contiguous()

    def error(self, rest: Tensor) -> float:
        """The squared error of the whole tensor by that of the sample, whose differences are ``rest``."""
        return float((rest.double().square().sum(1) * self.weights).sum())

    def trial(self, codec: Codec, outline: Outline, settings: Settings, name: str) -> Trial:
        """A codec that takes rows one by one."""
        own = Outline(1, *self.delta.shape)
        piece = compress(codec, self.delta, own, settings, name=name)
        rest = self.delta.clone()
        piece.add_(rest, -1.0)
        nbytes = stored_bytes(piece) * self.whole // max(len(self.rows), 1)
        if isinstance(codec, Quantize):
            nbytes = format_of(codec).nbytes(*outline.shape)
        return Trial(codec, nbytes, self.error(rest))


def _low_rank(
    codecs: Sequence[SVD], delta: Tensor, outline: Outline, sample: _Sample, settings: Settings
) -> Iterator[Trial]:
    """Codecs of one decomposition: what it has of the matrix is exact, and only rows are sampled."""
    shape = outline.rows, outline.columns
    ranks: dict[SVD, int] = {}
    for codec in codecs:
        rank = most_triples(codec, shape, settings.target_bpw)
        if rank and all(rank != other or codec.bits != known.bits for known, other in ranks.items()):
            ranks[codec] = rank
    if not ranks:
        return
    matrices = list(delta.view(outline.stack, *shape))
    found = svd_delta(matrices, None, rank=max(ranks.values()), seed=settings.seed)
    for codec, rank in ranks.items():
        formats, nbytes = group_formats(codec), 0
        rest = delta.clone() if outline.stack > 1 else sample.delta.clone()
        for number, (left, values, right) in enumerate(found):
            pack = lowrank_quantize(
                left[:, :rank].contiguous(),
                values[:rank],
                right[:, :rank].contiguous(),
                codec.bits,
                formats=formats,
            )
            nbytes += sum(
                count * triple_bytes(*shape, bits, formats)
                for _, count, bits in resolve_groups(codec.bits, rank)
            )
            if outline.stack > 1:
                matrix = rest.view(outline.stack, *shape)[number]
                lowrank_dequant_add(matrix, pack, -1.0, out=matrix)
            else:
                left_rows, scale, right_rows = pack.factors()
                rest.addmm_((left_rows[:, sample.rows] * scale[:, None]).T, right_rows, alpha=-1.0)
        error = float(rest.double().square().sum()) if outline.stack > 1 else sample.error(rest)
        yield Trial(codec, nbytes, error)
