"""Which tensors the output of a merge has, and what each is called in the models that it is merged from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftwork.compose.donors import Donor
from graftwork.compose.fits import check_names
from graftwork.compose.recipe import ComposeRecipe, Slice
from graftwork.compose.slices import ModelLayout, find_stacks, plan_slices
from graftwork.compose.ties import find_output_ties, untie_config

__all__ = ["Layout", "Target", "lay_out"]

Patch = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the output.

    ``sources`` are what it is called in each of the slice's sources, ``base`` what in the base; ``depth`` is where it
    stands among the slice's layers, 0 the first and 1 the last.
    """

    name: str
    part: Slice
    depth: float
    sources: tuple[str, ...]
    base: str | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The output's tensors, and what was decided on the way.

    ``extra`` are, by model, tensors that have no place in the output; ``tied`` names that the output leaves out, because
    another tensor stands for them; ``patches`` make the output's configuration of a model's.
    """

    targets: Sequence[Target]
    extra: Mapping[str, list[str]]
    tied: Mapping[str, str]
    notes: tuple[str, ...]
    patches: tuple[Patch, ...] = ()


def lay_out(recipe: ComposeRecipe, donors: Mapping[str, Donor]) -> Layout:
    """Match the models' tensors by name, or by slice and layer."""
    return _sliced(recipe, donors) if recipe.sliced else _whole(recipe, donors)


def _whole(recipe: ComposeRecipe, donors: Mapping[str, Donor]) -> Layout:
    (part,) = recipe.slices
    listed = [donors[recipe.place(source.model)] for source in part.sources]
    base = None if recipe.base_model is None else donors[recipe.place(recipe.base_model)]
    names, extra = check_names(base, listed)
    ties = find_output_ties(names, listed if base is None else [base, *listed])
    deep = depths(names)
    targets = [
        Target(name, part, deep[name], (name,) * len(listed), None if base is None else name)
        for name in names
        if name not in ties.tied
    ]
    return Layout(targets, extra, ties.tied, ties.notes, (untie_config,) if ties.untied else ())


def depths(names: Sequence[str]) -> dict[str, float]:
    """How deep each tensor stands in its stack of layers; 0 outside of layers, 1 in a stack of one."""
    stacks = find_stacks(names)
    found = dict.fromkeys(names, 0.0)
    for name in names:
        for stack in stacks:
            place = stack.split(name)
            if place is not None:
                found[name] = place[0] / (stack.layers - 1) if stack.layers > 1 else 1.0
                break
    return found


def _sliced(recipe: ComposeRecipe, donors: Mapping[str, Donor]) -> Layout:
    layouts = {}
    for part in recipe.slices:
        for source in part.sources:
            donor = donors[recipe.place(source.model)]
            names = [name for name in donor.metas if name not in donor.copies]
            layouts[source.model] = ModelLayout(names, donor.config, donor.tied)
    plan = plan_slices(recipe.slices, layouts)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for row in plan.rows.values():
        if row.layer is not None:
            first[row.slice] = min(first.get(row.slice, row.layer), row.layer)
            last[row.slice] = max(last.get(row.slice, row.layer), row.layer)
    targets = []
    for name in sorted(plan.rows):
        row = plan.rows[name]
        part = recipe.slices[row.slice]
        length = last.get(row.slice, 0) - first.get(row.slice, 0)
        depth = 0.0
        if row.layer is not None:
            depth = (row.layer - first[row.slice]) / length if length else 1.0
        held = tuple(name for _, name in row.sources)
        base = next(
            (held[at] for at, source in enumerate(part.sources) if recipe.is_base(source.model, part)), None
        )
        targets.append(Target(name, part, depth, held, base))
    tied = {} if not plan.ties else dict(layouts[recipe.slices[0].sources[0].model].tied)
    return Layout(targets, {}, tied, plan.notes, (plan.patch_config,))
