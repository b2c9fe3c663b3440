"""Plans of skill packs as YAML: what ``graftwork pack --lossy`` reads."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from graftwork.errors import RecipeError
from graftwork.recipe import load_recipe
from graftwork.store.skill_pack.codecs import SVD, Codec, Drop, Prune, Quantize, Raw, Sparse
from graftwork.store.skill_pack.plan import CompressionPlan

__all__ = ["LossyRecipe", "load_plan"]

_CODECS: dict[str, type[Codec]] = {
    "drop": Drop,
    "raw": Raw,
    "prune": Prune,
    "sparse": Sparse,
    "quantize": Quantize,
    "svd": SVD,
}


@dataclass(frozen=True, slots=True)
class RuleRecipe:
    """One rule: for which tensors (``match`` or ``role``), which codec, and the codec's own settings."""

    codec: Literal["drop", "raw", "prune", "sparse", "quantize", "svd"]
    match: str | None = None
    role: str | None = None
    keep: float | None = None
    value: Literal["fp16", "int8", "sign"] | None = None
    mode: Literal["dare", "2:4", "topk"] | None = None
    seed: int | None = None
    dtype: Literal["fp16", "bf16", "fp32"] | None = None
    bits: int | list[list[int | None]] | None = None
    scheme: Literal["sign", "sym", "midrise", "asym", "nf4"] | None = None
    block: int | None = None
    scale_dtype: Literal["fp16", "bf16", "fp32"] | None = None
    rank: int | None = None
    energy: float | None = None
    bpw: float | None = None

    def __post_init__(self) -> None:
        if (self.match is None) == (self.role is None):
            raise RecipeError(
                f"a rule with the codec {self.codec!r} must say which tensors it is for",
                got=f"match {self.match!r}, role {self.role!r}",
                wanted="either match (a pattern of names) or role",
            )
        known = {entry.name for entry in fields(_CODECS[self.codec])}
        if other := sorted(self._given().keys() - known):
            raise RecipeError(
                f"the codec {self.codec!r} has no setting {other[0]!r}",
                wanted=f"one of {', '.join(sorted(known))}" if known else "no settings",
                remedy="remove it",
            )
        self.to_codec()

    def _given(self) -> dict[str, Any]:
        own = ("codec", "match", "role")
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in own}
        return {name: value for name, value in values.items() if value is not None}

    def key(self) -> str:
        """The rule's key in a plan."""
        return f"@{self.role}" if self.match is None else self.match

    def to_codec(self) -> Codec:
        """The codec, checked."""
        given = self._given()
        if self.codec == "svd" and "bits" in given:
            groups = given["bits"] if isinstance(given["bits"], list) else [[None, given["bits"]]]
            if any(len(group) != 2 for group in groups):
                raise RecipeError(
                    "a group of triples is not [count, bits]", got=groups, wanted="[[2, 8], [null, 2]]"
                )
            given["bits"] = tuple(tuple(group) for group in groups)
        if self.codec == "quantize" and not isinstance(given.get("bits"), int):
            raise RecipeError(
                "the codec 'quantize' needs bits", got=given.get("bits"), wanted="1, 2, 3, 4 or 8"
            )
        if self.codec == "prune" and "keep" not in given:
            raise RecipeError("the codec 'prune' needs keep", wanted="the share of entries that are kept")
        return _CODECS[self.codec](**given)


@dataclass(frozen=True, slots=True)
class LossyRecipe:
    """A whole plan: ``plan: auto`` with ``bpw``, or ``rules`` with an optional ``target_bpw``."""

    plan: Literal["auto", "module_aware"] | None = None
    bpw: float | None = None
    target_bpw: float | None = None
    rules: list[RuleRecipe] = field(default_factory=list)
    quantizer: Literal["rtn", "mse"] = "mse"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.plan is None) == (not self.rules):
            raise RecipeError(
                "a plan is either one of the ready ones or rules",
                got=f"plan {self.plan!r} and {len(self.rules)} rules",
                wanted="plan: auto, plan: module_aware, or rules",
            )
        if self.rules and self.bpw is not None:
            raise RecipeError("bpw goes with a ready plan", got=self.bpw, wanted="target_bpw, beside rules")
        if not self.rules and self.target_bpw is not None:
            raise RecipeError("target_bpw goes with rules", got=self.target_bpw, wanted="bpw, beside plan")
        keys = [rule.key() for rule in self.rules]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise RecipeError("two rules are for the same tensors", got=twice, remedy="remove one of them")
        if self.rules:
            self.to_plan()

    def to_plan(self) -> CompressionPlan | Literal["auto"]:
        """The plan, checked."""
        if self.plan == "auto":
            return "auto"
        if self.plan == "module_aware":
            return CompressionPlan.module_aware(1.0 if self.bpw is None else self.bpw)
        rules = {rule.key(): rule.to_codec() for rule in self.rules}
        return CompressionPlan(rules, target_bpw=self.target_bpw)

    def arguments(self) -> dict[str, Any]:
        """What `SkillPack.build` takes besides the two models."""
        auto = {"bpw": self.bpw} if self.plan == "auto" else {}
        return {"plan": self.to_plan(), "quantizer": self.quantizer, "seed": self.seed, **auto}


def load_plan(path: str | os.PathLike[str]) -> LossyRecipe:
    """Read and check a plan.

    Raises
    ------
    RecipeError
        A key is unknown, missing or of the wrong kind, or a setting is none of its codec's.
    """
    return load_recipe(Path(path), LossyRecipe)
