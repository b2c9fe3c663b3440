from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.models import installed, llama, minilm, smollm2
from graftwork.checkpoint import open_checkpoint
from graftwork.errors import MissingExtra


def test_a_missing_package_is_an_error_that_names_the_command():
    with pytest.raises(MissingExtra, match="pip install --no-deps something==1"):
        installed.package_folder("graftwork_no_such_package", "pip install --no-deps something==1")


def test_missing_modules_are_named():
    with pytest.raises(MissingExtra, match="graftwork_no_such_module") as caught:
        installed.require("json", "graftwork_no_such_module", install="pip install it")
    assert caught.value.remedy == "pip install it"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"GRAFTWORK_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/graftwork"),
        ({"HOME": "/home/me"}, "/home/me/.cache/graftwork"),
    ],
)
def test_cache_folder_follows_the_environment(monkeypatch, environment, wanted):
    for name in ("GRAFTWORK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert installed.cache_folder() == Path(wanted)


def test_minilm_is_a_checkpoint_with_its_tokenizer():
    try:
        folder = minilm()
    except MissingExtra as error:
        pytest.skip(str(error))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
        assert checkpoint.config["model_type"] == "bert"
        assert "tokenizer.json" in checkpoint.other_files


def test_smollm2_refuses_other_dtypes():
    with pytest.raises(ValueError, match="float16"):
        smollm2("float16")


class Converter:
    """Stands for the conversion: counts its calls, writes one small file, and does what a test asks for."""

    def __init__(self) -> None:
        self.calls = 0
        self.also: Callable[[], object] = lambda: None

    def __call__(self, source: Path, dtype: str, target: Path) -> None:
        self.calls += 1
        (target / "config.json").write_text(dtype)
        self.also()


@pytest.fixture
def converter(monkeypatch, tmp_path):
    (tmp_path / llama.GGUF).write_bytes(b"GGUF")
    fake = Converter()
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(llama, "package_folder", lambda module, install: tmp_path)
    monkeypatch.setattr(llama, "_convert", fake)
    return fake


def test_smollm2_is_converted_once_for_each_dtype(converter, tmp_path):
    folder = smollm2()
    assert smollm2() == folder
    assert smollm2("bfloat16") != folder
    assert converter.calls == 2
    assert (folder / "config.json").read_text() == "float32"
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_smollm2_of_another_gguf_file_is_another_folder(converter, tmp_path):
    folder = smollm2()
    (tmp_path / llama.GGUF).write_bytes(b"GGUF, repacked")
    assert smollm2() != folder


def test_smollm2_leaves_nothing_when_the_conversion_fails(converter, tmp_path):
    def fail() -> None:
        raise OSError("no space left on device")

    converter.also = fail
    with pytest.raises(OSError, match="no space left"):
        smollm2()
    assert list((tmp_path / "cache").iterdir()) == []


def test_smollm2_takes_what_another_process_has_just_finished(converter, tmp_path):
    finished = smollm2()
    aside = finished.rename(tmp_path / "aside")
    (aside / "theirs").touch()
    converter.also = lambda: aside.rename(finished)
    assert smollm2() == finished
    assert (finished / "theirs").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 1
