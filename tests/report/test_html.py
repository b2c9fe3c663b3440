from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from graftwork.report import Table, write_report
from graftwork.store.diff import FileDiff
from tests.report.handmade import checkpoint_diff, lone_tensor, pack_result, tensor_diff, transformer

LIMIT = 1_000_000
EMPTY = {"meta", "rect", "br"}


class Balance(HTMLParser):
    """Checks that elements are closed in the order in which they were opened, and gathers the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in EMPTY or (tag == "rect" and not self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> tuple[str, str]:
    """The file's markup, which must be balanced, and its text."""
    markup = path.read_text()
    parser = Balance()
    parser.feed(markup)
    parser.close()
    assert not parser.open
    return markup, " ".join(parser.text).replace("\N{NO-BREAK SPACE}", " ")


def test_a_whole_report(tmp_path: Path) -> None:
    diff = transformer(6)
    write_report(
        tmp_path / "r.html",
        title="Two fine-tunes",
        pack=pack_result("mail", "code"),
        diffs={"mail": diff},
        tables=[Table("Scores", ("task", "before", "after"), [("mail", 0.5, 0.75)], "held-out")],
    )
    markup, text = read(tmp_path / "r.html")
    for wanted in ("Two fine-tunes", "2.00 MB", "200 kB", "10.0 %", "Scores", "held-out", "0.750"):
        assert wanted in text
    for wanted in ("mail: what changed", "model.layers", "outside layers", "Relative update norm", "entropy"):
        assert wanted in text
    assert "50.0 %" in text and "Saved in bf16" in text
    assert "1 tensor only in the fine-tune: lm_head.weight." in text
    assert "code: what changed" not in text
    assert len(re.findall("<details>", markup)) == 1


def test_it_needs_nothing_from_outside(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", title="t", pack=pack_result("a"), diffs={"a": transformer(2)})
    markup, _ = read(tmp_path / "r.html")
    for forbidden in ("<script", "http:", "https:", "src=", "@import", "url(", "<link"):
        assert forbidden not in markup
    assert "prefers-color-scheme:dark" in markup


def test_same_results_give_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, title="t", pack=pack_result("x"), diffs={"x": transformer(5)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("count", [1, 6, 300])
def test_size_is_bounded_whatever_the_models(tmp_path: Path, count: int) -> None:
    diff = transformer(80, 14)
    names = [f"fine-tune-{i}" for i in range(count)]
    write_report(tmp_path / "r.html", title="t", pack=pack_result(*names), diffs=dict.fromkeys(names, diff))
    assert (tmp_path / "r.html").stat().st_size < LIMIT


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>&\"'\x00\u202e"
    diff = checkpoint_diff(
        [tensor_diff(f"l.0.{hostile}"), lone_tensor(hostile, hostile)],
        [FileDiff(hostile, None, "a")],
        [hostile],
    )
    write_report(
        tmp_path / "r.html",
        title=hostile,
        pack=pack_result(hostile),
        diffs={hostile: diff},
        tables=[Table(hostile, (hostile,), [(hostile,)], hostile)],
    )
    markup, text = read(tmp_path / "r.html")
    assert "<img" not in markup and "\x00" not in markup
    assert "onerror=alert(1)" in text


def test_empty_inputs_are_fine(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", title="t", pack=pack_result(), diffs={"x": checkpoint_diff([])})
    _, text = read(tmp_path / "r.html")
    assert "0 of 0 tensors equal bit for bit." in text


def test_an_update_that_survives_is_a_sentence_and_no_map(tmp_path: Path) -> None:
    diff = checkpoint_diff([tensor_diff("l.0.a", cosine=1.0)])
    write_report(tmp_path / "r.html", title="t", diffs={"x": diff})
    _, text = read(tmp_path / "r.html")
    assert "Every update survives in bf16" in text


def test_a_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        write_report(tmp_path / "nowhere" / "r.html", title="t")
