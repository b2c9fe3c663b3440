from __future__ import annotations

import re
from pathlib import Path

import pytest

from graftwork.compose import METHODS, Parameter
from graftwork.compose.registry import find_method
from graftwork.errors import RecipeError

DOCS = Path(__file__).parents[2] / "docs" / "papers" / "merging.md"


def test_the_methods_are_all_there() -> None:
    assert list(METHODS) == [
        "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
        "breadcrumbs_ties", "sce", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "passthrough",
    ]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_complete_and_explained(name: str) -> None:
    method = METHODS[name]
    assert method.name == name and method.title
    assert re.fullmatch(r"https://\S+", method.link)
    assert method.models[0] <= method.models[1]
    text = DOCS.read_text()
    assert f"`{name}`" in text and method.link in text
    for row in method.parameters:
        assert row.says.endswith(".") and f"`{row.name}`" in text
        if row.default is not None:
            assert row.check(row.default, "default") == row.default


def test_defaults_are_mergekits() -> None:
    defaults = {
        (name, row.name): row.default for name, method in METHODS.items() for row in method.parameters
    }
    assert defaults["linear", "normalize"] is True
    assert [defaults[name, "normalize"] for name in ("ties", "della")] == [True, True]
    assert not any(
        defaults[name, "normalize"]
        for name in ("task_arithmetic", "dare_ties", "dare_linear", "della_linear")
    )
    assert [defaults[name, "rescale"] for name in ("ties", "breadcrumbs", "dare_ties", "della")] == [
        False,
        False,
        True,
        True,
    ]
    assert (defaults["della", "epsilon"], defaults["breadcrumbs", "gamma"]) == (0.15, 0.01)
    assert (defaults["karcher", "max_iter"], defaults["karcher", "tol"]) == (10, 1e-5)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'dare_ties'") as error:
        find_method("dare_tie")
    assert "linear, task_arithmetic" in str(error.value)
    with pytest.raises(RecipeError, match="graftwork compose --methods"):
        find_method("qqqq")


@pytest.mark.parametrize(
    ("parameter", "good", "bad", "wanted"),
    [
        (Parameter("x", "number", ""), [0, -1.5], ["1", True, float("nan"), float("inf"), None], "a number, finite"),
        (Parameter("x", "number", "", low=0, high=1), [0, 1], [-0.1, 1.1], "a number in [0, 1]"),
        (Parameter("x", "number", "", low=0), [0, 9e9], [-1e-9], "a number, at least 0"),
        (Parameter("x", "number", "", low=0, open_low=True), [1e-9], [0], "a number, above 0"),
        (Parameter("x", "count", "", low=0, high=9), [0, 9], [1.0, 10, True], "a whole number in [0, 9]"),
        (Parameter("x", "switch", ""), [True, False], [0, 1, "true"], "true or false"),
        (Parameter("x", "choice", "", choices=(True, "l1")), [True, "l1"], [1, "l2"], "one of true, l1"),
    ],
)  # fmt: skip
def test_a_parameter_checks_its_value(parameter: Parameter, good: list, bad: list, wanted: str) -> None:
    assert parameter.range == wanted
    for value in good:
        assert parameter.check(value, "here") == value
    for value in bad:
        with pytest.raises(RecipeError, match="wrong value for 'here'") as error:
            parameter.check(value, "here")
        assert wanted in str(error.value)


def test_a_row_as_json() -> None:
    said = METHODS["ties"].to_dict()
    assert said["parameters"]["weight"]["required"] and said["parameters"]["weight"]["per_model"]
    assert said["parameters"]["density"]["range"] == "a number in [0, 1]"
