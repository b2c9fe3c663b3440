"""Merges that are interrupted, killed or fail at any step: the target is whole or absent; a rerun ends with its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from graftwork.checkpoint.files import Step, observe, partial_path
from graftwork.checkpoint.resumable import ResumableFolder
from graftwork.compose import ComposeReport, merge
from graftwork.errors import CheckpointError, TargetExists
from tests.checkpoint.faults import Fault, killed, observers, raise_fault, raise_no_space, steps_of
from tests.compose.models import contents, family, recipe, save, weights

JOURNAL = ".journal.jsonl.partial"


def small(folder: Path) -> dict[str, Any]:
    """A merge of few tensors and two files of weights, with random numbers."""
    return recipe(
        folder, "dare_linear", [{"weight": 0.5, "density": 0.5}, {"weight": 0.4, "density": 0.7}], seed=7
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    keep = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")
    for number, name in enumerate(("base", "one", "two")):
        save(folder / name, {key: tensor for key, tensor in weights(number).items() if key in keep})
    return folder


def run(models: Path, out: Path, **options: Any) -> ComposeReport:
    return merge(small(models), out, threads=1, max_shard_bytes=300, **options)


@pytest.fixture(scope="module")
def wanted(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("wanted") / "out"
    assert run(models, out).resumed == 0
    assert len(list(out.glob("*.safetensors"))) == 2
    return contents(out)


def test_killed_at_any_step_and_gone_on_from(models: Path, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    count, resumed = 0, set()
    for count in range(200):
        out = tmp_path / f"{count}"
        dead = [killed(count, when, partial(run, models, out)) for when in ("before",)]
        if out.exists():
            assert contents(out) == wanted
        else:
            report = run(models, out)
            resumed.add(report.resumed)
            assert contents(out) == wanted
        assert not partial_path(out).exists()
        if not any(dead):
            break
    assert count > 20 and resumed == {0, 1, 2, 3}


@pytest.mark.parametrize("act", [raise_fault, raise_no_space])
def test_fails_at_any_step_and_gone_on_from(
    models: Path, tmp_path: Path, wanted: dict[str, bytes], act: Callable[[Step], object]
) -> None:
    steps = len(steps_of(lambda: run(models, tmp_path / "all")))
    for count in range(0, steps, 4):
        for when, arguments in observers(count, act):
            out = tmp_path / f"{act.__name__}-{count}-{when}"
            try:
                with observe(**arguments):
                    run(models, out)
            except (Fault, OSError):
                assert not out.exists() or contents(out) == wanted
            if not out.exists():
                run(models, out)
            assert contents(out) == wanted


def interrupted(models: Path, out: Path, after: int, **options: Any) -> None:
    """Stop a merge when ``after`` tensors are done."""
    seen = iter(range(after, 0, -1))

    def stop(stage: str, done: int, total: int) -> None:
        if next(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same call goes on from there"):
        run(models, out, progress=stop, **options)
    assert not out.exists()


def test_interrupted_and_gone_on_from(models: Path, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    interrupted(models, tmp_path / "out", 2)
    report = run(models, tmp_path / "out")
    assert report.resumed == 2 and contents(tmp_path / "out") == wanted
    assert report.survival is not None and len(report.survival.tensors) == 3
    assert all(donor.digest for donor in report.donors)


def test_a_resumed_report_says_what_an_uninterrupted_one_does(models: Path, tmp_path: Path) -> None:
    interrupted(models, tmp_path / "out", 2)
    resumed, whole = run(models, tmp_path / "out").to_dict(), run(models, tmp_path / "whole").to_dict()
    for key in ("out", "resumed", "seconds", "cpu_seconds", "digest_seconds"):
        del resumed[key], whole[key]
    assert resumed == whole


def test_what_is_damaged_is_merged_again(models: Path, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    interrupted(models, tmp_path / "out", 3)
    for file in partial_path(tmp_path / "out").glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    assert (
        run(models, tmp_path / "out").resumed == 1
    )  # the last tensor of each of the two files is not as noted
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize("damage", [b"", b"{", b'{"work": "x"}\n', b"[1]\n", b"\xff\xfe\n"])
def test_a_damaged_journal_is_no_obstacle(
    models: Path, tmp_path: Path, wanted: dict[str, bytes], damage: bytes
) -> None:
    interrupted(models, tmp_path / "out", 2)
    (partial_path(tmp_path / "out") / JOURNAL).write_bytes(damage)
    assert run(models, tmp_path / "out").resumed == 0
    assert contents(tmp_path / "out") == wanted


def test_a_line_that_was_cut_off_does_not_count(
    models: Path, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    interrupted(models, tmp_path / "out", 2)
    journal = partial_path(tmp_path / "out") / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-5])
    assert run(models, tmp_path / "out").resumed == 1
    assert contents(tmp_path / "out") == wanted


def test_another_merge_begins_anew(models: Path, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    interrupted(models, tmp_path / "out", 2)
    other = small(models) | {"seed": 8}
    report = merge(other, tmp_path / "out", threads=1, max_shard_bytes=300)
    assert report.resumed == 0 and contents(tmp_path / "out") != wanted
    again = tmp_path / "again"
    merge(other, again, threads=1, max_shard_bytes=300)
    assert contents(tmp_path / "out") == contents(again)


def test_other_models_begin_anew(tmp_path: Path) -> None:
    family(tmp_path, 2)
    made = recipe(tmp_path, each=[{"weight": 0.5}] * 2)

    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(made, tmp_path / "out", progress=stop)
    (tmp_path / "two" / "model.safetensors").touch()
    assert merge(made, tmp_path / "out").resumed == 0


def test_the_order_of_the_models_is_no_other_merge(models: Path, tmp_path: Path) -> None:
    interrupted(models, tmp_path / "out", 2)
    made = small(models)
    made["models"].reverse()
    assert merge(made, tmp_path / "out", threads=1, max_shard_bytes=300).resumed == 2


def test_resume_can_be_refused(models: Path, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    interrupted(models, tmp_path / "out", 2)
    assert run(models, tmp_path / "out", resume=False).resumed == 0
    assert contents(tmp_path / "out") == wanted


def test_a_residual_begins_anew_and_ends_alike(models: Path, tmp_path: Path) -> None:
    made = small(models) | {"preserve": "residual", "dtype": "bfloat16"}

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(made, tmp_path / "out", progress=stop)
    assert merge(made, tmp_path / "out").resumed == 0
    merge(made, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_target_appears_meanwhile(models: Path, tmp_path: Path) -> None:
    def appear(stage: str, done: int, total: int) -> None:
        if done == total:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "other").write_text("x")

    with pytest.raises(TargetExists):
        run(models, tmp_path / "out", progress=appear)
    assert contents(tmp_path / "out") == {"other": b"x"}


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError), ResumableFolder(tmp_path / "out", "work") as folder:
        (folder.path / "a").write_text("a")
        folder.note({"done": 1})
        raise CheckpointError("no")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_keeps_what_was_noted(tmp_path: Path) -> None:
    with pytest.raises(Fault), ResumableFolder(tmp_path / "out", "work") as folder:
        (folder.path / "a").write_text("a")
        folder.note({"done": 1})
        raise Fault
    with ResumableFolder(tmp_path / "out", "work") as folder:
        assert folder.done == [{"done": 1}] and (folder.path / "a").read_text() == "a"
        with pytest.raises(TargetExists, match="another writer"), ResumableFolder(tmp_path / "out", "work"):
            pass
    assert contents(tmp_path / "out") == {"a": b"a"}


def test_the_journal_is_plain(models: Path, tmp_path: Path) -> None:
    interrupted(models, tmp_path / "out", 1)
    lines = (partial_path(tmp_path / "out") / JOURNAL).read_text().splitlines()
    assert set(json.loads(lines[0])) == {"work"}
    assert set(json.loads(lines[1])) == {"tensor", "digest", "inputs", "nonfinite", "survival"}
