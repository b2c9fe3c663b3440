"""Models that do not fit together, and weights that are tied."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.compose import METHODS, merge
from graftwork.errors import CheckpointError, RecipeError
from tests.compose.models import (
    CONFIG,
    change,
    contents,
    family,
    load,
    one_tensor,
    recipe,
    recipe_of,
    save,
    tuned,
    weights,
)


def test_a_missing_tensor(tmp_path: Path) -> None:
    family(tmp_path)
    change(tmp_path, "two", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match="a model lacks a tensor of the others") as error:
        merge(recipe(tmp_path), tmp_path / "out")
    assert error.value.tensor == "model.norm.weight" and error.value.file == str(tmp_path / "two")
    with pytest.raises(CheckpointError, match="give base_model"):
        merge(recipe(tmp_path, "linear", based=False), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_renamed_tensors_are_recognised(tmp_path: Path) -> None:
    family(tmp_path)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"language_model.{name}"] = tensors.pop(name)

    change(tmp_path, "one", rename)
    with pytest.raises(CheckpointError, match=re.escape("begin with 'language_model.")):
        merge(recipe(tmp_path), tmp_path / "out")


def test_extra_tensors_are_reported(tmp_path: Path) -> None:
    family(tmp_path)
    change(
        tmp_path,
        "two",
        lambda tensors: tensors.update({"rotary.inv_freq": torch.ones(3), "z": torch.ones(1)}),
    )
    report = merge(recipe(tmp_path), tmp_path / "out")
    assert report.extra == {str(tmp_path / "two"): ["rotary.inv_freq", "z"]}
    assert any("2 tensors that the output has not" in note for note in report.notes)
    assert "z" not in load(tmp_path / "out")


def test_shapes(tmp_path: Path) -> None:
    family(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    change(tmp_path, "two", lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    with pytest.raises(CheckpointError, match="another shape than its counterpart") as error:
        merge(recipe(tmp_path), tmp_path / "out")
    assert error.value.tensor == name and "transposed (Conv1D)" in str(error.value)
    assert str(tmp_path / "two" / "model.safetensors") == error.value.file
    assert str(tmp_path / "base" / "model.safetensors") in str(error.value)
    family(tmp_path / "more")
    change(tmp_path / "more", "two", lambda t: t.update({"lm_head.weight": torch.zeros(14, 6)}))
    with pytest.raises(CheckpointError, match="tokenizer_source: union"):
        merge(recipe(tmp_path / "more"), tmp_path / "out")


def test_dtypes_that_cannot_be_merged(tmp_path: Path) -> None:
    family(tmp_path)
    name = "model.norm.weight"
    remedies = ((torch.float64, "convert it"), (torch.float8_e4m3fn, "was quantised"), (torch.int8, "beside"))
    for dtype, remedy in remedies:
        change(tmp_path, "two", lambda tensors, dtype=dtype: tensors.update({name: tensors[name].to(dtype)}))
        with pytest.raises(CheckpointError, match="a dtype that cannot be merged") as error:
            merge(recipe(tmp_path), tmp_path / "out")
        assert remedy in str(error.value) and error.value.tensor == name


def test_integers_are_copied_if_equal(tmp_path: Path) -> None:
    family(tmp_path)
    for name in ("base", "one", "two", "three"):
        change(tmp_path, name, lambda tensors: tensors.update({"position_ids": torch.arange(5)}))
    merge(recipe(tmp_path), tmp_path / "out")
    assert load(tmp_path / "out")["position_ids"].tolist() == [0, 1, 2, 3, 4]
    change(
        tmp_path, "one", lambda tensors: tensors.update({"position_ids": torch.ones(5, dtype=torch.int64)})
    )
    with pytest.raises(CheckpointError, match="integers differs between the models") as error:
        merge(recipe(tmp_path), tmp_path / "other")
    assert error.value.tensor == "position_ids"


def test_odd_shapes(tmp_path: Path) -> None:
    sizes = ((), (0,), (1,), (0, 3), (3, 0), (31,), (2, 3, 5), (1, 33), (4097,))
    for number, name in enumerate(("base", "one", "two", "three")):
        source = torch.Generator().manual_seed(number)
        tensors = {f"t{i}": torch.randn(size, generator=source).bfloat16() for i, size in enumerate(sizes)}
        write_checkpoint(tmp_path / name, tensors)
    for method in METHODS:
        report = merge(recipe_of(tmp_path, method), tmp_path / method)
        assert report.tensors == len(sizes)
        assert {tuple(tensor.shape) for tensor in load(tmp_path / method).values()} == set(sizes)


def test_a_missing_parameter_is_seen_before_weights_are_read(models: Path, tmp_path: Path) -> None:
    partly = [{"weight": {"filter": "mlp", "value": 1.0}}]
    with pytest.raises(RecipeError, match="the parameter 'weight' is missing") as error:
        merge(recipe(models, each=partly), tmp_path / "out")
    assert error.value.tensor is not None and "mlp" not in error.value.tensor


FAULTS = [
    ("linear", [{"weight": 1.0}, {"weight": -1.0}], {}, "weights that sum to 0"),
    ("task_arithmetic", [{"weight": 1.0}, {"weight": -1.0}], {"normalize": True}, "weights that sum to 0"),
    ("multislerp", [{"weight": 1.0}, {"weight": -1.0}], {}, "normalize_weights: false"),
    ("nuslerp", [{"weight": 1.0}, {"weight": -1.0}], {}, "a sum of which each is a share"),
    ("della", [{"weight": 1.0, "density": 0.9, "epsilon": 0.2}], {}, "set epsilon to at most 0.1"),
    ("della_linear", [{"weight": 1.0}, {"weight": -1.0}], {"normalize": True}, "weights that sum to 0"),
]


@pytest.mark.parametrize(("method", "each", "shared", "text"), FAULTS)
def test_parameters_that_do_not_go_together(
    models: Path, tmp_path: Path, method: str, each: Any, shared: Any, text: str
) -> None:
    with pytest.raises(RecipeError, match="do not go together") as error:
        merge(
            recipe(models, method, each, based=METHODS[method].base == "required", parameters=shared),
            tmp_path / "out",
        )
    assert text in str(error.value)


def test_negative_weights_and_a_sum_of_0_without_normalize(wide: Path, tmp_path: Path) -> None:
    merge(recipe(wide, "linear", [{"weight": 1.0}, {"weight": -1.0}], based=False, parameters={"normalize": False}),
          tmp_path / "out")  # fmt: skip
    one, two = load(wide / "one"), load(wide / "two")
    torch.testing.assert_close(load(tmp_path / "out"), {name: one[name] - two[name] for name in one})


def test_balanced_directions_have_no_mean(tmp_path: Path) -> None:
    one_tensor(
        tmp_path, {"one": [1.0, 0.0], "two": [-0.5, math.sqrt(0.75)], "three": [-0.5, -math.sqrt(0.75)]}
    )
    with pytest.raises(CheckpointError, match="multislerp has no result") as error:
        merge(recipe(tmp_path, "multislerp", [{"weight": 1.0}] * 3, based=False), tmp_path / "out")
    assert error.value.tensor == "up.weight"


def test_a_filter_that_fits_nothing_is_noted(models: Path, tmp_path: Path) -> None:
    each = [{"weight": [{"filter": "mpl", "value": 1.0}, {"value": 0.5}]}]
    report = merge(recipe(models, each=each), tmp_path / "out", dry_run=True)
    assert "the filter 'mpl' of 'weight' is a part of no tensor's name" in report.notes


def test_a_tie_of_all_is_kept(tmp_path: Path) -> None:
    base = {name: tensor for name, tensor in weights().items() if name != "lm_head.weight"}
    config = CONFIG | {"tie_word_embeddings": True}
    save(tmp_path / "base", base, config=config)
    save(tmp_path / "one", tuned(base, 0), config=config)
    two = tuned(base, 1)
    save(
        tmp_path / "two", two | {"lm_head.weight": two["model.embed_tokens.weight"]}, config=config
    )  # twice in its file
    report = merge(recipe(tmp_path, each=[{"weight": 0.5}] * 2), tmp_path / "out")
    merged = load(tmp_path / "out")
    assert report.tied == {"lm_head.weight": "model.embed_tokens.weight"} and "lm_head.weight" not in merged
    assert json.loads(contents(tmp_path / "out")["config.json"])["tie_word_embeddings"] is True
    name = "model.embed_tokens.weight"
    wanted = base[name] + 0.5 * (tuned(base, 0)[name] - base[name]) + 0.5 * (two[name] - base[name])
    torch.testing.assert_close(merged[name], wanted)
    assert report.extra == {}


def test_a_tie_of_some_is_undone(tmp_path: Path) -> None:
    untied = weights()
    tied = {name: tensor for name, tensor in untied.items() if name != "lm_head.weight"}
    save(tmp_path / "base", tied, config=CONFIG | {"tie_word_embeddings": True})
    save(tmp_path / "one", tuned(untied, 0), config=CONFIG | {"tie_word_embeddings": False})
    report = merge(recipe(tmp_path, each=[{"weight": 1.0}]), tmp_path / "out")
    merged, one = load(tmp_path / "out"), load(tmp_path / "one")
    torch.testing.assert_close(merged["lm_head.weight"], one["lm_head.weight"])
    assert json.loads(contents(tmp_path / "out")["config.json"])["tie_word_embeddings"] is False
    assert report.tied == {} and any("stands alone" in note for note in report.notes)
    with open_checkpoint(tmp_path / "out") as out:
        assert not out.tied


def test_ties_that_a_files_metadata_names(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "one")):
        write_checkpoint(
            tmp_path / name, {"a": weights(number)["lm_head.weight"]}, metadata={"format": "pt", "b": "a"}
        )
    merge(recipe(tmp_path, each=[{"weight": 0.5}]), tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as out:
        assert dict(out.tied) == {"b": "a"} and list(out.tensors) == ["a"]
