"""Which codec each tensor of a skill pack gets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from graftwork.errors import RecipeError
from graftwork.store.skill_pack.codecs import SVD, Codec, Drop, Prune, Quantize, Raw, Sparse
from graftwork.store.skill_pack.roles import ROLES, role_of

__all__ = ["CompressionPlan"]

_NAMES = {Drop: "drop", Raw: "raw", Prune: "prune", Sparse: "sparse", Quantize: "quantize", SVD: "svd"}


class CompressionPlan:
    """Rules in order: the first that is for a tensor decides.

    Parameters
    ----------
    rules : mapping of str to codec
        A key is a regular expression that is searched in the tensor's name, or ``@role`` with a role of
        `roles.role_of`: embedding, head, attention, mlp, experts, conv, norm, bias, matrix, vector. A rule with `SVD` is
        for tensors of two or more dimensions; others go on to the next rule.
    target_bpw : float, optional
        Bits a weight that the factors of any `SVD` may take at most: a fixed rank is cheap for a large matrix and dear for
        a small one.

    Raises
    ------
    RecipeError
        A key is no regular expression, or names a role that is none.

    Examples
    --------
    >>> plan = CompressionPlan({"@embedding": Prune(keep=0.1), "@norm|bias": Raw("fp32"), "": Quantize(4)})
    >>> plan.codec("model.norm.weight", (64,))
    Raw(dtype='fp32')
    """

    def __init__(self, rules: Mapping[str, Codec], *, target_bpw: float | None = None) -> None:
        if target_bpw is not None and not (math.isfinite(target_bpw) and target_bpw > 0):
            raise RecipeError("target_bpw is no budget", got=target_bpw, wanted="a positive number of bits")
        self.rules = dict(rules)
        self.target_bpw = target_bpw
        self._tests = [(_Test(key), codec) for key, codec in self.rules.items()]
        for key, codec in self.rules.items():
            if type(codec) not in _NAMES:
                raise RecipeError(
                    f"the rule {key!r} has no codec",
                    got=f"{codec!r:.100}",
                    wanted="Drop, Raw, Prune, Sparse, Quantize or SVD",
                )

    def codec(self, name: str, shape: Sequence[int]) -> Codec:
        """The codec of a tensor.

        Raises
        ------
        RecipeError
            No rule is for it.
        """
        for test, codec in self._tests:
            if test(name, shape) and not (isinstance(codec, SVD) and len(shape) < 2):
                return codec
        raise RecipeError(
            "no rule of the plan is for a tensor that changed",
            tensor=name,
            got=f"role {role_of(name, shape)}, shape {list(shape)}",
            wanted="a rule for each tensor",
            remedy="add a rule, or end with one for all: '' (any name), with the codec 'drop' to leave tensors out",
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, as a pack's file records it."""
        rules = [{"match": key, **describe(codec)} for key, codec in self.rules.items()]
        return {"rules": rules, "target_bpw": self.target_bpw}

    def __repr__(self) -> str:
        rest = "" if self.target_bpw is None else f", target_bpw={self.target_bpw:g}"
        return f"CompressionPlan({self.rules!r}{rest})"

    @classmethod
    def module_aware(cls, bpw: float = 1.0) -> CompressionPlan:
        """The plan of the paper in ``bpw`` bits a weight.

        Embeddings and heads are pruned, attention and MLP matrices become mixed-precision singular triples, and norms,
        biases and other vectors are raw.
        """
        mixed = SVD(bpw=bpw, bits=((2, 8), (32, 3), (None, 2)))
        return cls(
            {
                "@embedding|head": Prune(keep=max(0.001, min(1.0, bpw / 16)), value="int8"),
                "@attention|mlp|experts|matrix|conv": mixed,
                "@norm|bias|vector": Raw(),
            },
            target_bpw=bpw,
        )


def describe(codec: Codec) -> dict[str, Any]:
    """A codec as plain data."""
    settings = asdict(codec)
    if isinstance(codec, SVD):
        settings["bits"] = [list(group) for group in codec.bits]
    return {"codec": _NAMES[type(codec)], **settings}


class _Test:
    """Whether a rule's key is for a tensor."""

    def __init__(self, key: str) -> None:
        self._roles: frozenset[str] = frozenset()
        self._pattern = None
        if key.startswith("@"):
            self._roles = frozenset(_roles(key))
            return
        try:
            self._pattern = re.compile(key)
        except re.error as error:
            raise RecipeError(
                "a rule's pattern is no regular expression", got=f"{key!r}: {error}", wanted="a pattern"
            ) from error

    def __call__(self, name: str, shape: Sequence[int]) -> bool:
        if self._pattern is None:
            return role_of(name, shape) in self._roles
        return self._pattern.search(name) is not None


def _roles(key: str) -> Iterator[str]:
    for role in key[1:].split("|"):
        if role not in ROLES:
            raise RecipeError("there is no such role", got=role, wanted=", ".join(ROLES))
        yield role
