"""Compose: merge models by recipe.

``merge`` does it; ``METHODS`` are the methods with their parameters; ``to_lora`` and ``to_store`` write a merge in other
forms. ``docs/papers/merging.md`` says what each method does.
"""

from __future__ import annotations

from graftwork.compose.exports import LoraExport, to_dense, to_lora, to_store
from graftwork.compose.merge import check_export, merge
from graftwork.compose.recipe import ComposeRecipe, read_recipe
from graftwork.compose.registry import METHODS, Method, Parameter
from graftwork.compose.result import ComposeReport, DonorReport, Estimate
from graftwork.compose.tokenizer_files import read_vocabulary

__all__ = [
    "METHODS",
    "ComposeRecipe",
    "ComposeReport",
    "DonorReport",
    "Estimate",
    "LoraExport",
    "Method",
    "Parameter",
    "check_export",
    "merge",
    "read_recipe",
    "read_vocabulary",
    "to_dense",
    "to_lora",
    "to_store",
]
