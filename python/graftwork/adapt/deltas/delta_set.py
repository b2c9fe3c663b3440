"""Deltas that are on a model at the same time: put on and taken off in any order, exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from graftwork.adapt.deltas.arrangement import arranged
from graftwork.adapt.deltas.fit import LEAVE_OUT, Fit, Place, fit_delta, place_of
from graftwork.adapt.deltas.member import Member, Replacement, Undo
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.deltas.targets import Target, check_digest, check_dtypes
from graftwork.adapt.deltas.weight_group import Part, WeightGroup
from graftwork.delta.interrupts import interrupts_deferred
from graftwork.delta.tensor_memory import check_apart

if TYPE_CHECKING:
    from torch import nn

_active: WeakValueDictionary[Place, DeltaSet] = WeakValueDictionary()
"""The set that changed the tensor at a place; what nobody can take off any more is forgotten."""


class AppliedDelta:
    """A delta on a model, as `SparseDelta.apply_` returns it. At the end of a ``with`` block it is taken off."""

    def __init__(self, active: DeltaSet, member: Member) -> None:
        self._set = active
        self._member = member

    @property
    def delta(self) -> SparseDelta:
        """The delta."""
        return self._member.delta

    @property
    def scale(self) -> float:
        """The factor of its changes."""
        return self._member.scale

    @property
    def is_applied(self) -> bool:
        """Whether it is still on the model."""
        return self._set._members.get(self.delta) is self._member

    def set_scale_(self, scale: float) -> None:
        """Change the factor, in one pass from the base's own words."""
        self._check_applied()
        other = replace(self._member, scale=scale)
        self._set._become([other if one is self._member else one for one in self._set._members.values()])
        self._member = other

    def revert_(self, *, force: bool = False) -> None:
        """Take the delta off: the weights are what they would be if it had never been applied, to the last bit.

        Raises
        ------
        BaseMismatch
            A weight was written to meanwhile, or moved; ``force`` takes the delta off in the first case.
        ValueError
            It is not on the model any more.
        """
        self._check_applied()
        self._set.remove_(self.delta, force=force)

    def _check_applied(self) -> None:
        if not self.is_applied:
            raise ValueError("the delta is not on the model any more")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_applied:
            self.revert_()


class _Held(NamedTuple):
    """What is known of a delta on this model: its targets, and what it changes in each group."""

    targets: list[tuple[Target, Tensor]]
    parts: dict[WeightGroup, Part]
    places: frozenset[Place]


class DeltaSet:
    """The deltas that are on one model.

    Each changed weight is ``round(base + Σ scale · value)``, written whenever a delta comes or goes; the words of the
    base under all changes are kept, so deltas may go in any order and the last one leaves the base, to the last bit.
    From one delta to another only the weights of the two are touched, in one pass. If a change fails or is interrupted,
    it is taken back.

    Parameters
    ----------
    model : Module or mapping of str to Tensor
        What the deltas change: contiguous tensors, on any device.

    Examples
    --------
    >>> from graftwork.adapt import DeltaSet, SparseDelta
    >>> model = {"w": torch.zeros(4)}
    >>> one = SparseDelta.from_changes({"w": (torch.tensor([0, 1]), torch.ones(2))}, model)
    >>> other = SparseDelta.from_changes({"w": (torch.tensor([1, 2]), torch.ones(2))}, model)
    >>> active = DeltaSet(model)
    >>> active.set_([one]), active.set_({one: 1.0, other: 0.5})
    (None, None)
    >>> model["w"].tolist()
    [1.0, 1.5, 0.5, 0.0]
    >>> active.remove_(one)
    >>> model["w"].tolist()
    [0.0, 0.5, 0.5, 0.0]
    """

    def __init__(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        self._model = model
        self._members: dict[SparseDelta, Member] = {}
        self._forget()

    def _forget(self) -> None:
        """Forget where the model's tensors are."""
        self._groups: dict[tuple[torch.dtype, torch.device], WeightGroup] = {}
        self._numbers: dict[Place, tuple[WeightGroup, int]] = {}
        self._fits: WeakKeyDictionary[SparseDelta, _Held] = WeakKeyDictionary()

    @property
    def active(self) -> dict[SparseDelta, float]:
        """The deltas that are on the model, and their scales."""
        return {delta: member.scale for delta, member in self._members.items()}

    def add_(
        self, delta: SparseDelta, scale: float = 1.0, *, with_full: bool = False, check_base: bool = True
    ) -> AppliedDelta:
        """Put another delta on; arguments and errors are those of `SparseDelta.apply_`."""
        fit = fit_delta(delta, self._model, with_full=True) if with_full else None
        return self._add(delta, fit, scale, check_base)

    def set_(
        self, deltas: Mapping[SparseDelta, float] | Iterable[SparseDelta], *, check_base: bool = True
    ) -> None:
        """Let exactly these deltas be on the model, with their scales or 1; errors are those of `SparseDelta.apply_`.

        Where a delta's tensors are is looked up once, so switching to and fro costs only the switch.
        """
        wanted = dict(deltas) if isinstance(deltas, Mapping) else dict.fromkeys(deltas, 1.0)
        self._become([self._member(delta, None, scale, check_base) for delta, scale in wanted.items()])

    def remove_(self, delta: SparseDelta, *, force: bool = False) -> None:
        """Take a delta off. With ``force`` even if a weight under a delta was written to meanwhile.

        Raises
        ------
        BaseMismatch
            A weight was written to or moved meanwhile.
        ValueError
            The delta is not on the model.
        """
        if delta not in self._members:
            raise ValueError("the delta is not on the model")
        self._become([member for member in self._members.values() if member.delta is not delta], force=force)

    def clear_(self, *, force: bool = False) -> None:
        """Take all deltas off; as `remove_`."""
        self._become([], force=force)

    def _add(self, delta: SparseDelta, fit: Fit | None, scale: float, check_base: bool) -> AppliedDelta:
        if delta in self._members:
            raise ValueError(
                "the delta is on the model already; change its scale with set_scale_() on its handle"
            )
        member = self._member(delta, fit, scale, check_base)
        try:
            self._become([*self._members.values(), member])
            return AppliedDelta(self, member)
        except BaseException:
            if delta in self._members:  # interrupted when all was done, and nobody would have the handle
                self.remove_(delta)
            raise

    def _member(self, delta: SparseDelta, fit: Fit | None, scale: float, check_base: bool) -> Member:
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}")
        if self._members:
            self._check_untouched()
        elif any(group.has_moved() for group in self._groups.values()):
            self._forget()
        if fit is not None or delta not in self._fits:
            fit = fit or fit_delta(delta, self._model, with_full=False)
            self._fits[delta] = _Held(fit.targets, self._parts(delta, fit), fit.places)
        targets, parts, places = self._fits[delta]
        if check_base:
            self._check_base(delta, targets)
        full = None
        if fit is not None and fit.full:
            tensors = [tensor for _, tensor in fit.full]
            others = [delta.full[name] for name, _ in fit.full]
            full = Replacement(tensors, others, frozenset(map(place_of, tensors)))
        return Member(delta, float(scale), parts, places, full)

    def _parts(self, delta: SparseDelta, fit: Fit) -> dict[WeightGroup, Part]:
        """The delta cut into what it changes in each group."""
        orders: dict[WeightGroup, dict[int, int]] = {}
        for target, tensor in fit.targets:
            place = place_of(tensor)
            if place not in self._numbers:
                group = self._groups.setdefault((tensor.dtype, tensor.device), WeightGroup())
                self._numbers[place] = group, group.add(target.held, tensor)
            group, number = self._numbers[place]
            orders.setdefault(group, {})[number] = target.number
        pairs = [pair for group in self._groups.values() for pair in group.named_tensors]
        check_apart(pairs, "model", remedy=LEAVE_OUT)
        parts = {}
        for group, numbers in orders.items():
            order = [numbers.get(number) for number in range(len(group.tensors))]
            support, values = arranged(delta.support, delta.values, order, group.numels)
            device = group.tensors[0].device
            parts[group] = Part(support.to(device), values.to(device))
        return parts

    def _check_base(self, delta: SparseDelta, targets: list[tuple[Target, Tensor]]) -> None:
        dtypes = {target.held: tensor.dtype for target, tensor in targets}
        check_dtypes(delta, [target for target, _ in targets], dtypes, "model")
        for target, tensor in targets:
            tuned = delta.tensors[target.number]
            if tuned.digest is not None:
                group, number = self._numbers[place_of(tensor)]
                check_digest(tuned, group.digest_of(number), target.held, "model")

    def _become(self, members: list[Member], *, force: bool = False) -> None:
        """Let exactly these be on the model."""
        self._check_untouched(force=force)
        self._check_places(members)
        before = list(self._members.values())
        changing = {
            group: group.plan(_parts_in(group, members))
            for group in self._groups.values()
            if force or _parts_in(group, members) != _parts_in(group, before)
        }
        leaving = [one.full for one in before if one.full and one.full not in [two.full for two in members]]
        coming = [one.full for one in members if one.full and one.full not in [two.full for two in before]]
        for full in coming:
            full.save()
        with interrupts_deferred(), Undo() as undo:
            for group, plan in changing.items():
                undo.add(partial(_return, group, _parts_in(group, before)))
                group.become(plan)
            for full in leaving:
                undo.add(full.put_on)
                full.take_off()
            for full in coming:
                undo.add(full.take_off)
                full.put_on()
            self._members = {member.delta: member for member in members}
            self._register(before)

    def _check_untouched(self, *, force: bool = False) -> None:
        for group in self._groups.values():
            group.check_untouched(force=force)

    def _check_places(self, members: list[Member]) -> None:
        """Refuse tensors that another set changed, and tensors in full where another delta is at work."""
        for member in members:
            full = member.full.places if member.full else frozenset()
            for place in member.places | full:
                if _active.get(place, self) is not self:
                    raise ValueError(
                        "another DeltaSet is at work on these tensors; put all deltas of a model into one set"
                    )
            for other in members:
                others = other.places | (other.full.places if other.full else frozenset())
                if other is not member and full & others:
                    raise ValueError(
                        "a tensor in full would take the place of one that another delta on the model changes; "
                        "apply one of them with with_full=False"
                    )

    def _register(self, before: list[Member]) -> None:
        """Let `apply_delta` know which tensors this set changed."""
        for member in before:
            for place in member.places | (member.full.places if member.full else frozenset()):
                if _active.get(place) is self:
                    del _active[place]
        for member in self._members.values():
            for place in member.places | (member.full.places if member.full else frozenset()):
                _active[place] = self


def _parts_in(group: WeightGroup, members: list[Member]) -> list[tuple[Part, float]]:
    """What these deltas change in a group."""
    return [(member.parts[group], member.scale) for member in members if group in member.parts]


def _return(group: WeightGroup, parts: list[tuple[Part, float]]) -> None:
    group.become(group.plan(parts))


def apply_delta(
    delta: SparseDelta,
    model: nn.Module | Mapping[str, Tensor],
    scale: float,
    *,
    with_full: bool,
    check_base: bool,
) -> AppliedDelta:
    """See `SparseDelta.apply_`."""
    fit = fit_delta(delta, model, with_full=with_full)
    places = fit.places | {place_of(tensor) for _, tensor in fit.full}
    sets = {found for place in places if (found := _active.get(place)) is not None}
    if len(sets) > 1:
        raise ValueError(
            "deltas are on parts of this model that were applied apart; revert them, and apply all to the whole model"
        )
    active = sets.pop() if sets else DeltaSet(model)
    return active._add(delta, fit, scale, check_base)
