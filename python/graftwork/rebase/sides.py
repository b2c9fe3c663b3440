"""The three models of a transfer, each seen the same way: tensors, ties, configuration and token strings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.checkpoint import Checkpoint, open_checkpoint
from graftwork.delta.source import TensorMeta
from graftwork.delta.weights import Stateful, Weights, checkpoint_weights, state_weights
from graftwork.rebase.tokens import read_tokens

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Side", "open_side"]


@dataclass(frozen=True)
class Side:
    """One model: ``role`` is its argument's name, ``checkpoint`` is None for tensors in memory."""

    role: str
    weights: Weights
    checkpoint: Checkpoint | None = None

    @property
    def what(self) -> str:
        """Where it is, for errors and reports."""
        return self.weights.what

    @property
    def name(self) -> str:
        """The last part of its path, by which a lineage calls it; the role for tensors in memory."""
        return self.checkpoint.path.absolute().name if self.checkpoint else self.role

    @property
    def metas(self) -> Mapping[str, TensorMeta]:
        """The distinct tensors by their first names."""
        return self.weights.source.metas

    @property
    def tied(self) -> Mapping[str, str]:
        """Further names of tensors, each with the first one."""
        return self.weights.tied

    @property
    def config(self) -> Mapping[str, Any]:
        """``config.json``; empty where there is none."""
        return (self.checkpoint.config if self.checkpoint else None) or {}

    @cached_property
    def tokens(self) -> Mapping[str, int] | None:
        """Token string to row, by the tokenizer beside the weights; None where none can be read."""
        return read_tokens(self.checkpoint) if self.checkpoint else None

    @property
    def vocab_size(self) -> int | None:
        """The number of rows that the configuration gives the vocabulary."""
        text = self.config.get("text_config")
        said = self.config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
        return said if isinstance(said, int) and not isinstance(said, bool) else None

    def meta(self, name: str | None) -> TensorMeta | None:
        """The tensor of this name, or the one that it is tied to."""
        first = None if name is None else self.weights.first_name(name)
        return None if first is None else self.metas[first]

    def tensor(self, name: str) -> Tensor:
        """The tensor, memory-mapped if it is a file's; to be read only."""
        return self.weights.tensor(self.weights.first_name(name) or name)


@contextmanager
def open_side(given: Stateful, role: str) -> Iterator[Side]:
    """``given`` as a `Side`; a path is opened here, and no file may change meanwhile."""
    if isinstance(given, str | os.PathLike):
        with open_checkpoint(Path(given)) as checkpoint:
            yield Side(role, checkpoint_weights(checkpoint), checkpoint)
            checkpoint.check_unchanged()
    elif isinstance(given, Checkpoint):
        yield Side(role, checkpoint_weights(given), given)
        given.check_unchanged()
    else:
        yield Side(role, state_weights(given, role))
