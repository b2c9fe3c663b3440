"""What a training run keeps on disk to go on from, and how it is asked to stop."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from io import RawIOBase
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self, cast

import torch

from graftwork.checkpoint.digest import bytes_digest
from graftwork.checkpoint.files import AtomicFile, remove_file
from graftwork.delta.pipeline import default_threads
from graftwork.delta.source import describe
from graftwork.delta.weights import open_weights
from graftwork.errors import CheckpointError, RecipeError, TargetExists
from graftwork.recipe import SparseRecipe

VERSION = 1
#: Keys of a recipe that may change between a run and the one that goes on from it. Of files the contents count.
_FREE = ("model", "data", "out", "start_from", "save_every", "device")


class _Stream(RawIOBase):
    """An atomic file as torch writes to it."""

    def __init__(self, file: AtomicFile) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        self._file.write(data)
        return memoryview(data).nbytes


class StateFile:
    """The state of a run, beside the delta that it is to write: ``delta.safetensors.state``.

    It is replaced whole or not at all, and read without unpickling anything but tensors and plain values.
    """

    def __init__(self, recipe: SparseRecipe, data_digest: str) -> None:
        self.path = state_path(recipe)
        self._recipe, self._data_digest = recipe, data_digest

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What the result depends on, with the contents of files in place of their names."""
        recipe = self._recipe
        with open_weights(recipe.model, "model") as weights:
            model = describe(weights.source, threads=default_threads()).digest
        return _plain(recipe) | {
            "contents of 'model'": model,
            "contents of 'data'": self._data_digest,
            "contents of 'start_from'": [bytes_digest(file.read_bytes()) for file in recipe.start_from or []],
        }

    def save(self, state: Mapping[str, Any]) -> None:
        """Take the place of the state that was saved before."""
        with AtomicFile(self.path) as file:
            torch.save(
                {"version": VERSION, "settings": self._settings, **state}, cast(IO[bytes], _Stream(file))
            )

    def load(self) -> dict[str, Any] | None:
        """The state that was saved, or None if there is none.

        Raises
        ------
        CheckpointError
            The file is no state, or damaged.
        RecipeError
            It is the state of another recipe.
        """
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
            raise self._unreadable(" ".join(str(error).split())[:200]) from error
        if not isinstance(state, dict) or state.get("version") != VERSION:
            version = state.get("version") if isinstance(state, dict) else type(state).__name__
            raise self._unreadable(f"version {version}, wanted {VERSION}")
        for key, mine in self._settings.items():
            saved = state["settings"].get(key)
            if saved != mine:
                raise RecipeError(
                    f"the state was saved with another value for {key!r}",
                    file=self.path,
                    got=f"{saved!r:.200} in the state, {mine!r:.200} in the recipe",
                    remedy="set it back in the recipe; or remove the state, and start from the beginning",
                )
        return state

    def _unreadable(self, why: str) -> CheckpointError:
        return CheckpointError(
            "the state cannot be read",
            file=self.path,
            got=why,
            remedy="remove it, and start from the beginning",
        )

    def remove(self) -> None:
        """Remove the file, if it is there."""
        if self.path.exists():
            remove_file(self.path)


def state_path(recipe: SparseRecipe) -> Path:
    """Where the state of a run is kept."""
    return recipe.out.with_name(f"{recipe.out.name}.state")


def report_path(recipe: SparseRecipe) -> Path:
    """Where the report of a run is written."""
    return recipe.out.with_name(f"{recipe.out.name}.json")


def check_places(recipe: SparseRecipe, resume: bool) -> None:
    """Refuse to write where something stands, before any work is done."""
    for path in (recipe.out, report_path(recipe)):
        if path.exists():
            raise TargetExists(
                "the file exists already", file=path, remedy="choose another 'out', or remove it"
            )
    if not resume and state_path(recipe).exists():
        raise TargetExists(
            "there is the state of a run that was interrupted",
            file=state_path(recipe),
            remedy="go on from it with --resume (resume=True), or remove it",
        )


def _plain(recipe: Any) -> dict[str, Any]:
    """What of a recipe the result depends on."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe) if field.name not in _FREE}
    return {key: _plain(value) if is_dataclass(value) else value for key, value in values.items()}


class StopRequest:
    """Within the ``with`` block SIGINT and SIGTERM only set ``made``; a second one is handled as before.

    Elsewhere than in the main thread, nothing is changed.
    """

    def __init__(self) -> None:
        self.made = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            self._before[number](number, frame)
        self.made = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
