"""Where a merged checkpoint comes from, as a file in its folder: the recipe, the models and the output by digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from graftwork import __version__
from graftwork.compose.donors import Donor
from graftwork.compose.plan import MergePlan
from graftwork.compose.recipe import ComposeRecipe, Slice, Source
from graftwork.compose.settings import Settings

__all__ = ["FILE", "lineage", "recipe_content"]

FILE = "graftwork.json"
_VERSION = [1, 0]


def lineage(
    plan: MergePlan,
    donors: Mapping[str, str],
    tensors: Mapping[str, str],
    digest: str,
) -> bytes:
    """The file: ``donors`` are the models' digests by place, ``tensors`` those of the output's tensors.

    Models stand in the order of their digests, whatever the recipe's.
    """
    recipe = plan.recipe
    base = None if recipe.base_model is None else recipe.place(recipe.base_model)
    rows = sorted(
        (
            {"name": plan.donors[place].name, "digest": found}
            for place, found in donors.items()
            if place != base
        ),
        key=lambda row: (row["digest"], row["name"]),
    )
    content = {
        "format": "graftwork-lineage",
        "version": _VERSION,
        "created_by": f"graftwork {__version__}",
        "job": "compose",
        "method": {"name": recipe.method.name, "title": recipe.method.title, "link": recipe.method.link},
        "base": None if base is None else {"name": plan.donors[base].name, "digest": donors[base]},
        "models": rows,
        "recipe": recipe_content(recipe, donors),
        "output": {
            "digest": digest,
            "tied": dict(plan.layout.tied),
            "tensors": dict(sorted(tensors.items())),
        },
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def recipe_content(recipe: ComposeRecipe, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as JSON-able values, with ``identity[place]`` for each model and donors in the order of these."""

    def model(name: str | None) -> Any:
        return None if name is None else identity[recipe.place(name)]

    def source(row: Source) -> dict[str, Any]:
        return {
            "model": model(row.model), "layers": row.layers, "parameters": _settings(row.parameters)
        }  # fmt: skip

    def part(row: Slice) -> dict[str, Any]:
        sources = sorted(map(source, row.sources), key=lambda one: json.dumps(one, sort_keys=True))
        return {
            "base_model": model(row.base_model),
            "parameters": _settings(row.parameters),
            "sources": sources,
        }

    tokens = recipe.tokenizer
    return {
        "merge_method": recipe.method.name,
        "base_model": model(recipe.base_model),
        "parameters": _settings(recipe.parameters),
        "slices" if recipe.sliced else "models": [part(row) for row in recipe.slices]
        if recipe.sliced
        else part(recipe.slices[0])["sources"],
        "dtype": recipe.dtype,
        "tokenizer": None
        if tokens is None
        else {
            "source": tokens.source if tokens.source in ("union", "base") else model(tokens.source),
            "pad_to_multiple_of": tokens.pad_to_multiple_of,
            "tokens": {
                token: [row.kind, model(row.model), row.token, row.token_id, row.force]
                for token, row in sorted(tokens.tokens.items())
            },
        },
        "nan": recipe.nan,
        "preserve": recipe.preserve,
        "seed": recipe.seed,
    }


def _settings(settings: Settings) -> dict[str, Any]:
    return {name: [choice.to_json() for choice in setting] for name, setting in sorted(settings.items())}


def identity_of(donors: Mapping[str, Donor]) -> dict[str, Any]:
    """What each model is without reading it."""
    return {place: list(donor.signature) for place, donor in donors.items()}
