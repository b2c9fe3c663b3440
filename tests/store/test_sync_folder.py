"""A checkpoint on disk takes a payload whole or not at all, wherever the writer fails or is killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftwork.checkpoint import open_checkpoint
from graftwork.checkpoint.files import Step, observe
from graftwork.errors import BaseMismatch, CheckpointError, GraftworkError, SourceChanged, TargetExists
from graftwork.store.sync import apply_, encode
from tests.checkpoint.faults import (
    Fault,
    at_step,
    killed,
    observers,
    raise_fault,
    raise_io_error,
    raise_no_space,
    steps_of,
)
from tests.generators.checkpoints import base_tensors, file_hashes, write_folder
from tests.store.sync_cases import State, bits, chunked_state, cloned, stepped


def read(folder: Path) -> dict[str, bytes]:
    with open_checkpoint(folder) as checkpoint:
        return bits({name: checkpoint.tensor(name) for name in checkpoint.tensors})


class World:
    """A checkpoint, its next two versions and the payloads to them."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder = folder
        names = ("embed.weight", "layers.0.norm.weight", "scalar", "nothing")
        self.before = {name: base_tensors()[name] for name in names}
        self.after = stepped(self.before)
        self.then = stepped(self.after, 1)
        write_folder(folder / "model", self.before, shards=shards)
        self.payload = encode(self.before, self.after, version="1", parent="0")
        self.next = encode(self.after, self.then, version="2", parent="1")
        self.copies = 0

    def copy(self) -> Path:
        self.copies += 1
        return Path(shutil.copytree(self.folder / "model", self.folder / f"copy{self.copies}"))

    def check(self, folder: Path) -> None:
        """It holds one version or the other, and goes on from there; nothing is left behind in the end."""
        if (held := read(folder)) != bits(self.after):
            assert held == bits(self.before)
            apply_(folder, self.payload, threads=1)
        apply_(folder, self.next, threads=1)
        assert read(folder) == bits(self.then)
        wanted = {path.name for path in (self.folder / "undisturbed").iterdir()}
        left = {path.name for path in folder.iterdir()}
        assert left == wanted


@pytest.fixture(params=[1, 2], scope="module", ids=["one file", "shards"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("folder"), request.param)
    folder = Path(shutil.copytree(made.folder / "model", made.folder / "undisturbed"))
    apply_(folder, made.payload)
    assert read(folder) == bits(made.after)
    apply_(folder, made.next)
    assert read(folder) == bits(made.then)
    return made


def test_everything_else_stays_as_it_was(world: World) -> None:
    before, after = file_hashes(world.folder / "model"), file_hashes(world.folder / "undisturbed")
    for name in ("config.json", "tokenizer.json"):
        assert before[name] == after[name]
    assert len(before) == len(after)


def test_the_bytes_do_not_depend_on_threads(world: World) -> None:
    one, three = world.copy(), world.copy()
    apply_(one, world.payload, threads=1)
    apply_(three, world.payload, threads=3)
    assert file_hashes(one) == file_hashes(three)


@pytest.mark.parametrize(
    "act",
    [
        raise_fault,
        pytest.param(raise_no_space, marks=pytest.mark.slow),
        pytest.param(raise_io_error, marks=pytest.mark.slow),
    ],
)
def test_it_fails_at_any_step(world: World, act: Callable[[Step], None]) -> None:
    for count in range(len(steps_of(lambda: apply_(world.copy(), world.payload, threads=1)))):
        for _, arguments in observers(count, act):
            folder = world.copy()
            with observe(**arguments):
                try:
                    apply_(folder, world.payload, threads=1)
                except (Fault, OSError):
                    pass
                else:
                    assert read(folder) == bits(world.after), "old shards may stay if they cannot be removed"
            world.check(folder)
            shutil.rmtree(folder)


def test_it_is_killed_at_any_step(world: World) -> None:
    for count in range(len(steps_of(lambda: apply_(world.copy(), world.payload, threads=1)))):
        for when in ("before", "after"):
            folder = world.copy()
            assert killed(count, when, lambda folder=folder: apply_(folder, world.payload, threads=1))
            assert read(folder) in (bits(world.before), bits(world.after))
            world.check(folder)
            shutil.rmtree(folder)


def test_an_interrupt(world: World) -> None:
    steps = steps_of(lambda: apply_(world.copy(), world.payload, threads=2))

    def interrupt(step: Step) -> None:
        raise KeyboardInterrupt

    for count in range(0, len(steps), 3):
        folder = world.copy()
        with observe(before=at_step(count, interrupt)), pytest.raises(KeyboardInterrupt):
            apply_(folder, world.payload, threads=2)
        world.check(folder)
        shutil.rmtree(folder)


def test_what_does_not_fit_leaves_the_files_alone(world: World) -> None:
    folder = world.copy()
    before = file_hashes(folder)
    broken = bytearray(world.payload)
    broken[len(broken) // 2] ^= 1
    other = encode({"w": torch.ones(3)}, {"w": torch.zeros(3)})
    for payload in (bytes(broken), other, world.next):
        with pytest.raises(GraftworkError):
            apply_(folder, payload)
        assert file_hashes(folder) == before
    with pytest.raises(BaseMismatch):
        apply_(folder, world.payload, expect_parent="9")
    apply_(folder, world.payload, expect_parent="0")
    after = file_hashes(folder)
    with pytest.raises(BaseMismatch, match="already"):
        apply_(folder, world.payload)
    assert file_hashes(folder) == after


def test_a_change_while_it_works(world: World) -> None:
    folder = world.copy()
    config = folder / "config.json"

    def touch(step: Step) -> None:
        config.write_text(config.read_text() + " ")

    with observe(before=at_step(2, touch)), pytest.raises(SourceChanged):
        apply_(folder, world.payload)
    assert read(folder) == bits(world.before)


def test_two_writers(world: World) -> None:
    folder = world.copy()
    second: list[Exception] = []

    def also(step: Step) -> None:
        with pytest.raises(TargetExists) as caught:
            apply_(folder, world.payload)
        second.append(caught.value)

    with observe(after=at_step(1, also)):
        apply_(folder, world.payload)
    assert second and read(folder) == bits(world.after)


def test_only_what_changes_is_written(world: World) -> None:
    folder = world.copy()
    current = cloned(world.before)
    current["embed.weight"][3, 3] += 1
    before = file_hashes(folder)
    apply_(folder, encode(world.before, current))
    after = file_hashes(folder)
    assert read(folder) == bits(current) and before.keys() == after.keys()
    assert len([name for name in before if before[name] != after[name]]) == 1
    apply_(folder, encode(current, current))
    assert file_hashes(folder) == after


def test_a_wrong_base_where_nothing_changes(world: World) -> None:
    folder = world.copy()
    other = {**cloned(world.before), "layers.0.norm.weight": torch.zeros(32).bfloat16()}
    current = {**cloned(other), "embed.weight": world.after["embed.weight"]}
    payload = encode(other, current)
    with pytest.raises(BaseMismatch):
        apply_(folder, payload)
    assert read(folder) == bits(world.before)


def test_the_index_keeps_what_it_said(tmp_path: Path) -> None:
    world = World(tmp_path, 2)
    index = tmp_path / "model" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    index.write_text(json.dumps({"more": ["ä"], **said}))
    apply_(tmp_path / "model", world.payload)
    now = json.loads(index.read_text())
    assert (now["more"], now["metadata"]) == (["ä"], said["metadata"])
    for file in set(now["weight_map"].values()):
        tensors = load_file(tmp_path / "model" / file)
        assert all(now["weight_map"][name] == file for name in tensors)


def test_a_single_file(tmp_path: Path) -> None:
    before = chunked_state()
    after = stepped(before)
    save_file(before, tmp_path / "m.safetensors", metadata={"format": "pt", "note": "kept"})
    save_file(before, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError):
        apply_(tmp_path, encode(before, after))
    apply_(tmp_path / "m.safetensors", encode(before, after))
    assert read(tmp_path / "m.safetensors") == bits(after)
    with open_checkpoint(tmp_path / "m.safetensors") as opened:
        assert opened.headers["m.safetensors"].metadata["note"] == "kept"


def test_several_files_without_an_index_cannot_change_at_once(tmp_path: Path) -> None:
    before = {"a": torch.ones(9), "b": torch.ones(8)}
    for name, tensor in before.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    hashes = file_hashes(tmp_path)
    with pytest.raises(CheckpointError, match="all at once"):
        apply_(tmp_path, encode(before, stepped(before)))
    assert file_hashes(tmp_path) == hashes
    apply_(tmp_path, encode(before, {**before, "a": torch.zeros(9)}))
    assert not load_file(tmp_path / "a.safetensors")["a"].any()


def test_a_tied_checkpoint_takes_the_payload_of_a_state_dict(tmp_path: Path) -> None:
    before: State = {"model.embed_tokens.weight": torch.ones(4, 3), "norm": torch.ones(3)}
    write_folder(tmp_path / "m", before, config={"tie_word_embeddings": True})
    state = {**before, "lm_head.weight": before["model.embed_tokens.weight"]}
    current = stepped(before)
    payload = encode(state, {**current, "lm_head.weight": current["model.embed_tokens.weight"]})
    apply_(tmp_path / "m", payload)
    assert read(tmp_path / "m") == bits(current)


def test_a_target_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        apply_(tmp_path / "nothing", encode({}, {}))
