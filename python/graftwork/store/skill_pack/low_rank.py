"""Quantised singular triples: how a codec's groups become a piece, and how that is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from graftwork.ops.quantized_delta import (
    FACTOR_FORMATS,
    GptqFactor,
    LowRankGroup,
    LowRankPack,
    PackedDelta,
    PackFormat,
    lowrank_dequant_add,
    lowrank_quantize,
    rank_for_bpw,
    svd_delta,
)
from graftwork.store.skill_pack.codecs import SVD
from graftwork.store.skill_pack.file import Form
from graftwork.store.skill_pack.packed import (
    DTYPES,
    Facts,
    FieldNames,
    Fields,
    packed_facts,
    packed_fields,
    packed_forms,
    read_packed,
)
from graftwork.store.skill_pack.pieces import Outline

__all__ = ["LowRank", "decompose", "group_formats"]

_RAW = 16
"""Bits of factors that are halves and no codes."""


def group_formats(codec: SVD) -> dict[int, PackFormat]:
    """How factors of so many bits are stored."""
    own: dict[str, Any] = {}
    if codec.block is not None:
        own["block"] = codec.block
    if codec.scale_dtype is not None:
        own["scale_dtype"] = DTYPES[codec.scale_dtype]
    return {bits: replace(made, **own) for bits, made in FACTOR_FORMATS.items()}


def decompose(
    codec: SVD,
    matrices: Sequence[Tensor],
    *,
    cap: float | None = None,
    quantizer: str = "mse",
    seed: int = 0,
    hessian: Tensor | None = None,
    factor: GptqFactor | None = None,
) -> tuple[LowRankPack, ...]:
    """The triples of float32 matrices of one shape that ``codec`` asks for.

    ``cap`` is a limit in bits a weight beside the codec's own. Of ``hessian`` and ``factor``, see `lowrank_quantize`.
    """
    formats = group_formats(codec)
    shape = (matrices[0].shape[0], matrices[0].shape[1])
    rank = most_triples(codec, shape, cap)
    found = svd_delta(matrices, None, rank=rank, energy=codec.energy, seed=seed)
    return tuple(
        lowrank_quantize(
            *triples, codec.bits, formats=formats, quantizer=quantizer, hessian=hessian, factor=factor
        )
        for triples in found
    )


def most_triples(codec: SVD, shape: tuple[int, int], cap: float | None = None) -> int:
    """The triples of a matrix that rank and budgets allow."""
    ranks = [min(shape)] if codec.rank is None else [min(shape), codec.rank]
    for bpw in (codec.bpw, cap):
        if bpw is not None:
            ranks.append(rank_for_bpw(shape, bpw, codec.bits, formats=group_formats(codec)))
    return min(ranks)


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """Groups of quantised singular triples of each of a tensor's matrices."""

    outline: Outline
    packs: tuple[LowRankPack, ...]
    codec: ClassVar[str] = "svd"

    def words(self) -> str:
        ranks = [pack.rank for pack in self.packs]
        longest = max(self.packs, key=lambda pack: pack.rank)
        groups = " + ".join(f"{group.count}×{group.bits} bit" for group in longest.groups)
        rank = str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)}-{max(ranks)}"
        return f"SVD rank {rank}" + (f": {groups}" if groups else "")

    def energies(self) -> Tensor:
        """The squares of the singular values that are stored, of all matrices, the largest first."""
        values = [group.values.double().square() for pack in self.packs for group in pack.groups]
        return torch.cat(values).sort(descending=True).values if values else torch.empty(0).double()

    def fields(self) -> dict[str, Tensor]:
        fields: dict[str, Tensor] = {}
        for prefix, pack in zip(_prefixes(self.outline), self.packs, strict=True):
            for number, group in enumerate(pack.groups):
                for factor, kept in (("u", group.left), ("v", group.right)):
                    names = FieldNames.of_factor(factor, number, prefix)
                    if isinstance(kept, PackedDelta):
                        fields |= packed_fields(kept, names)
                    else:
                        fields[names.codes] = kept
                fields[f"{prefix}s.{number}"] = group.values
        return fields

    def facts(self) -> dict[str, Any]:
        return {
            "groups": [
                [
                    {
                        "count": group.count,
                        "start": group.start,
                        "u": packed_facts(group.left) if isinstance(group.left, PackedDelta) else _RAW,
                        "v": packed_facts(group.right) if isinstance(group.right, PackedDelta) else _RAW,
                    }
                    for group in pack.groups
                ]
                for pack in self.packs
            ]
        }

    def add_(self, total: Tensor, scale: float) -> None:
        whole = total.view(self.outline.stack, self.outline.rows, self.outline.columns)
        for matrix, pack in zip(whole, self.packs, strict=True):
            on_it = pack.to(total.device)
            lowrank_dequant_add(matrix, on_it, scale, out=matrix, compute=torch.float32)

    @staticmethod
    def forms(facts: Facts, outline: Outline) -> dict[str, Form]:
        forms: dict[str, Form] = {}
        for prefix, number, group in _groups(facts, outline):
            count, end = group["count"], group["start"]
            if type(count) is not int or type(end) is not int or not 0 <= count <= min(outline.shape):
                raise ValueError(f"a group of {count!r:.100} triples from {end!r:.100} on")
            for factor, size in (("u", outline.rows), ("v", outline.columns)):
                names, kept = FieldNames.of_factor(factor, number, prefix), group[factor]
                if kept == _RAW:
                    forms[names.codes] = Form("F16", (count, size))
                else:
                    forms |= packed_forms(kept, (count, size), names)
            forms[f"{prefix}s.{number}"] = Form("F32", (count,))
        return forms

    @classmethod
    def read(cls, facts: Facts, outline: Outline, fields: Fields) -> Self:
        packs: dict[str, list[LowRankGroup]] = {prefix: [] for prefix in _prefixes(outline)}
        for prefix, number, group in _groups(facts, outline):
            values = fields[f"{prefix}s.{number}"]
            factors: list[PackedDelta | Tensor] = []
            for factor, size in (("u", outline.rows), ("v", outline.columns)):
                names, kept = FieldNames.of_factor(factor, number, prefix), group[factor]
                if kept == _RAW:
                    factors.append(fields[names.codes])
                else:
                    factors.append(read_packed(kept, (group["count"], size), fields, names))
            for tensor in (values, *(kept for kept in factors if isinstance(kept, Tensor))):
                if not bool(torch.isfinite(tensor).all()):
                    raise ValueError("a factor is not finite")
            packs[prefix].append(LowRankGroup(group["start"], factors[0], factors[1], values))
        shape = outline.rows, outline.columns
        return cls(outline, tuple(LowRankPack(shape, tuple(groups)) for groups in packs.values()))


def _prefixes(outline: Outline) -> list[str]:
    return [""] if outline.stack == 1 else [f"e{number}." for number in range(outline.stack)]


def _groups(facts: Facts, outline: Outline) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Prefix, number and facts of each group."""
    matrices = facts["groups"]
    if len(matrices) != outline.stack:
        raise ValueError(f"triples of {len(matrices)} matrices, wanted {outline.stack}")
    for prefix, groups in zip(_prefixes(outline), matrices, strict=True):
        for number, group in enumerate(groups):
            yield prefix, number, group
