"""Skill packs on a model: put on and taken off in any order, and the base is there again to the last bit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from graftwork.delta.interrupts import interrupts_deferred
from graftwork.delta.tensor_memory import check_apart
from graftwork.delta.weights import StateWeights, state_weights
from graftwork.errors import BaseMismatch, CheckpointError
from graftwork.store.skill_pack.held import Held, Load, held_at
from graftwork.store.skill_pack.manifest import TensorRow
from graftwork.store.skill_pack.pack import SkillPack

__all__ = ["Mounted", "mount"]

Model = nn.Module | Mapping[str, Tensor]
Scaled = SkillPack | tuple[SkillPack, float]


class Mounted:
    """Packs that are on a model, as `mount` returns them. At the end of a ``with`` block they are taken off."""

    def __init__(
        self, model: Model, packs: Sequence[tuple[SkillPack, float]], targets: list[_Target]
    ) -> None:
        self._model = model
        self._packs = list(packs)
        self._targets = targets
        self._loads: dict[Held, list[Load]] = {}
        self._is_mounted = False

    @property
    def packs(self) -> list[tuple[SkillPack, float]]:
        """The packs and their scales; none after `unmount`."""
        return list(self._packs)

    @property
    def is_mounted(self) -> bool:
        """Whether they are on the model."""
        return self._is_mounted

    @property
    def saved_bytes(self) -> int:
        """Memory in which the base's own words are kept."""
        return sum(held.saved_bytes for held in self._loads)

    def set_scales(self, scales: Iterable[float]) -> None:
        """Change the scales of all packs, from the base's own words.

        Raises
        ------
        ValueError
            There are more or fewer scales than packs, or one is not finite; or the packs are not on the model.
        BaseMismatch
            A weight was written to or moved meanwhile.
        """
        self._check_mounted()
        numbers = [_checked_scale(scale) for scale in scales]
        if len(numbers) != len(self._packs):
            raise ValueError(
                f"there must be {len(self._packs)} scales, one for each pack, got {len(numbers)}"
            )
        self._become([(pack, scale) for (pack, _), scale in zip(self._packs, numbers, strict=True)])

    def unmount(self, *, force: bool = False) -> None:
        """Take the packs off: every weight is what it would be if they had never been there, to the last bit.

        Raises
        ------
        BaseMismatch
            A weight was written to or moved meanwhile; ``force`` gives the memory that the packs are on its old words
            all the same.
        ValueError
            They are not on the model.
        """
        self._check_mounted()
        self._become([], force=force)
        self._is_mounted = False

    def _check_mounted(self) -> None:
        if not self._is_mounted:
            raise ValueError("the packs are not on the model")

    def _put_on(self) -> None:
        self._become(self._packs)
        self._is_mounted = True

    def _become(self, packs: Sequence[tuple[SkillPack, float]], *, force: bool = False) -> None:
        """Let these be on the tensors, in place of those that this handle has put on; all of it or nothing."""
        wanted: dict[Held, list[Load]] = {}
        for target in self._targets if packs else ():
            pack, scale = packs[target.pack]
            wanted.setdefault(target.held, []).append(Load(pack, target.row.name, scale * target.row.scale))
        touched = list(dict.fromkeys([*self._loads, *wanted]))
        if not force:
            self._check_places()
            for held in touched:
                held.check_untouched()
        before = {held: list(held.loads) for held in touched}
        with interrupts_deferred():
            try:
                for held in touched:
                    others = list(held.loads)
                    for load in self._loads.get(held, ()):
                        others.remove(load)
                    held.become(others + wanted.get(held, []))
            except BaseException:
                for held, loads in before.items():
                    held.become(loads)
                raise
            self._loads, self._packs = wanted, list(packs)

    def _check_places(self) -> None:
        """Refuse a model whose weights are elsewhere now, as after ``to()``: their old memory is not theirs any more."""
        if not self._loads:
            return
        tensors = _tensors_of(self._model)
        for target in self._targets:
            if not target.held.is_at(tensors.get(target.first)):
                raise BaseMismatch(
                    "a weight was moved or replaced while packs were on it",
                    file="model",
                    tensor=target.first,
                    remedy="take the packs off before moving or casting the model",
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_mounted:
            self.unmount()


def _tensors_of(model: Model) -> Mapping[str, Tensor]:
    return model.state_dict(keep_vars=True) if isinstance(model, nn.Module) else model


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor of the pack of this number, and the model's memory that it is for, called ``first`` there."""

    pack: int
    row: TensorRow
    first: str
    held: Held


def mount(model: Model, packs: Scaled | Sequence[Scaled], *, check_base: bool = True) -> Mounted:
    """Put skill packs on a model: every changed weight becomes round(base + Σ scale · change).

    Parameters
    ----------
    model : Module or mapping of str to Tensor
        Holds the base's weights: contiguous floating-point tensors, on any device. Written in place.
    packs : SkillPack, (SkillPack, float), or a sequence of these
        With their scales, 1 by default. The result does not depend on their order, to the last bit, nor on whether they
        are mounted by one call or by several: sums are float32, in an order that the packs' content decides, and there is
        one rounding.
    check_base : bool
        Compare the digest of each tensor with that of the base that the pack was made from.

    Returns
    -------
    Mounted
        A handle: ``with mount(...):`` takes the packs off at its end, ``handle.unmount()`` at any time, in any order.

    Raises
    ------
    BaseMismatch
        A tensor is missing, of another shape or dtype, or is not the base's; nothing has been written then.
    CheckpointError
        A tensor is not contiguous, or overlaps another.
    ValueError
        A scale is not finite, or a pack is given twice.

    Notes
    -----
    The words of the base under all packs are kept, in memory of their size. If mounting fails or is interrupted, it is
    taken back.

    Examples
    --------
    >>> import torch
    >>> from graftwork.store import SkillPack, mount
    >>> from graftwork.store.skill_pack import CompressionPlan, Raw
    >>> base = {"w": torch.zeros(3)}
    >>> pack = SkillPack.build({"w": torch.tensor([1.0, 2.0, 3.0])}, base, CompressionPlan({"": Raw()}))
    >>> handle = mount(base, (pack, 0.5))
    >>> base["w"].tolist()
    [0.5, 1.0, 1.5]
    >>> handle.unmount()
    >>> base["w"].tolist()
    [0.0, 0.0, 0.0]
    """
    listed = [_scaled(pack) for pack in _sequence(packs)]
    if len({id(pack) for pack, _ in listed}) < len(listed):
        raise ValueError("a pack is given twice; add its scales up")
    names = {name for pack, _ in listed for row in pack.tensors.values() for name in (row.name, *row.tied)}
    weights = state_weights(model, "model", only=names)
    targets: list[_Target] = []
    seen: dict[str, Held] = {}
    for number, (pack, _) in enumerate(listed):
        targets += _find_targets(number, pack, weights, seen, check_base)
    named = [(name, held.tensor) for name, held in seen.items()]
    check_apart(named, "model", remedy="make one of them a tensor of its own")
    mounted = Mounted(model, listed, targets)
    mounted._put_on()
    return mounted


def _sequence(packs: Scaled | Sequence[Scaled]) -> Sequence[Scaled]:
    if isinstance(packs, SkillPack):
        return [packs]
    if isinstance(packs, tuple) and len(packs) == 2 and isinstance(packs[1], int | float):
        return [packs]
    return packs


def _scaled(pack: Scaled) -> tuple[SkillPack, float]:
    one, scale = pack if isinstance(pack, tuple) else (pack, 1.0)
    if not isinstance(one, SkillPack):
        raise TypeError(f"packs must be SkillPacks, or pairs of one and its scale, got {type(one).__name__}")
    return one, _checked_scale(scale)


def _checked_scale(scale: float) -> float:
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"a scale must be a finite number, got {scale!r}")
    return float(scale)


def _find_targets(
    number: int, pack: SkillPack, weights: StateWeights, seen: dict[str, Held], check_base: bool
) -> list[_Target]:
    """The model's tensors that a pack is for: several if names that are tied in it are apart in the model."""
    targets: list[_Target] = []
    taken: dict[Held, TensorRow] = {}
    for row in pack.tensors.values():
        firsts = {first: None for name in (row.name, *row.tied) if (first := weights.first_name(name))}
        if not firsts:
            raise BaseMismatch(
                "the model lacks a tensor of the pack",
                file=weights.what,
                tensor=row.name,
                remedy="mount the pack on the base that it was made from",
            )
        for first in firsts:
            held = seen.get(first)
            if held is None:
                held = seen[first] = _checked(first, weights)
            check_row(row, held, first, check_base)
            if held in taken:
                raise BaseMismatch(
                    "tensors that are tied in the model are apart in the pack",
                    file=weights.what,
                    tensor=first,
                    got=f"changes of {taken[held].name} and of {row.name}",
                    remedy="untie them in the model first",
                )
            taken[held] = row
            targets.append(_Target(number, row, first, held))
    return targets


def _checked(first: str, weights: StateWeights) -> Held:
    tensor = weights.source.tensors[first]
    if not tensor.is_contiguous():
        raise CheckpointError(
            "a tensor of the model is not contiguous",
            file=weights.what,
            tensor=first,
            got=f"strides {tensor.stride()}",
            remedy="make it contiguous: parameter.data = parameter.data.contiguous()",
        )
    return held_at(first, tensor)


def check_row(row: TensorRow, held: Held, first: str, check_base: bool) -> None:
    found = held.dtype_code, tuple(held.tensor.shape)
    if found != (row.dtype, row.shape):
        raise BaseMismatch(
            "a tensor of the model is not as the pack says",
            file="model",
            tensor=first,
            got=f"{found[0]} {list(found[1])}",
            wanted=f"{row.dtype} {list(row.shape)}",
            remedy="mount the pack on the base that it was made from, in its dtype",
        )
    if check_base and held.digest != row.base:
        raise BaseMismatch(
            "a tensor of the model is not the base's",
            file="model",
            tensor=first,
            got=held.digest,
            wanted=row.base,
            remedy="mount the pack on the base that it was made from, or pass check_base=False",
        )
