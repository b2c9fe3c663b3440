from __future__ import annotations

import io
import json
import sys

import pytest

from graftwork.cli.terminal import print_result, print_warning, progress_bar


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_bytes_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar(quiet=False) as progress:
        assert progress is not None
        progress("pack [mail]", 500_000, 1_000_000)
        progress("pack [mail]", 1_000_000, 1_000_000)
    assert "pack [mail]" in screen.getvalue() and "1.0/1.0 MB" in screen.getvalue()


def test_progress_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar(quiet=False, steps=True) as progress:
        assert progress is not None
        progress("sparse phase", 1500, 3000)
    assert "sparse phase" in screen.getvalue() and "1500/3000" in screen.getvalue()


def test_no_progress_without_a_terminal_or_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(quiet=False) as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", Screen())
    with progress_bar(quiet=True) as progress:
        assert progress is None


def test_json_refuses_what_json_cannot_say(capsys: pytest.CaptureFixture[str]) -> None:
    print_result({"ä": None}, lambda: "table", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"ä": None}
    with pytest.raises(ValueError, match="JSON compliant"):
        print_result({"a": float("nan")}, lambda: "table", as_json=True)


def test_a_warning_is_a_note_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_warning(UserWarning("it runs slowly"), UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "note: it runs slowly\n"
