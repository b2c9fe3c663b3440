"""What the file of a skill pack says of its tensors, and the bounds that every statement is held to before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftwork.checkpoint.bulk import makes_many_objects
from graftwork.checkpoint.dtypes import DTYPES, tensor_bits
from graftwork.delta.manifest import check_format, is_digest
from graftwork.errors import DeltaError, GraftworkError, UnknownCodec
from graftwork.store.skill_pack.file import FORMAT, REMEDY, VERSION, Form
from graftwork.store.skill_pack.forms import CODECS, PIECES
from graftwork.store.skill_pack.pieces import Outline

__all__ = ["ErrorOf", "Manifest", "TensorRow", "parse_manifest"]

_OWN = frozenset(("codec", "shape", "orig_dtype", "lambda", "base_sha256", "err", "fields_sha256", "tied"))


@dataclass(frozen=True, slots=True)
class ErrorOf:
    """How far a stored change is from the change: |Δ̂−Δ|²/|Δ|², the root of it, the largest difference, and |Δ|²."""

    squared: float
    max_abs: float
    energy: float

    @property
    def rel_l2(self) -> float:
        """‖Δ̂−Δ‖/‖Δ‖; 0 where there is no change."""
        return math.sqrt(self.squared / self.energy) if self.energy else 0.0


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of a pack.

    ``base`` is the digest of the base's tensor, ``digest`` that of the fields; ``scale`` is a factor of the stored change
    (1, unless scales were distilled); ``facts`` is what the codec needs to read the fields.
    """

    name: str
    codec: str
    shape: tuple[int, ...]
    dtype: str
    base: str
    scale: float
    error: ErrorOf
    facts: dict[str, Any]
    digest: str
    tied: tuple[str, ...] = ()

    @property
    def outline(self) -> Outline:
        return Outline.of(self.name, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its fields."""
        return sum(form.nbytes for form in self.forms().values())

    def forms(self) -> dict[str, Form]:
        """Its fields' dtypes and shapes."""
        return PIECES[self.codec].forms(self.facts, self.outline)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        error = {"energy": self.error.energy, "max_abs": self.error.max_abs, "squared": self.error.squared}
        return {
            **self.facts,
            "base_sha256": self.base,
            "codec": self.codec,
            "err": {**error, "rel_l2": self.error.rel_l2},
            "fields_sha256": self.digest,
            "lambda": self.scale,
            "orig_dtype": self.dtype,
            "shape": list(self.shape),
            "tied": list(self.tied),
        }


@dataclass(frozen=True)
class Manifest:
    """All that a pack says: its tensors, the base's digest, the names that did not change, those that could not be packed
    with the reason, and how it was made."""

    base: str
    tensors: Mapping[str, TensorRow]
    unchanged: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @makes_many_objects
    def to_json(self) -> str:
        """The manifest as canonical JSON: sorted keys, no spaces, ASCII."""
        content = {
            "base": {"digest": self.base},
            "created_by": "graftwork",
            "format": FORMAT,
            "left_out": dict(self.left_out),
            "min_reader": [1, 0],
            "recipe": dict(self.recipe),
            "tensors": {name: row.to_dict() for name, row in self.tensors.items()},
            "unchanged": sorted(self.unchanged),
            "version": list(VERSION),
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


@makes_many_objects
def parse_manifest(text: str, version: str, file: Path) -> Manifest:
    """A manifest, checked; unknown extra keys are ignored, unknown codecs refused. ``version`` is what the header says."""
    try:
        content = json.loads(text)
        check_format(content, FORMAT, VERSION, file)
        if ".".join(map(str, content["version"])) != version:
            raise ValueError(f"the header says version {version!r:.100}")
        base = content["base"]["digest"]
        if not is_digest(base):
            raise ValueError(f"the base's digest is {base!r:.100}")
        rows = {name: _row(name, row, file) for name, row in content["tensors"].items()}
        unchanged, left_out, recipe = content["unchanged"], content["left_out"], content["recipe"]
        if not all(isinstance(name, str) for name in (*unchanged, *left_out, *left_out.values(), *recipe)):
            raise ValueError("a name is no text")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, GraftworkError):
            raise
        raise DeltaError(f"the manifest is malformed: {error!r:.300}", file=file, remedy=REMEDY) from error
    return Manifest(base, rows, tuple(unchanged), left_out, recipe)


def _row(name: str, row: dict[str, Any], file: Path) -> TensorRow:
    codec, dtype, shape = row["codec"], row["orig_dtype"], tuple(row["shape"])
    if codec not in PIECES:
        raise UnknownCodec(
            "a skill pack uses a codec that this graftwork does not have",
            file=file,
            tensor=name,
            got=f"{codec!r:.100}",
            wanted=f"one of {', '.join(CODECS)}",
            remedy="upgrade graftwork (pip install --upgrade graftwork)",
        )
    try:
        if DTYPES[dtype].kind != "float" or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"a tensor of {dtype} {list(shape)}")
        if tensor_bits(dtype, shape) is None:
            raise ValueError(f"the shape {list(shape)} is too large")
        facts = {key: value for key, value in row.items() if key not in _OWN}
        PIECES[codec].forms(facts, Outline.of(name, shape))
        scale, error = _number(row["lambda"]), row["err"]
        errors = ErrorOf(*(_number(error[key]) for key in ("squared", "max_abs", "energy")))
        digests, tied = (row["base_sha256"], row["fields_sha256"]), tuple(row["tied"])
        if not all(map(is_digest, digests)) or not all(isinstance(other, str) for other in tied):
            raise ValueError("a digest or name is none")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as fault:
        raise DeltaError(
            f"what the file says of a tensor is malformed: {fault!r:.300}",
            file=file,
            tensor=name,
            remedy=REMEDY,
        ) from fault
    return TensorRow(name, codec, shape, dtype, digests[0], scale, errors, facts, digests[1], tied)


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{value!r:.100} is no finite number")
    return float(value)  # type: ignore[arg-type]
