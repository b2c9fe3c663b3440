"""Strict YAML recipes: a job's settings as a file, checked against a dataclass before any work starts.

Nothing in a recipe is ignored and nothing is guessed: an unknown key, a key given twice, a missing key and a
value of the wrong kind are each a `RecipeError` naming the file, the key, what was found and what was wanted.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from graftwork.errors import RecipeError

__all__ = ["ExchangePolicy", "PackRecipe", "SparseRecipe", "did_you_mean", "load_recipe", "read_yaml"]

MAX_RECIPE_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PackRecipe:
    """What ``graftwork pack --recipe`` reads: the arguments of `graftwork.store.pack`, by their names."""

    base: Path
    finetunes: list[Path] | dict[str, Path]
    out: Path
    codec: Literal["auto", "fast", "small"] = "auto"
    with_base: bool = False
    replace: bool = False
    store_base: Path | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class ExchangePolicy:
    """When SpIEL exchanges tuned weights for others, and by what evidence; None is the default of that policy."""

    kind: Literal["accumulated_gradient", "moment_approximation", "fixed"] = "accumulated_gradient"
    period: int | None = None
    window: int | None = None
    rate: float | None = None
    schedule: Literal["linear", "cosine"] | None = None

    def __post_init__(self) -> None:
        unused = {"fixed": ("period", "window", "rate", "schedule"), "moment_approximation": ("window",)}
        for key in unused.get(self.kind, ()):
            value = getattr(self, key)
            _require(
                value is None, f"policy.{key}", value, f"no such key for the kind {self.kind}", "remove it"
            )
        for key in ("period", "window"):
            _require_least(f"policy.{key}", getattr(self, key), 1)
        _require(self.rate is None or 0 <= self.rate <= 1, "policy.rate", self.rate, "a number in [0, 1]")


@dataclass(frozen=True, slots=True)
class SparseRecipe:
    """What ``graftwork adapt sparse`` reads: sparse fine-tuning of a Hugging Face model on local texts.

    ``docs/papers/sparse_finetuning.md`` says what every key does. One of ``k`` and ``density`` is given. None stands for
    the default of the method.
    """

    model: Path
    data: Path | list[Path]
    task: Literal["causal_lm", "masked_lm", "classification"]
    method: Literal["lottery", "spiel"]
    out: Path
    steps: int
    k: int | None = None
    density: float | None = None
    full_steps: int | None = None
    batch: int = 8
    accumulate: int = 1
    max_tokens: int = 256
    lr: float = 5e-5
    head_lr: float | None = None
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_norm: float | None = 1.0
    l1: list[float] | None = None
    selector: Literal["magnitude", "random"] | None = None
    iterations: int | None = None
    maskable: list[str] | None = None
    full: list[str] | None = None
    frozen: list[str] | None = None
    start_from: list[Path] | None = None
    policy: ExchangePolicy | None = None
    held_out: float = 0.05
    evaluate_every: int | None = None
    save_every: int | None = 500
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        self._check_method()
        for key in (
            "steps",
            "full_steps",
            "batch",
            "accumulate",
            "iterations",
            "evaluate_every",
            "save_every",
        ):
            _require_least(key, getattr(self, key), 1)
        _require_least("k", self.k, 1)
        _require_least("max_tokens", self.max_tokens, 2)
        _require_least("seed", self.seed, 0)
        for key in ("lr", "head_lr", "weight_decay"):
            value = getattr(self, key)
            _require(value is None or 0 <= value < math.inf, key, value, "a number, at least 0")
        for key in ("warmup", "held_out"):
            _require(0 <= getattr(self, key) < 1, key, getattr(self, key), "a share: a number in [0, 1)")
        _require(self.density is None or 0 < self.density <= 1, "density", self.density, "a number in (0, 1]")
        _require(self.max_norm is None or 0 < self.max_norm < math.inf, "max_norm", self.max_norm,
                 "a number above 0, or null for no clipping")  # fmt: skip
        good = self.l1 is None or (len(self.l1) == 2 and all(0 <= weight < math.inf for weight in self.l1))
        _require(good, "l1", self.l1, "two numbers, at least 0: of the full and of the sparse phase")
        _require(self.data != [], "data", self.data, "at least one file")

    def _check_method(self) -> None:
        one = (self.k is None) != (self.density is None)
        _require(one, "k", f"k: {self.k}, density: {self.density}", "one of k and density")
        other = {"lottery": ("policy",), "spiel": ("full_steps", "l1", "selector", "iterations")}
        for key in other[self.method]:
            value = getattr(self, key)
            _require(value is None, key, value, f"no such key for the method {self.method}", "remove it")
        if self.selector == "random":
            wanted = "no such key where the selector is random: it needs no full phase"
            _require(self.full_steps is None, "full_steps", self.full_steps, wanted, "remove it")


def _require(good: bool, key: str, got: object, wanted: str, remedy: str | None = None) -> None:
    if not good:
        raise RecipeError(f"wrong value for {key!r}", got=got, wanted=wanted, remedy=remedy)


def _require_least(key: str, value: int | None, least: int) -> None:
    _require(value is None or value >= least, key, value, f"a whole number, at least {least}")


def load_recipe(path: str | PathLike[str], schema: type[T]) -> T:
    """Read the YAML file ``path`` into an instance of the dataclass ``schema``.

    Parameters
    ----------
    path : path
        A YAML file of at most 1 MiB whose top level is a mapping. Only plain data is read (``safe_load``).
    schema : type
        A dataclass, which may check itself and raise `RecipeError`. Its fields may be ``str``, ``int``, ``float``,
        ``bool``, ``Path``, ``None``, ``Literal``, ``list[...]``, ``dict[str, ...]``, other dataclasses, and unions of
        these. ``float`` takes whole numbers too; nothing else is converted.

    Returns
    -------
    T
        The recipe; a relative ``Path`` in it has been taken from the recipe's own folder.

    Raises
    ------
    RecipeError
        The file is no YAML mapping, or a key is unknown, repeated, missing or of the wrong kind.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "pack.yaml")
    ...     _ = file.write_text("base: models/base\\nfinetunes: {mail: models/mail}\\nout: store\\n")
    ...     load_recipe(file, PackRecipe).out == Path(folder, "store")
    True
    """
    file = Path(path)
    return typing.cast(T, _Reader(file)._record(read_yaml(file), schema, ""))


def read_yaml(file: Path) -> object:
    """The plain data in a YAML file of at most 1 MiB, with no key twice; RecipeError if it is none."""
    if file.stat().st_size > MAX_RECIPE_BYTES:
        raise RecipeError("the recipe is too large", file=file, wanted=f"at most {MAX_RECIPE_BYTES} bytes")
    try:
        return yaml.load(file.read_bytes(), Loader=_Loader)
    except _UNREADABLE as error:
        raise RecipeError(
            f"the recipe is not valid YAML: {' '.join(str(error).split()) or type(error).__name__}", file=file
        ) from error


def did_you_mean(key: str, known: Iterable[str]) -> str | None:
    """A question that names the nearest of the known keys, if one is near."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else None


#: What PyYAML lets out besides its own errors, for scalars that look like a kind and are none (``2001-99-99``).
_UNREADABLE = (
    yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` that refuses repeated keys and reads ``1e-4`` as a number, as YAML 1.2 does.

    Aliases may stand for at most as many values as a recipe of the greatest size could spell out: a few lines of
    aliases of aliases would else become more than memory holds.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _spelled_out(node, {}) > MAX_RECIPE_BYTES:
            raise yaml.composer.ComposerError(
                None, None, "its aliases stand for too many values", node.start_mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"the key {key.value!r} is given twice", key.start_mark
                        )
                    seen.add(key.value)
        return super().construct_mapping(node, deep)


def _spelled_out(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many nodes ``node`` is when every alias in it is written out."""
    if node not in known:
        known[node] = 1  # for an alias within what it names
        if not isinstance(node, yaml.ScalarNode):
            parts = (part for row in node.value for part in (row if isinstance(row, tuple) else (row,)))
            known[node] += sum(_spelled_out(part, known) for part in parts)
    return known[node]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Reader:
    """Checks parsed YAML against types; holds the file, for errors and for relative paths."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _record(self, value: object, schema: type, where: str) -> object:
        table = self._table(value, where, "a mapping of settings")
        kinds = typing.get_type_hints(schema)
        for key in table:
            if key not in kinds:
                raise RecipeError(
                    f"unknown key {_join(where, key)!r}",
                    file=self.file,
                    wanted=f"one of {', '.join(kinds)}",
                    remedy=did_you_mean(key, kinds) or "remove it",
                )
        for field in fields(schema):
            if field.name not in table and field.default is MISSING and field.default_factory is MISSING:
                raise RecipeError(
                    f"the key {_join(where, field.name)!r} is missing",
                    file=self.file,
                    wanted=_describe(kinds[field.name]),
                    remedy=f"add a line '{field.name}: ...'",
                )
        values = {key: self._value(v, kinds[key], _join(where, key)) for key, v in table.items()}
        try:
            return schema(**values)
        except RecipeError as error:  # of the schema's own check, which does not know the file
            raise error.placed(file=self.file) from None

    def _table(self, value: object, where: str, wanted: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise self._wrong(value, wanted, where)
        for key in value:
            if not isinstance(key, str):
                raise RecipeError(
                    f"a key in {where or 'the recipe'!r} is no text",
                    file=self.file,
                    got=f"{key!r} ({type(key).__name__})",
                    wanted="text",
                    remedy="put the key in quotes",
                )
        return value

    def _value(self, value: object, kind: Any, where: str) -> object:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            return self._value(value, _choose(value, kind) or self._refuse(value, kind, where), where)
        if not _fits(value, kind):
            self._refuse(value, kind, where)
        if is_dataclass(kind):
            return self._record(value, typing.cast(type, kind), where)
        if origin is dict:
            table = self._table(value, where, _describe(kind))
            return {key: self._value(v, arguments[1], _join(where, key)) for key, v in table.items()}
        if origin is list:
            rows = typing.cast(Sequence[object], value)
            return [self._value(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(rows)]
        if kind is Path:
            return self._path(str(value), where)
        return float(typing.cast(float, value)) if kind is float else value

    def _path(self, value: str, where: str) -> Path:
        try:
            return self.file.parent / Path(value).expanduser()
        except RuntimeError as error:  # the home folder of a user whom the system does not know
            raise RecipeError(
                f"wrong value for {where!r}", file=self.file, got=f"{value!r:.200}", wanted=f"a path: {error}"
            ) from error

    def _refuse(self, value: object, kind: Any, where: str) -> typing.NoReturn:
        raise self._wrong(value, _describe(kind), where)

    def _wrong(self, value: object, wanted: str, where: str) -> RecipeError:
        text = isinstance(value, bool | int | float) and "text" in wanted
        return RecipeError(
            f"wrong value for {where!r}" if where else "the recipe holds no settings",
            file=self.file,
            got=f"{value!r:.200} ({_KINDS.get(type(value), type(value).__name__)})",
            wanted=wanted,
            remedy="put the value in quotes" if text else None,
        )


_KINDS = {
    str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", dict: "mapping",
    list: "list", type(None): "nothing",
}  # fmt: skip


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _choose(value: object, union: Any) -> Any:
    """The first member of ``union`` that takes ``value``, or None."""
    return next((kind for kind in typing.get_args(union) if _fits(value, kind)), None)


def _fits(value: object, kind: Any) -> bool:
    """Whether ``value`` is of ``kind`` at its top level (what it holds is checked one by one)."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(kind))
    if is_dataclass(kind) or origin is dict:
        return isinstance(value, dict)
    if origin is list:
        return isinstance(value, list)
    if kind is Path:
        return isinstance(value, str) and value != ""
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is list:
        return f"a list of {_describe(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to {_describe(arguments[1])}"
    return "a mapping of settings" if is_dataclass(kind) else _KINDS[kind]


@contextmanager
def naming_recipe(file: Path | None) -> Iterator[None]:
    """Recipe errors within say which file they are about, if they do not yet."""
    try:
        yield
    except RecipeError as error:
        if file is None or error.file is not None:
            raise
        raise error.placed(file=file) from error
