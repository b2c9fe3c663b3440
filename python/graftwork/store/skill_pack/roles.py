"""What part of a network a tensor is, by its name and shape: what module-aware plans are written in."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["ROLES", "matrix_shape", "role_of", "stack_of"]

_NORM = re.compile(r"norm|(^|[._])ln(_|\d|\.|$)", re.IGNORECASE)
_BIAS = re.compile(r"(^|[._])bias(_|$)|bias$")
_EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
_BY_NAME = (
    ("embedding", re.compile(r"embed(?!_out)|(^|\.)(wte|wpe)\.", re.IGNORECASE)),
    ("head", re.compile(r"(^|[._])(lm_head|embed_out|head|classifier|score|output_projection)[._]")),
    ("attention", re.compile(r"attn|attention|(^|[._])[qkvo]_proj")),
    (
        "mlp",
        re.compile(r"mlp|ffn|feed_?forward|intermediate|output\.dense|(^|[._])(fc|w)\d|(gate|up|down)_proj"),
    ),
)
ROLES = ("embedding", "head", "attention", "mlp", "experts", "conv", "norm", "bias", "matrix", "vector")


def role_of(name: str, shape: Sequence[int]) -> str:
    """The role of a tensor, one of `ROLES`.

    Shape goes before name: fewer than two dimensions are ``norm``, ``bias`` or ``vector``; three are ``experts`` if the
    name says so and otherwise ``conv``, as are four and more. Of two, the name decides, and ``matrix`` is what it does not
    tell.

    Examples
    --------
    >>> role_of("model.layers.0.self_attn.q_proj.weight", (64, 64)), role_of("model.norm.weight", (64,))
    ('attention', 'norm')
    >>> role_of("features.0.weight", (8, 3, 5, 5)), role_of("layers.1.experts.gate", (4, 8, 8))
    ('conv', 'experts')
    """
    if len(shape) < 2:
        if _NORM.search(name):
            return "norm"
        return "bias" if _BIAS.search(name) else "vector"
    if len(shape) > 2:
        return "experts" if len(shape) == 3 and _EXPERTS.search(name) else "conv"
    return next((role for role, pattern in _BY_NAME if pattern.search(name)), "matrix")


def stack_of(name: str, shape: Sequence[int]) -> int:
    """How many matrices a tensor is: the first dimension of experts, else 1."""
    return shape[0] if role_of(name, shape) == "experts" else 1


def matrix_shape(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of each matrix of a tensor.

    Experts [E, O, I] are E matrices [O, I]; a convolution [O, I, kh, kw] is one [O, I·kh·kw]; a vector is one row.
    """
    if len(shape) < 2:
        return 1, shape[0] if shape else 1
    if role_of(name, shape) == "experts":
        return shape[1], shape[2]
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns
