"""Some entries of a change: which, and their values."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from graftwork.ops.merge import philox_uniform
from graftwork.ops.quantized_delta import PackedDelta, PackFormat, delta_quantize, dequantize
from graftwork.ops.sparse_update import decode_indices, encode_indices, topk_abs
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
    scaled_down,
    scaled_up,
)
from graftwork.store.skill_pack.pieces import Outline

__all__ = ["Scattered", "scatter"]

_VALUES = FieldNames("val", "val_scale", "val_zero")
_FORMATS = {"int8": PackFormat(8, "sym", 128), "sign": PackFormat(1, "sign", 128)}
_INDICES = "col"
_DRAWN = "philox"
_LEAST_DRAWN = 2.0**-10
"""With a lower share entries are stored: then the values of a file bound the work of drawing their entries anew."""
_TILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Drawn:
    """Entries that are drawn by chance, each with probability ``keep``: they follow from the key and are not stored.

    Entry i is there if the number of Philox4x32-10 at position i is below ``keep``.
    """

    key: tuple[int, int]
    keep: float

    def indices(self, numel: int) -> Tensor:
        """The entries, ascending; with little memory beside them."""
        parts = [
            (philox_uniform(self.key, start, min(_TILE, numel - start)) < self.keep).nonzero().view(-1)
            + start
            for start in range(0, numel, _TILE)
        ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Entries that are stored, by a code of `encode_indices`."""

    code: str
    data: Tensor
    count: int

    def indices(self, numel: int) -> Tensor:
        """The entries, ascending."""
        dtype = torch.int32 if numel < 1 << 31 else torch.int64
        return decode_indices(self.code, self.data.contiguous(), numel, self.count, dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Scattered:
    """Values of some entries, in the order of their flat indices; halves have a power of two apart."""

    outline: Outline
    entries: Drawn | Listed
    values: PackedDelta | Tensor
    exponent: int = 0
    codec: ClassVar[str] = "sparse"

    @property
    def count(self) -> int:
        """How many entries."""
        return self.values.shape[-1]

    def words(self) -> str:
        kind = "fp16" if isinstance(self.values, Tensor) else f"{self.values.format.bits}-bit"
        share = 100 * self.count / max(self.outline.numel, 1)
        drawn = " drawn" if isinstance(self.entries, Drawn) else ""
        return f"{share:.3g} % of the entries{drawn}, {kind}"

    def fields(self) -> dict[str, Tensor]:
        indices = {_INDICES: self.entries.data} if isinstance(self.entries, Listed) else {}
        if isinstance(self.values, Tensor):
            return {**indices, _VALUES.codes: self.values}
        return {**indices, **packed_fields(self.values, _VALUES)}

    def facts(self) -> dict[str, Any]:
        values = packed_facts(self.values) if isinstance(self.values, PackedDelta) else "fp16"
        facts = {"count": self.count, "exponent": self.exponent, "value": values}
        if isinstance(self.entries, Drawn):
            return {**facts, "index": _DRAWN, "keep": self.entries.keep, "key": list(self.entries.key)}
        return {**facts, "index": self.entries.code, "index_bytes": len(self.entries.data)}

    def add_(self, total: Tensor, scale: float) -> None:
        indices = self.entries.indices(self.outline.numel)
        if isinstance(self.values, Tensor):
            values = scaled_up(self.values, self.exponent)
        else:
            values = dequantize(self.values).view(-1)
        total.view(-1).index_add_(0, indices.to(total.device), values.to(total.device), alpha=scale)

    @staticmethod
    def forms(facts: Facts, outline: Outline) -> dict[str, Form]:
        count, index = facts["count"], facts["index"]
        if type(count) is not int or not 0 <= count <= outline.numel or not isinstance(index, str):
            raise ValueError(f"{count!r:.100} entries, by {index!r:.100}")
        check_exponent(facts["exponent"])
        forms = {}
        if index == _DRAWN:
            _check_drawn(_drawn(facts), count, outline.numel)
        elif type(facts["index_bytes"]) is not int or facts["index_bytes"] < 0:
            raise ValueError(f"indices of {facts['index_bytes']!r:.100} bytes")
        else:
            forms[_INDICES] = Form("U8", (facts["index_bytes"],))
        if facts["value"] == "fp16":
            return {**forms, _VALUES.codes: Form("F16", (count,))}
        return {**forms, **packed_forms(facts["value"], (1, count), _VALUES)}

    @classmethod
    def read(cls, facts: Facts, outline: Outline, fields: Fields) -> Self:
        count, values = facts["count"], facts["value"]
        stored: PackedDelta | Tensor = fields[_VALUES.codes]
        if values != "fp16":
            stored = read_packed(values, (1, count), fields, _VALUES)
        elif not bool(torch.isfinite(fields[_VALUES.codes]).all()):
            raise ValueError("a value is not finite")
        drawn = facts["index"] == _DRAWN
        entries = _drawn(facts) if drawn else Listed(facts["index"], fields[_INDICES], count)
        if len(entries.indices(outline.numel)) != count:
            raise ValueError(f"there are {count} values, and not as many indices")
        return cls(outline, entries, stored, facts["exponent"])


def _drawn(facts: Facts) -> Drawn:
    (first, second), keep = facts["key"], facts["keep"]
    if not all(type(word) is int and 0 <= word < 1 << 32 for word in (first, second)):
        raise ValueError(f"the key is {facts['key']!r:.100}")
    if type(keep) not in (int, float) or not 0 <= keep <= 1:
        raise ValueError(f"a share of {keep!r:.100} is kept")
    return Drawn((first, second), float(keep))


def _check_drawn(drawn: Drawn, count: int, numel: int) -> None:
    """Refuse a number of entries that chance does not give, before drawing any."""
    wanted = numel * drawn.keep
    if drawn.keep < _LEAST_DRAWN or abs(count - wanted) > 10 * math.sqrt(wanted * (1 - drawn.keep)) + 10:
        raise ValueError(f"{count} of {numel} entries, drawn with a share of {drawn.keep:g}")


def scatter(codec: Prune | Sparse, delta: Tensor, outline: Outline, name: str) -> Scattered:
    """The entries of a float32 change that a codec keeps.

    Of equal magnitudes the first are kept; zeros are never stored, but where entries are drawn.
    """
    flat = delta.reshape(-1)
    if isinstance(codec, Sparse) and codec.mode == "dare":
        drawn = Drawn(_key(codec.seed, name), codec.keep)
        indices = drawn.indices(outline.numel)
        values = flat[indices] / codec.keep if len(indices) else flat[:0]
        entries: Drawn | Listed = drawn
        if codec.keep < _LEAST_DRAWN:
            entries = Listed(*encode_indices(indices, outline.numel), len(indices))
        return _stored(outline, entries, values, codec.value)
    if isinstance(codec, Sparse) and codec.mode == "2:4":
        indices = _two_of_four(delta)
    else:
        (indices,) = topk_abs([flat], [round(codec.keep * outline.numel)])
    indices = indices[flat[indices] != 0]
    listed = Listed(*encode_indices(indices, outline.numel), len(indices))
    return _stored(outline, listed, flat[indices], codec.value)


def _stored(outline: Outline, entries: Drawn | Listed, values: Tensor, kind: str) -> Scattered:
    if kind == "fp16":
        return Scattered(outline, entries, *scaled_down(values, torch.float16))
    return Scattered(outline, entries, delta_quantize(values[None], None, _FORMATS[kind])[0])


def _key(seed: int, name: str) -> tuple[int, int]:
    """The key of a tensor's draws: the first two words of SHA-256 of the seed's eight bytes and the name."""
    digest = hashlib.sha256(seed.to_bytes(8, "little") + name.encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _two_of_four(delta: Tensor) -> Tensor:
    """The two largest of every four of a row, ascending flat indices; the last four may be fewer."""
    rows, columns = delta.shape
    padded = torch.nn.functional.pad(delta.abs(), (0, -columns % 4), value=-1.0).view(rows, -1, 4)
    order = padded.argsort(dim=2, descending=True, stable=True)[:, :, :2]
    kept = torch.zeros_like(padded, dtype=torch.bool).scatter_(2, order, True)
    return kept.view(rows, -1)[:, :columns].reshape(-1).nonzero().view(-1)
