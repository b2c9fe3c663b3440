"""Many skill packs over one model at once: a batch each of whose rows belongs to a pack, or to the base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from graftwork.errors import BaseMismatch, CheckpointError
from graftwork.store.skill_pack.held import held_at
from graftwork.store.skill_pack.manifest import TensorRow
from graftwork.store.skill_pack.mount import check_row
from graftwork.store.skill_pack.pack import SkillPack
from graftwork.store.skill_pack.pieces import Dropped
from graftwork.store.skill_pack.served_modules import (
    Change,
    PackedEmbedding,
    PackedLinear,
    RowPacks,
    SplitModule,
)

__all__ = ["PackedLinear", "ServedModel", "serve"]

Scaled = SkillPack | tuple[SkillPack, float]
Place = tuple[str, str]
"""A module, and a parameter of its own."""

_PACKED = (torch.float16, torch.bfloat16, torch.float32)


class ServedModel(nn.Module):
    """A model whose batches are answered by several packs, as `serve` makes it.

    ``served(inputs, packs=["law", None, "law"])`` and ``served.generate(inputs, packs=[...])`` are the model's own, with a
    pack for each row: its name or number, and None or −1 for the base. The model is changed until `restore`; its weights
    are not.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], rows: RowPacks, replaced: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self._rows = rows
        self._originals = {name: self._swap(name, module) for name, module in replaced.items()}

    @contextmanager
    def rows(self, packs: Sequence[str | int | None], *, repeats: int = 1) -> Iterator[nn.Module]:
        """Let the rows of all batches, in this thread, belong to these packs; gradients are off.

        Parameters
        ----------
        packs : sequence of str, int or None
            One for each row.
        repeats : int
            How often each row stands in the batch, one after the other: the beams of a beam search.

        Raises
        ------
        KeyError
            There is no such pack.
        """
        with self._rows.use([self._number(pack) for pack in packs], repeats), torch.no_grad():
            yield self.model

    def forward(self, *args: Any, packs: Sequence[str | int | None], **kwargs: Any) -> Any:
        """Run the model on a batch."""
        with self.rows(packs):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, packs: Sequence[str | int | None], **kwargs: Any) -> Any:
        """Run the generate() of a transformers model on a batch; `num_beams` and the like are its own."""
        given = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)
        counts = [
            kwargs.get(name) or getattr(given, name, None) or 1
            for name in ("num_beams", "num_return_sequences")
        ]
        with self.rows(packs, repeats=max(counts)):
            return self.model.generate(*args, **kwargs)  # type: ignore[operator]

    def restore(self) -> nn.Module:
        """Give the model its own modules back; returns it."""
        for name, module in self._originals.items():
            self._swap(name, module)
        self._originals = {}
        return self.model

    def _swap(self, name: str, module: nn.Module) -> nn.Module:
        """Put a module in the place of one of the model's; returns that one."""
        path, _, last = f"model.{name}".rstrip(".").rpartition(".")
        parent = self.get_submodule(path)
        before: nn.Module = getattr(parent, last)
        setattr(parent, last, module.train(before.training))
        return before

    def _number(self, pack: str | int | None) -> int:
        if pack is None:
            return -1
        if isinstance(pack, str):
            if pack not in self.names:
                raise KeyError(f"there is no pack {pack!r}; there are {', '.join(map(repr, self.names))}")
            return self.names.index(pack)
        if not -1 <= pack < len(self.names):
            raise KeyError(
                f"there is no pack {pack}; they are numbered from 0 to {len(self.names) - 1}, and -1"
            )
        return pack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def serve(
    model: nn.Module, packs: Mapping[str, Scaled] | Sequence[Scaled], *, check_base: bool = True
) -> ServedModel:
    """Let a model answer batches whose rows belong to different packs.

    Its linear layers multiply with the base once and with each row's packed change; embeddings add the changed rows; norms
    and other modules of vectors run once for each pack in the batch; biases are added row by row. Nothing is merged: memory
    for a pack is that of its codes.

    Parameters
    ----------
    model : Module
        Holds the base's weights. Its modules are replaced until `ServedModel.restore`; its weights stay as they are. The
        batch must be the first dimension of what goes into its modules.
    packs : mapping of str to SkillPack, or sequence of SkillPack
        By name, or by number. Each may be a pair of the pack and its scale.
    check_base : bool
        Compare the digest of each tensor with that of the base that a pack was made from.

    Returns
    -------
    ServedModel
        A wrapper. As a context it restores the model at its end.

    Raises
    ------
    BaseMismatch
        A tensor is missing, of another shape or dtype, or is not the base's.
    CheckpointError
        A pack changes a tensor that cannot be answered row by row: no weight or bias of a plain `Linear`, weight of a plain
        `Embedding`, or vector of a module. Nothing has been replaced then.
    ValueError
        A scale is not finite, or there is no pack.

    Notes
    -----
    What a row gets of its pack does not depend on the other rows; the base's own products are torch's. Results differ from
    those of mounted packs by rounding: a merged weight is rounded to the model's dtype, and here a sum is.

    Changes that are neither quantised nor low-rank are kept as sparse matrices of float32, 8 bytes an entry.

    Gradients are off.

    Examples
    --------
    >>> import torch
    >>> from graftwork.store import SkillPack
    >>> from graftwork.store.skill_pack import CompressionPlan, Quantize
    >>> from graftwork.store.skill_pack.serving import serve
    >>> base = torch.nn.Linear(8, 1, bias=False).eval()
    >>> torch.nn.init.zeros_(base.weight).sum().item()
    0.0
    >>> tuned = {"weight": torch.ones(1, 8)}
    >>> pack = SkillPack.build(tuned, base, CompressionPlan({"": Quantize(bits=1, block=0)}))
    >>> with serve(base, {"sum": pack, "half": (pack, 0.5)}) as served:
    ...     served(torch.ones(3, 8), packs=["sum", None, "half"]).tolist()
    [[8.0], [0.0], [4.0]]
    """
    if model.training:
        raise ValueError(
            "the model is in training mode, in which rows may depend on each other; call model.eval()"
        )
    listed = _named(packs)
    rows = RowPacks()
    places = _changes(model, list(listed.values()), check_base)
    replaced: dict[str, nn.Module] = {}
    for name in dict.fromkeys(module for module, _ in places):
        mine = {parameter: changes for (module, parameter), changes in places.items() if module == name}
        replaced[name] = _replacement(model.get_submodule(name), name, rows, mine, len(listed))
    return ServedModel(model, tuple(listed), rows, replaced)


def _named(packs: Mapping[str, Scaled] | Sequence[Scaled]) -> dict[str, tuple[SkillPack, float]]:
    given = packs.items() if isinstance(packs, Mapping) else ((str(n), pack) for n, pack in enumerate(packs))
    listed: dict[str, tuple[SkillPack, float]] = {}
    for name, pack in given:
        one, scale = pack if isinstance(pack, tuple) else (pack, 1.0)
        if not isinstance(one, SkillPack):
            raise TypeError(
                f"pack {name!r} must be a SkillPack, or a pair of one and its scale, got {type(one).__name__}"
            )
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ValueError(f"the scale of pack {name!r} must be a finite number, got {scale!r}")
        listed[name] = one, float(scale)
    if not listed:
        raise ValueError("there must be a pack at least")
    return listed


def _changes(
    model: nn.Module, packs: Sequence[tuple[SkillPack, float]], check_base: bool
) -> dict[Place, list[Change | None]]:
    """What each pack changes, at every place of the model that holds the tensor."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    holders: dict[int, list[Place]] = {}
    for name, tensor in tensors.items():
        module, _, own = name.rpartition(".")
        holders.setdefault(id(tensor), []).append((module, own))
    found: dict[Place, list[Change | None]] = {}
    for number, (pack, scale) in enumerate(packs):
        for row in pack.tensors.values():
            for name in _names_of(row, tensors):
                tensor = tensors[name]
                _check_tensor(row, tensor, name, check_base)
                piece = pack.piece(row.name)
                if isinstance(piece, Dropped):
                    continue
                for place in holders[id(tensor)]:
                    changes = found.setdefault(place, [None] * len(packs))
                    if changes[number] is not None:
                        raise BaseMismatch(
                            "tensors that are tied in the model are apart in the pack",
                            file="model",
                            tensor=name,
                            remedy="untie them in the model first",
                        )
                    changes[number] = piece, scale * row.scale
    return found


def _names_of(row: TensorRow, tensors: Mapping[str, Tensor]) -> list[str]:
    """A name of each tensor of the model that a row is for: several if what is tied in the pack is apart in the model."""
    firsts = {id(tensors[name]): name for name in (*row.tied, row.name) if name in tensors}
    if not firsts:
        raise BaseMismatch(
            "the model lacks a tensor of the pack",
            file="model",
            tensor=row.name,
            remedy="serve the pack on the base that it was made from",
        )
    return list(firsts.values())


def _check_tensor(row: TensorRow, tensor: Tensor, name: str, check_base: bool) -> None:
    held = held_at(name, tensor)
    if held.loads:
        raise CheckpointError(
            "packs are mounted on the model",
            file="model",
            tensor=name,
            remedy="take them off first, and serve them with the others",
        )
    check_row(row, held, name, check_base)


def _replacement(
    module: nn.Module, name: str, rows: RowPacks, changes: Mapping[str, Sequence[Change | None]], count: int
) -> nn.Module:
    """What stands in for a module of which packs change these parameters."""
    nothing: list[Change | None] = [None] * count
    weights = changes.get("weight", nothing)
    weight: Tensor | None = getattr(module, "weight", None)
    plain = weight is not None and weight.dtype in _PACKED and weight.is_contiguous()
    if type(module) is nn.Linear and plain:
        return PackedLinear(module, name, rows, weights, changes.get("bias", nothing))
    if type(module) is nn.Embedding and plain and module.max_norm is None:
        return PackedEmbedding(module, name, rows, weights)
    for parameter in changes:
        tensor = getattr(module, parameter)
        if tensor.dim() > 1 or next(module.children(), None) is not None:
            raise CheckpointError(
                "a pack changes a tensor that cannot be answered row by row",
                file="model",
                tensor=f"{name}.{parameter}".lstrip("."),
                got=f"{tensor.dtype} {list(tensor.shape)} of a {type(module).__name__}",
                wanted="weight or bias of a plain Linear, or weight of a plain Embedding without max_norm, of 16 or 32 "
                "bits; or a vector of a module without children",
                remedy="mount this pack instead (graftwork.store.mount), or build it with a Drop rule for the tensor",
            )
    return SplitModule(module, name, rows, changes)
