from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from graftwork.checkpoint import open_checkpoint
from graftwork.store import SkillPack, mount
from tests.cli.conftest import Run

PLAN = (
    "target_bpw: 4\nrules:\n- {role: norm|bias|vector, codec: raw}\n- {match: '', codec: quantize, bits: 2}\n"
)


def test_a_budget_makes_one_file(run: Run, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "mail.safetensors"
    told = run("pack", models / "base", models / "mail", "-o", out, "--bpw", "2.0")
    assert "bits for each of the" in " ".join(told.output.split()) and "4 tensors unchanged" in told.output
    with SkillPack.open(out) as pack, open_checkpoint(models / "base") as base:
        assert 1.0 < pack.bits_per_weight <= 2.0 and pack.recipe["plan"] == "auto"
        weights = {name: base.tensor(name).clone() for name in base.tensors}
        with mount(weights, pack):
            assert any(not torch.equal(weights[name], base.tensor(name)) for name in pack.tensors)


def test_a_plan_makes_what_it_says(run: Run, models: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    arguments = ("pack", models / "base", f"mail={models / 'mail'}", "-o", tmp_path / "mail.safetensors")
    said = json.loads(run(*arguments, "--lossy", tmp_path / "plan.yaml", "--json").stdout)
    assert said["file_bytes"] == (tmp_path / "mail.safetensors").stat().st_size > said["nbytes"]
    assert {row["codec"] for row in said["tensors"]} == {"2-bit midrise, block 128"}
    assert said["digest"] == SkillPack.open(tmp_path / "mail.safetensors").digest
    assert run(*arguments, "--lossy", tmp_path / "plan.yaml", "--replace", "--quiet").output == ""


def test_a_file_that_is_there_stays(run: Run, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "mail.safetensors"
    out.write_bytes(b"mine")
    told = run("pack", models / "base", models / "mail", "-o", out, "--bpw", "1", code=2)
    assert "exists already" in told.stderr and out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bpw", "1", "--codec", "small"), "goes with a store"),
        (("--bpw", "1", "--with-base"), "goes with a store"),
        (("--bpw", "1", "--report", "r.html"), "goes with a store"),
        (("--bpw", "1", "--lossy", "plan.yaml"), "the plan has its own bpw"),
        (("--bpw", "0"), "bpw is no budget"),
        (("--lossy", "plan.yaml"), "unknown key 'rule'"),
    ],
)
def test_arguments_that_do_not_go_together(
    run: Run,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text("rule: []\n")
    told = run("pack", models / "base", models / "mail", "-o", "mail.safetensors", *arguments, code=2)
    assert words in " ".join(told.stderr.replace("│", " ").split())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_one_fine_tune_and_a_place(run: Run, models: Path, tmp_path: Path) -> None:
    base, mail, code = (models / name for name in ("base", "mail", "code"))
    for arguments, words in (
        ((base, mail, code, "-o", tmp_path / "x.safetensors"), "of one fine-tune"),
        ((base, "-o", tmp_path / "x.safetensors"), "of one fine-tune"),
        ((base, mail), "missing"),
        ((), "missing"),
    ):
        told = run("pack", *arguments, "--bpw", "1", code=2)
        assert words in " ".join(told.stderr.replace("│", " ").split())
