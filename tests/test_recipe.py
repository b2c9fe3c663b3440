from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from graftwork.errors import RecipeError
from graftwork.recipe import MAX_RECIPE_BYTES, PackRecipe, load_recipe


@dataclass(frozen=True)
class Optimiser:
    lr: float
    steps: int = 10


@dataclass(frozen=True)
class Recipe:
    name: str
    optimiser: Optimiser
    mode: Literal["a", "b"] = "a"
    data: list[Path] = field(default_factory=list)
    weights: dict[str, float] | None = None


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_reads_every_kind_and_resolves_paths_from_the_recipes_folder(tmp_path: Path) -> None:
    text = """
    name: "7"
    optimiser: {lr: 1e-4}
    mode: b
    data: [x, /y, sub/z]
    weights: {one: 1, half: .5}
    """
    recipe = load_recipe(write(tmp_path, text), Recipe)
    assert recipe == Recipe(
        "7",
        Optimiser(1e-4),
        "b",
        [tmp_path / "x", Path("/y"), tmp_path / "sub/z"],
        {"one": 1.0, "half": 0.5},
    )
    assert type(recipe.weights["one"]) is float


def test_defaults_stay(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "{name: n, optimiser: {lr: 1}}"), Recipe)
    assert recipe == Recipe("n", Optimiser(1.0))


def test_pack_recipe_takes_a_list_or_a_mapping_of_finetunes(tmp_path: Path) -> None:
    rest = "base: b\nout: s\nthreads: 2\nfinetunes: "
    assert load_recipe(write(tmp_path, rest + "[x]"), PackRecipe).finetunes == [tmp_path / "x"]
    assert load_recipe(write(tmp_path, rest + "{n: x}"), PackRecipe).finetunes == {"n": tmp_path / "x"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{name: n, optimizer: {lr: 1}}", ["unknown key 'optimizer'", "did you mean 'optimiser'?"]),
        ("{name: n, optimiser: {lr: 1, setps: 3}}", ["unknown key 'optimiser.setps'", "'steps'"]),
        ("{name: n, optimiser: {lr: 1}, zzz: 3}", ["unknown key 'zzz'", "wanted: one of name, optimiser"]),
        ("{name: n}", ["'optimiser' is missing", "a mapping of settings"]),
        ("{name: n, optimiser: {}}", ["'optimiser.lr' is missing", "number"]),
        ("{name: 7, optimiser: {lr: 1}}", ["'name'", "7 (whole number)", "wanted: text", "quotes"]),
        ("{name: n, optimiser: {lr: true}}", ["'optimiser.lr'", "True (true or false)", "wanted: number"]),
        ("{name: n, optimiser: {lr: 1, steps: 1.0}}", ["'optimiser.steps'", "1.0 (number)", "whole number"]),
        ("{name: n, optimiser: 3}", ["'optimiser'", "a mapping of settings"]),
        ("{name: n, optimiser: {lr: 1}, mode: c}", ["'mode'", "'c'", "one of 'a', 'b'"]),
        ("{name: n, optimiser: {lr: 1}, data: x}", ["'data'", "a list of path"]),
        ("{name: n, optimiser: {lr: 1}, data: [x, 3]}", ["'data[1]'", "3", "path"]),
        ("{name: n, optimiser: {lr: 1}, data: ['']}", ["'data[0]'", "path"]),
        (
            "{name: n, optimiser: {lr: 1}, weights: 3}",
            ["'weights'", "a mapping of names to number or nothing"],
        ),
        ("{name: n, optimiser: {lr: 1}, weights: {a: x}}", ["'weights.a'", "'x' (text)", "number"]),
        ("{name: n, optimiser: {lr: 1}, weights: {no: 1}}", ["'weights'", "False", "quotes"]),
        ("{name: n, name: m, optimiser: {lr: 1}}", ["'name' is given twice", "line 1, column 11"]),
        ("{name: n, optimiser: {lr: 1, lr: 2}}", ["'lr' is given twice"]),
        ("[1, 2]", ["holds no settings", "[1, 2] (list)"]),
        ("", ["holds no settings", "nothing"]),
        ("{name: ", ["not valid YAML", "line 1"]),
        ("!!python/object/apply:os.getcwd []", ["not valid YAML", "python/object"]),
        ("&a [*a]", ["holds no settings"]),
        ("[" * 5000, ["not valid YAML"]),
        ("{name: 2001-99-99, optimiser: {lr: 1}}", ["not valid YAML", "month must be in 1..12"]),
        ("{name: !!bool x, optimiser: {lr: 1}}", ["not valid YAML"]),
        ("{name: n, optimiser: {lr: 1}, data: [~nobody-of-that-name/x]}", ["'data[0]'", "a path", "home"]),
        (
            "name: [&a [x, x], &b [*a, *a, *a], "
            + ", ".join(
                f"&{new} [{', '.join([f'*{old}'] * 9)}]"
                for old, new in zip("bcdefghij", "cdefghijk", strict=True)
            )
            + "]\noptimiser: {lr: 1}",
            ["not valid YAML", "its aliases stand for too many values"],
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, Recipe)
    message = str(caught.value)
    assert caught.value.file == str(file)
    for word in words:
        assert word in message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(file, Recipe)


def test_size_is_bounded_before_reading(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="too large"):
        load_recipe(write(tmp_path, "#" * (MAX_RECIPE_BYTES + 1)), Recipe)


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    text = "name: n\noptimiser:\n  <<: {lr: 1, steps: 2}\n  steps: 3\n"
    assert load_recipe(write(tmp_path, text), Recipe).optimiser == Optimiser(1.0, 3)
