"""Whether a slice of a recipe has the models that its method takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graftwork.errors import RecipeError

if TYPE_CHECKING:
    from graftwork.compose.recipe import ComposeRecipe, Slice

__all__ = ["check_part"]


def check_part(recipe: ComposeRecipe, part: Slice, where: str) -> None:
    """Refuse a part whose models are too few or too many for the method, or whose base is missing."""
    method, base = recipe.method, recipe.base_of(part)
    listed = any(recipe.is_base(source.model, part) for source in part.sources)
    if method.base == "required" and base is None:
        raise RecipeError(
            f"the method {method.name} needs a base",
            got="no base_model",
            remedy="add a line 'base_model: PATH', the model that the others were fine-tuned from",
        )
    if recipe.sliced and method.base != "none" and base is not None and not listed:
        raise RecipeError(
            "the base of a slice is not among its sources",
            got=f"{base} is not in {where}",
            remedy="add it there with its layer_range",
        )
    if method.base == "none" and base is not None and not listed and not recipe.sliced:
        raise RecipeError(
            f"the method {method.name} has no base, and base_model is not one of the models",
            got=f"base_model: {base}",
            remedy="leave base_model out; or list it under models too, if it shall be merged",
        )
    _check_number(recipe, part, where)


def _check_number(recipe: ComposeRecipe, part: Slice, where: str) -> None:
    method, donors = recipe.method, recipe.donors(part)
    low, high = method.models
    if low <= len(donors) <= high:
        return
    wanted = (
        f"{low:g}" if low == high else (f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}")
    )
    beside = " beside the base" if method.base != "none" else ""
    raise RecipeError(
        f"the method {method.name} takes another number of models",
        got=f"{len(donors)}{beside} in {where}",
        wanted=wanted,
    )
