"""What a transfer refuses, what it does where models do not fit, and what it leaves behind then: nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from graftwork.errors import BaseMismatch, CheckpointError, SourceChanged, TargetExists
from graftwork.rebase import recycle, transfer
from graftwork.rebase.lineage import LINEAGE
from tests.generators.checkpoints import file_hashes, write_folder
from tests.rebase.models import base_state, exact_sum, moved, read_state, write_family


def test_names_that_differ(tmp_path: Path) -> None:
    new = moved(base_state(), 1e-3, 4)
    new["model.layers.0.extra.weight"] = new.pop("model.layers.0.norm.weight")
    family = write_family(tmp_path, new=new)
    with pytest.raises(CheckpointError, match="do not have the same tensors") as caught:
        transfer(*family.paths, tmp_path / "out")
    assert caught.value.tensor == "model.layers.0.norm.weight" and "1 more" in str(caught.value.got)
    assert "skip" in str(caught.value.remedy) and not (tmp_path / "out").exists()
    report = transfer(*family.paths, tmp_path / "out", on_mismatch="skip")
    found = read_state(tmp_path / "out")
    assert found.keys() == new.keys() and report.verdict == "risky"
    assert torch.equal(found["model.layers.0.extra.weight"], new["model.layers.0.extra.weight"])
    assert "model.layers.0.norm.weight" in report.compatibility.pairing.not_carried
    tried = transfer(*family.paths, None, on_mismatch="skip", loss=lambda weights: 0.0)
    assert tried.evidence is None and "nothing was tried out" in tried.compatibility.pairing.notes[-1]


def test_shapes_that_differ(tmp_path: Path) -> None:
    new = moved(base_state(), 1e-3, 4)
    new["model.layers.1.mlp.up.weight"] = torch.randn(40, 31).bfloat16()
    family = write_family(tmp_path, new=new, configs={"new": {"wide": 40}})
    with pytest.raises(CheckpointError, match="the shapes differ") as caught:
        transfer(*family.paths, tmp_path / "out")
    for words in ("[33, 31] in old", "[33, 31] in tuned", "[40, 31] in new"):
        assert words in str(caught.value.got)
    transfer(*family.paths, tmp_path / "out", on_mismatch="skip", method="diff")
    found = read_state(tmp_path / "out")
    assert torch.equal(found["model.layers.1.mlp.up.weight"], new["model.layers.1.mlp.up.weight"])
    name = "model.layers.0.attn.q.weight"
    assert torch.equal(found[name], exact_sum(family.old[name], family.tuned[name], new[name]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["wide"] == 40


@pytest.mark.parametrize("role", ["old", "tuned", "new"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none(tmp_path: Path, role: str, value: float) -> None:
    family = write_family(tmp_path)
    states = {"old": family.old, "tuned": family.tuned, "new": family.new}
    bad = {name: tensor.clone() for name, tensor in states[role].items()}
    bad["lm_head.weight"].view(-1)[37] = value
    other = write_family(tmp_path / "bad", **{**states, role: bad})
    with pytest.raises(CheckpointError, match="no finite number") as caught:
        transfer(*other.paths, tmp_path / "out")
    assert "element 37" in str(caught.value.got) and role in str(caught.value.got)
    assert caught.value.tensor == "lm_head.weight" and str(other.root / role) == caught.value.file
    assert not (tmp_path / "out").exists()


def test_a_sum_that_fp16_cannot_hold(tmp_path: Path) -> None:
    states = [{"w": torch.full((2, 4), value, dtype=torch.float16)} for value in (0.0, 4e4, 4e4)]
    family = write_family(tmp_path, old=states[0], tuned=states[1], new=states[2])
    with pytest.raises(CheckpointError, match="too large for its dtype"):
        transfer(*family.paths, tmp_path / "out", method="diff")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", [torch.float8_e4m3fn, torch.int8])
def test_quantised_weights(tmp_path: Path, packed: torch.dtype) -> None:
    tuned = moved(base_state(), 1e-3, 1)
    tuned["model.layers.0.attn.q.weight"] = torch.ones(16, 16).to(packed)
    family = write_family(tmp_path, tuned=tuned)
    for setting in ("error", "skip"):
        with pytest.raises(CheckpointError, match="a tensor is quantised") as caught:
            transfer(*family.paths, tmp_path / "out", on_mismatch=setting)
        assert "unquantised" in str(caught.value.remedy)


def test_a_taken_target(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(TargetExists):
        transfer(*family.paths, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_another_base_than_the_lineage_says(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    transfer(*family.paths, tmp_path / "second")
    third = write_folder(tmp_path / "third", moved(family.new, 1e-3, 9))
    with pytest.raises(BaseMismatch, match="was made from another base") as caught:
        transfer(family.paths[0], tmp_path / "second", third, tmp_path / "out")
    assert "new, digest" in str(caught.value.wanted) and not (tmp_path / "out").exists()
    transfer(family.paths[2], tmp_path / "second", third, tmp_path / "out")
    lineage = json.loads((tmp_path / "out" / LINEAGE).read_text())
    assert [step["base"]["name"] for step in lineage["history"]] == ["new"]


def test_a_malformed_lineage(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    for text, words in (("{}", "malformed"), ("no json", "malformed")):
        (family.paths[1] / LINEAGE).write_text(text)
        with pytest.raises(CheckpointError, match=words):
            transfer(*family.paths, tmp_path / "out")
    digest = "0" * 64
    newer = {"format": "graftwork-lineage", "version": [9, 0], "base": {"name": "x", "digest": digest}}
    (family.paths[1] / LINEAGE).write_text(json.dumps(newer))
    with pytest.raises(CheckpointError, match="newer version"):
        transfer(*family.paths, tmp_path / "out")


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    family = write_family(tmp_path)

    def touch(stage: str, done: int, total: int) -> None:
        if stage == "write" and done < total:
            with (family.paths[2] / "model.safetensors").open("ab") as file:
                file.write(b"x")

    with pytest.raises(SourceChanged):
        transfer(*family.paths, tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"method": "magic"}, "one of auto, diff"),
        ({"on_mismatch": "ignore"}, "'error' or 'skip'"),
        ({"preserve": "all"}, "'stochastic'"),
        ({"scale": float("nan")}, "finite"),
        ({"points": 1}, "at least 2"),
        ({"examples": "x.txt", "loss": len}, "not both"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    family = write_family(tmp_path)
    with pytest.raises(ValueError, match=words):
        transfer(*family.paths, tmp_path / "out", **settings)  # type: ignore[arg-type]


def test_dont_writes_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    old = base_state()
    new = {n: torch.randn(t.shape, generator=generator).mul(0.02).to(t.dtype) for n, t in old.items()}
    family = write_family(tmp_path, new=new)
    report = transfer(*family.paths, tmp_path / "out")
    assert report.verdict == "dont" and report.out is None and not (tmp_path / "out").exists()
    assert "correlate" in report.compatibility.reasons[0]
    assert transfer(*family.paths, tmp_path / "out", method="diff").out is not None


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    before = file_hashes(tmp_path)
    assert transfer(*family.paths, None).verdict == "go"
    assert file_hashes(tmp_path) == before


def test_recycle_is_offered() -> None:
    assert recycle([{"w": torch.zeros(1)}], lambda model: model).tuned[0]["w"].item() == 0.0
