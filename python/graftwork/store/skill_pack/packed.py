"""A packed matrix as fields of a file and facts of its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graftwork.ops.quantized_delta import PackedDelta, PackFormat
from graftwork.store.skill_pack.file import Form

Facts = Mapping[str, Any]
Fields = Mapping[str, Tensor]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CODES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
"""The safetensors codes of the dtypes."""


class FieldNames(NamedTuple):
    """What the tensors of a packed matrix are called in the file."""

    codes: str
    scales: str
    zeros: str

    @classmethod
    def alone(cls) -> FieldNames:
        """Of a matrix that is all of a tensor."""
        return cls("q", "scale", "zero")

    @classmethod
    def of_factor(cls, factor: str, group: int, prefix: str = "") -> FieldNames:
        """Of a group of the factor ``u`` or ``v``; ``prefix`` says which of several matrices."""
        factor = prefix + factor
        return cls(f"{factor}.{group}", f"{factor}_scale.{group}", f"{factor}_zero.{group}")


def packed_words(made: PackFormat) -> str:
    """A format, for people."""
    block = {0: "row", -1: "tensor"}.get(made.block, str(made.block))
    return f"{made.bits}-bit {made.scheme}, block {block}"


def packed_facts(pack: PackedDelta) -> dict[str, Any]:
    """What must be known to read a packed matrix."""
    made = pack.format
    return {
        "bits": made.bits,
        "block": made.block,
        "row_align": made.row_align,
        "scale_dtype": NAMES[made.scale_dtype],
        "scale_exp": pack.scale_exp,
        "scheme": made.scheme,
    }


def read_format(facts: Facts) -> PackFormat:
    """The format that a file's facts say."""
    bits, align = facts["bits"], facts["row_align"]
    if type(bits) is not int or type(align) not in (int, type(None)):
        raise ValueError(f"bits {bits!r:.100}, row_align {align!r:.100}")
    return PackFormat(bits, facts["scheme"], facts["block"], DTYPES[facts["scale_dtype"]], row_align=align)


def packed_fields(pack: PackedDelta, names: FieldNames) -> dict[str, Tensor]:
    """The tensors of a packed matrix."""
    fields = {names.codes: pack.codes, names.scales: pack.scales}
    return fields if pack.zeros is None else {**fields, names.zeros: pack.zeros}


def packed_forms(facts: Facts, shape: tuple[int, int], names: FieldNames) -> dict[str, Form]:
    """The forms of `packed_fields`, by the facts of a file."""
    made, exponent = read_format(facts), facts["scale_exp"]
    if type(exponent) is not int or (exponent and made.scale_dtype != torch.float16):
        raise ValueError(f"the scales' exponent is {exponent!r:.100}")
    rows, columns = shape
    scales = Form(CODES[facts["scale_dtype"]], made.scale_shape(rows, columns))
    forms = {names.codes: Form("U8", (rows, made.row_bytes(columns))), names.scales: scales}
    return forms if made.scheme != "asym" else {**forms, names.zeros: Form("U8", scales.shape)}


def read_packed(facts: Facts, shape: tuple[int, int], fields: Fields, names: FieldNames) -> PackedDelta:
    """The packed matrix of `packed_fields`, its scales checked."""
    tensors = fields[names.codes], fields[names.scales], fields.get(names.zeros)
    pack = PackedDelta(read_format(facts), shape, *tensors, facts["scale_exp"])
    pack.check_scales()
    return pack


def scaled_down(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Float32 numbers in a dtype; halves are divided by a power of two first, so that small ones keep their digits."""
    largest = values.abs().max() if values.numel() else torch.zeros(())
    if dtype != torch.float16 or not largest > 0:
        return values.to(dtype), 0
    exponent = int(largest.frexp().exponent) - 15
    return torch.ldexp(values, torch.tensor(-exponent, device=values.device)).to(dtype), exponent


def scaled_up(stored: Tensor, exponent: int) -> Tensor:
    """The numbers that `scaled_down` stored, float32."""
    return torch.ldexp(stored.float(), torch.tensor(exponent, device=stored.device))


def check_exponent(exponent: object) -> None:
    """Refuse what cannot be the exponent of `scaled_down`."""
    if type(exponent) is not int or not -164 <= exponent <= 113:
        raise ValueError(f"the exponent is {exponent!r:.100}")
