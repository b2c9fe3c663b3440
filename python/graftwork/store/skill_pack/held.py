"""One tensor of a model under packs: what the base's words are, which packs are on it, and what it is with them."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from graftwork.checkpoint.dtypes import code_of
from graftwork.delta.pipeline import default_threads
from graftwork.delta.source import describe
from graftwork.delta.weights import StateSource
from graftwork.errors import BaseMismatch
from graftwork.ops import _native
from graftwork.ops.quantized_delta import dequant_add, lowrank_dequant_add
from graftwork.store.skill_pack.low_rank import LowRank
from graftwork.store.skill_pack.pack import SkillPack
from graftwork.store.skill_pack.pieces import Dropped, Piece, Quantized

__all__ = ["Held", "Load", "held_at"]

_FAST = (torch.float16, torch.bfloat16, torch.float32)
"""The dtypes that the operations add to in one pass."""

Place = tuple[str, int, int, torch.dtype, torch.Size]
_held: WeakValueDictionary[Place, Held] = WeakValueDictionary()
"""What is on the tensor at a place, for as long as a handle keeps it."""


class Load(NamedTuple):
    """A pack's change of a tensor, and its factor."""

    pack: SkillPack
    name: str
    scale: float


class Held:
    """A tensor, seen as a matrix, and the packs on it.

    With no pack on it nothing is kept. The tensor is kept alive, so that nothing else comes to lie at its place.
    """

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self.tensor = tensor.detach()
        self.loads: list[Load] = []
        self._original: Tensor | None = None
        self._version = -1
        self._digest: str | None = None

    @property
    def dtype_code(self) -> str | None:
        """The tensor's dtype as files name it."""
        return code_of(self.tensor.dtype)

    @property
    def saved_bytes(self) -> int:
        """Memory for the base's words."""
        return 0 if self._original is None else self._original.nbytes

    @property
    def digest(self) -> str:
        """Digest of the base's words, which are under the packs that are on it."""
        if self._original is None:  # anyone may have written to it since it was asked for last
            self._digest = _digest_of(self.tensor)
        elif self._digest is None:
            self._digest = _digest_of(self._original)
        return self._digest

    def is_at(self, tensor: Tensor | None) -> bool:
        """Whether ``tensor`` is this memory still."""
        return tensor is not None and _place_of(tensor) == _place_of(self.tensor)

    def check_untouched(self) -> None:
        """Refuse a tensor that someone else wrote to while packs were on it."""
        if self.loads and _version_of(self.tensor) != self._version:
            raise BaseMismatch(
                "a weight was written to while packs were on it",
                file="model",
                tensor=self.name,
                remedy="take the packs off before training or loading; unmount(force=True) drops what was written",
            )

    def become(self, loads: list[Load]) -> None:
        """Let exactly these be on the tensor, in one pass from the base's words."""
        if self._original is None and loads:
            self._original = self.tensor.clone()
        with torch.inference_mode() if self.tensor.is_inference() else torch.no_grad():
            if self._original is not None:
                _fill(self.tensor, self._original, loads)
        self.loads = list(loads)
        if not loads:
            self._original = None
            self._digest = None
        self._version = _version_of(self.tensor)


def held_at(name: str, tensor: Tensor) -> Held:
    """What is held of a tensor."""
    place = _place_of(tensor)
    found = _held.get(place)
    if found is None:
        found = _held[place] = Held(name, tensor)
    return found


def _place_of(tensor: Tensor) -> Place:
    return (*_native.memory_range(tensor), tensor.dtype, tensor.shape)


def _version_of(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _digest_of(words: Tensor) -> str:
    return describe(StateSource({"words": words}), threads=default_threads()).tensors["words"].digest


def _fill(tensor: Tensor, base: Tensor, loads: list[Load]) -> None:
    """tensor = round(base + Σ scale · change), in the order of the packs' digests, so that theirs does not matter."""
    ordered = sorted(loads, key=lambda load: (load.pack.digest, load.name, load.scale))
    parts = [(load.pack.piece(load.name), load.scale) for load in ordered]
    parts = [(piece, scale) for piece, scale in parts if scale and not isinstance(piece, Dropped)]
    if not parts:
        tensor.copy_(base)
        return
    outlines = {piece.outline for piece, _ in parts}
    outline = parts[0][0].outline
    fast = len(outlines) == 1 and tensor.dtype in _FAST
    scales = [scale for _, scale in parts]
    packed = [piece.pack.to(tensor.device) for piece, _ in parts if isinstance(piece, Quantized)]
    low = [piece.packs[0].to(tensor.device) for piece, _ in parts if isinstance(piece, LowRank)]
    if fast and len(packed) == len(parts):
        dequant_add(base.view(outline.shape), packed, scales, out=tensor.view(outline.shape))
    elif fast and outline.stack == 1 and len(low) == len(parts):
        lowrank_dequant_add(base.view(outline.shape), low, scales, out=tensor.view(outline.shape))
    else:
        total = _sum(base, parts) if tensor.dtype == torch.float64 else _sum_onto(base, parts)
        tensor.copy_(total)


def _sum_onto(base: Tensor, parts: list[tuple[Piece, float]]) -> Tensor:
    """base + Σ scale · change in float32."""
    total = base.to(torch.float32, copy=True)
    for piece, scale in parts:
        piece.add_(total.view(piece.outline.shape), scale)
    return total


def _sum(base: Tensor, parts: list[tuple[Piece, float]]) -> Tensor:
    """base + Σ scale · change, the sum of the changes in float32 and the rest in float64."""
    changes = _sum_onto(torch.zeros_like(base, dtype=torch.float32), parts)
    return base + changes
