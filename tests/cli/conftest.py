from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from graftwork.cli import app
from graftwork.store import pack
from tests.generators.checkpoints import base_tensors, tuned_tensors, write_folder

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the program in this process; check the exit code; give back what it printed."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("GRAFTWORK_TRACEBACK", raising=False)

    def call(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` and its fine-tunes ``mail`` and ``code``; not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    base = base_tensors()
    write_folder(folder / "base", base)
    write_folder(folder / "mail", tuned_tensors(base))
    write_folder(folder / "code", tuned_tensors(base, sigma=1e-3), shards=2)
    return folder


@pytest.fixture
def store(models: Path, tmp_path: Path) -> Path:
    """A store with both fine-tunes."""
    pack(models / "base", [models / "mail", models / "code"], out=tmp_path / "store")
    return tmp_path / "store"
