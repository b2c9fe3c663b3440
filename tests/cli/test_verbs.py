from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.generators.checkpoints import file_hashes


def test_pack_list_checkout_remove_gc(run: Run, models: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    packed = run("pack", models / "base", models / "mail", f"second={models / 'code'}", "-o", store)
    assert "mail" in packed.output and "second" in packed.output and "in all" in packed.output
    assert "mail" in run("list", store).output
    run("checkout", store, "second", "-o", tmp_path / "out", "--base", models / "base")
    assert file_hashes(tmp_path / "out") == file_hashes(models / "code")
    assert "second removed" in run("remove", store, "second").output
    assert "removed" in run("gc", store).output
    assert [e["name"] for e in json.loads(run("list", store, "--json").stdout)["entries"]] == ["mail"]


def test_a_chain_is_packed_listed_compared_and_squashed(
    run: Run, models: Path, store: Path, tmp_path: Path
) -> None:
    base = ("--base", models / "base")
    report = tmp_path / "report.html"
    run("pack", f"{store}:mail", f"mail-2={models / 'code'}", "-o", store, *base, "--report", report)
    assert "mail-2: what changed" in report.read_text()
    listed = run("list", store).output
    assert "difference to" in listed and "the base" in listed
    parents = {e["name"]: e["parent"] for e in json.loads(run("list", store, "--json").stdout)["entries"]}
    assert parents == {"mail": None, "code": None, "mail-2": "mail"}
    assert "identical" in run("diff", f"{store}:mail-2", models / "code", *base).output
    assert "differences to 'mail'" in run("remove", store, "mail", code=2).stderr
    assert "squashed" in run("squash", store, "mail-2", *base).output
    assert "nothing to do" in run("squash", store, "mail-2").output
    assert json.loads(run("squash", store, "mail-2", "--json").stdout)["status"] == "unchanged"
    run("remove", store, "mail")
    assert "difference to" not in run("list", store).output
    run("verify", store, "--deep", *base)
    run("checkout", store, "mail-2", "-o", tmp_path / "out", *base)
    assert file_hashes(tmp_path / "out") == file_hashes(models / "code")


def test_an_entry_of_a_store_as_base_in_a_recipe(run: Run, models: Path, store: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "pack.yaml"
    recipe.write_text(
        f"base: store:mail\nfinetunes:\n  second: {models}/code\nout: store\nstore_base: {models}/base\n"
    )
    run("pack", "--recipe", recipe)
    entries = json.loads(run("list", store, "--json").stdout)["entries"]
    assert {e["name"]: e["parent"] for e in entries}["second"] == "mail"


def test_pack_json_and_quiet(run: Run, models: Path, tmp_path: Path) -> None:
    arguments = ("pack", models / "base", models / "mail", "-o", tmp_path / "store")
    result = run(*arguments, "--json")
    assert json.loads(result.stdout)["entries"][0]["status"] == "added" and not result.stderr
    quiet = run(*arguments, "--quiet")
    assert not quiet.output
    assert json.loads(run(*arguments, "--json").stdout)["entries"][0]["status"] == "unchanged"


def test_pack_with_base_and_report(run: Run, models: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    sources = (models / "base", models / "mail", f"c={models / 'code'}")
    run("pack", *sources, "-o", tmp_path / "store", "--with-base", "--report", report)
    text = report.read_text()
    assert "mail: what changed" in text and "c: what changed" in text and "base: what changed" not in text
    run("checkout", tmp_path / "store", "mail", "-o", tmp_path / "out")
    assert file_hashes(tmp_path / "out") == file_hashes(models / "mail")


def test_a_folder_whose_name_holds_an_equals_sign(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "mail", tmp_path / "lr=3e-5")
    monkeypatch.chdir(tmp_path)
    packed = run("pack", models / "base", "./lr=3e-5", "-o", "store", "--json")
    assert json.loads(packed.stdout)["entries"][0]["name"] == "lr=3e-5"


def test_pack_recipe_and_what_the_command_line_overrides(run: Run, models: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "pack.yaml"
    recipe.write_text(f"base: {models}/base\nfinetunes:\n  m: {models}/mail\nout: store\ncodec: fast\n")
    run("pack", "--recipe", recipe)
    assert (tmp_path / "store").is_dir()
    run(
        "pack",
        "--recipe",
        recipe,
        "-o",
        tmp_path / "other",
        "--codec",
        "small",
        "--report",
        tmp_path / "r.html",
    )
    names = [e["name"] for e in json.loads(run("list", tmp_path / "other", "--json").stdout)["entries"]]
    assert names == ["m"] and "m: what changed" in (tmp_path / "r.html").read_text()


def test_recipe_typo_is_an_error_and_writes_nothing(run: Run, models: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "pack.yaml"
    recipe.write_text(f"base: {models}/base\nfinetunes: [{models}/mail]\nout: store\ncodek: fast\n")
    result = run("pack", "--recipe", recipe, code=2)
    assert "unknown key 'codek'" in result.stderr and "did you mean 'codec'?" in result.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("given", [("base",), ("base", "mail"), ()])
def test_pack_says_what_is_missing(run: Run, models: Path, given: tuple[str, ...]) -> None:
    result = run("pack", *(models / name for name in given), code=2)
    assert "missing" in result.stderr and "--recipe" in result.stderr


def test_diff_exit_codes_json_and_report(run: Run, models: Path, tmp_path: Path) -> None:
    assert "identical" in run("diff", models / "base", models / "base").output
    result = run("diff", models / "base", models / "mail", "--json", "--report", tmp_path / "r.html", code=1)
    found = json.loads(result.stdout)
    assert found["identical"] is False and found["total"]["changed"] > 0
    assert "mail: what changed" in (tmp_path / "r.html").read_text()
    assert not run("diff", models / "base", models / "mail", "-q", code=1).output


def test_verify_finds_a_flipped_bit(run: Run, models: Path, store: Path) -> None:
    assert "intact" in run("verify", store).output
    deep = run("verify", store, "--deep", "--base", models / "base", "--json")
    assert json.loads(deep.stdout)["ok"] is True
    victim = max(store.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    assert "problem" in run("verify", store, "--deep", "--base", models / "base", code=1).output


def test_info(run: Run) -> None:
    assert "CPU level" in run("info").output
    facts = json.loads(run("info", "--json").stdout)
    assert {"graftwork", "python", "torch", "cpu_level", "gpus", "extras"} <= set(facts)
    assert "dev" in facts["extras"]
