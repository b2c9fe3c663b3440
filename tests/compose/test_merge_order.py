"""The bytes of a merge depend on the contents of its models alone; and what stands beside the weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from graftwork.checkpoint import open_checkpoint
from graftwork.compose import METHODS, merge
from graftwork.delta.source import CheckpointSource, describe
from graftwork.store import pack
from tests.compose.models import (
    CONFIG,
    contents,
    family,
    load,
    recipe,
    recipe_of,
    save,
    tuned,
    weights,
)


@pytest.mark.parametrize("method", METHODS)
def test_order_shards_paths_and_threads_do_not_matter(models: Path, tmp_path: Path, method: str) -> None:
    first = recipe_of(models, method, dtype="bfloat16")
    merge(first, tmp_path / "first", threads=1)
    wanted = contents(tmp_path / "first")
    for number, order in enumerate(itertools.permutations(first["models"])):
        if number not in (3, 5):
            continue
        merge(first | {"models": list(order)}, tmp_path / f"order{number}", threads=2)
        assert contents(tmp_path / f"order{number}") == wanted
    moved = tmp_path / "moved"
    for name in ("base", "one", "two", "three"):
        save(moved / name, load(models / name), shards=300)
    merge(recipe_of(moved, method, dtype="bfloat16"), tmp_path / "again", threads=7)
    again = contents(tmp_path / "again")
    for name in wanted.keys() - {"graftwork.json"}:
        assert again[name] == wanted[name], name
    ours, theirs = (json.loads(found["graftwork.json"]) for found in (wanted, again))
    assert ours["output"] == theirs["output"] and ours["recipe"] == theirs["recipe"]


def test_the_order_of_weights_goes_with_the_models(models: Path, tmp_path: Path) -> None:
    swapped = recipe(models, each=[{"weight": 0.3}, {"weight": 0.5}, {"weight": 0.4}])
    merge(recipe(models), tmp_path / "a")
    merge(swapped, tmp_path / "b")
    assert contents(tmp_path / "a")["model.safetensors"] != contents(tmp_path / "b")["model.safetensors"]


def test_equal_donors_of_different_weights_are_ordered_too(models: Path, tmp_path: Path) -> None:
    pairs = [("one", 0.5), ("one", 0.1), ("two", 0.7)]
    for number, order in enumerate(itertools.permutations(pairs)):
        listed = [{"model": str(models / name), "parameters": {"weight": weight}} for name, weight in order]
        merge({"merge_method": "linear", "models": listed, "dtype": "float32"}, tmp_path / f"{number}")
    assert len({contents(tmp_path / f"{number}")["model.safetensors"] for number in range(6)}) == 1


def test_an_entry_of_a_store_is_as_good_as_its_folder(models: Path, tmp_path: Path) -> None:
    pack(models / "base", [models / "one", models / "two"], out=tmp_path / "store")
    stored = recipe(models)
    for row, name in zip(stored["models"], ("one", "two"), strict=False):
        row["model"] = f"{tmp_path / 'store'}:{name}"
    merge(recipe(models), tmp_path / "a")
    merge(stored, tmp_path / "b", store_base=models / "base")
    assert contents(tmp_path / "a")["model.safetensors"] == contents(tmp_path / "b")["model.safetensors"]
    digests = [json.loads(contents(tmp_path / out)["graftwork.json"])["models"] for out in "ab"]
    assert [row["digest"] for row in digests[0]] == [row["digest"] for row in digests[1]]


def test_a_file_is_a_model(models: Path, tmp_path: Path) -> None:
    alone = recipe(models)
    for row in alone["models"]:
        row["model"] += "/model.safetensors"
    merge(alone, tmp_path / "a")
    merge(recipe(models), tmp_path / "b")
    assert contents(tmp_path / "a")["model.safetensors"] == contents(tmp_path / "b")["model.safetensors"]


def test_configuration_companions_and_lineage(tmp_path: Path) -> None:
    files = {
        "generation_config.json": b"{}",
        "sub/more.txt": b"x",
        "README.md": b"# base",
        "old.bin": b"pickle",
    }
    family(tmp_path, files=files)
    report = merge(recipe(tmp_path, dtype="bfloat16"), tmp_path / "out")
    found = contents(tmp_path / "out")
    assert set(found) == {
        "config.json",
        "generation_config.json",
        "sub/more.txt",
        "graftwork.json",
        "model.safetensors",
    }
    assert json.loads(found["config.json"]) == CONFIG | {"dtype": "bfloat16"}
    assert any("README.md" in note and "old.bin" in note for note in report.notes)
    assert report.files == 5 and report.dtypes == {"BF16": 12}
    told = json.loads(found["graftwork.json"])
    with open_checkpoint(tmp_path / "out") as out, open_checkpoint(tmp_path / "one") as one:
        assert told["output"]["digest"] == describe(CheckpointSource(out), threads=1).digest == report.digest
        assert describe(CheckpointSource(one), threads=1).digest in {row["digest"] for row in told["models"]}
    assert (
        told["base"]["name"] == str(tmp_path / "base") and told["recipe"]["merge_method"] == "task_arithmetic"
    )
    merge(recipe(tmp_path), tmp_path / "same")
    assert contents(tmp_path / "same")["config.json"] == contents(tmp_path / "base")["config.json"]


def test_without_a_base_the_configuration_does_not_depend_on_the_order(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        save(tmp_path / name, weights(number), config=CONFIG | {"extra": number})
    for out, order in (("a", ("one", "two")), ("b", ("two", "one"))):
        listed = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in order]
        merge({"merge_method": "linear", "models": listed}, tmp_path / out)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_shards_and_their_index(models: Path, tmp_path: Path) -> None:
    merge(recipe(models), tmp_path / "whole")
    merge(recipe(models), tmp_path / "parts", max_shard_bytes=400)
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    assert (tmp_path / "parts" / "model.safetensors.index.json").exists()
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_dtypes_of_the_output(tmp_path: Path) -> None:
    base = weights()
    save(tmp_path / "base", base, dtype=torch.bfloat16)
    save(tmp_path / "one", tuned(base, 0), dtype=torch.float16)
    save(tmp_path / "two", tuned(base, 1), dtype=torch.bfloat16)
    each = [{"weight": 0.5}] * 2
    wide = {"dtype": "bfloat16", "out_dtype": "float32"}
    for more, wanted in (({}, "BF16"), ({"dtype": "float16"}, "F16"), (wide, "F32")):
        report = merge(recipe(tmp_path, each=each, **more), tmp_path / f"out{wanted}")
        assert set(report.dtypes) == {wanted}
    mixed = merge(recipe(tmp_path, "linear", each, based=False), tmp_path / "mixed")
    assert set(mixed.dtypes) == {"F32"}
