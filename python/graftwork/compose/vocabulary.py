"""Vocabularies of a merge, matched by their tokens' strings: which row of which model's table stands for a token.

Equal ids mean nothing: two tables of one size may hold other strings, and rows behind the last token are padding. A plan
says for every row of the output's tables what each model has there. Where a model lacks a token it takes, in this order:
what the recipe says of the token; the base's row; the only model's that has it; the mean of those that have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graftwork.compose.recipe import TokenizerPlan, TokenSource
from graftwork.compose.tokenizer_files import NewToken, Vocabulary, extended_files
from graftwork.errors import RecipeError, VocabularyMismatch
from graftwork.recipe import did_you_mean

__all__ = ["Place", "VocabularyDifference", "VocabularyPlan", "compare", "plan_vocabulary"]

_SHOWN = 3
_IDS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "mask_token_id",
    "unk_token_id",
)


class VocabularyDifference(NamedTuple):
    """How a vocabulary differs from another: strings that it has alone, that it lacks, and that have another id."""

    extra: list[str]
    missing: list[str]
    moved: list[str]

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not (self.extra or self.missing or self.moved)


def compare(one: Vocabulary, other: Vocabulary) -> VocabularyDifference:
    """The difference of ``one`` from ``other``, each list in the order of ids."""
    if one.tokens == other.tokens:
        return VocabularyDifference([], [], [])
    extra = sorted(one.tokens.keys() - other.tokens.keys(), key=one.tokens.__getitem__)
    missing = sorted(other.tokens.keys() - one.tokens.keys(), key=other.tokens.__getitem__)
    both = [token for token, number in one.tokens.items() if other.tokens.get(token, number) != number]
    return VocabularyDifference(extra, missing, sorted(both, key=one.tokens.__getitem__))


class Place(NamedTuple):
    """A row of a model's table."""

    model: int
    row: int


Origin = tuple[Place, ...]
"""Where a row is from: a place, the mean of several, or zeros (none)."""


@dataclass(frozen=True)
class VocabularyPlan:
    """The output's vocabulary.

    Attributes
    ----------
    size : int
        Rows of the output's tables.
    origins : sequence of mapping of int to tuple of Place
        For each model the rows of the output that it does not have as its own row of the same number: where they are
        from. A model whose mapping is empty, and whose tables have ``size`` rows, is taken as it is.
    rows : sequence of int
        Rows of each model's tables.
    vocabulary : Vocabulary
        The one that the output's starts from.
    new : sequence of NewToken
        What is added to it.
    notes : sequence of str
        What is not as in the models.
    """

    size: int
    origins: Sequence[Mapping[int, Origin]]
    rows: Sequence[int]
    vocabulary: Vocabulary
    new: Sequence[NewToken] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def is_identity(self, model: int) -> bool:
        """Whether a model's tables are taken as they are."""
        return not self.origins[model] and self.rows[model] == self.size

    def files(self) -> dict[str, bytes | None]:
        """The tokenizer's files; None for one that the output must not have."""
        return extended_files(self.vocabulary, self.new)

    def config(self, held: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The settings of a configuration that change: rows, and from ``source`` the ids of special tokens."""
        changed: dict[str, Any] = {}
        if held.get("vocab_size", self.size) != self.size:
            changed["vocab_size"] = self.size
        text = held.get("text_config")
        if isinstance(text, dict) and text.get("vocab_size", self.size) != self.size:
            changed["text_config"] = {"vocab_size": self.size}
        for key in _IDS if source is not None else ():
            if source is not None and key in source and source[key] != held.get(key):
                changed[key] = source[key]
        return changed


def plan_vocabulary(
    vocabularies: Sequence[Vocabulary | None],
    rows: Sequence[int],
    names: Sequence[str],
    *,
    base: int,
    plan: TokenizerPlan,
) -> VocabularyPlan:
    """Match the tokens of several models.

    Parameters
    ----------
    vocabularies : sequence of Vocabulary or None
        One for each model.
    rows : sequence of int
        Rows of each model's tables.
    names : sequence of str
        What ``plan`` calls the models.
    base : int
        The model whose ids a union keeps.
    plan : TokenizerPlan
        "union", "base" or a model's name; where single tokens are from; rows in multiples of a number.

    Raises
    ------
    VocabularyMismatch
        A model holds no tokenizer, or a token is nowhere.
    RecipeError
        ``plan`` names a token or a row that is not there.

    Notes
    -----
    New tokens of a union come behind the base's last one, by their lowest id in any model, then by their string: the order
    of the models does not matter.
    """
    found: list[Vocabulary] = []
    for vocabulary, name in zip(vocabularies, names, strict=True):
        if vocabulary is None:
            raise VocabularyMismatch(
                "a model holds no tokenizer",
                file=name,
                wanted="tokenizer.json, vocab.txt, vocab.json or a SentencePiece model in its folder",
                remedy="put its tokenizer's files there, or leave tokenizer_source out",
            )
        found.append(vocabulary)
    return _Planner(found, rows, names, base, plan).plan()


class _Planner:
    def __init__(
        self,
        vocabularies: Sequence[Vocabulary],
        rows: Sequence[int],
        names: Sequence[str],
        base: int,
        plan: TokenizerPlan,
    ) -> None:
        self._all, self._rows, self._names, self._base = vocabularies, rows, names, base
        self._said = plan
        source = base if plan.source in ("union", "base") else self._model(plan.source, "tokenizer.source")
        self._source = source
        self._notes: list[str] = []
        for name, vocabulary, count in zip(names, vocabularies, rows, strict=True):
            if vocabulary.end > count:
                self._notes.append(
                    f"{name}: tokens {count} to {vocabulary.end - 1} have no row in its tables"
                )

    def _model(self, name: str, where: str) -> int:
        if name not in self._names:
            raise RecipeError(
                f"{where!r} is no model of the merge",
                got=name,
                wanted=", ".join(["union", "base", *self._names]),
                remedy=did_you_mean(name, self._names),
            )
        return self._names.index(name)

    def plan(self) -> VocabularyPlan:
        new = self._new_tokens() if self._said.source == "union" else []
        vocabulary = self._all[self._source]
        tokens = {**vocabulary.tokens, **{row.token: row.number for row in new}}
        size = max(self._rows[self._source], max((row.number for row in new), default=-1) + 1)
        if step := self._said.pad_to_multiple_of:
            size = -(-size // step) * step
        held = {token: number for token, number in tokens.items() if number < size}
        said = self._token_sources(held)
        if self._said.source != "union":
            self._note_dropped(held)
        origins = [self._origins(model, held, said, size) for model in range(len(self._all))]
        return VocabularyPlan(size, origins, self._rows, vocabulary, new, self._notes)

    def _new_tokens(self) -> list[NewToken]:
        """Tokens that the base lacks and another model has a row for."""
        own = self._all[self._base].tokens
        lowest: dict[str, int] = {}
        settings: dict[str, Mapping[str, Any]] = {}
        for vocabulary, rows in zip(self._all, self._rows, strict=True):
            for token, number in vocabulary.tokens.items():
                if token not in own and number < rows:
                    lowest[token] = min(number, lowest.get(token, number))
                    if token in vocabulary.added:
                        mine = dict(vocabulary.added[token])
                        settings[token] = min(
                            settings.get(token, mine), mine, key=lambda row: sorted(map(str, row.items()))
                        )
        order = sorted(lowest, key=lambda token: (lowest[token], token))
        start = self._all[self._base].end
        return [NewToken(token, start + place, settings.get(token)) for place, token in enumerate(order)]

    def _token_sources(self, held: Mapping[str, int]) -> dict[int, tuple[Origin, bool]]:
        """By id of the output: the origin that the recipe gives a token, and whether it is for every model."""
        found: dict[int, tuple[Origin, bool]] = {}
        for token, source in self._said.tokens.items():
            where = f"tokenizer.tokens.{token}"
            if token not in held:
                raise RecipeError(
                    f"{where!r} is no token of the output",
                    remedy=did_you_mean(token, list(held)) or "remove it",
                )
            found[held[token]] = (self._said_origin(token, source, where), source.force)
        return found

    def _said_origin(self, token: str, source: TokenSource, where: str) -> Origin:
        if source.kind == "zero":
            return ()
        model = self._model(source.model or "", f"{where}.source")
        wanted = source.token or token
        row = source.token_id if source.token_id is not None else self._all[model].tokens.get(wanted)
        if row is None or row >= self._rows[model]:
            got = f"token_id {source.token_id}" if source.token_id is not None else repr(wanted)
            raise RecipeError(
                f"{where!r} is from a row that the model does not have",
                file=self._names[model],
                got=got,
                wanted=f"one of its tokens, or a row below {self._rows[model]}",
                remedy=did_you_mean(wanted, list(self._all[model].tokens)),
            )
        return (Place(model, row),)

    def _note_dropped(self, held: Mapping[str, int]) -> None:
        for name, vocabulary in zip(self._names, self._all, strict=True):
            lost = [token for token in vocabulary.tokens if token not in held]
            if lost:
                some = ", ".join(map(repr, lost[:_SHOWN]))
                self._notes.append(f"{name}: {len(lost)} of its tokens are not in the output: {some}")

    def _origins(
        self, model: int, held: Mapping[str, int], said: Mapping[int, tuple[Origin, bool]], size: int
    ) -> dict[int, Origin]:
        """The rows that are not the model's own row of that number."""
        own, strings = self._all[model].tokens, self._all[model].strings()
        named = {number: token for token, number in held.items()}
        origins: dict[int, Origin] = {}
        for row in range(size):
            token = named.get(row)
            if token is None:
                origin = self._padding(model, row, strings)
            elif row in said and said[row][1]:
                origin = said[row][0]
            elif own.get(token, self._rows[model]) < self._rows[model]:
                origin = (Place(model, own[token]),)
            elif row in said:
                origin = said[row][0]
            else:
                origin = self._elsewhere(token)
            if origin != (Place(model, row),):
                origins[row] = origin
        return origins

    def _padding(self, model: int, row: int, strings: Mapping[int, str]) -> Origin:
        """A row behind the tokens: the model's own, if that is padding, too; else the base's; else zeros."""
        if row < self._rows[model] and row not in strings:
            return (Place(model, row),)
        return (Place(self._source, row),) if row < self._rows[self._source] else ()

    def _elsewhere(self, token: str) -> Origin:
        """A token that a model lacks: the base's row, or the mean of all models' that have it."""
        having = [
            Place(number, vocabulary.tokens[token])
            for number, vocabulary in enumerate(self._all)
            if vocabulary.tokens.get(token, self._rows[number]) < self._rows[number]
        ]
        based = [place for place in having if place.model == self._base]
        if not having:
            raise VocabularyMismatch(
                "no model has a row for a token of the output",
                file=self._names[self._source],
                got=repr(token),
                remedy="say where it is from under tokenizer.tokens (kind: zero, or a model's token)",
            )
        return tuple(based or having)
