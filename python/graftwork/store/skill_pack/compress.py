"""One tensor's change in the form that a codec asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from graftwork.ops.quantized_delta import GptqFactor, PackedDelta, PackFormat, delta_quantize, gptq_quantize
from graftwork.store.skill_pack.codecs import SVD, Codec, Drop, Prune, Quantize, Raw, Sparse, default_scheme
from graftwork.store.skill_pack.low_rank import LowRank, decompose
from graftwork.store.skill_pack.manifest import ErrorOf
from graftwork.store.skill_pack.packed import DTYPES
from graftwork.store.skill_pack.pieces import Dropped, Outline, Piece, Quantized, RawChange
from graftwork.store.skill_pack.scattered import scatter

__all__ = ["Inputs", "Settings", "compress", "error_of", "format_of"]

_MSE_REFITS = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all tensors of a pack."""

    quantizer: str = "mse"
    target_bpw: float | None = None
    seed: int = 0

    def refits(self, scheme: str) -> int | None:
        """Refits of the scale search; None where there is nothing to search for."""
        if scheme == "sign":
            return None
        return 0 if self.quantizer == "rtn" else _MSE_REFITS


class Inputs(NamedTuple):
    """The second moments of a linear layer's inputs, and their factor."""

    hessian: Tensor
    factor: GptqFactor

    @classmethod
    def of(cls, hessian: Tensor, name: str) -> Inputs:
        """Factor a Hessian once for all layers with these inputs."""
        return cls(hessian, GptqFactor.of(hessian, act_order=True, name=f"the Hessian of {name}"))


def format_of(codec: Quantize) -> PackFormat:
    """The format that a codec asks for."""
    scheme = codec.scheme or default_scheme(codec.bits)
    return PackFormat(codec.bits, scheme, codec.block, DTYPES[codec.scale_dtype])


def compress(
    codec: Codec,
    delta: Tensor,
    outline: Outline,
    settings: Settings,
    *,
    name: str = "",
    inputs: Inputs | None = None,
) -> Piece:
    """The change ``delta``, float32 of the outline's shape, in the form that ``codec`` asks for.

    With ``inputs``, those of the linear layer, codes are chosen by GPTQ.
    """
    if isinstance(codec, Drop) or not outline.numel:
        return Dropped(outline)
    if isinstance(codec, Raw):
        return RawChange.of(outline, delta, DTYPES[codec.dtype])
    if isinstance(codec, Prune | Sparse):
        return scatter(codec, delta, outline, name)
    if isinstance(codec, Quantize):
        return Quantized(outline, _quantized(codec, delta, settings, inputs))
    return _factored(codec, delta, outline, settings, inputs)


def _quantized(codec: Quantize, delta: Tensor, settings: Settings, inputs: Inputs | None) -> PackedDelta:
    made = format_of(codec)
    refits = settings.refits(made.scheme)
    if inputs is None:
        return delta_quantize(delta, None, made, mse_iters=refits)[0]
    return gptq_quantize(delta, inputs.factor, made, static_groups=True, mse_iters=refits).pack


def _factored(
    codec: SVD, delta: Tensor, outline: Outline, settings: Settings, inputs: Inputs | None
) -> LowRank:
    matrices = list(delta.view(outline.stack, outline.rows, outline.columns))
    quantizer = settings.quantizer if inputs is not None or settings.quantizer != "gptq" else "mse"
    packs = decompose(
        codec,
        matrices,
        cap=settings.target_bpw,
        quantizer=quantizer,
        seed=settings.seed,
        hessian=None if inputs is None else inputs.hessian,
        factor=None if inputs is None else inputs.factor,
    )
    return LowRank(outline, packs)


def error_of(piece: Piece, delta: Tensor, energy: float) -> ErrorOf:
    """How far a piece is from the change that it stands for; row block by row block in float64."""
    rest = delta.clone()
    piece.add_(rest, -1.0)
    squared = sum(float(part.double().square().sum()) for part in rest.view(-1).split(1 << 22))
    return ErrorOf(squared, float(rest.abs().max()) if rest.numel() else 0.0, energy)
