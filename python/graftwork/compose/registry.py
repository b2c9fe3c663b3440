"""The merge methods: one row each, with where it was published, its parameters, their ranges and defaults.

A recipe is checked against these rows before any file is opened. Names and defaults are those of mergekit, so that its
recipes can be read; ``docs/papers/merging.md`` says where results differ on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from graftwork.compose import constraints, methods
from graftwork.compose.task import Outcome, Scalar, TensorTask
from graftwork.errors import RecipeError
from graftwork.recipe import did_you_mean

__all__ = ["METHODS", "Method", "Parameter", "find_method"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method.

    Attributes
    ----------
    name : str
        As recipes call it.
    kind : {"number", "count", "switch", "choice"}
        A number, a whole number, true or false, or one of `choices`.
    says : str
        What it does, in one sentence.
    default : optional
        None: a recipe must give it, unless `optional`.
    each : bool
        Whether every model has its own; else it is the merge's.
    low, high : float
        The range; an end that is `open_low` or `open_high` is not part of it.
    """

    name: str
    kind: Literal["number", "count", "switch", "choice"]
    says: str
    default: Scalar | None = None
    each: bool = False
    optional: bool = False
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    choices: tuple[Scalar, ...] = ()

    @property
    def range(self) -> str:
        """The values that it may have, in words."""
        if self.kind == "switch":
            return "true or false"
        if self.kind == "choice":
            return "one of " + ", ".join(_spelled(choice) for choice in self.choices)
        word = "a whole number" if self.kind == "count" else "a number"
        if self.low == -math.inf and self.high == math.inf:
            return f"{word}, finite"
        if self.high == math.inf:
            return f"{word}, {'above' if self.open_low else 'at least'} {self.low:g}"
        return f"{word} in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"

    def check(self, value: object, where: str) -> Scalar:
        """The value, if it is one that the parameter may have; else RecipeError."""
        good: Scalar | None = None
        if self.kind == "choice":
            good = next((c for c in self.choices if type(c) is type(value) and c == value), None)
        elif self.kind == "switch":
            good = value if isinstance(value, bool) else None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            whole = self.kind == "number" or isinstance(value, int)
            above = value > self.low if self.open_low else value >= self.low
            inside = math.isfinite(value) and above and value <= self.high
            good = (float(value) if self.kind == "number" else int(value)) if whole and inside else None
        if good is None:
            raise RecipeError(f"wrong value for {where!r}", got=f"{value!r:.100}", wanted=self.range)
        return good


def _spelled(value: Scalar) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


Base = Literal["required", "optional", "none"]


@dataclass(frozen=True, slots=True)
class Method:
    """One merge method.

    Attributes
    ----------
    name, title, link : str
        As recipes call it, as people do, and where it was published.
    base : {"required", "optional", "none"}
        What `base_model` is to it: the origin of the differences, that or nothing, or one of the models.
    models : tuple of int
        How many models beside the base it takes at least and at most.
    parameters : tuple of Parameter
    merge : callable
        Fills the output of a `TensorTask`.
    check : callable, optional
        Finds parameters that do not go together.
    keyed : bool
        Whether it draws random numbers.
    """

    name: str
    title: str
    link: str
    base: Base
    models: tuple[int, float]
    parameters: tuple[Parameter, ...]
    merge: Callable[[TensorTask], Outcome]
    check: constraints.Check | None = None
    keyed: bool = False

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of this name."""
        return next((row for row in self.parameters if row.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what a recipe may say of it."""
        rows = {
            row.name: {
                "says": row.says,
                "range": row.range,
                "default": row.default,
                "required": row.default is None and not row.optional,
                "per_model": row.each,
            }
            for row in self.parameters
        }
        return {
            "name": self.name,
            "title": self.title,
            "link": self.link,
            "base": self.base,
            "parameters": rows,
        }


_WEIGHT = Parameter("weight", "number", "The model's share.", each=True)
_DENSITY = Parameter(
    "density", "number", "The share of its differences that is kept.", 1.0, each=True, low=0.0, high=1.0
)
_GAMMA = Parameter(
    "gamma",
    "number",
    "The share of its largest differences that is left out.",
    0.01,
    each=True,
    low=0.0,
    high=1.0,
)
_EPSILON = Parameter(
    "epsilon",
    "number",
    "Half the width of the range of probabilities around the density.",
    0.15,
    each=True,
    low=0.0,
    high=0.5,
)
_LAMBDA = Parameter("lambda", "number", "What the merged difference is multiplied by.", 1.0)
_INT8 = Parameter("int8_mask", "switch", "Read and without effect: masks are never stored here.", False)


def _normalize(default: bool) -> Parameter:
    return Parameter("normalize", "switch", "Divide by the sum of the weights that took part.", default)


def _rescale(default: bool, *, random: bool) -> Parameter:
    says = "Make up for what was dropped: l1 keeps Σ|d|"
    if random:
        says += ", probability divides by the probability to keep; true is probability."
        return Parameter("rescale", "choice", says, default, choices=(True, False, "probability", "l1"))
    return Parameter("rescale", "choice", says + "; true is l1.", default, choices=(True, False, "l1"))


def _arithmetic(
    name: str,
    title: str,
    arxiv: str,
    merge: Callable[[TensorTask], Outcome],
    normalize: bool,
    rescale: Parameter,
    *more: Parameter,
    check: constraints.Check | None = None,
    keyed: bool = False,
) -> Method:
    """A row of the family base + λ · Σ of what is kept of the differences."""
    rows = (_WEIGHT, _DENSITY, *more, _normalize(normalize), rescale, _LAMBDA, _INT8)
    link = f"https://arxiv.org/abs/{arxiv}"
    return Method(name, title, link, "required", (0, math.inf), rows, merge, check, keyed)


_BY_SIZE, _BY_CHANCE = _rescale(False, random=False), _rescale(True, random=True)
_SUM, _DELLA = constraints.weights_to_divide_by, constraints.density_and_epsilon
_SLERP = "https://doi.org/10.1145/325334.325242"

_ROWS = (
    Method(
        "linear", "Linear (model soups)", "https://arxiv.org/abs/2203.05482", "none", (1, math.inf),
        (_WEIGHT, _normalize(True)), methods.linear, _SUM,
    ),
    Method(
        "task_arithmetic", "Task arithmetic", "https://arxiv.org/abs/2212.04089", "required", (0, math.inf),
        (_WEIGHT, _normalize(False), _LAMBDA, _INT8), methods.task_arithmetic, _SUM,
    ),
    _arithmetic("ties", "TIES", "2306.01708", methods.ties, True, _BY_SIZE),
    _arithmetic(
        "dare_linear", "DARE, linear", "2311.03099", methods.dare_linear, False, _BY_CHANCE, check=_SUM, keyed=True
    ),
    _arithmetic("dare_ties", "DARE, TIES' signs", "2311.03099", methods.dare_ties, False, _BY_CHANCE, keyed=True),
    _arithmetic("della", "DELLA", "2406.11617", methods.della, True, _BY_CHANCE, _EPSILON, check=_DELLA, keyed=True),
    _arithmetic(
        "della_linear", "DELLA, linear", "2406.11617", methods.della_linear, False, _BY_CHANCE, _EPSILON,
        check=constraints.della_linear, keyed=True,
    ),
    _arithmetic("breadcrumbs", "Model breadcrumbs", "2312.06795", methods.breadcrumbs, False, _BY_SIZE, _GAMMA, check=_SUM),
    _arithmetic(
        "breadcrumbs_ties", "Model breadcrumbs, TIES' signs", "2312.06795", methods.breadcrumbs_ties, False, _BY_SIZE,
        _GAMMA,
    ),
    Method(
        "sce", "SCE (select, calculate, erase)", "https://arxiv.org/abs/2408.07990", "required", (0, math.inf),
        (Parameter("select_topk", "number", "The share of the weights, those that vary most over the models, that is kept.",
                   1.0, low=0.0, high=1.0), _INT8), methods.sce,
    ),
    Method(
        "slerp", "Spherical interpolation", _SLERP, "required", (1, 1),
        (Parameter("t", "number", "How far from the base to the other model.", low=0.0, high=1.0),), methods.slerp,
    ),
    Method(
        "nuslerp", "Spherical interpolation by weights, of models or differences", _SLERP, "optional", (2, 2),
        (_WEIGHT, Parameter("nuslerp_flatten", "switch", "Take the tensor as one vector, not its rows.", True),
         Parameter("nuslerp_row_wise", "switch", "Without flatten: take the columns.", False)),
        methods.nuslerp, constraints.two_weights,
    ),
    Method(
        "multislerp", "Barycentric spherical interpolation", "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        "optional", (1, math.inf),
        (_WEIGHT, Parameter("normalize_weights", "switch", "Divide the weights by their sum.", True),
         Parameter("eps", "number", "Lengths below it count as 0.", 1e-8, low=0.0, open_low=True, high=1.0)),
        methods.multislerp, constraints.weights_to_normalize,
    ),
    Method(
        "karcher", "Karcher mean on the sphere", "https://doi.org/10.1002/cpa.3160300502", "none", (1, math.inf),
        (Parameter("max_iter", "count", "Steps at most.", 10, low=0, high=1000),
         Parameter("tol", "number", "Angles below it count as 0.", 1e-5, low=0.0, open_low=True, high=1.0)),
        methods.karcher,
    ),
    Method(
        "model_stock", "Model stock", "https://arxiv.org/abs/2403.19522", "required", (2, math.inf),
        (Parameter("filter_wise", "switch", "An angle for every row, not one for the tensor.", False),),
        methods.model_stock,
    ),
    Method(
        "nearswap", "NearSwap", "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001", "required", (1, 1),
        (Parameter("t", "number", "The other model's weight counts in full up to this difference, and less beyond.",
                   low=0.0),), methods.nearswap,
    ),
    Method(
        "passthrough", "Passthrough", "https://arxiv.org/abs/2312.15166", "none", (1, 1),
        (Parameter("scale", "number", "What the model's weights are multiplied by.", each=True, optional=True),),
        methods.passthrough,
    ),
)  # fmt: skip

#: All methods by the names that recipes use.
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def find_method(name: str) -> Method:
    """The method called ``name``; RecipeError naming the nearest one if there is none."""
    if name not in METHODS:
        raise RecipeError(
            "unknown merge method",
            got=f"merge_method: {name!r:.100}",
            wanted=f"one of {', '.join(METHODS)}",
            remedy=did_you_mean(name, METHODS) or "graftwork compose --methods lists them",
        )
    return METHODS[name]
