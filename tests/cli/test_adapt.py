"""``graftwork adapt``: train from a recipe, go on after Ctrl-C, and put deltas on a base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.adapt import SparseDelta
from graftwork.cli import program
from tests.cli.conftest import Run
from tests.generators.checkpoints import file_hashes
from tests.generators.transformers_models import save_bert, save_labelled, save_texts

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra `hf` brings it)"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, texts, and recipes for a task and a language; not to be changed."""
    folder = tmp_path_factory.mktemp("adapt")
    save_bert(folder / "bert")
    save_texts(folder / "texts.txt")
    save_labelled(folder / "labelled.jsonl")
    write_recipe(folder / "task.yaml")
    write_recipe(folder / "language.yaml", data="texts.txt", task="masked_lm", out="language.safetensors")
    return folder


def write_recipe(file: Path, **changes: Any) -> Path:
    settings = {
        "model": "bert", "data": "labelled.jsonl", "task": "classification", "method": "lottery",
        "out": "task.safetensors", "density": 0.1, "steps": 4, "batch": 4, "max_tokens": 24, "lr": 1e-3,
        "held_out": 0.2,
    }  # fmt: skip
    file.write_text(
        "".join(f"{key}: {json.dumps(value)}\n" for key, value in {**settings, **changes}.items())
    )
    return file


@pytest.fixture(scope="module")
def deltas(trained: Path) -> tuple[Path, Path]:
    """The deltas of the two recipes."""
    from graftwork.adapt import train_sparse

    return train_sparse(trained / "task.yaml").out, train_sparse(trained / "language.yaml").out


def test_sparse_shows_a_table(run: Run, trained: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out" / "delta.safetensors")
    shown = run("adapt", "sparse", write_recipe(trained / "table.yaml", out=out)).stdout
    for word in (
        "full",
        "sparse",
        "weights tuned",
        "10.0",
        "chosen but unchanged",
        "bad, good",
        "delta",
        "kB",
    ):
        assert word in shown
    assert SparseDelta.load(out).entries


def test_sparse_json(run: Run, trained: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "delta.safetensors")
    result = run("adapt", "sparse", write_recipe(trained / "json.yaml", out=out, method="spiel"), "--json")
    report = json.loads(result.stdout)
    assert report == json.loads(Path(f"{out}.json").read_text()) and not result.stderr
    assert (
        report["delta_bytes"] == Path(out).stat().st_size and report["tuned"] == SparseDelta.load(out).entries
    )
    (phase,) = report["phases"]
    assert {"before", "after", "seconds", "optimizer_bytes"} <= phase.keys() and phase["after"]["step"] == 4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"stpes": 3}, ["unknown key 'stpes'", "did you mean 'steps'?"]),
        ({"task": "translation"}, ["'task'", "'translation'", "'masked_lm'"]),
        ({"k": 5}, ["'k'", "one of k and density", "mistake.yaml"]),
        ({"policy": {"kind": "accumulated_gradient"}}, ["'policy'", "method lottery"]),
        ({"model": "nowhere"}, ["no such folder", "nowhere"]),
        ({"data": "nowhere.txt"}, ["nowhere.txt"]),
        ({"max_tokens": 99}, ["'max_tokens'", "at most 32", "mistake.yaml"]),
    ],
)
def test_mistakes_in_a_recipe_are_clean_errors(
    run: Run, trained: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    file = write_recipe(trained / "mistake.yaml", out=str(tmp_path / "delta"), **changes)
    result = run("adapt", "sparse", file, code=2)
    assert result.stderr.startswith("error: ") and "Traceback" not in result.output and not result.stdout
    for word in words:
        assert word in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_extra(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    file = write_recipe(trained / "extra.yaml", out=str(tmp_path / "delta"))
    assert "pip install 'graftwork[hf]'" in run("adapt", "sparse", file, code=2).stderr


def test_ctrl_c_saves_the_state_and_resume_goes_on(
    run: Run, trained: Path, deltas: tuple[Path, Path], tmp_path: Path
) -> None:
    code = """
import os, signal, sys
from graftwork.adapt.training import train
from graftwork.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits none
update = train._Run._update
def then_stop(self, stage, order):
    loss = update(self, stage, order)
    if stage.kind == "sparse" and stage.steps == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return loss
train._Run._update = then_stop
main()
"""
    out = tmp_path / "delta.safetensors"
    file = write_recipe(trained / "stopped.yaml", out=str(out))
    process = subprocess.run(
        [sys.executable, "-c", code, "adapt", "sparse", str(file)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == program.INTERRUPTED, process.stderr
    assert "after update 2 of 4" in process.stderr and "--resume" in process.stderr
    assert "Traceback" not in process.stderr and not out.exists()
    assert "--resume" in run("adapt", "sparse", file, code=2).stderr
    run("adapt", "sparse", file, "--resume", "--quiet")
    assert SparseDelta.load(out).entries == SparseDelta.load(deltas[0]).entries
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.json"]


# apply


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_apply_makes_the_model_that_was_trained(
    run: Run, trained: Path, deltas: tuple[Path, Path], tmp_path: Path
) -> None:
    shown = run("adapt", "apply", trained / "bert", deltas[0], "--with-full", "-o", tmp_path / "model").stdout
    assert "1 delta added" in shown and "4 tensors in full" in shown
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(trained / "bert")
    SparseDelta.load(deltas[0]).apply_(model, with_full=True)
    ids = torch.randint(5, 20, (3, 12))
    with torch.no_grad():
        assert torch.equal(logits(tmp_path / "model", ids), model.eval()(input_ids=ids).logits)


def test_apply_adds_deltas_with_weights(
    run: Run, trained: Path, deltas: tuple[Path, Path], tmp_path: Path
) -> None:
    base = (trained / "bert", *deltas)
    told = json.loads(
        run("adapt", "apply", *base, "--weights", "1.0", "0.5", "-o", tmp_path / "a", "--json").stdout
    )
    assert told["weights"] == [1.0, 0.5] and told["full"] == [] and told["changed"] > 0
    run("adapt", "apply", *base, "-o", tmp_path / "b", "--weights", "1", "--weights", "5e-1", "--quiet")
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    run("adapt", "apply", *base, "--weights", "0", "-0.0", "-o", tmp_path / "none", "--quiet")
    weights = "model.safetensors"
    assert file_hashes(tmp_path / "none")[weights] == file_hashes(trained / "bert")[weights]
    # The head of the first delta alone is taken over.
    both = run("adapt", "apply", *base, "--with-full", "-o", tmp_path / "c", "--json").stdout
    assert all(not name.startswith("cls.") for name in json.loads(both)["full"]) and "classifier.bias" in both


def test_apply_refuses_another_base(
    run: Run, trained: Path, deltas: tuple[Path, Path], tmp_path: Path
) -> None:
    run("adapt", "apply", trained / "bert", deltas[0], "-o", tmp_path / "model")
    wrong = (tmp_path / "model", deltas[1], "-o", tmp_path / "out")
    refused = run("adapt", "apply", *wrong, code=2).stderr
    assert "not what the delta was made against" in refused and "--any-base" in refused
    assert not (tmp_path / "out").exists()
    run("adapt", "apply", *wrong, "--any-base")
    both = tmp_path / "both"
    run("adapt", "apply", trained / "bert", *deltas, "-o", both)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == (
        both / "model.safetensors"
    ).stat().st_size


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("BASE", "TASK", "LANGUAGE", "--weights", "1", "-o", "OUT"), ["1 for 2 deltas"]),
        (("BASE", "TASK", "--weights", "nan", "-o", "OUT"), ["finite"]),
        (("BASE", "TASK", "--weights", "one", "-o", "OUT"), ["--weights", "number"]),
        (("BASE", "TASK"), ["--out"]),
        (("BASE", "nowhere", "-o", "OUT"), ["nowhere"]),
        (("BASE", "BASE/config.json", "-o", "OUT"), ["config.json"]),
        (("BASE", "TASK", "-o", "BASE"), ["exists"]),
    ],
)
def test_apply_says_what_is_wrong(
    run: Run,
    trained: Path,
    deltas: tuple[Path, Path],
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: list[str],
) -> None:
    places = {"BASE": trained / "bert", "TASK": deltas[0], "LANGUAGE": deltas[1], "OUT": tmp_path / "out"}
    given = [places.get(a, a.replace("BASE/", f"{trained / 'bert'}/")) for a in arguments]
    result = run("adapt", "apply", *given, code=2)
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "out").exists()


def test_help(run: Run) -> None:
    assert "sparse" in run("adapt", "--help").output and "apply" in run("adapt", code=2).output
    text = run("adapt", "sparse", "--help").output
    assert "density: 0.04" in text and "graftwork[hf]" in text and "--resume" in text
    assert "--with-full" in run("adapt", "apply", "--help").output
