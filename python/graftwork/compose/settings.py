"""What a recipe says about a parameter: one value, a gradient over the layers, or such by parts of tensors' names.

A list of numbers is a gradient: its first number is for the first layer, its last for the last, and those between are
interpolated linearly; a tensor outside the layers counts as the first. A list of ``{filter, value}`` gives the value of
the first filter that is a part of the tensor's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graftwork.compose.registry import Method, Parameter
from graftwork.compose.task import Scalar
from graftwork.errors import RecipeError
from graftwork.recipe import did_you_mean

__all__ = ["Choice", "Setting", "Settings", "evaluate", "read_settings", "resolve"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Values (one, or a gradient) for the tensors with ``filter`` in their name; None: for all."""

    values: tuple[Scalar, ...]
    filter: str | None = None

    def at(self, depth: float) -> Scalar:
        """The value at a depth in [0, 1], 0 the first layer and 1 the last."""
        place = depth * (len(self.values) - 1)
        low = int(place)
        first, second = self.values[low], self.values[min(low + 1, len(self.values) - 1)]
        if isinstance(first, float) and isinstance(second, float):
            share = place - low
            return (1 - share) * first + share * second
        return first

    def to_json(self) -> Any:
        """As a recipe would say it, in one way."""
        value = self.values[0] if len(self.values) == 1 else list(self.values)
        return {"filter": self.filter, "value": value}


Setting = tuple[Choice, ...]
Settings = Mapping[str, Setting]


def read_settings(table: object, method: Method, where: str) -> dict[str, Setting]:
    """The parameters of one place of a recipe, checked against the method's row."""
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise RecipeError(
            f"wrong value for {where!r}", got=f"{table!r:.100}", wanted="a mapping of parameters"
        )
    settings = {}
    for name, value in table.items():
        parameter = method.parameter(name) if isinstance(name, str) else None
        if parameter is None:
            known = [row.name for row in method.parameters]
            raise RecipeError(
                f"the method {method.name} has no parameter {name!r}",
                got=f"{where}.{name}",
                wanted=f"one of {', '.join(known)}",
                remedy=did_you_mean(str(name), known) or "remove it",
            )
        settings[parameter.name] = _read(value, parameter, f"{where}.{name}")
    return settings


def _read(value: object, parameter: Parameter, where: str) -> Setting:
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return (Choice((parameter.check(value, where),)),)
    if not any(isinstance(row, dict) for row in value):
        return (Choice(_gradient(value, parameter, where)),)
    choices: list[Choice] = []
    for number, row in enumerate(value):
        place = f"{where}[{number}]"
        if choices and choices[-1].filter is None:
            raise RecipeError(
                f"{place!r} is never reached",
                got=f"{where}[{number - 1}] has no filter, so it is for every tensor",
                remedy="put the value without a filter last",
            )
        choices.append(_choice(row, parameter, place))
    return tuple(choices)


def _choice(row: object, parameter: Parameter, where: str) -> Choice:
    if not isinstance(row, dict):
        raise RecipeError(
            f"wrong value for {where!r}",
            got=f"{row!r:.100}",
            wanted="a mapping with 'value' and perhaps 'filter', as its neighbours",
        )
    for key in row:
        if key not in ("filter", "value"):
            raise RecipeError(
                f"unknown key {f'{where}.{key}'!r}",
                wanted="one of filter, value",
                remedy=did_you_mean(str(key), ("filter", "value")) or "remove it",
            )
    if "value" not in row:
        raise RecipeError(f"the key {f'{where}.value'!r} is missing", wanted=parameter.range)
    name, value = row.get("filter"), row["value"]
    if name is not None and (not isinstance(name, str) or not name):
        raise RecipeError(
            f"wrong value for {f'{where}.filter'!r}", got=f"{name!r:.100}", wanted="a part of tensors' names"
        )
    values = (
        _gradient(value, parameter, f"{where}.value")
        if isinstance(value, list)
        else (parameter.check(value, f"{where}.value"),)
    )
    return Choice(values, None if name == "*" else name)


def _gradient(values: list[Any], parameter: Parameter, where: str) -> tuple[Scalar, ...]:
    if not values:
        raise RecipeError(f"wrong value for {where!r}", got="an empty list", wanted=parameter.range)
    if parameter.kind == "count" and len(values) > 1:
        raise RecipeError(
            f"wrong value for {where!r}", got="a gradient", wanted=parameter.range, remedy="give one number"
        )
    return tuple(parameter.check(value, f"{where}[{number}]") for number, value in enumerate(values))


def evaluate(setting: Setting, name: str, depth: float) -> Scalar | None:
    """The value for the tensor called ``name`` at this depth; None if no filter is a part of its name."""
    for choice in setting:
        if choice.filter is None or choice.filter in name:
            return choice.at(depth)
    return None


def resolve(
    parameter: Parameter, places: Iterable[Settings], name: str, depth: float, what: str
) -> Scalar | None:
    """The value by the first place that says something, or the default.

    ``what`` says in the error whose value is missing.
    """
    for settings in places:
        if parameter.name in settings:
            value = evaluate(settings[parameter.name], name, depth)
            if value is not None:
                return value
    if parameter.default is None and not parameter.optional:
        raise RecipeError(
            f"the parameter {parameter.name!r} is missing",
            tensor=name,
            got=f"nothing for {what}",
            wanted=parameter.range,
            remedy="give it under that model's 'parameters', or once for all under the recipe's",
        )
    return parameter.default
