"""Recipes are read as mergekit's and refused where anything is not as it should be, before a file of a model is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from graftwork.compose import merge, read_recipe
from graftwork.compose.registry import METHODS
from graftwork.compose.settings import evaluate, read_settings, resolve
from graftwork.errors import CheckpointError, RecipeError

TIES = """
models:
  - model: mistral
    # no parameters necessary for base model
  - model: orca
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: wizard
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: mistral
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""

SLERP = """
slices:
  - sources:
      - {model: a, layer_range: [0, 32]}
      - {model: b, layer_range: [0, 32]}
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - value: 0.5 # fallback for rest of tensors
dtype: bfloat16
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_mergekits_examples_are_read(tmp_path: Path) -> None:
    ties = read_recipe(written(tmp_path, TIES))
    assert (ties.method.name, ties.dtype, ties.sliced) == ("ties", "F16", False)
    assert [source.model for source in ties.donors(ties.slices[0])] == ["orca", "wizard"]
    assert ties.models == ["mistral", "orca", "wizard"]
    assert ties.place("orca") == str(tmp_path / "orca")
    slerp = read_recipe(written(tmp_path, SLERP))
    assert slerp.sliced and slerp.slices[0].sources[1].layers == (0, 32)
    assert [source.model for source in slerp.donors(slerp.slices[0])] == ["b"]


def small(**more: Any) -> dict[str, Any]:
    models = [{"model": "one", "parameters": {"weight": 1.0}}]
    return {"merge_method": "task_arithmetic", "base_model": "base", "models": models} | more


BAD = [
    ({"zzz": 1}, "unknown key 'zzz'", "remove it"),
    ({"dtpye": "float16"}, "unknown key 'dtpye'", "did you mean 'dtype'"),
    ({"merge_method": None}, "the key 'merge_method' is missing", "add a line"),
    ({"merge_method": 3}, "wrong value for 'merge_method'", "text"),
    ({"dtype": "float61"}, "wrong value for 'dtype'", "did you mean 'float16'"),
    ({"out_dtype": "int8"}, "wrong value for 'out_dtype'", "one of float32"),
    ({"nan": "ignore"}, "wrong value for 'nan'", "refuse, propagate, zero"),
    ({"preserve": "all"}, "wrong value for 'preserve'", "none, stochastic, residual"),
    ({"seed": -1}, "wrong value for 'seed'", "a whole number in"),
    ({"seed": True}, "wrong value for 'seed'", "a whole number in"),
    ({"modules": {}}, "the key 'modules' is not supported", "filter"),
    ({"chat_template": "auto"}, "the key 'chat_template' is not supported", "tokenizer files"),
    ({"models": []}, "wrong value for 'models'", "a list of at least one"),
    ({"models": None}, "either models or slices", "add a list"),
    ({"slices": [{}]}, "either models or slices", "remove one of them"),
    ({"models": [{"modle": "x"}]}, "unknown key 'models\\[0\\].modle'", "did you mean 'model'"),
    ({"models": [{"parameters": {}}]}, "the key 'models\\[0\\].model' is missing", "text"),
    ({"models": ["one"]}, "wrong value for 'models\\[0\\]'", "a mapping with model"),
    ({"parameters": []}, "wrong value for 'parameters'", "a mapping of parameters"),
    ({"parameters": {"densty": 1}}, "the method task_arithmetic has no parameter 'densty'", "weight, normalize"),
    ({"parameters": {"lamda": 1}}, "has no parameter 'lamda'", "did you mean 'lambda'"),
    ({"parameters": {"normalize": 1}}, "wrong value for 'parameters.normalize'", "true or false"),
    ({"parameters": {"lambda": "1"}}, "wrong value for 'parameters.lambda'", "a number, finite"),
    ({"parameters": {"lambda": []}}, "wrong value for 'parameters.lambda'", "an empty list"),
    ({"parameters": {"lambda": [1, "x"]}}, "wrong value for 'parameters.lambda\\[1\\]'", "a number"),
    ({"parameters": {"lambda": [{"value": 1}, 2]}}, "parameters.lambda\\[1\\]' is never reached", "last"),
    ({"parameters": {"lambda": [{"filter": "a", "value": 1}, 2]}}, "value for 'parameters.lambda\\[1\\]'", "neighbours"),
    ({"parameters": {"lambda": {"filtr": "a", "value": 1}}}, "'parameters.lambda\\[0\\].filtr'", "did you mean 'filter'"),
    ({"parameters": {"lambda": {"filter": "a"}}}, "the key 'parameters.lambda\\[0\\].value' is missing", "a number"),
    ({"parameters": {"lambda": {"filter": 3, "value": 1}}}, "wrong value for 'parameters.lambda\\[0\\].filter'", "part of"),
    ({"models": [{"model": "one", "parameters": {"lambda": 1}}]}, "'lambda' is one for the whole merge", "move it"),
    ({"base_model": None}, "the method task_arithmetic needs a base", "base_model: PATH"),
    ({"tokenizer_source": "union", "tokenizer": {}}, "either tokenizer_source or tokenizer", "remove tokenizer_source"),
    ({"tokenizer": {"sorce": "union"}}, "unknown key 'tokenizer.sorce'", "did you mean 'source'"),
    ({"tokenizer": {"tokens": []}}, None, None),
    ({"tokenizer": {"tokens": [1]}}, "wrong value for 'tokenizer.tokens'", "a mapping of tokens"),
    ({"tokenizer": {"tokens": {"a": {"force": 1, "source": "m"}}}}, "tokenizer.tokens.a.force", "true or false"),
    ({"tokenizer": {"tokens": {"a": {"source": {"kind": "model_token", "model": "m"}}}}}, "tokens.a.source", "token_id"),
    ({"tokenizer": {"pad_to_multiple_of": 0}}, "tokenizer.pad_to_multiple_of", "a whole number in"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "what", "hint"), BAD, ids=lambda value: None if isinstance(value, dict) else str(value)
)
def test_faults_of_a_recipe(
    tmp_path: Path, change: dict[str, Any], what: str | None, hint: str | None
) -> None:
    data = {key: value for key, value in (small() | change).items() if value is not None}
    file = written(tmp_path, yaml.safe_dump(data))
    if what is None:
        assert read_recipe(file).tokenizer is not None
        return
    with pytest.raises(RecipeError, match=what) as error:  # before it is seen that no model is there
        merge(file, tmp_path / "out")
    assert hint is not None and hint in str(error.value)
    assert error.value.file == str(file)
    assert not (tmp_path / "out").exists()


NUMBERS = [
    ("slerp", 2, "takes another number of models", "1"),
    ("nuslerp", 1, "takes another number of models", "2"),
    ("nearswap", 2, "takes another number of models", "1"),
    ("model_stock", 1, "takes another number of models", "at least 2"),
    ("passthrough", 2, "takes another number of models", "1"),
]


@pytest.mark.parametrize(("method", "count", "what", "wanted"), NUMBERS)
def test_the_number_of_models(method: str, count: int, what: str, wanted: str) -> None:
    data: dict[str, Any] = {"merge_method": method, "models": [{"model": f"m{i}"} for i in range(count)]}
    if METHODS[method].base == "required":
        data["base_model"] = "base"
    with pytest.raises(RecipeError, match=what) as error:
        read_recipe(data)
    assert wanted in str(error.value.wanted)


def test_a_base_where_the_method_has_none_must_be_a_model() -> None:
    data = {
        "merge_method": "linear",
        "base_model": "base",
        "models": [{"model": "one", "parameters": {"weight": 1}}],
    }
    with pytest.raises(RecipeError, match="base_model is not one of the models"):
        read_recipe(data)
    data["models"] += [{"model": "./base", "parameters": {"weight": 1}}]
    assert len(read_recipe(data).donors(read_recipe(data).slices[0])) == 2


def sliced(**more: Any) -> dict[str, Any]:
    sources = [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [2, 4]}]
    return {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [{"sources": sources} | more],
        "parameters": {"t": 0.5},
    }


SLICES = [
    ({"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 3]}]}, "numbers of layers"),
    ({"sources": [{"model": "a", "layer_range": [2, 2]}]}, "layer_range"),
    ({"sources": [{"model": "a", "layer_range": [0]}]}, "layer_range"),
    ({"sources": [{"model": "a"}]}, "layer_range"),
    ({"sources": [{"model": "b", "layer_range": [0, 2]}, {"model": "c", "layer_range": [0, 2]}]}, "not among its sources"),
    ({"residual_weight": 1}, "unknown key 'slices\\[0\\].residual_weight'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "what"), SLICES)
def test_faults_of_slices(change: dict[str, Any], what: str) -> None:
    read_recipe(sliced())
    with pytest.raises(RecipeError, match=what):
        read_recipe(sliced(**change))


def test_a_gradient_is_interpolated_over_the_layers() -> None:
    method = METHODS["ties"]
    table = {
        "density": [0.0, 1.0, 0.5],
        "weight": [{"filter": "mlp", "value": [0, 4]}, {"filter": "*", "value": 7}],
    }
    settings = read_settings(table, method, "parameters")
    assert [evaluate(settings["density"], "x", depth) for depth in (0, 0.25, 0.5, 0.75, 1)] == [
        0,
        0.5,
        1,
        0.75,
        0.5,
    ]
    assert [evaluate(settings["weight"], name, 0.5) for name in ("layers.1.mlp.up", "norm")] == [2, 7]
    switches = read_settings({"normalize": [False, True, True]}, method, "p")
    assert [evaluate(switches["normalize"], "x", depth) for depth in (0, 0.4, 0.5, 1)] == [
        False,
        False,
        True,
        True,
    ]


def test_the_first_place_that_says_something_counts() -> None:
    method = METHODS["ties"]
    weight = method.parameter("weight")
    assert weight is not None
    own = read_settings({"weight": {"filter": "mlp", "value": 1}}, method, "p")
    shared = read_settings({"weight": 3}, method, "p")
    assert resolve(weight, (own, shared), "layers.0.mlp", 0, "m") == 1
    assert resolve(weight, (own, shared), "layers.0.attn", 0, "m") == 3
    with pytest.raises(RecipeError, match="the parameter 'weight' is missing") as error:
        resolve(weight, (own,), "layers.0.attn", 0, "model-x")
    assert "model-x" in str(error.value) and "layers.0.attn" in str(error.value)


def test_a_gradient_needs_numbers_of_its_kind() -> None:
    with pytest.raises(RecipeError, match="a gradient"):
        read_settings({"max_iter": [1, 2]}, METHODS["karcher"], "parameters")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    file = written(tmp_path, yaml.safe_dump(small()))
    with pytest.raises(CheckpointError, match="there is no such model") as error:
        merge(file, tmp_path / "out")
    assert str(tmp_path / "base") in str(error.value) and "read from disk alone" in str(error.value)


def test_a_recipe_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="wrong value for 'the recipe'"):
        read_recipe(written(tmp_path, "- a\n- b\n"))
    with pytest.raises(RecipeError, match="given twice"):
        read_recipe(written(tmp_path, "merge_method: ties\nmerge_method: sce\n"))
