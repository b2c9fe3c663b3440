"""The modules that stand in a model that is served: each knows what every pack changes of the one that it stands for."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from graftwork.ops.quantized_delta import LowRankPack, PackedDelta, PackList, delta_linear, dequant_add
from graftwork.store.skill_pack.low_rank import LowRank
from graftwork.store.skill_pack.pieces import Piece, Quantized, dense

__all__ = ["Change", "PackedEmbedding", "PackedLinear", "RowPacks", "SplitModule"]

Change = tuple[Piece, float]
"""A pack's change of a parameter, and its factor."""


class RowPacks:
    """The pack of each row of the batch that a thread is running; −1 is the base."""

    def __init__(self) -> None:
        self._local = threading.local()

    @contextmanager
    def use(self, ids: Sequence[int], repeats: int) -> Iterator[None]:
        """Let a batch's rows, each of them `repeats` times, belong to these packs."""
        before = getattr(self._local, "batch", None)
        self._local.batch = _Batch([pack for pack in ids for _ in range(repeats)])
        try:
            yield
        finally:
            self._local.batch = before

    def of(self, x: Tensor, name: str) -> tuple[Tensor, _Batch]:
        """The input of a module with the batch first, and the batch.

        An input that the rows share, of size 1, is repeated for each of them.
        """
        batch: _Batch | None = getattr(self._local, "batch", None)
        if batch is None:
            raise ValueError(
                "the model is served, but nothing says which packs the rows belong to; call served(..., packs=[...]), or "
                "run it within `with served.rows([...])`"
            )
        if x.dim() == 0 or x.shape[0] not in (1, batch.size):
            raise ValueError(
                f"{name}: the first size of its input must be the {batch.size} rows of the batch, got shape "
                f"{tuple(x.shape)}; name a pack for each row, and a model that puts its batch elsewhere cannot be served"
            )
        return (x if x.shape[0] == batch.size else x.expand(batch.size, *x.shape[1:])), batch


class _Batch:
    """The packs of a batch's rows, and what modules ask of them again and again."""

    def __init__(self, ids: list[int]) -> None:
        self.size = len(ids)
        self._ids = ids
        self._tensors: dict[tuple[int, torch.device], Tensor] = {}
        self._groups: dict[torch.device, dict[int, Tensor]] = {}

    def ids(self, repeats: int, device: torch.device) -> Tensor:
        """int64: the pack of each row, `repeats` times."""
        found = self._tensors.get((repeats, device))
        if found is None:
            found = torch.tensor(self._ids, device=device).repeat_interleave(repeats)
            self._tensors[repeats, device] = found
        return found

    def groups(self, device: torch.device) -> dict[int, Tensor]:
        """The rows of each pack that is there."""
        found = self._groups.get(device)
        if found is None:
            rows: dict[int, list[int]] = {}
            for row, pack in enumerate(self._ids):
                rows.setdefault(pack, []).append(row)
            found = {pack: torch.tensor(mine, device=device) for pack, mine in rows.items()}
            self._groups[device] = found
        return found


class PackedLinear(nn.Module):
    """A linear layer whose rows belong to different packs over one weight.

    Quantised and low-rank changes of the weight stay packed; a change in another form is kept as a sparse matrix. Biases
    are kept for each pack.

    Parameters
    ----------
    linear : Linear
        The base's layer, whose parameters it shares.
    name : str
        What the layer is called, for errors.
    rows : RowPacks
        Says what the rows of a batch belong to.
    weights, biases : sequence of (Piece, float) or None
        What each pack changes.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        linear: nn.Linear,
        name: str,
        rows: RowPacks,
        weights: Sequence[Change | None],
        biases: Sequence[Change | None],
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self._name, self._rows = name, rows
        device = linear.weight.device
        self._packs = PackList([_packed(change, device) for change in weights])
        self._sparse = [_sparse(change, device) for change in weights]
        scales = [0.0 if change is None else change[1] for change in weights]
        self._scales = torch.tensor([*scales, 0.0], device=device)  # the last for the base, −1
        self._biases: Tensor | None = None
        if any(change is not None for change in biases):
            self._biases = torch.stack([merged(linear.bias, change) for change in (*biases, None)])

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, for a batch in the first dimension."""
        x, batch = self._rows.of(x, self._name)
        flat = x.reshape(-1, x.shape[-1])
        ids = batch.ids(flat.shape[0] // batch.size, x.device)
        bias = cast("Tensor | None", self.bias) if self._biases is None else self._biases[ids]
        if any(matrix is not None for matrix in self._sparse):
            bias = self._with_sparse(x, batch, bias)
        y = delta_linear(flat, self.weight, self._packs, ids, bias=bias, scales=self._scales[ids])
        return y.view(*x.shape[:-1], self.out_features)

    def _with_sparse(self, x: Tensor, batch: _Batch, bias: Tensor | None) -> Tensor:
        """The bias of every row, and what sparse changes add to it."""
        added = x.new_zeros(
            batch.size, x.numel() // self.in_features // batch.size, self.out_features
        ).float()
        for pack, rows in batch.groups(x.device).items():
            matrix = self._sparse[pack] if pack >= 0 else None
            if matrix is not None:
                mine = x[rows].reshape(-1, self.in_features).float()
                added[rows] = (matrix @ mine.T).T.view(len(rows), *added.shape[1:])
        flat = added.view(-1, self.out_features)
        return flat if bias is None else flat.add_(bias)

    def extra_repr(self) -> str:
        """The layer's sizes, and how many packs."""
        return f"in_features={self.in_features}, out_features={self.out_features}, packs={len(self._packs)}"


class PackedEmbedding(nn.Module):
    """An embedding whose rows belong to different packs over one table; of a packed table only the rows that are used are
    restored.

    Parameters
    ----------
    embedding : Embedding
        The base's, whose parameter it shares.
    name, rows
        As of `PackedLinear`.
    weights : sequence of (Piece, float) or None
        What each pack changes.
    """

    def __init__(
        self, embedding: nn.Embedding, name: str, rows: RowPacks, weights: Sequence[Change | None]
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        self.weight = embedding.weight
        self._name, self._rows = name, rows
        self._changes = [None if change is None else _Table(change, self.weight.device) for change in weights]

    def forward(self, tokens: Tensor) -> Tensor:
        """As the embedding, for a batch in the first dimension."""
        tokens, batch = self._rows.of(tokens, self._name)
        found = nn.functional.embedding(tokens, self.weight)
        for pack, rows in batch.groups(tokens.device).items():
            change = self._changes[pack] if pack >= 0 else None
            if change is not None:
                mine = found[rows].float()
                found[rows] = change.add(mine, tokens[rows]).to(found.dtype)
        return found


class SplitModule(nn.Module):
    """A module of few parameters, such as a norm, that runs once for each pack in the batch, with that pack's parameters.

    Parameters
    ----------
    module : Module
        The base's.
    name, rows
        As of `PackedLinear`.
    changes : mapping of str to sequence of (Piece, float) or None
        Of each changed parameter, what each pack changes.
    """

    def __init__(
        self, module: nn.Module, name: str, rows: RowPacks, changes: Mapping[str, Sequence[Change | None]]
    ) -> None:
        super().__init__()
        for parameter, tensor in module.named_parameters(recurse=False):  # which keep their names
            self.register_parameter(parameter, tensor)
        for buffer, held in module.named_buffers(recurse=False):
            self.register_buffer(buffer, held, persistent=buffer in module.state_dict())
        self._name, self._rows = name, rows
        count = len(next(iter(changes.values())))
        mine = [{own: change for own, of in changes.items() if (change := of[pack])} for pack in range(count)]
        # Not children of this module. The last is the base's, for -1.
        self._variants = (*(_variant(module, changed) if changed else module for changed in mine), module)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the module, for a batch in the first dimension of its first argument."""
        x, batch = self._rows.of(x, self._name)
        rows_of: dict[nn.Module, list[Tensor]] = {}
        for pack, rows in batch.groups(x.device).items():
            rows_of.setdefault(self._variants[pack], []).append(rows)
        if len(rows_of) == 1:
            return next(iter(rows_of))(x, *args, **kwargs)
        found: Tensor | None = None
        for module, groups in rows_of.items():
            rows = torch.cat(groups)
            part = module(x[rows], *args, **kwargs)
            if not isinstance(part, Tensor) or part.shape[:1] != rows.shape:
                raise ValueError(
                    f"{self._name}: its result must be a tensor with the batch first, to be put together from several packs"
                )
            if found is None:
                found = part.new_empty(batch.size, *part.shape[1:])
            found[rows] = part
        return found


class _Table:
    """A change of an embedding's table, of which rows are taken."""

    def __init__(self, change: Change, device: torch.device) -> None:
        self._piece, self._scale = change
        self._packed: PackedDelta | None = None
        self._factors: tuple[Tensor, Tensor] | None = None
        self._sparse = torch.empty(0)
        piece = self._piece
        if isinstance(piece, Quantized):
            self._packed = piece.pack.to(device)
        elif isinstance(piece, LowRank):
            left, values, right = piece.packs[0].to(device).factors()
            self._factors = left.T.contiguous(), right * values[:, None]
        else:
            self._sparse = _csr(dense(piece), device)

    def add(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """rows + scale · change of the tokens; float32."""
        if self._packed is not None:
            return _add_rows(rows, self._packed, tokens, self._scale)
        if self._factors is not None:
            left, right = self._factors
            return rows + self._scale * (left[tokens] @ right)
        return rows + self._scale * _dense_rows(self._sparse, tokens.reshape(-1)).view(rows.shape)


def _add_rows(rows: Tensor, pack: PackedDelta, tokens: Tensor, scale: float) -> Tensor:
    flat = tokens.reshape(-1)
    whole = pack.format.block == -1
    taken = PackedDelta(
        pack.format,
        (flat.numel(), pack.shape[1]),
        pack.codes[flat],
        pack.scales if whole else pack.scales[flat],
        pack.zeros if pack.zeros is None or whole else pack.zeros[flat],
        pack.scale_exp,
    )
    matrix = rows.reshape(-1, pack.shape[1]).contiguous()
    return dequant_add(matrix, [taken], [scale], out=matrix).view(rows.shape)


def _variant(module: nn.Module, changes: Mapping[str, Change]) -> nn.Module:
    """A module of the same kind that shares all but these parameters and buffers."""
    twin = copy.copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    for own, change in changes.items():
        tensor = merged(getattr(module, own), change)
        if own in twin._parameters:
            twin._parameters[own] = nn.Parameter(tensor, requires_grad=False)
        else:
            twin._buffers[own] = tensor
    return twin


def merged(base: Tensor, change: Change | None) -> Tensor:
    """round(base + scale · change)."""
    base = base.detach()
    if change is None:
        return base.clone()
    piece, scale = change
    total = base.to("cpu", torch.float32, copy=True)
    piece.add_(total.view(piece.outline.shape), scale)
    return total.to(base.device, base.dtype)


def _packed(change: Change | None, device: torch.device) -> PackedDelta | LowRankPack | None:
    """The change of a linear layer's weight, if it is one that a product takes as it is."""
    piece = None if change is None else change[0]
    if isinstance(piece, Quantized):
        return piece.pack.to(device)
    return piece.packs[0].to(device) if isinstance(piece, LowRank) else None


def _sparse(change: Change | None, device: torch.device) -> Tensor | None:
    """The change of a linear layer's weight times its scale, if it is of another form."""
    if change is None or isinstance(change[0], Quantized | LowRank):
        return None
    return _csr(dense(change[0]).mul_(change[1]), device)


def _dense_rows(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Rows of a matrix that `_csr` made."""
    starts, columns, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    lengths = starts[chosen + 1] - starts[chosen]
    places = torch.arange(len(chosen), device=chosen.device).repeat_interleave(lengths)
    within = torch.arange(len(places), device=chosen.device) - (lengths.cumsum(0) - lengths)[places]
    entries = starts[chosen][places] + within
    rows = values.new_zeros(len(chosen), matrix.shape[1])
    rows[places, columns[entries]] = values[entries]
    return rows


def _csr(matrix: Tensor, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return matrix.to_sparse_csr().to(device)
