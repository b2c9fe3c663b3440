"""Training that is interrupted: what is saved, and that going on gives the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.adapt import TrainReport, train_sparse
from graftwork.errors import CheckpointError, RecipeError, TargetExists
from graftwork.recipe import ExchangePolicy, SparseRecipe

pytest.importorskip("transformers", reason="transformers is not installed (the extra `hf` brings it)")
pytestmark = pytest.mark.usefixtures("interrupts")


def told(report: TrainReport) -> dict[str, Any]:
    """A report without what a clock said."""
    found = report.to_dict()
    for part in (found, *found["phases"]):
        del part["seconds"]
    return {key: value for key, value in found.items() if key != "out"}


def interrupt_after(updates: int, number: signal.Signals = signal.SIGINT) -> Callable[[str, int, int], None]:
    """A progress callback that presses Ctrl-C."""
    seen = []

    def progress(phase: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == updates:
            os.kill(os.getpid(), number)

    return progress


LOTTERY = {"iterations": 2, "l1": [0.1, 0.2], "full_steps": 3, "steps": 4, "weight_decay": 0.01}
SPIEL = {"steps": 8, "evaluate_every": 3, "head_lr": 1e-3}
RUNS: list[tuple[str, str, dict[str, Any], list[int]]] = [
    ("masked_lm", "lottery", LOTTERY | {"evaluate_every": 2}, [1, 3, 5, 7, 9, 14]),
    ("classification", "lottery", {"accumulate": 2}, [2, 6, 7, 12]),
    ("classification", "spiel", SPIEL | {"policy": ExchangePolicy(period=4, window=2)}, [1, 3, 5, 8]),
    ("causal_lm", "spiel", SPIEL | {"policy": ExchangePolicy("moment_approximation", period=3)}, [3, 4]),
    ("masked_lm", "spiel", SPIEL | {"policy": ExchangePolicy("fixed")}, [4]),
]  # fmt: skip


@pytest.mark.parametrize(
    "task, method, changes, stops", RUNS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_resumed_run_gives_the_same_bits(
    recipe: Callable[..., SparseRecipe], tmp_path: Path, task: str, method: str, changes: dict[str, Any],
    stops: list[int],
) -> None:  # fmt: skip
    whole = train_sparse(recipe(task, method, out=tmp_path / "whole", **changes))
    for stop in stops:
        asked = recipe(task, method, out=tmp_path / f"stopped-{stop}", **changes)
        with pytest.raises(KeyboardInterrupt, match="--resume goes on"):
            train_sparse(asked, progress=interrupt_after(stop))
        assert not asked.out.exists()
        torch.manual_seed(stop)
        resumed = train_sparse(asked, resume=True)
        assert told(resumed) == told(whole), stop
        assert resumed.out.read_bytes() == whole.out.read_bytes(), stop
        assert not Path(f"{asked.out}.state").exists()


@pytest.mark.parametrize("method", ["lottery", "spiel"])
def test_a_killed_run_goes_on_from_the_last_state(
    recipe: Callable[..., SparseRecipe], tmp_path: Path, method: str
) -> None:
    whole = train_sparse(recipe("classification", method, out=tmp_path / "whole"))
    asked = recipe("classification", method, save_every=2)

    def fail_at(number: int) -> Callable[[str, int, int], None]:
        def progress(phase: str, done: int, total: int) -> None:
            if phase == "sparse phase" and done == number:
                raise OSError("the power failed")

        return progress

    for number in (3, 4, 5):
        with pytest.raises(OSError, match="power"):
            train_sparse(asked, resume=number > 3, progress=fail_at(number))
    resumed = train_sparse(asked, resume=True)
    assert resumed.out.read_bytes() == whole.out.read_bytes() and told(resumed) == told(whole)


def test_resuming_without_a_state_starts_from_the_beginning(
    recipe: Callable[..., SparseRecipe], tmp_path: Path
) -> None:
    first = train_sparse(recipe(out=tmp_path / "first"))
    assert train_sparse(recipe(), resume=True).out.read_bytes() == first.out.read_bytes()


def test_an_interrupted_save_leaves_the_state_whole(
    recipe: Callable[..., SparseRecipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = recipe(save_every=2)
    save = torch.save
    calls = []

    def cut_short(value: object, file: Any) -> None:
        calls.append(None)
        save(value, file)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(KeyboardInterrupt):
        train_sparse(asked)
    state = Path(f"{asked.out}.state")
    assert [path.name for path in tmp_path.iterdir()] == [state.name]
    assert torch.load(state, weights_only=True)["finetuner"]["phase"]["steps"] == 2
    assert (
        train_sparse(asked, resume=True).out.read_bytes()
        == train_sparse(recipe(out=tmp_path / "whole")).out.read_bytes()
    )


def test_a_second_interrupt_ends_at_once(recipe: Callable[..., SparseRecipe]) -> None:
    def twice(phase: str, done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    asked = recipe()
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train_sparse(asked, progress=twice)
    assert not Path(f"{asked.out}.state").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_request_to_terminate_is_heeded_as_ctrl_c_is(
    recipe: Callable[..., SparseRecipe],
) -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the program does
    try:
        with pytest.raises(KeyboardInterrupt, match="after update 1 of 6"):
            train_sparse(recipe(), progress=interrupt_after(1, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert train_sparse(recipe(), resume=True).tuned


def test_a_new_head_begins_as_it_did(
    recipe: Callable[..., SparseRecipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train_sparse(recipe("classification", out=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train_sparse(recipe("classification"), progress=interrupt_after(3))
    monkeypatch.setattr("graftwork.adapt.training.model.derived_seed", lambda *_: 99)  # another head is made
    assert train_sparse(recipe("classification"), resume=True).out.read_bytes() == whole.out.read_bytes()


def test_no_state_where_none_is_wanted(recipe: Callable[..., SparseRecipe], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="no state was saved"):
        train_sparse(recipe(save_every=None), progress=interrupt_after(1))
    assert not list(tmp_path.iterdir())


def test_a_state_of_something_else_is_refused(
    recipe: Callable[..., SparseRecipe], tiny_models: Path, tmp_path: Path
) -> None:
    asked = recipe()
    with pytest.raises(KeyboardInterrupt):
        train_sparse(asked, progress=interrupt_after(2))
    with pytest.raises(TargetExists, match="--resume"):
        train_sparse(asked)
    with pytest.raises(
        RecipeError, match=r"another value for 'lr'(?s:.*)0.003 in the state, 0.1 in the recipe"
    ):
        train_sparse(replace(asked, lr=0.1), resume=True)
    texts = tmp_path / "other.txt"
    texts.write_text("the cat\n\nthe dog\n\nthe bird")
    with pytest.raises(RecipeError, match="contents of 'data'"):
        train_sparse(replace(asked, data=texts), resume=True)
    with pytest.raises(RecipeError, match="contents of 'model'"):
        train_sparse(replace(asked, model=tiny_models / "body"), resume=True)
    Path(f"{asked.out}.state").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"state cannot be read(?s:.*)remove it"):
        train_sparse(asked, resume=True)
    torch.save({"version": 7}, f"{asked.out}.state")
    with pytest.raises(CheckpointError, match="version 7"):
        train_sparse(asked, resume=True)
