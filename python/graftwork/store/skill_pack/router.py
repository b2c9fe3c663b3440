"""Which pack an input is for: a small classifier that learns from what each pack lost on examples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.errors import CheckpointError, DataError

__all__ = ["Selection", "SkillRouter"]

_FILE = "graftwork-skill-router"


class Selection(NamedTuple):
    """Which packs were chosen, and how: results that depend on a router or on known tasks should say so."""

    mode: str
    names: tuple[str, ...]
    scales: tuple[float, ...]


class SkillRouter:
    """A feed-forward classifier from features of an input to one of several packs.

    Made by `fit` or `load`. Features are standardised with the mean and deviation of the examples.

    Notes
    -----
    Differs from the paper: it does not say the router's form. Here it is one hidden layer with GELU, trained on the classes
    of smallest loss, or with ``temperature`` on the softmax of −loss/temperature.
    """

    def __init__(self, names: Sequence[str], tensors: dict[str, Tensor]) -> None:
        self.names = tuple(names)
        self._tensors = tensors

    @classmethod
    def fit(
        cls,
        features: Tensor,
        losses_per_pack: Tensor,
        *,
        names: Sequence[str] | None = None,
        hidden: int = 64,
        steps: int = 300,
        lr: float = 1e-2,
        weight_decay: float = 1e-3,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Self:
        """Train a router.

        Parameters
        ----------
        features : Tensor
            Floats [n, d]: one row an example, such as a mean of hidden states of the base.
        losses_per_pack : Tensor
            Floats [n, k]: what the model lost on the example with each pack.
        names : sequence of str, optional
            Names of the packs, "0", "1", ... by default.
        hidden, steps, lr, weight_decay : optional
            Width, and full-batch AdamW.
        temperature : float
            0 teaches the pack of smallest loss alone; more, all of them by softmax(−loss/temperature).
        seed : int
            Of the first weights. Equal arguments give equal routers.

        Raises
        ------
        DataError
            Shapes do not fit, or a number is not finite.

        Examples
        --------
        >>> features = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> router = SkillRouter.fit(features, torch.tensor([[0.1, 2], [0.2, 2], [2, 0.3], [2, 0.1]]))
        >>> router.select(torch.tensor([[0.2], [2.9]])).tolist()
        [0, 1]
        """
        losses = losses_per_pack
        names = _checked(features, losses, names, hidden, temperature)
        features, losses = features.detach().float(), losses.detach().float()
        mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
        generator = torch.Generator().manual_seed(seed)
        tensors = _fresh(features.shape[1], hidden, losses.shape[1], generator)
        weights = [tensor.requires_grad_() for tensor in tensors.values()]
        tensors |= {"mean": mean, "deviation": deviation}
        if temperature:
            targets = torch.softmax(-losses / temperature, 1)
        else:
            targets = nn.functional.one_hot(losses.argmin(1), losses.shape[1]).float()
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
        with torch.enable_grad():
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(_logits(tensors, features), targets).backward()
                optimizer.step()
        return cls(names, {name: tensor.detach() for name, tensor in tensors.items()})

    def probabilities(self, features: Tensor) -> Tensor:
        """How likely each pack is the best, float32 [n, k], for features [n, d]."""
        wanted = len(self._tensors["mean"])
        if features.dim() != 2 or features.shape[1] != wanted:
            raise DataError(
                "features do not fit the router", got=list(features.shape), wanted=f"[n, {wanted}]"
            )
        with torch.no_grad():
            return torch.softmax(_logits(self._tensors, features.float()), 1)

    def select(self, features: Tensor) -> Tensor:
        """The number of the likeliest pack for each row of features [n, d], int64 [n]."""
        return self.probabilities(features).argmax(1)

    def choose(self, features: Tensor) -> Selection:
        """The one pack for all rows of ``features`` together (one input's, or one batch's)."""
        total = self.probabilities(features).log().sum(0)
        return Selection("route", (self.names[int(total.argmax())],), (1.0,))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the router as a folder that `load` reads."""
        write_checkpoint(path, self._tensors, config={"format": _FILE, "names": list(self.names)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The router of a folder that `save` wrote."""
        with open_checkpoint(Path(path)) as folder:
            said = folder.config or {}
            names = said.get("names")
            tensors = {name: folder.tensor(name).clone() for name in folder.tensors}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if said.get("format") != _FILE or not isinstance(names, list) or not _fits(shapes, len(names)):
            raise CheckpointError("this is not a router's folder", file=path, got=shapes)
        return cls(names, tensors)


def _checked(
    features: Tensor, losses: Tensor, names: Sequence[str] | None, hidden: int, temperature: float
) -> list[str]:
    if features.dim() != 2 or losses.dim() != 2 or len(features) != len(losses) or not len(losses):
        got = f"features {list(features.shape)}, losses {list(losses.shape)}"
        raise DataError("features and losses do not fit", got=got, wanted="[n, d] and [n, k] with n > 0")
    if not bool(features.isfinite().all() and losses.isfinite().all()):
        raise DataError("a feature or loss is not finite", remedy="leave such examples out")
    if hidden < 1 or not temperature >= 0:
        raise DataError(
            "a setting of the router is out of range", got=f"hidden {hidden}, temperature {temperature}"
        )
    names = [str(number) for number in range(losses.shape[1])] if names is None else list(names)
    if len(names) != losses.shape[1] or len(set(names)) != len(names):
        raise DataError(
            "the packs' names do not fit the losses", got=names, wanted=f"{losses.shape[1]} names"
        )
    return names


def _fresh(inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    first = torch.randn(hidden, inputs, generator=generator) / max(inputs, 1) ** 0.5
    second = torch.randn(outputs, hidden, generator=generator) / hidden**0.5
    zeros = {"first.bias": torch.zeros(hidden), "second.bias": torch.zeros(outputs)}
    return {"first.weight": first, "second.weight": second, **zeros}


def _logits(tensors: dict[str, Tensor], features: Tensor) -> Tensor:
    linear = nn.functional.linear
    given = (features - tensors["mean"]) / tensors["deviation"]
    middle = nn.functional.gelu(linear(given, tensors["first.weight"], tensors["first.bias"]))
    return linear(middle, tensors["second.weight"], tensors["second.bias"])


def _fits(shapes: dict[str, tuple[int, ...]], packs: int) -> bool:
    if len(shapes.get("first.weight", ())) != 2:
        return False
    hidden, inputs = shapes["first.weight"]
    wanted = {"first.weight": (hidden, inputs), "first.bias": (hidden,), "second.weight": (packs, hidden)}
    return shapes == wanted | {"second.bias": (packs,), "mean": (inputs,), "deviation": (inputs,)}
