"""The tuned weights of an optimizer's parameters side by side, so that a step is one operation and not one for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from graftwork.ops.sparse_update import Support, gather_values, take_entries

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDE = 1 << 31  # elements from which indices are int64

#: Whether an arena holds the gradient of a parameter: no; as a copy, beside the dense one; as the only one.
NOT_HELD, SNAPSHOT, KEPT = 0, 1, 2


def index_dtype(numel: int) -> torch.dtype:
    """The dtype of indices into a tensor: int32 where it suffices."""
    return torch.int32 if numel < _WIDE else torch.int64


def written(base: Tensor, values: Tensor) -> Tensor:
    """The words of tuned weights: base + value, rounded to the base's dtype."""
    return (base.float() + values).to(base.dtype)


def differing(words: Tensor, others: Tensor) -> Tensor:
    """Where the bits of two arrays of one float dtype differ."""
    signed = torch.int16 if words.itemsize == 2 else torch.int32
    return words.view(signed) != others.view(signed)


class Arena:
    """Parameters of one group, dtype and device, and everything that an optimizer keeps for their tuned weights.

    Each array holds the parts of all parameters, one after the other; ``states``, which are those of the optimizer,
    hold views of them under the same names. The arrays called `entry_names` and the indices have one entry for each
    tuned weight; `other_names` have lengths of their own.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        entry_names: Sequence[str],
        other_names: Sequence[str] = (),
    ) -> None:
        self.params = list(params)
        self.states = list(states)
        self.arrays: dict[str, Tensor] = {}
        self._starts: dict[str, list[int]] = {}
        self._entry_names = tuple(entry_names)
        for name in (*entry_names, *other_names, "indices"):
            self._hold(name, torch.cat([state[name].to(params[0].device) for state in states]))
        self.support = self._support()
        #: float32 [entries]: gradients at the tuned weights, where `held` says so.
        self.gradients: Tensor | None = None
        self.held = [NOT_HELD] * len(self.params)

    def _hold(self, name: str, array: Tensor) -> None:
        """Let `array` be the one called `name`, cut as the states' parts are now."""
        sizes = [len(state[name]) for state in self.states]
        self.arrays[name] = array
        self._starts[name] = [0, *accumulate(sizes)]
        for state, part in zip(self.states, array.split(sizes), strict=True):
            state[name] = part

    def _support(self) -> Support:
        offsets = torch.tensor(self._starts["indices"])
        return Support.trusted(self.arrays["indices"], offsets, [param.numel() for param in self.params])

    def part(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """An array's part for the parameters `first` to `last` (all by default)."""
        starts = self._starts[name]
        return self.arrays[name][starts[first] : starts[len(self.params) if last is None else last]]

    def entries(self, first: int, last: int) -> slice:
        """The tuned weights of the parameters `first` to `last`."""
        starts = self._starts["indices"]
        return slice(starts[first], starts[last])

    def cut(self, first: int, last: int) -> Support:
        """The support of the parameters `first` to `last`."""
        if (first, last) == (0, len(self.params)):
            return self.support
        offsets = self.support.offsets[first : last + 1]
        return Support.trusted(
            self.part("indices", first, last), offsets - offsets[0], self.support.numels[first:last]
        )

    def spans(self, marks: Sequence[object]) -> Iterator[tuple[int, int]]:
        """Runs of parameters with one mark; those marked None are left out."""
        first = 0
        for last in range(1, len(marks) + 1):
            if last == len(marks) or marks[last] != marks[first]:
                if marks[first] is not None:
                    yield first, last
                first = last

    def weights(self) -> list[Tensor]:
        """The parameters, without autograd."""
        return [param.detach() for param in self.params]

    def moved(self) -> Tensor:
        """How far each tuned weight is from its base, float32: its value, or the difference where it was replaced."""
        words = gather_values(self.support, self.weights())
        base, values = self.arrays["base"], self.arrays["values"]
        return torch.where(differing(words, written(base, values)), words.float() - base.float(), values)

    def reselect(self, support: Support, source: Tensor, fresh: Mapping[str, Tensor], base: Tensor) -> None:
        """Tune other weights: `support` and `source` as of `reselect`, `base` their words before any update.

        Entries that came in have the values of `fresh` where it has the array's name, else zero.
        """
        for name in self._entry_names:
            taken = base if name == "base" else take_entries(source, self.arrays[name], fresh.get(name, 0))
            self._hold(name, taken)
        self._hold("indices", support.indices)
        self.support = self._support()
        self.release()

    def buffer(self) -> Tensor:
        """Where the gradients of the tuned weights go."""
        if self.gradients is None:
            self.gradients = torch.empty_like(self.arrays["values"])
        return self.gradients

    def release(self, what: int = KEPT) -> None:
        """Forget the gradients that are held, or copies alone."""
        self.held = [held if held > what else NOT_HELD for held in self.held]


@dataclass(frozen=True)
class Span:
    """A run of an arena's parameters and their gradients: what one operation updates."""

    arena: Arena
    first: int
    last: int
    grads: Tensor | list[Tensor]
    scale: float

    @property
    def support(self) -> Support:
        """Their tuned weights."""
        return self.arena.cut(self.first, self.last)

    @property
    def states(self) -> list[dict[str, Any]]:
        """What the optimizer keeps for them."""
        return self.arena.states[self.first : self.last]

    def part(self, name: str) -> Tensor:
        """Their part of an array of the arena."""
        return self.arena.part(name, self.first, self.last)

    def settings(self, group: Mapping[str, Any], *options: str) -> dict[str, Any]:
        """Keyword arguments that every step takes, and the group's `options`."""
        return {
            "lr": float(group["lr"]),
            "grad_scale": self.scale,
            "weights": self.arena.weights()[self.first : self.last],
            "base": self.part("base"),
            **{option: group[option] for option in options},
        }


def pack(
    group: Mapping[str, Any],
    state: Mapping[Tensor, dict[str, Any]],
    entry_names: Sequence[str],
    other_names: Sequence[str],
) -> list[Arena]:
    """The arenas of a parameter group, of those of its parameters that are tuned in part."""
    bundles: dict[object, list[Tensor]] = {}
    for param in group["params"]:
        if "indices" in state.get(param, {}):
            bundles.setdefault((param.dtype, param.device, index_dtype(param.numel())), []).append(param)
    return [
        Arena(params, [state[param] for param in params], entry_names, other_names)
        for params in bundles.values()
    ]
