"""What a fine-tune changed of its base, tensor by tensor."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from graftwork.delta.pipeline import Progress, default_threads
from graftwork.delta.source import describe
from graftwork.delta.weights import Stateful, Weights, open_weights
from graftwork.errors import CheckpointError
from graftwork.store.skill_pack.pieces import Outline

__all__ = ["Changes", "open_changes"]

_FLOATS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


class Changes:
    """The names that changed, and the float32 difference of each as one matrix (see `Outline`).

    ``digests`` are of the base's tensors; ``base_digest`` of all of them. Tied tensors are there once.
    """

    def __init__(
        self,
        tuned: Weights,
        base: Weights,
        only: Collection[str] | None,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self._tuned, self._base = tuned, base
        _check_names(tuned, base, only)
        self.left_out: dict[str, str] = {}
        self.unchanged: list[str] = []
        self.outlines: dict[str, Outline] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.energies: dict[str, float] = {}
        description = describe(base.source, threads=threads, stage="read base", progress=progress)
        self.base_digest = description.digest
        self.digests = {name: tensor.digest for name, tensor in description.tensors.items()}
        for name in base.source.metas:
            if only is None or not set(only).isdisjoint(base.tied_to(name)):
                self._look(name)
        if self.left_out:
            warnings.warn(
                f"{len(self.left_out)} tensors changed that cannot be added to in parts, so they are not in the pack: "
                f"{', '.join(list(self.left_out)[:4])}",
                stacklevel=4,
            )

    def tied(self, name: str) -> tuple[str, ...]:
        """The other names of a tensor."""
        return tuple(other for other in self._base.tied_to(name) if other != name)

    def base(self, name: str) -> Tensor:
        """The base's tensor."""
        return self._base.tensor(name)

    def delta(self, name: str) -> Tensor:
        """The difference, float32, contiguous."""
        outline, found = self.outlines[name], self._difference(name)
        return found.reshape(outline.shape).contiguous()

    def _tuned_tensor(self, name: str) -> Tensor:
        first = self._tuned.first_name(name)
        if first is None:  # another name of the same tensor: `_check_names` has seen that there is one
            names = (self._tuned.first_name(other) for other in self._base.tied_to(name))
            first = next(other for other in names if other is not None)
        return self._tuned.tensor(first)

    def _difference(self, name: str) -> Tensor:
        tuned, base = self._tuned_tensor(name).detach(), self._base.tensor(name).detach()
        if torch.float64 in (tuned.dtype, base.dtype):
            return (tuned.double() - base.to(tuned.device).double()).float()
        return tuned.float() - base.to(tuned.device).float()

    def _look(self, name: str) -> None:
        tuned, base = self._tuned_tensor(name), self._base.tensor(name)
        if tuned.shape != base.shape:
            raise CheckpointError(
                "a tensor has another shape in the fine-tune",
                file=self._tuned.what,
                tensor=name,
                got=list(tuned.shape),
                wanted=f"{list(base.shape)}, as in {self._base.what}",
                remedy="give the base the fine-tune's vocabulary first, or leave the tensor out with only=",
            )
        self._check_ties(name, tuned)
        if tuned.dtype not in _FLOATS or base.dtype not in _FLOATS:
            if tuned.dtype != base.dtype or not torch.equal(tuned, base.to(tuned.device)):
                self.left_out[name] = f"a change of {base.dtype} cannot be scaled".replace("torch.", "")
            else:
                self.unchanged.append(name)
            return
        found = self._difference(name)
        energy = float(found.double().square().sum()) if found.numel() < 1 << 22 else _energy(found)
        if not bool(torch.isfinite(found).all()):
            self._refuse_infinite(name, found, tuned, base)
        if not bool(found.any()):
            self.unchanged.append(name)
            return
        code = _FLOATS[base.dtype]
        self.outlines[name] = Outline.of(name, tuple(base.shape))
        self.shapes[name], self.dtypes[name], self.energies[name] = tuple(base.shape), code, energy

    def _check_ties(self, name: str, tuned: Tensor) -> None:
        """Names that are one tensor in the base must be equal in the fine-tune."""
        for other in self._base.tied_to(name):
            first = self._tuned.first_name(other)
            if first is not None:
                theirs = self._tuned.tensor(first)
                if theirs is not tuned and not torch.equal(theirs, tuned):
                    raise CheckpointError(
                        "tensors that are tied in the base differ in the fine-tune",
                        file=self._tuned.what,
                        tensor=name,
                        got=f"{other} differs from it",
                        remedy="untie them in the base first, by a copy",
                    )

    def _refuse_infinite(self, name: str, found: Tensor, tuned: Tensor, base: Tensor) -> None:
        index = int((~torch.isfinite(found)).view(-1).nonzero()[0])
        values = f"{tuned.reshape(-1)[index].item()} and {base.reshape(-1)[index].item()}"
        raise CheckpointError(
            "a change is not finite",
            file=self._tuned.what,
            tensor=name,
            got=f"{values} in fine-tune and base, at flat index {index}",
            wanted="finite weights in both",
            remedy="look for where the training diverged, or leave the tensor out with only=",
        )


def _energy(delta: Tensor) -> float:
    """Σ Δ² without a float64 copy of all of it."""
    return sum(float(part.double().square().sum()) for part in delta.reshape(-1).split(1 << 22))


@contextmanager
def open_changes(
    tuned: Stateful,
    base: Stateful,
    only: Collection[str] | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Changes]:
    """The changes from ``base`` to ``tuned``.

    Raises
    ------
    CheckpointError
        Names or shapes differ, ties contradict, or a change is not finite.
    """
    with open_weights(tuned, "tuned") as mine, open_weights(base, "base") as theirs:
        yield Changes(mine, theirs, only, threads or default_threads(), progress)


def _check_names(tuned: Weights, base: Weights, only: Collection[str] | None) -> None:
    """Every distinct tensor of one side is there on the other, under one of its names."""
    wanted = None if only is None else set(only)
    lacking = _lacking(tuned, base, wanted), _lacking(base, tuned, wanted)
    if wanted is not None and (unknown := wanted.difference(base.names)):
        raise CheckpointError(
            "the base has no such tensors",
            file=base.what,
            got=", ".join(sorted(unknown)[:5]),
            remedy="check only=",
        )
    if any(lacking):
        rows: Mapping[str, list[str]] = {tuned.what: lacking[0], base.what: lacking[1]}
        got = "; ".join(f"{what} lacks {', '.join(names[:5])}" for what, names in rows.items() if names)
        raise CheckpointError(
            "base and fine-tune have other tensors",
            file=tuned.what,
            tensor=[*lacking[0], *lacking[1]][0],
            got=f"{got} ({len(lacking[0])} and {len(lacking[1])} in all)",
            wanted="the same names in both",
            remedy="name those to look at with only=, or give the base that the fine-tune was made from",
        )


def _lacking(here: Weights, there: Weights, wanted: set[str] | None) -> list[str]:
    """Tensors of ``there`` of which ``here`` has no name."""
    found = []
    for name in there.source.metas:
        names = there.tied_to(name)
        if wanted is not None and wanted.isdisjoint(names):
            continue
        if all(here.first_name(other) is None for other in names):
            found.append(name)
    return found
