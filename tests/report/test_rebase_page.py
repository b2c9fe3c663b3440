"""The page and the table of a rebase: what they say, escaped, bounded, the same bytes every time."""

from __future__ import annotations

import math
import re
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from graftwork.rebase import Evaluation, Probe, RebaseReport, transfer
from graftwork.report.rebase_chart import line_chart
from graftwork.report.rebase_page import write_rebase_page
from graftwork.report.rebase_tables import rebase_table
from tests.rebase.models import base_state, moved, write_family


def shown(report: RebaseReport) -> str:
    out = StringIO()
    Console(file=out, width=160, highlight=False).print(rebase_table(report))
    return out.getvalue()


def probe() -> Probe:
    def loss(weights: dict[str, torch.Tensor]) -> Evaluation:
        found = weights["lm_head.weight"].double().sum().item()
        return Evaluation(abs(found - 2.0), 1 / (1 + abs(found - 2.0)))

    features = lambda weights: {"<head>": weights["lm_head.weight"].float()}  # noqa: E731
    return Probe(loss, loss, features)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RebaseReport:
    root = tmp_path_factory.mktemp("family")
    old = base_state()
    tuned = moved(old, 2e-3, 100) | {"<script>.weight": torch.ones(2, 2)}
    family = write_family(root, old=old, tuned=tuned, configs={"new": {"rope_theta": 5}})
    return transfer(*family.paths, root / "out", examples=probe(), method="diff")


def test_the_page(report: RebaseReport, tmp_path: Path) -> None:
    write_rebase_page(tmp_path / "page.html", report)
    text = (tmp_path / "page.html").read_text()
    for words in (
        "Retention", "What is carried over", "What rounding left", "Layers", "least correlated first", "verdict",
        "&lt;script&gt;.weight", "rope_theta", "only the fine-tune has it", "&lt;head&gt;", "held out",
    ):  # fmt: skip
        assert words in text, words
    assert "<script>" not in text and "http" not in re.sub(r"http://www.w3.org\S*", "", text)
    write_rebase_page(tmp_path / "again.html", report)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert text.count("<polyline") == 2


def test_the_table(report: RebaseReport) -> None:
    text = shown(report)
    for words in (
        "on the examples",
        "retained, held out",
        "rope_theta",
        "lm_head.weight",
        "after rounding",
        "written to",
    ):
        assert words in text


def test_without_examples_and_without_output(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    report = transfer(*family.paths, None)
    write_rebase_page(tmp_path / "page.html", report)
    text = (tmp_path / "page.html").read_text()
    assert "No examples were given" in text and "What rounding left" not in text
    assert "nothing written" in shown(report)


def test_a_deep_model_is_drawn_in_bands(tmp_path: Path) -> None:
    old = {f"layers.{layer}.{m}.weight": torch.randn(4, 4) for layer in range(200) for m in ("q", "up")}
    old |= {f"layers.0.rare{number}.weight": torch.randn(2, 2) for number in range(40)}
    family = write_family(tmp_path, old=old)
    write_rebase_page(tmp_path / "page.html", transfer(*family.paths, None))
    text = (tmp_path / "page.html").read_text()
    assert "0 … 4" in text and "all others" in text and len(text) < 1_000_000
    assert "428 more tensors" in text or "more tensors" in text


def test_a_failed_page_leaves_the_old_one(report: RebaseReport, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_rebase_page(tmp_path / "no" / "page.html", report)


def test_the_chart() -> None:
    drawn = line_chart([(0.0, 1.0), (1.0, 3.0), (0.5, math.nan)], "way", "loss", ("a", "b"))
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    assert points == "62.0,110.0 582.0,10.0" and drawn.count("<circle") == 2
    assert line_chart([(0.0, 1.0)], "way", "loss", ("a", "b")) == ""
