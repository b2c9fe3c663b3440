"""Recipes of merges, as mergekit's YAML, read strictly: everything is checked here, before any file is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from graftwork.compose.parts import check_part
from graftwork.compose.registry import Method, find_method
from graftwork.compose.settings import Setting, read_settings
from graftwork.errors import RecipeError
from graftwork.recipe import did_you_mean, naming_recipe, read_yaml

__all__ = ["ComposeRecipe", "Slice", "Source", "TokenSource", "TokenizerPlan", "read_recipe"]

NanPolicy = Literal["refuse", "propagate", "zero"]
Preserve = Literal["none", "stochastic", "residual"]
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_SEED_END = 1 << 64


@dataclass(frozen=True, slots=True)
class Source:
    """A model that takes part, its own parameters, and of a slice its layers ``[start, stop)``."""

    model: str
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the output that are merged from layers of the sources; a whole model is one slice without layers."""

    sources: tuple[Source, ...]
    base_model: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where a token's embedding is from: ``model``, there perhaps as another token; or zero."""

    kind: Literal["model", "zero"]
    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerPlan:
    """Which vocabulary the output has: "union", "base", or that of a model."""

    source: str
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True, slots=True)
class ComposeRecipe:
    """A merge as a recipe says it.

    ``sliced`` tells whether the recipe has slices; without, ``slices`` is one of whole models. Model names are as the
    recipe writes them; ``folder`` is where relative ones start. ``dtype`` is the output's dtype code, ``out_dtype`` before
    ``dtype``: nothing is rounded on the way.
    """

    method: Method
    slices: tuple[Slice, ...]
    sliced: bool
    folder: Path
    base_model: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    dtype: str | None = None
    tokenizer: TokenizerPlan | None = None
    nan: NanPolicy = "refuse"
    preserve: Preserve = "none"
    seed: int = 0
    file: Path | None = None

    @property
    def models(self) -> list[str]:
        """Every model that it names, once, the base first."""
        named = [] if self.base_model is None else [self.base_model]
        for part in self.slices:
            named += [] if part.base_model is None else [part.base_model]
            named += [source.model for source in part.sources]
        named += [
            row.model for row in (self.tokenizer.tokens if self.tokenizer else {}).values() if row.model
        ]
        if self.tokenizer and self.tokenizer.source not in ("union", "base"):
            named.append(self.tokenizer.source)
        places: dict[str, str] = {}
        for name in named:
            places.setdefault(self.place(name), name)
        return list(places.values())

    def place(self, name: str) -> str:
        """The absolute form of a model's name: by it two names are the same model."""
        return place_of(name, self.folder)

    def base_of(self, part: Slice) -> str | None:
        """The base of a slice."""
        return part.base_model or self.base_model

    def is_base(self, name: str, part: Slice) -> bool:
        """Whether a model is the base of a slice."""
        base = self.base_of(part)
        return base is not None and self.place(base) == self.place(name)

    def donors(self, part: Slice) -> list[Source]:
        """The sources that are merged: all but the base, where the method has one."""
        if self.method.base == "none":
            return list(part.sources)
        return [source for source in part.sources if not self.is_base(source.model, part)]


def place_of(name: str, folder: Path) -> str:
    """The absolute form of ``PATH``, ``STORE:NAME`` or ``PATH+LORA``."""
    whole = folder / Path(name).expanduser()
    parts = [whole] if whole.exists() else [folder / Path(part).expanduser() for part in name.split("+")]
    return "+".join(map(os.path.normpath, parts))


def read_recipe(given: ComposeRecipe | Mapping[str, Any] | str | os.PathLike[str]) -> ComposeRecipe:
    """A recipe out of a YAML file or of such data; models' paths start at the file's folder, or at the current one.

    Raises
    ------
    RecipeError
        A key is unknown, missing or of the wrong kind; a value is out of its range; or the method does not take what
        the recipe gives it.
    """
    if isinstance(given, ComposeRecipe):
        return given
    if isinstance(given, Mapping):
        return _Reader(None, Path.cwd()).recipe(dict(given))
    file = Path(given)
    with naming_recipe(file):
        return _Reader(file, file.absolute().parent).recipe(read_yaml(file))


#: Every key of the recipe's top, in the order in which errors list them.
_KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
    "nan", "preserve", "seed",
)  # fmt: skip
#: Keys of mergekit that this job knows and does not do.
_NOT_HERE = {
    "modules": "merge the modules one by one, with a filter or from folders that hold one module each",
    "chat_template": "put the template into the output's tokenizer files; they are copied from the base",
}


class _Reader:
    def __init__(self, file: Path | None, folder: Path) -> None:
        self.file, self.folder = file, folder

    def recipe(self, data: object) -> ComposeRecipe:
        table = self._table(data, "", _KEYS, _NOT_HERE)
        method = find_method(self._text(table, "merge_method", ""))
        parameters = read_settings(table.get("parameters"), method, "parameters")
        slices, sliced = self._slices(table, method)
        dtype = self._one_of(table, "dtype", tuple(DTYPES), None)
        recipe = ComposeRecipe(
            method=method,
            slices=slices,
            sliced=sliced,
            folder=self.folder,
            base_model=self._text(table, "base_model", "") if table.get("base_model") is not None else None,
            parameters=parameters,
            dtype=DTYPES.get(self._one_of(table, "out_dtype", tuple(DTYPES), None) or dtype or ""),
            tokenizer=self._tokenizer(table),
            nan=cast(NanPolicy, self._one_of(table, "nan", ("refuse", "propagate", "zero"), "refuse")),
            preserve=cast(
                Preserve, self._one_of(table, "preserve", ("none", "stochastic", "residual"), "none")
            ),
            seed=self._whole(table, "seed", "", 0, _SEED_END - 1, 0) or 0,
            file=self.file,
        )
        for number, part in enumerate(recipe.slices):
            check_part(recipe, part, f"slices[{number}].sources" if sliced else "models")
        return recipe

    def _slices(self, table: Mapping[str, Any], method: Method) -> tuple[tuple[Slice, ...], bool]:
        given = [key for key in ("models", "slices") if table.get(key) is not None]
        if len(given) != 1:
            raise RecipeError(
                "a recipe has either models or slices",
                got=" and ".join(given) or "neither",
                remedy="remove one of them" if given else "add a list 'models: [{model: PATH}, ...]'",
            )
        if given == ["models"]:
            rows = self._rows(table, "models", "")
            return (
                Slice(tuple(self._source(row, method, f"models[{i}]", False) for i, row in enumerate(rows))),
            ), False
        return tuple(
            self._slice(row, method, f"slices[{i}]") for i, row in enumerate(self._rows(table, "slices", ""))
        ), True

    def _slice(self, data: object, method: Method, where: str) -> Slice:
        table = self._table(data, where, ("sources", "base_model", "parameters"))
        rows = self._rows(table, "sources", where)
        sources = tuple(
            self._source(row, method, f"{where}.sources[{i}]", True) for i, row in enumerate(rows)
        )
        spans = [source.layers for source in sources if source.layers]
        lengths = {stop - start for start, stop in spans}
        if len(lengths) > 1:
            raise RecipeError(
                f"the sources of {where!r} have different numbers of layers",
                got=", ".join(f"{start}-{stop}" for start, stop in spans),
                wanted="layer ranges of one length",
            )
        base = self._text(table, "base_model", where) if table.get("base_model") is not None else None
        parameters = read_settings(table.get("parameters"), method, f"{where}.parameters")
        return Slice(sources, base, parameters)

    def _source(self, data: object, method: Method, where: str, sliced: bool) -> Source:
        keys = ("model", "layer_range", "parameters") if sliced else ("model", "parameters")
        table = self._table(data, where, keys)
        layers = None
        if sliced:
            span = table.get("layer_range")
            good = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
            if not good or not 0 <= cast(list[int], span)[0] < cast(list[int], span)[1]:
                raise RecipeError(
                    f"wrong value for {f'{where}.layer_range'!r}",
                    got=f"{span!r:.100}",
                    wanted="two whole numbers [start, stop], start below stop",
                )
            layers = (cast(list[int], span)[0], cast(list[int], span)[1])
        parameters = read_settings(table.get("parameters"), method, f"{where}.parameters")
        own = [name for name in parameters if not getattr(method.parameter(name), "each", True)]
        if own:
            raise RecipeError(
                f"{own[0]!r} is one for the whole merge",
                got=f"{where}.parameters.{own[0]}",
                remedy="move it to the recipe's own 'parameters'" + (", or the slice's" if sliced else ""),
            )
        return Source(self._text(table, "model", where), parameters, layers)

    # ---- the vocabulary

    def _tokenizer(self, table: Mapping[str, Any]) -> TokenizerPlan | None:
        short, full = table.get("tokenizer_source"), table.get("tokenizer")
        if short is not None and full is not None:
            raise RecipeError(
                "a recipe has either tokenizer_source or tokenizer",
                got="both",
                remedy="remove tokenizer_source",
            )
        if short is not None:
            return TokenizerPlan(self._text(table, "tokenizer_source", ""))
        if full is None:
            return None
        inner = self._table(full, "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
        tokens = inner.get("tokens") or {}
        if not isinstance(tokens, dict):
            raise self._wrong("tokenizer.tokens", tokens, "a mapping of tokens to where they are from")
        rows = {str(token): self._token(row, f"tokenizer.tokens.{token}") for token, row in tokens.items()}
        source = self._text(inner, "source", "tokenizer") if inner.get("source") is not None else "union"
        return TokenizerPlan(
            source, rows, self._whole(inner, "pad_to_multiple_of", "tokenizer", 1, 1 << 20, None)
        )

    def _token(self, data: object, where: str) -> TokenSource:
        table = self._table(data, where, ("source", "force"))
        source, force = table.get("source"), table.get("force", False)
        if not isinstance(force, bool):
            raise self._wrong(f"{where}.force", force, "true or false")
        if isinstance(source, str) and source:
            return TokenSource("model", source, force=force)
        inner = self._table(source, f"{where}.source", ("kind", "model", "token", "token_id"))
        kind = self._one_of(inner, "kind", ("model_token", "zero"), None, f"{where}.source")
        if kind == "zero":
            return TokenSource("zero", force=force)
        number = self._whole(inner, "token_id", f"{where}.source", 0, (1 << 31) - 1, None)
        text = self._text(inner, "token", f"{where}.source") if inner.get("token") is not None else None
        if kind is None or (number is None) == (text is None):
            raise self._wrong(
                f"{where}.source", source, "kind: zero, or kind: model_token with token or token_id"
            )
        return TokenSource("model", self._text(inner, "model", f"{where}.source"), text, number, force)

    # ---- values

    def _table(
        self, data: object, where: str, keys: tuple[str, ...], absent: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise self._wrong(where or "the recipe", data, f"a mapping with {', '.join(keys[:3])}")
        for key in data:
            if key in (absent or {}):
                raise RecipeError(
                    f"the key {_join(where, key)!r} is not supported", remedy=(absent or {})[key]
                )
            if key not in keys:
                raise RecipeError(
                    f"unknown key {_join(where, str(key))!r}",
                    wanted=f"one of {', '.join(keys)}",
                    remedy=did_you_mean(str(key), keys) or "remove it",
                )
        return data

    def _rows(self, table: Mapping[str, Any], key: str, where: str) -> list[Any]:
        value = table.get(key)
        if not isinstance(value, list) or not value:
            raise self._wrong(_join(where, key), value, "a list of at least one")
        return value

    def _text(self, table: Mapping[str, Any], key: str, where: str) -> str:
        if table.get(key) is None:
            raise RecipeError(
                f"the key {_join(where, key)!r} is missing", wanted="text", remedy=f"add a line '{key}: ...'"
            )
        if not isinstance(table[key], str) or not table[key]:
            raise self._wrong(_join(where, key), table[key], "text")
        return cast(str, table[key])

    def _one_of(
        self,
        table: Mapping[str, Any],
        key: str,
        choices: tuple[str, ...],
        default: str | None,
        where: str = "",
    ) -> str | None:
        value = table.get(key)
        if value is None:
            return default
        if value not in choices:
            near = did_you_mean(str(value), choices)
            raise self._wrong(_join(where, key), value, f"one of {', '.join(choices)}", near)
        return cast(str, value)

    def _whole(
        self, table: Mapping[str, Any], key: str, where: str, low: int, high: int, default: int | None
    ) -> int | None:
        value = table.get(key)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(_join(where, key), value, f"a whole number in [{low}, {high}]")
        return value

    def _wrong(self, where: str, got: object, wanted: str, remedy: str | None = None) -> RecipeError:
        return RecipeError(f"wrong value for {where!r}", got=f"{got!r:.100}", wanted=wanted, remedy=remedy)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)
