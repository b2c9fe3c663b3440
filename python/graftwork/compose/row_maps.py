"""Tables of a vocabulary as the models of a merge see them: rows gathered by the plan of `graftwork.compose.vocabulary`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from graftwork.compose.donors import Donor
from graftwork.compose.recipe import ComposeRecipe, TokenizerPlan
from graftwork.compose.tokenizer_files import TOKENIZER_FILES, Vocabulary, folder_file, read_vocabulary
from graftwork.compose.vocabulary import VocabularyPlan, compare, plan_vocabulary
from graftwork.errors import CheckpointError, VocabularyMismatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["RowMap", "RowPlan", "check_vocabularies", "donor_vocabulary", "plan_rows", "vocabulary_tables"]

_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "word_embeddings",
    "tok_embeddings",
    "embed_in",
    "token_embedding",
    "shared",
)
_TABLES = (*_EMBEDDINGS, "lm_head", "embed_out", "output", "decoder", "predictions")
_SHOWN = 3


class Table(NamedTuple):
    """A tensor of a model."""

    donor: Donor
    name: str


@dataclass(frozen=True)
class RowMap:
    """One model's table with the rows of the output's vocabulary.

    Attributes
    ----------
    plan : VocabularyPlan
    model : int
        The model's number in the plan.
    tables : sequence of Table or None
        The tensor of the same name in every model.
    """

    plan: VocabularyPlan
    model: int
    tables: Sequence[Table | None]

    @property
    def dtype(self) -> str:
        """Dtype code of what `gather` makes: the table's own, or F32 where rows of another dtype or means come in."""
        used = {
            self.model,
            *(place.model for origin in self.plan.origins[self.model].values() for place in origin),
        }
        codes = {self._meta(model).dtype for model in used}
        means = any(len(origin) > 1 for origin in self.plan.origins[self.model].values())
        return "F32" if means or len(codes) > 1 else codes.pop()

    @property
    def size(self) -> int:
        """Rows of what `gather` makes."""
        return self.plan.size

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what `gather` makes."""
        return (self.plan.size, *tuple(self._meta(self.model).shape)[1:])

    def gather(self, own: Tensor, threads: int = 1) -> Tensor:
        """The table, in new memory, from the model's ``own``; sums of means are in fp64 and are rounded once."""
        import torch

        out = torch.zeros(self.shape, dtype=_float(self.dtype))
        kept = min(len(own), len(out))
        out[:kept] = own[:kept]
        moves = self._moves
        out[moves.zeros] = 0
        for model, (to, rows) in moves.copies.items():
            out[to] = self._tensor(model, threads)[rows].to(out.dtype)
        for mean, origin in moves.means:
            parts = [self._tensor(place.model, threads)[place.row].double() for place in origin]
            ordered = torch.stack(parts).sort(0).values  # the sum does not depend on the models' order
            out[mean] = (ordered.sum(0) / len(parts)).to(out.dtype)
        return out

    @cached_property
    def _moves(self) -> _Moves:
        return _moves(self.plan, self.model)

    def _table(self, model: int) -> Table:
        table = self.tables[model]
        if table is None:
            mine = self.tables[self.model]
            raise CheckpointError(
                "a row of the vocabulary is in a table that a model does not have",
                tensor=None if mine is None else mine.name,
                got=f"model {model} of the merge has no such tensor",
                remedy="take the token from another model (tokenizer.tokens), or merge models of one architecture",
            )
        return table

    def _meta(self, model: int) -> Any:
        table = self._table(model)
        return table.donor.metas[table.name]

    def _tensor(self, model: int, threads: int) -> Tensor:
        table = self._table(model)
        return table.donor.tensor(table.name, threads)


class _Moves(NamedTuple):
    """A model's origins in columns: rows that become zeros, rows out of each model's table, means."""

    zeros: Tensor
    copies: Mapping[int, tuple[Tensor, Tensor]]
    means: Sequence[tuple[int, Sequence[Any]]]


def _moves(plan: VocabularyPlan, model: int) -> _Moves:
    import torch

    zeros: list[int] = []
    copies: dict[int, tuple[list[int], list[int]]] = {}
    means = []
    for row, origin in plan.origins[model].items():
        if not origin:
            zeros.append(row)
        elif len(origin) == 1:
            to, rows = copies.setdefault(origin[0].model, ([], []))
            to.append(row)
            rows.append(origin[0].row)
        else:
            means.append((row, origin))
    columns = {number: (torch.tensor(to), torch.tensor(rows)) for number, (to, rows) in copies.items()}
    return _Moves(torch.tensor(zeros, dtype=torch.int64), columns, means)


def _float(code: str) -> torch.dtype:
    from graftwork.checkpoint.dtypes import torch_dtype

    dtype = torch_dtype(code)
    if dtype is None:
        raise CheckpointError("torch has no tensor of this type", got=code)
    return dtype


class RowPlan(NamedTuple):
    """What a merge needs to know of its vocabulary.

    ``maps`` are by place of a model and name of a tensor (tied names, too); a tensor without one is taken as it is.
    ``config`` are the changed settings of the keeper's configuration (``text_config`` to be merged into its own);
    ``files`` the tokenizer's files, None for one that the output must not have.
    """

    maps: Mapping[tuple[str, str], RowMap]
    config: dict[str, Any]
    files: Mapping[str, bytes | None]
    notes: Sequence[str]


def plan_rows(recipe: ComposeRecipe, donors: Mapping[str, Donor], base: str) -> RowPlan:
    """Match the vocabularies of all models as the recipe's ``tokenizer`` says.

    ``base`` is the place of the model whose ids a union keeps: the base, or the one that gives the configuration.
    Without ``tokenizer`` the vocabularies must agree (`check_vocabularies`), and nothing is gathered.

    Raises
    ------
    VocabularyMismatch, RecipeError
        See `graftwork.compose.vocabulary.plan_vocabulary`.
    CheckpointError
        It is not plain which tensors of a model are its vocabulary's tables.
    """
    if recipe.tokenizer is None:
        return RowPlan({}, {}, {}, check_vocabularies(donors, base))
    places = list(donors)
    vocabularies = [donor_vocabulary(donor) for donor in donors.values()]
    rows = [_rows(donor) for donor in donors.values()]
    plan = plan_vocabulary(
        vocabularies, rows, places, base=places.index(base), plan=_by_place(recipe, recipe.tokenizer)
    )
    maps: dict[tuple[str, str], RowMap] = {}
    known = set(donors[base].names)
    for number, (place, donor) in enumerate(donors.items()):
        if plan.is_identity(number):
            continue
        for name in vocabulary_tables(donor, rows[number]):
            if name in known:
                tables = [_table(other, name) for other in donors.values()]
                maps[place, name] = RowMap(plan, number, tables)
                _check_columns(maps[place, name])
    source = recipe.tokenizer.source
    giver = base if source in ("union", "base") else recipe.place(source)
    config = plan.config(donors[base].config or {}, donors[giver].config if giver != base else None)
    held = _held_files(donors[base])
    return RowPlan(maps, config, dict.fromkeys(held) | plan.files(), plan.notes)


def check_vocabularies(donors: Mapping[str, Donor], base: str) -> list[str]:
    """Refuse models whose tokenizers give an id to other strings; note tokens that only some have.

    Models without a tokenizer are let through, with a note.

    Raises
    ------
    VocabularyMismatch
        Some id stands for one string in the base and for another in a model.
    """
    notes: list[str] = []
    if all(donor.tokenizer_bytes == donors[base].tokenizer_bytes for donor in donors.values()):
        return notes  # nothing need be read out of them
    own = donor_vocabulary(donors[base])
    for place, donor in donors.items():
        other = own if place == base else donor_vocabulary(donor)
        if own is None or other is None:
            if own is not other:
                notes.append(f"{(donors[base] if own is None else donor).name} holds no tokenizer to compare")
            continue
        _refuse_moved(other, own)
        difference = compare(other, own)
        if difference.extra:
            some = ", ".join(map(repr, difference.extra[:_SHOWN]))
            notes.append(
                f"{donor.name}: {len(difference.extra)} of its tokens are not in the output's tokenizer: {some}"
            )
    return notes


def _refuse_moved(one: Vocabulary, other: Vocabulary) -> None:
    mine, theirs = one.strings(), other.strings()
    moved = sorted(number for number in mine.keys() & theirs.keys() if mine[number] != theirs[number])
    if not moved:
        return
    first = moved[0]
    raise VocabularyMismatch(
        "two models' tokenizers give the same ids to other strings",
        file=one.where,
        got=f"{len(moved)} ids differ; id {first} is {mine[first]!r}",
        wanted=f"{theirs[first]!r}, as in {other.where}",
        remedy="add 'tokenizer_source: base' or 'union' to the recipe: rows are then matched by their tokens",
    )


def donor_vocabulary(donor: Donor) -> Vocabulary | None:
    """The vocabulary of a model; None if it holds no tokenizer."""

    def read(name: str) -> bytes | None:
        if donor.vocabulary is None:
            held = name in donor.model.other_files
            return b"".join(map(bytes, donor.model.file_pieces(name))) if held else None
        return folder_file(donor.vocabulary, name)

    return read_vocabulary(read, donor.name)


def vocabulary_tables(donor: Donor, rows: int) -> list[str]:
    """The names of the tensors that have a row for every token, by what their modules are called.

    A size alone says nothing: a fused matrix may have as many rows as there are tokens.
    """
    found = []
    for name in donor.names:
        parts = name.split(".")
        if len(parts) < 2 or parts[-2] not in _TABLES or any(part.isdecimal() for part in parts):
            continue
        shape = tuple(donor.metas[donor.held(name) or name].shape)
        if shape and shape[0] == rows:
            found.append(name)
        elif rows in shape:
            raise CheckpointError(
                "a table has its vocabulary along another dimension than its first",
                file=donor.name,
                tensor=name,
                got=list(shape),
                wanted=[rows, "..."],
            )
    return found


def _rows(donor: Donor) -> int:
    """The rows of a model's tables."""
    sizes = {
        donor.metas[donor.held(name) or name].shape[0]
        for name in donor.names
        if name.endswith(".weight") and name.split(".")[-2] in _EMBEDDINGS
    }
    config = donor.config or {}
    inner = config.get("text_config")
    said = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    if len(sizes) > 1 and said in sizes:
        sizes = {int(said)}
    if len(sizes) == 1:
        return sizes.pop()
    if not sizes and type(said) is int:
        return said
    raise CheckpointError(
        "it is not plain which tensor is a model's table of tokens",
        file=donor.name,
        got=f"tables of {sorted(sizes)} rows"
        if sizes
        else "no embeddings that are called so, and no vocab_size",
        wanted="a vocab_size in config.json that says it",
    )


def _table(donor: Donor, name: str) -> Table | None:
    held = donor.held(name)
    return None if held is None else Table(donor, held)


def _check_columns(rows: RowMap) -> None:
    wanted = rows.shape[1:]
    for model in {place.model for origin in rows.plan.origins[rows.model].values() for place in origin}:
        meta = rows._meta(model)
        if tuple(meta.shape)[1:] != wanted:
            table = rows._table(model)
            raise CheckpointError(
                "a token's row is of another width than the table that it is for",
                file=table.donor.name,
                tensor=table.name,
                got=list(meta.shape),
                wanted=["rows", *wanted],
            )


def _by_place(recipe: ComposeRecipe, plan: TokenizerPlan) -> TokenizerPlan:
    """The plan with places instead of the recipe's names."""
    tokens = {
        token: dataclasses.replace(row, model=None if row.model is None else recipe.place(row.model))
        for token, row in plan.tokens.items()
    }
    source = plan.source if plan.source in ("union", "base") else recipe.place(plan.source)
    return dataclasses.replace(plan, source=source, tokens=tokens)


def _held_files(donor: Donor) -> list[str]:
    return [name for name in TOKENIZER_FILES if name in donor.model.other_files]
