"""What a merge will do, tensor by tensor: checked against the headers of all models before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graftwork.checkpoint.writer import Planned
from graftwork.compose.donors import Donor
from graftwork.compose.fits import check_dtypes, check_shapes
from graftwork.compose.recipe import ComposeRecipe
from graftwork.compose.row_maps import RowMap, RowPlan, plan_rows
from graftwork.compose.settings import Settings, resolve
from graftwork.compose.targets import Layout, Target, lay_out
from graftwork.compose.task import Scalar
from graftwork.errors import RecipeError

__all__ = ["Input", "MergePlan", "PlannedTensor", "make_plan"]


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that goes into a merge: whose, by which name it is held there, and how it is fitted to the vocabulary."""

    donor: Donor
    name: str
    rows: RowMap | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, once it is fitted."""
        return tuple(self.donor.metas[self.name].shape) if self.rows is None else self.rows.shape

    @property
    def nbytes(self) -> int:
        """Bytes to be read."""
        return self.donor.metas[self.name].nbytes


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the output.

    ``own`` are the parameters of each of ``donors``, ``shared`` those of the merge. A tensor that is ``copied`` must be
    the same in all of them (counters, masks).
    """

    name: str
    form: Planned
    base: Input | None
    donors: tuple[Input, ...]
    own: tuple[Mapping[str, Scalar | None], ...] = ()
    shared: Mapping[str, Scalar | None] = field(default_factory=dict)
    copied: bool = False

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.form.shape)

    @property
    def inputs(self) -> list[Input]:
        """The donors, then the base."""
        return [*self.donors, *([] if self.base is None else [self.base])]


@dataclass(frozen=True)
class MergePlan:
    """All tensors of the output, by name, in their order; and what was decided on the way."""

    recipe: ComposeRecipe
    donors: Mapping[str, Donor]
    tensors: Mapping[str, PlannedTensor]
    layout: Layout
    vocabulary: RowPlan
    notes: tuple[str, ...] = ()

    @property
    def keeper(self) -> Donor:
        """The model whose configuration and other files the output takes: the base.

        Without one the first slice's first model, or of all models the one that comes first by these files' content.
        """
        return _keeper(self.recipe, self.donors)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the output's files; in it stand ties that the keeper's files name."""
        model, tied = self.keeper.model, self.layout.tied
        named = {key for header in model.headers.values() for key in header.metadata}
        return {"format": "pt"} | {other: first for other, first in tied.items() if other in named}

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that are read."""
        return sum(part.nbytes for row in self.tensors.values() for part in row.inputs)

    @property
    def bytes_written(self) -> int:
        """Bytes of weights that are written."""
        return sum(row.form.nbytes for row in self.tensors.values())


def make_plan(recipe: ComposeRecipe, donors: Mapping[str, Donor]) -> MergePlan:
    """Match the models' tensors, and find every parameter.

    Raises
    ------
    CheckpointError
        A model lacks a tensor, or has it in another shape or in a dtype that cannot be merged.
    RecipeError
        A parameter is missing for some tensor, or parameters do not go together.
    """
    layout = lay_out(recipe, donors)
    keeper = _keeper(recipe, donors)
    order = sorted(donors, key=lambda place: (donors[place] is not keeper, donors[place].card, place))
    base = order[0]
    vocabulary = plan_rows(recipe, {place: donors[place] for place in order}, base)
    tensors = {target.name: _tensor(recipe, donors, target, vocabulary.maps) for target in layout.targets}
    names = [name for target in layout.targets for name in (target.name, *target.sources)]
    notes = (*layout.notes, *vocabulary.notes, *_idle_filters(recipe, names))
    return MergePlan(recipe, donors, tensors, layout, vocabulary, notes)


def _keeper(recipe: ComposeRecipe, donors: Mapping[str, Donor]) -> Donor:
    if recipe.base_model is not None:
        return donors[recipe.place(recipe.base_model)]
    if recipe.sliced:
        return donors[recipe.place(recipe.slices[0].sources[0].model)]
    listed = {recipe.place(source.model) for part in recipe.slices for source in part.sources}
    return min((donors[place] for place in sorted(listed)), key=lambda donor: donor.card)


def _tensor(
    recipe: ComposeRecipe,
    donors: Mapping[str, Donor],
    target: Target,
    maps: Mapping[tuple[str, str], RowMap],
) -> PlannedTensor:
    def held(model: str, name: str) -> Input:
        place = recipe.place(model)
        return Input(donors[place], donors[place].held(name) or name, maps.get((place, name)))

    part, base_model = target.part, recipe.base_of(target.part)
    base = None
    if base_model is not None and target.base is not None and recipe.method.base != "none":
        base = held(base_model, target.base)
    sources = [
        (source, name) for source, name in zip(part.sources, target.sources, strict=True)
        if recipe.method.base == "none" or not recipe.is_base(source.model, part)
    ]  # fmt: skip
    inputs = tuple(held(source.model, name) for source, name in sources)
    everything = [*inputs, *([] if base is None else [base])]
    shape = check_shapes(target.name, everything)
    own_code = None if base is None else base.donor.metas[base.name].dtype
    code, copied = check_dtypes(target.name, everything, own_code)
    form = Planned(code if copied or recipe.dtype is None else recipe.dtype, shape)
    if copied or not inputs:
        return PlannedTensor(target.name, form, base, inputs, copied=copied)
    own = tuple(
        _values(
            recipe,
            True,
            (source.parameters, part.parameters, recipe.parameters),
            name,
            target.depth,
            source.model,
        )
        for source, name in sources
    )
    shared = _values(
        recipe, False, (part.parameters, recipe.parameters), target.name, target.depth, "the merge"
    )
    _check_together(recipe, target.name, own, shared)
    return PlannedTensor(target.name, form, base, inputs, own, shared)


def _values(
    recipe: ComposeRecipe, each: bool, places: Sequence[Settings], name: str, depth: float, what: str
) -> dict[str, Scalar | None]:
    return {
        row.name: resolve(row, places, name, depth, what)
        for row in recipe.method.parameters
        if row.each is each
    }


def _check_together(
    recipe: ComposeRecipe,
    name: str,
    own: Sequence[Mapping[str, Scalar | None]],
    shared: Mapping[str, Scalar | None],
) -> None:
    fault = recipe.method.check(own, shared) if recipe.method.check is not None else None
    if fault is not None:
        raise RecipeError(
            f"the parameters of the method {recipe.method.name} do not go together",
            file=recipe.file,
            tensor=name,
            got=fault.got,
            wanted=fault.wanted,
            remedy=fault.remedy,
        )


def _idle_filters(recipe: ComposeRecipe, names: Sequence[str]) -> list[str]:
    """A note for every filter that is a part of no tensor's name."""
    tables = [recipe.parameters]
    for part in recipe.slices:
        tables += [part.parameters, *(source.parameters for source in part.sources)]
    filters = {
        choice.filter: parameter
        for table in tables
        for parameter, setting in table.items()
        for choice in setting
        if choice.filter is not None
    }
    return [
        f"the filter {text!r} of {parameter!r} is a part of no tensor's name"
        for text, parameter in sorted(filters.items())
        if not any(text in name for name in names)
    ]
