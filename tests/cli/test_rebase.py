"""``graftwork rebase``: the table, JSON, the page, exit codes, and mistakes as clean errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run
from tests.generators.transformers_models import save_bert
from tests.rebase.models import Family, base_state, moved, read_state, write_family
from tests.rebase.test_examples import write_texts


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return write_family(tmp_path)


def named(family: Family) -> list[object]:
    return [part for pair in zip(("--old", "--tuned", "--new"), family.paths, strict=True) for part in pair]


def test_it_writes_and_shows_a_table(run: Run, family: Family, tmp_path: Path) -> None:
    shown = run("rebase", *named(family), "-o", tmp_path / "out").stdout
    for word in (
        "go:",
        "correlate",
        "correlation",
        "retained, by the weights",
        "get the fine-tune's",
        "after rounding",
    ):
        assert word in shown
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_json_and_page(run: Run, family: Family, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("rebase", *named(family), "-o", tmp_path / "out", "--json", "--html", page, "--scale", "0.5")
    report = json.loads(result.stdout)
    assert report["verdict"] == "go" and report["scale"] == 0.5 and report["out"] == str(tmp_path / "out")
    assert {"statistics", "tensors", "reasons", "predicted"} <= report["compatibility"].keys()
    assert report["lineage"]["job"] == "rebase" and not result.stderr
    assert page.read_text().startswith("<!doctype html>")


def test_a_dry_run(run: Run, family: Family, tmp_path: Path) -> None:
    result = run("rebase", *named(family), "--dry-run", "--json", "-o", tmp_path / "out")
    assert json.loads(result.stdout)["out"] is None and not (tmp_path / "out").exists()
    assert run("rebase", *named(family), "--dry-run", "--quiet").output == ""


def test_dont_exits_with_one(run: Run, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    old = base_state()
    new = {n: torch.randn(t.shape, generator=generator).mul(0.02).to(t.dtype) for n, t in old.items()}
    family = write_family(tmp_path, new=new)
    shown = run("rebase", *named(family), "-o", tmp_path / "out", code=1).stdout
    assert "don't:" in shown and "nothing written" in shown and not (tmp_path / "out").exists()
    run("rebase", *named(family), "-o", tmp_path / "out", "--method", "diff", "--quiet")
    assert (tmp_path / "out").exists()


def test_examples(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    options = {"architecture": "BertForSequenceClassification", "num_labels": 2}
    paths = [save_bert(tmp_path / role, **options) for role in ("old", "tuned", "new")]
    state = read_state(paths[0])
    for path, sigma, seed in ((paths[1], 0.02, 1), (paths[2], 0.01, 2)):
        save_file(moved(state, sigma, seed), path / "model.safetensors", metadata={"format": "pt"})
    texts, page = write_texts(tmp_path / "texts.jsonl"), tmp_path / "page.html"
    family = Family(tmp_path, state, state, state)
    shown = run(
        "rebase",
        *named(family),
        "-o",
        tmp_path / "out",
        "--examples",
        texts,
        "--method",
        "diff",
        "--html",
        page,
    ).stdout
    for word in ("on examples", "held out", "barrier", "score", "fine-tune", "result"):
        assert word in shown
    for word in (
        "Retention",
        "CKA",
        "Loss on the straight way",
        "by scale",
        "<polyline",
        "held-out examples",
    ):
        assert word in page.read_text()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--on-mismatch", "maybe"], ["on-mismatch", "'error', 'skip'"]),
        (["--method", "magic"], ["--method"]),
        (["--seed", "-1"], ["--seed"]),
    ],
)
def test_options_that_are_none(
    run: Run, family: Family, tmp_path: Path, more: list[str], words: list[str]
) -> None:
    result = run("rebase", *named(family), "-o", tmp_path / "out", *more, code=2)
    assert all(word in result.stderr for word in words)


def test_mistakes_are_clean_errors(run: Run, family: Family, tmp_path: Path) -> None:
    assert "--dry-run" in run("rebase", *named(family), code=2).stderr
    missing = run(
        "rebase", "--old", tmp_path / "no", "--tuned", tmp_path, "--new", tmp_path, "--dry-run", code=2
    )
    assert missing.stderr.startswith("error: ") and "no such file or folder" in missing.stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    assert "exists already" in run("rebase", *named(family), "-o", tmp_path / "out", code=2).stderr


def test_skip_and_refuse(run: Run, tmp_path: Path) -> None:
    new = moved(base_state(rows=30), 1e-3, 4)
    new["extra.weight"] = torch.ones(2, 2)
    family = write_family(tmp_path, new=new)
    assert (
        "do not have the same tensors" in run("rebase", *named(family), "-o", tmp_path / "out", code=2).stderr
    )
    shown = run(
        "rebase", *named(family), "-o", tmp_path / "out", "--on-mismatch", "skip", "--method", "diff"
    ).stdout
    assert "not carried over" in shown and "risky" in shown
    del new["extra.weight"]
    other = write_family(tmp_path / "other", new=new)
    refused = run("rebase", *named(other), "--dry-run", "--resize-vocab", "refuse", code=2)
    assert "the vocabularies differ" in refused.stderr
