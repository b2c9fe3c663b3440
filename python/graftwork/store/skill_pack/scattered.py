"""Some entries of a change: which, and their values."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from graftwork.ops.quantized_delta import PackedDelta, SparsePack, sparse_add_, sparse_quant
from graftwork.ops.sparse_update import encode_indices
from graftwork.store.skill_pack.codecs import Prune, Sparse
from graftwork.store.skill_pack.file import Form
from graftwork.store.skill_pack.packed import (
    Facts,
    FieldNames,
    Fields,
    check_exponent,
    packed_facts,
    packed_fields,
    packed_forms,
    read_packed,
)
from graftwork.store.skill_pack.pieces import Outline

__all__ = ["Scattered", "scatter"]

_VALUES = FieldNames("val", "val_scale", "val_zero")
_INDICES = "col"
_DRAWN = "drawn"
_DRAWS = 1 << 24
_LEAST_DRAWN = _DRAWS >> 10
"""With a lower share entries are stored: then the values of a file bound the work of drawing their entries anew."""


@dataclass(frozen=True, slots=True, eq=False)
class Scattered:
    """Values of some entries. Which they are is stored, or follows from the key that they were drawn with."""

    outline: Outline
    pack: SparsePack
    codec: ClassVar[str] = "sparse"

    def words(self) -> str:
        pack = self.pack
        kind = "fp16" if isinstance(pack.values, Tensor) else f"{pack.values.format.bits}-bit"
        share = 100 * pack.count / max(self.outline.numel, 1)
        return f"{share:.3g} % of the entries{' drawn' if pack.codec == _DRAWN else ''}, {kind}"

    def fields(self) -> dict[str, Tensor]:
        values, indices = self.pack.values, {} if self.pack.codec == _DRAWN else {_INDICES: self.pack.index}
        return {
            **indices,
            **({_VALUES.codes: values} if isinstance(values, Tensor) else packed_fields(values, _VALUES)),
        }

    def facts(self) -> dict[str, Any]:
        pack = self.pack
        values = packed_facts(pack.values) if isinstance(pack.values, PackedDelta) else "fp16"
        facts = {"count": pack.count, "exponent": pack.scale_exp, "index": pack.codec, "value": values}
        if pack.codec == _DRAWN:
            return {**facts, "below": pack.below, "key": list(pack.key)}
        return {**facts, "index_bytes": len(pack.index)}

    def add_(self, total: Tensor, scale: float) -> None:
        index, values = self.pack.index.to(total.device), self.pack.values.to(total.device)
        sparse_add_(total, replace(self.pack, index=index, values=values), scale)

    @staticmethod
    def forms(facts: Facts, outline: Outline) -> dict[str, Form]:
        count, index = facts["count"], facts["index"]
        if type(count) is not int or not 0 <= count <= outline.numel or not isinstance(index, str):
            raise ValueError(f"{count!r:.100} entries, by {index!r:.100}")
        check_exponent(facts["exponent"])
        forms = {}
        if index == _DRAWN:
            _check_drawn(facts, count, outline.numel)
        elif type(facts["index_bytes"]) is not int or facts["index_bytes"] < 0:
            raise ValueError(f"indices of {facts['index_bytes']!r:.100} bytes")
        else:
            forms[_INDICES] = Form("U8", (facts["index_bytes"],))
        if facts["value"] == "fp16":
            return {**forms, _VALUES.codes: Form("F16", (count,))}
        return {**forms, **packed_forms(facts["value"], (1, count), _VALUES)}

    @classmethod
    def read(cls, facts: Facts, outline: Outline, fields: Fields) -> Self:
        values: PackedDelta | Tensor = fields[_VALUES.codes]
        if facts["value"] != "fp16":
            values = read_packed(facts["value"], (1, facts["count"]), fields, _VALUES)
        elif not bool(torch.isfinite(fields[_VALUES.codes]).all()):
            raise ValueError("a value is not finite")
        drawn: dict[str, Any] = {}
        index = fields.get(_INDICES, torch.empty(0, dtype=torch.uint8)).contiguous()
        if facts["index"] == _DRAWN:
            drawn = {"key": tuple(facts["key"]), "below": facts["below"]}
        pack = SparsePack(outline.shape, facts["index"], index, values, facts["exponent"], **drawn)
        pack.indices()  # which refuses what is no code of so many
        return cls(outline, pack)


def _check_drawn(facts: Facts, count: int, numel: int) -> None:
    """Refuse a number of entries that chance does not give, before drawing any."""
    (first, second), below = facts["key"], facts["below"]
    if not all(type(word) is int and 0 <= word < 1 << 32 for word in (first, second)):
        raise ValueError(f"the key is {facts['key']!r:.100}")
    if type(below) is not int or not _LEAST_DRAWN <= below <= _DRAWS:
        raise ValueError(f"draws below {below!r:.100} are kept")
    share = below / _DRAWS
    if abs(count - numel * share) > 10 * math.sqrt(numel * share * (1 - share)) + 10:
        raise ValueError(f"{count} of {numel} entries, drawn with a share of {share:g}")


def scatter(codec: Prune | Sparse, delta: Tensor, outline: Outline, name: str) -> Scattered:
    """The entries of a float32 change that a codec keeps; of equal magnitudes the first."""
    if isinstance(codec, Sparse) and codec.mode == "2:4":
        return Scattered(outline, sparse_quant(delta, None, mode="2:4", value=codec.value))
    if isinstance(codec, Sparse) and codec.mode == "dare" and codec.keep:
        key = _key(codec.seed, name)
        return Scattered(outline, _stored_if_rare(delta, codec, key))
    count = 0
    if isinstance(codec, Prune) or codec.mode == "topk":  # zeros are not worth an index
        count = min(round(codec.keep * outline.numel), int(torch.count_nonzero(delta)))
    return Scattered(outline, sparse_quant(delta, None, mode="topk", keep=count, value=codec.value))


def _stored_if_rare(delta: Tensor, codec: Sparse, key: tuple[int, int]) -> SparsePack:
    pack = sparse_quant(delta, None, mode="dare", keep=float(codec.keep), seed=key, value=codec.value)
    if pack.below >= _LEAST_DRAWN:
        return pack
    code, index = encode_indices(pack.indices(), delta.numel())
    return replace(pack, codec=code, index=index, key=(0, 0), below=0)


def _key(seed: int, name: str) -> tuple[int, int]:
    """The key of a tensor's draws: the first two words of SHA-256 of the seed's eight bytes and the name."""
    digest = hashlib.sha256(seed.to_bytes(8, "little") + name.encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
