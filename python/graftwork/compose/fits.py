"""Whether the models of a merge fit together: their tensors' names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from graftwork.compose.prefixes import find_prefixes
from graftwork.errors import CheckpointError

if TYPE_CHECKING:
    from graftwork.compose.donors import Donor
    from graftwork.compose.plan import Input

__all__ = ["MERGEABLE", "check_dtypes", "check_names", "check_shapes"]

#: Dtypes that are merged, the wider ones last.
MERGEABLE = ("BF16", "F16", "F32")
_COPIED = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64")
_VOCABULARY = ("embed_tokens", "wte", "word_embeddings", "lm_head", "embed_out", "embed_in", "shared.weight")


def check_names(base: Donor | None, listed: Sequence[Donor]) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the output's tensors, sorted, and by model what it has beside them.

    With a base they are the base's. Without one all models must have the same ones.

    Raises
    ------
    CheckpointError
        A model lacks one of them.
    """
    wanted = set(base.names) if base is not None else {name for donor in listed for name in donor.names}
    extra: dict[str, list[str]] = {}
    for donor in listed:
        own = set(donor.names)
        missing = sorted(wanted - own)
        if missing:
            _refuse_missing(donor, missing, own, base, listed)
        if beside := sorted(own - wanted):
            extra[donor.name] = beside
    return sorted(wanted), extra


def _refuse_missing(
    donor: Donor, missing: list[str], own: Collection[str], base: Donor | None, listed: Sequence[Donor]
) -> None:
    holder = base or next(other for other in listed if missing[0] in other.names)
    near = get_close_matches(missing[0], own, n=1, cutoff=0.8)
    remedy = "merge models of one architecture"
    if base is None:
        remedy = (
            "give base_model: with one its tensors are merged, and what models have beside them is left out"
        )
    renamed = [prefix for prefix in find_prefixes(missing[:1], own) if prefix.old != prefix.new]
    if renamed:
        remedy = f"its names begin with {renamed[0].new!r} where the others' begin with {renamed[0].old!r}: rename them"
    raise CheckpointError(
        "a model lacks a tensor of the others",
        file=donor.weights.what,
        tensor=missing[0],
        got=f"{len(missing)} missing of {len(missing) + len(own)}"
        + (f"; the nearest name is {near[0]}" if near else ""),
        wanted=f"the tensors of {holder.weights.what}",
        remedy=remedy,
    )


def check_shapes(name: str, inputs: Sequence[Input]) -> tuple[int, ...]:
    """The one shape of all inputs; CheckpointError naming two that differ."""
    shapes = [part.shape for part in inputs]
    first = len(shapes) - 1  # the base where there is one
    for number, shape in enumerate(shapes):
        if shape == shapes[first]:
            continue
        part, other = inputs[number], inputs[first]
        raise CheckpointError(
            "a tensor has another shape than its counterpart",
            file=part.donor.file(part.name),
            tensor=part.name,
            got=list(shape),
            wanted=f"{list(shapes[first])}, as {other.name} in {other.donor.file(other.name)}",
            remedy=_shape_remedy(name, shape, shapes[first]),
        )
    return shapes[first]


def _shape_remedy(name: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(got) == len(wanted) == 2 and got == wanted[::-1]:
        return "one of the models stores it transposed (Conv1D): convert that model first"
    grown = len(got) == len(wanted) and got[1:] == wanted[1:]
    if grown and any(part in name for part in _VOCABULARY):
        return (
            "the vocabularies differ: add 'tokenizer_source: union' (or base) to match them by their tokens"
        )
    return "merge models of one architecture"


def check_dtypes(name: str, inputs: Sequence[Input], base: str | None) -> tuple[str, bool]:
    """The dtype code of the output (the base's, or the widest), and whether the tensor is copied and not merged.

    Raises
    ------
    CheckpointError
        A dtype cannot be merged, or integers stand beside floats.
    """
    codes = [part.donor.metas[part.name].dtype for part in inputs]
    if all(code in MERGEABLE for code in codes):
        widest = codes[0] if len(set(codes)) == 1 else "F32"
        return (base or widest), False
    if len(set(codes)) == 1 and codes[0] in _COPIED:
        return codes[0], True
    at = next(number for number, code in enumerate(codes) if code not in MERGEABLE)
    part, code = inputs[at], codes[at]
    raise CheckpointError(
        "a tensor is of a dtype that cannot be merged",
        file=part.donor.file(part.name),
        tensor=part.name,
        got=code if len(set(codes)) == 1 else f"{code}, beside {', '.join(sorted(set(codes) - {code}))}",
        wanted=", ".join(MERGEABLE) + "; or one integer type in all models",
        remedy="convert it to a wider or narrower float first"
        if code in ("F64", "C64")
        else "give the model before it was quantised",
    )
