from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import graftwork
from graftwork.cli import program
from tests.cli.conftest import Run

VERBS = ("pack", "list", "diff", "verify", "checkout", "squash", "remove", "gc", "info", "adapt")


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_shows_every_verb_with_examples(run: Run) -> None:
    text = run("--help").output
    assert all(verb in text for verb in VERBS) and "Examples" in text
    for verb in VERBS:
        shown = run(verb, "--help").output
        assert f"graftwork {verb}" in shown and "Example" in shown


def test_version(run: Run) -> None:
    assert run("--version").output == f"graftwork {graftwork.__version__}\n"


def test_no_arguments_show_the_help(run: Run) -> None:
    assert "Usage" in run(code=2).output


def test_unknown_options_and_verbs_name_the_nearest(run: Run, models: Path) -> None:
    assert "--codec" in run("pack", "--codc", "fast", models / "base", code=2).output
    assert "'verify'" in run("verfy", models / "base", code=2).output
    assert "auto" in run("pack", "a", "b", "-o", "s", "--codec", "best", code=2).output
    assert "--threads" in run("diff", "a", "b", "--threads", "0", code=2).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "nowhere"), ["nowhere"]),
        (("diff", "nowhere", "nowhere"), ["nowhere"]),
        (("checkout", "STORE", "mial", "-o", "out", "--base", "BASE"), ["mial", "code, mail"]),
        (("checkout", "STORE", "mail", "-o", "out"), ["base", "--base"]),
        (("checkout", "STORE", "mail", "-o", "STORE", "--base", "BASE"), ["STORE"]),
        (("checkout", "STORE", "mail", "-o", "out", "--base", "OTHER"), ["not the base", "embed.weight"]),
        (("pack", "--recipe", "nowhere.yaml"), ["nowhere.yaml"]),
        (("pack", "BASE", "OTHER", "-o", "out", "--base", "BASE"), ["no such entry", "--base"]),
        (("pack", "STORE:mial", "OTHER", "-o", "out", "--base", "BASE"), ["mial", "code, mail"]),
        (("squash", "STORE", "mial"), ["mial", "code, mail"]),
        (("diff", "BASE", "BASE", "--report", "nowhere/r.html"), ["nowhere"]),
    ],
)
def test_errors_are_clean_and_exit_with_2(
    run: Run, models: Path, store: Path, tmp_path: Path, arguments: tuple[str, ...], words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"STORE": store, "BASE": models / "base", "OTHER": models / "code"}
    arguments = tuple(argument.replace("STORE:", f"{store}:") for argument in arguments)
    result = run(*(places.get(argument, argument) for argument in arguments), code=2)
    assert result.stderr.startswith("error: ") and "Traceback" not in result.output and not result.stdout
    for word in words:
        assert str(places.get(word, word)) in result.stderr
    assert not (tmp_path / "out").exists()


def test_traceback_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_TRACEBACK", "1")
    assert isinstance(run("list", "nowhere", code=1).exception, graftwork.errors.GraftworkError)


def test_markup_in_messages_stays_text(run: Run) -> None:
    assert "[bold]x[/red]" in run("list", "[bold]x[/red]", code=2).stderr


def test_interrupt_is_clean(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("graftwork.store.Store.entries", interrupted)
    result = run("list", store, code=program.INTERRUPTED)
    assert "interrupted" in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    code = """
import signal, sys, typer
from graftwork.cli import app, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits none
@app.command("wait")
def wait() -> None:
    print("ready", flush=True)
    import time; time.sleep(60)
sys.argv = ["graftwork", "wait"]
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == program.INTERRUPTED
    assert "interrupted" in errors and "Traceback" not in errors


def test_help_and_list_import_no_torch(store: Path) -> None:
    code = """
import sys
from typer.testing import CliRunner
from graftwork.cli import app
result = CliRunner().invoke(app, sys.argv[1:])
heavy = {"torch", "numpy", "triton", "graftwork._core"} & set(sys.modules)
sys.exit(f"{heavy} {result.output}" if heavy or result.exit_code else 0)
"""
    for arguments in (("--help",), ("list", store), ("list", store, "--json")):
        done = python(code, *arguments)
        assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_error(store: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "graftwork.cli", "list", str(store)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr and "error" not in done.stderr
