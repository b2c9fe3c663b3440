from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from graftwork.checkpoint.files import partial_path
from graftwork.compose import METHODS, read_recipe
from graftwork.store import open_store
from tests.compose.models import contents, family, load, recipe, save, weights

Run = Callable[..., Result]
EXAMPLE = Path(__file__).parents[2] / "examples" / "compose.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe beside its models."""
    family(tmp_path)
    made = recipe(tmp_path, "ties", [{"weight": 0.5, "density": 0.5}, {"weight": 0.3}])
    for row in made["models"]:
        row["model"] = Path(row["model"]).name
    made["base_model"] = "base"
    (tmp_path / "ties.yaml").write_text(yaml.safe_dump(made | {"dtype": "bfloat16"}))
    return tmp_path / "ties.yaml"


def test_a_merge(run: Run, file: Path, tmp_path: Path) -> None:
    result = run("compose", file, "-o", tmp_path / "out")
    for text in ("ties", "12 tensors", "BF16 12", "base", "one", "update kept", "cosine", "of CPU"):
        assert text in result.output
    assert len(load(tmp_path / "out")) == 12
    assert "KeyError" not in result.output


def test_as_json(run: Run, file: Path, tmp_path: Path) -> None:
    said = json.loads(run("compose", file, "-o", tmp_path / "out", "--json").output)
    assert (said["method"], said["tensors"], said["dry_run"]) == ("ties", 12, False)
    assert said["survival"]["total"]["cosine"] > 0.9
    assert [row["role"] for row in said["donors"]] == ["base", "model", "model"]
    told = json.loads((tmp_path / "out" / "graftwork.json").read_text())
    assert told["output"]["digest"] == said["digest"]


def test_a_dry_run(run: Run, file: Path, tmp_path: Path) -> None:
    result = run("compose", file, "-o", tmp_path / "out", "--dry-run")
    for text in ("would read", "would write", "peak memory", "about"):
        assert text in result.output
    assert not (tmp_path / "out").exists()
    said = json.loads(run("compose", file, "-o", tmp_path / "out", "--dry-run", "--json").output)
    assert said["estimate"]["seconds"] > 0 and said["digest"] is None


def test_quiet(run: Run, file: Path, tmp_path: Path) -> None:
    assert run("compose", file, "-o", tmp_path / "out", "-q").output == ""
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_typo_is_named_and_nothing_is_opened(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "merge_method: ties\nbase_model: nowhere\nmodels: [{model: none, parameters: {densty: 1}}]\n"
    )
    result = run("compose", file, "-o", tmp_path / "out", code=2)
    assert "has no parameter 'densty'" in result.output and "did you mean 'density'" in result.output
    assert str(file) in result.output.replace("\n", "")


def test_methods(run: Run) -> None:
    result = run("compose", "--methods")
    assert all(name in result.output for name in METHODS)
    said = json.loads(run("compose", "--methods", "--json").output)
    assert [row["name"] for row in said["methods"]] == list(METHODS)


def test_what_is_missing(run: Run, file: Path, tmp_path: Path) -> None:
    assert "RECIPE.yaml" in run("compose", code=2).output
    assert "--out" in run("compose", file, code=2).output
    assert (
        "--rank" in run("compose", file, "-o", tmp_path / "out", "--lora", tmp_path / "lora", code=2).output
    )
    assert "No such file" in run("compose", tmp_path / "no.yaml", "-o", tmp_path / "out", code=2).output


def test_the_target_is_taken(run: Run, file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    assert "exists already" in run("compose", file, "-o", tmp_path / "out", code=2).output


def test_shards_threads_and_restart(run: Run, file: Path, tmp_path: Path) -> None:
    run("compose", file, "-o", tmp_path / "out", "--shard-bytes", 200, "--threads", 2, "--restart")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_as_an_adapter_and_as_an_entry(run: Run, file: Path, tmp_path: Path) -> None:
    result = run(
        "compose",
        file,
        "-o",
        tmp_path / "out",
        "--lora",
        tmp_path / "lora",
        "--rank",
        6,
        "--store",
        tmp_path / "store",
    )
    assert "adapter" in result.output and "energy left out" in result.output and "entry out" in result.output
    assert (tmp_path / "lora" / "adapter_model.safetensors").exists()
    with open_store(tmp_path / "store", tmp_path / "base") as store:
        store.checkout("out", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "out")


def test_an_export_needs_a_base_and_room(run: Run, file: Path, tmp_path: Path) -> None:
    linear = recipe(tmp_path, "linear", based=False)
    (tmp_path / "linear.yaml").write_text(yaml.safe_dump(linear))
    arguments = ("-o", tmp_path / "out", "--lora", tmp_path / "base", "--rank", 2)
    assert "no difference to one" in run("compose", tmp_path / "linear.yaml", *arguments, code=2).output
    assert "exists already" in run("compose", file, *arguments, code=2).output
    assert not (tmp_path / "out").exists()


def test_a_nan_is_an_error_that_says_where(run: Run, tmp_path: Path) -> None:
    family(tmp_path, 1)
    spoiled = weights(5)
    spoiled["model.norm.weight"][3] = float("nan")
    save(tmp_path / "two", spoiled)
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(recipe(tmp_path, each=[{"weight": 0.5}, {"weight": 0.5}]))
    )
    result = run("compose", tmp_path / "r.yaml", "-o", tmp_path / "out", code=2)
    for text in ("not finite", "model.norm.weight", "flat index 3", "nan: zero"):
        assert text in result.output


def test_the_example_is_a_recipe() -> None:
    assert read_recipe(EXAMPLE).method.name == "ties"


def test_help_names_a_recipe(run: Run) -> None:
    result = run("compose", "--help")
    for text in ("merge_method: ties", "--dry-run", "--lora", "STORE:NAME"):
        assert text in result.output


SLOW = """
import sys, time
from graftwork.checkpoint.files import observe
from graftwork.cli import main
def wait(step):
    if "journal" in step.path.name and step.kind == "write": time.sleep(0.1)
with observe(after=wait): main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_gone_on_from(run: Run, file: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A process that is killed by the system, or asked to stop; the next one ends with the same bytes."""
    out = tmp_path / "out"
    journal = partial_path(out) / ".journal.jsonl.partial"
    call = [sys.executable, "-c", SLOW, "compose", str(file), "-o", str(out)]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 4) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert not out.exists() and journal.exists()
    assert number == signal.SIGKILL or "the same call goes on from there" in said
    assert json.loads(run("compose", file, "-o", out, "--json").output)["resumed"] >= 3
    run("compose", file, "-o", tmp_path / "whole", "-q")
    assert contents(out) == contents(tmp_path / "whole")
