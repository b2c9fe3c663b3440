"""A model with a LoRA adapter as a donor: the weights that the two stand for, made tensor by tensor.

    W' = W + s·BA        s = alpha / rank, or alpha / √rank (rslora)
    W' = m ∘ (W + s·BA) / ‖W + s·BA‖ by rows        (DoRA)

in fp32 and never rounded to the model's dtype, so that a merge still sees the adapter's update whole. What the adapter
leaves alone is the model's own tensor, as it lies.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor

from graftwork.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from graftwork.compose.adapter import Adapter, Factors, open_adapter
from graftwork.compose.prefixes import Prefix, find_prefixes
from graftwork.delta.source import TensorMeta
from graftwork.delta.tensor_memory import TensorMemory
from graftwork.delta.weights import Meta
from graftwork.errors import AdapterError

__all__ = ["LoraDonor", "open_donor"]

Model = Checkpoint | str | os.PathLike[str]

_FLOATS = ("F32", "BF16", "F16")
_TILE = 1 << 16
"""Elements of a product that are made at a time: they stay in a core's cache while the ranks are added to them."""
_FUSED = ("qkv", "c_attn", "query_key_value", "gate_up", "kv_a_proj", "Wqkv", "in_proj", "W_pack")
_ANOTHER_MODEL = "give the model that the adapter was made for"


@contextmanager
def open_donor(model: Model, adapter: Adapter | str | os.PathLike[str]) -> Iterator[LoraDonor]:
    """A model and an adapter, given by their folders or open, as a `LoraDonor`.

    Raises
    ------
    AdapterError
        The adapter is not for this model (no, or only some, of its modules are there, or the shapes differ), or of a kind
        that cannot be added to weights.

    Examples
    --------
    >>> import json
    >>> from graftwork.checkpoint import write_checkpoint
    >>> write_checkpoint("model", {"up.weight": torch.eye(2)})
    >>> Path("lora").mkdir()
    >>> settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2}
    >>> _ = Path("lora/adapter_config.json").write_text(json.dumps(settings))
    >>> a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]])
    >>> named = {"base_model.model.up.lora_A.weight": a, "base_model.model.up.lora_B.weight": b}
    >>> write_checkpoint("lora/adapter_model.safetensors", named)
    >>> with open_donor("model", "lora") as donor:
    ...     donor.tensor("up.weight")
    tensor([[3., 4.],
            [0., 1.]])
    """
    with ExitStack() as stack:
        opened = model if isinstance(model, Checkpoint) else stack.enter_context(open_checkpoint(model))
        lora = adapter if isinstance(adapter, Adapter) else stack.enter_context(open_adapter(adapter))
        yield LoraDonor(opened, lora)


class LoraDonor:
    """A model's tensors with an adapter on them; a source of tensors as `graftwork.delta.source` has them.

    Attributes
    ----------
    metas : mapping of str to TensorMeta
        All tensors. Changed matrices and biases are F32; what the adapter holds in full has the dtype and shape that it
        has there, and may be new to the model (a head).
    changed : frozenset of str
        Those that differ from the model's.
    added : tuple of str
        Those that the model does not have.
    tied : mapping of str to str
        As in the model, less what the adapter unties.
    untied : tuple of str
        Names that are tied in the model and stand alone here, because the adapter changes one of the two. A head that is
        tied to embeddings with an adapter keeps the model's own weight, as in a model with the adapter loaded.
    """

    def __init__(self, model: Checkpoint, adapter: Adapter) -> None:
        self.model = model
        self.adapter = adapter
        self._prefix = self._find_prefix()
        self._pairs = {self._prefix.rename(f"{f.module}.weight"): f for f in adapter.factors.values()}
        self._biases = {
            self._prefix.rename(f"{f.module}.bias"): f for f in adapter.factors.values() if f.bias is not None
        }
        self._full = {self._renamed(name): held for name, held in adapter.full.items()}
        self._check_biases()
        self.tied, self.untied = self._ties()
        self._turned = self._orientations()
        self.metas: Mapping[str, TensorMeta] = MappingProxyType(self._metas())
        self.changed = frozenset({*self._pairs, *self._biases, *self._full})
        self.added = tuple(name for name in self.metas if name not in {*model.tensors, *model.tied})
        self._last: tuple[str, Tensor] | None = None

    @property
    def vocabulary_folder(self) -> Path:
        """The folder whose tokenizer goes with these weights: the adapter's if it holds one, else the model's."""
        files = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
        holds = any((self.adapter.path / file).is_file() for file in files)
        return self.adapter.path if holds else self.model.root

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU: mapped if it is the model's own, else new."""
        name = self.tied.get(name, name)
        if name in self._pairs:
            return self._changed_weight(name, self._pairs[name])
        if name in self._biases:
            factors = self._biases[name]
            return self._float(self._original(name)) + factors.scale * self._part(factors.bias)
        return self._original(name)

    def update(self, name: str) -> Tensor | None:
        """The adapter's own part of a matrix, s·BA in fp32, in the model's layout; None where it is no such sum."""
        factors = self._pairs.get(name)
        if factors is None or factors.magnitude is not None:
            return None
        return self._product(name, factors, torch.zeros(self.metas[name].shape))

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """See `graftwork.delta.source.TensorSource`. The tensor that was made last is kept for the next piece of it."""
        last = self._last
        if last is None or last[0] != name:
            last = self._last = (name, self.tensor(name))
        TensorMemory(last[1]).read_into(offset, buffer)

    # ---- which tensor is meant

    def _refuse(self, what: str, name: str | None = None, **details: Any) -> NoReturn:
        raise AdapterError(what, file=self.adapter.path, tensor=name, **{"remedy": _ANOTHER_MODEL, **details})

    def _find_prefix(self) -> Prefix:
        names = {*self.model.tensors, *self.model.tied}
        wanted = [f"{module}.weight" for module in self.adapter.factors] or list(self.adapter.full)
        found = find_prefixes(wanted, names)
        if len(found) == 1:
            return found[0]
        if not self.adapter.factors:
            return Prefix("", "")  # what is there in full may be new to the model
        if found:
            got = ", ".join(f"{prefix.new}…" for prefix in found[:4])
            self._refuse("the model has several places for the adapter", wanted[0], got=got, wanted="one")
        there = [name for name in wanted if name in names]
        missing = next(name for name in wanted if name not in names)
        what = (
            "the model lacks modules of the adapter" if there else "no module of the adapter is in the model"
        )
        got, remedy = f"{len(there)} of {len(wanted)} are there", _ANOTHER_MODEL
        if fused := _fused(missing, names):
            got, remedy = (
                f"{got}; the model has {fused}",
                "the model fuses or splits matrices that the adapter does not",
            )
        self._refuse(what, missing, got=got, remedy=remedy)

    def _renamed(self, name: str) -> str:
        renamed = self._prefix.rename(name)
        return renamed if renamed in self.model.tensors or name not in self.model.tensors else name

    def _check_biases(self) -> None:
        for name, factors in self._biases.items():
            if name not in self.model.tensors and bool(self.adapter.file.tensor(factors.bias or "").any()):
                self._refuse("the adapter has a bias for a module that has none", name)
        self._biases = {name: factors for name, factors in self._biases.items() if name in self.model.tensors}

    def _ties(self) -> tuple[Mapping[str, str], tuple[str, ...]]:
        tied = dict(self.model.tied)
        touched = {*self._pairs, *self._full}
        untied = []
        for head, embeddings in self.model.tied.items():
            both = {head, embeddings} & touched
            if (
                not both
                or (both == {embeddings} and self.adapter.ties_embeddings)
                or self._same(head, embeddings)
            ):
                continue
            del tied[head]
            untied.append(head)
        return MappingProxyType(tied), tuple(untied)

    def _same(self, head: str, embeddings: str) -> bool:
        """Whether both are held in full and are one weight; the head's copy is then left out."""
        if not {head, embeddings} <= self._full.keys() or {head, embeddings} & self._pairs.keys():
            return False
        one, other = (self.adapter.file.tensor(self._full[name]) for name in (head, embeddings))
        if one.dtype != other.dtype or not torch.equal(one, other):
            return False
        del self._full[head]
        return True

    # ---- shapes

    def _metas(self) -> dict[str, TensorMeta]:
        metas: dict[str, TensorMeta] = dict(self.model.tensors)
        for name in self.untied:
            held = self.model.tensors[self.model.tied[name]]
            metas[name] = Meta(name, held.dtype, held.shape, held.nbytes)
        for name in self._full:
            info = self._original_info(name)
            metas[name] = Meta(name, info.dtype, info.shape, info.nbytes)
        for name in (*self._pairs, *self._biases):
            shape = tuple(self._original_info(name).shape)
            metas[name] = Meta(name, "F32", shape, 4 * math.prod(shape))
        return metas

    def _orientations(self) -> frozenset[str]:
        """The linear matrices that are stored ``[in, out]``: shapes say it; for square ones, all others or the setting."""
        turned: set[str] = set()
        straight: set[str] = set()
        square: set[str] = set()
        for name, factors in self._pairs.items():
            info = self._original_info(name)
            if info.dtype not in _FLOATS:
                self._refuse(
                    "the adapter is for a tensor that is no plain float", name, got=info.dtype,
                    wanted=", ".join(_FLOATS), remedy="give the model before it was quantised",
                )  # fmt: skip
            a, b = (self.adapter.file.tensors[part].shape for part in (factors.a, factors.b))
            shape, made = tuple(info.shape), (b[0], *a[1:])
            is_turned = len(shape) == 2 and shape == made[::-1]
            if factors.is_embedding and is_turned:
                continue
            if factors.is_embedding or not (shape == made or is_turned):
                wanted = f"A {list(a)} and B {list(b)}"
                self._refuse(
                    "a module has another shape than the adapter's factors",
                    name,
                    got=list(shape),
                    wanted=wanted,
                )
            self._check_dora(name, factors, shape)
            (square if is_turned and shape == made else turned if is_turned else straight).add(name)
        one_sided = bool(turned) != bool(straight)
        turns_square = bool(turned) if one_sided else self.adapter.fan_in_fan_out
        return frozenset(turned | square if turns_square else turned)

    def _check_dora(self, name: str, factors: Factors, shape: tuple[int, ...]) -> None:
        if factors.magnitude is None:
            return
        held = self.adapter.file.tensors[factors.magnitude].shape
        rows = self.adapter.file.tensors[factors.b].shape[0]
        if factors.is_embedding or len(shape) != 2 or tuple(held) != (rows,):
            self._refuse(
                "DoRA is read on linear modules alone", name, got=f"magnitude {list(held)} for {list(shape)}",
                wanted=[rows], remedy="merge the adapter with peft (merge_and_unload) and give the merged model",
            )  # fmt: skip

    # ---- arithmetic

    def _original(self, name: str) -> Tensor:
        """The tensor before factors are added: the adapter's, where it holds it in full (peft saves embeddings so)."""
        return self.adapter.file.tensor(self._full[name]) if name in self._full else self.model.tensor(name)

    def _original_info(self, name: str) -> TensorInfo:
        if name in self._full:
            return self.adapter.file.tensors[self._full[name]]
        return self.model.tensors[self.model.tied.get(name, name)]

    @staticmethod
    def _float(tensor: Tensor) -> Tensor:
        return tensor.to(torch.float32, copy=True).contiguous()

    def _part(self, name: str | None) -> Tensor:
        if name is None:
            raise ValueError("a module has no such part")
        return self._float(self.adapter.file.tensor(name))

    def _changed_weight(self, name: str, factors: Factors) -> Tensor:
        weight = self._product(name, factors, self._float(self._original(name)))
        if factors.magnitude is None:
            return weight
        along = 0 if name in self._turned else 1
        norms = torch.linalg.vector_norm(weight.double(), dim=along, keepdim=True)
        magnitude = self._part(factors.magnitude).double().unsqueeze(along)
        return weight.mul_((magnitude / norms).float())

    def _product(self, name: str, factors: Factors, onto: Tensor) -> Tensor:
        """``onto`` plus s·BA, in place, rank by rank: a BLAS would add in an order that depends on threads and machine."""
        a, b = self._part(factors.a).flatten(1), self._part(factors.b).flatten(1).mul_(factors.scale)
        left, right = b, a
        if factors.is_embedding or name in self._turned:
            left, right = a.T.contiguous(), b.T.contiguous()
        rows = onto.view(len(onto), -1)
        step = max(1, _TILE // max(1, rows.shape[1]))
        product = torch.empty(step, rows.shape[1])
        for start in range(0, len(rows), step):
            tile, column = rows[start : start + step], left[start : start + step]
            part = product[: len(tile)]
            for rank in range(factors.rank):
                tile += torch.mul(column[:, rank : rank + 1], right[rank], out=part)
        return onto


def _fused(missing: str, names: set[str]) -> str | None:
    """A tensor of the same parent as a missing one that looks fused, if there is one."""
    parent = missing.removesuffix(".weight").rpartition(".")[0]
    beside = [name for name in names if name.startswith(f"{parent}.") and name.endswith(".weight")]
    known = [name for name in beside if any(mark in name.removeprefix(parent) for mark in _FUSED)]
    split = [name for name in beside if any(mark in missing.removeprefix(parent) for mark in _FUSED)]
    return min(known or split, default=None)
