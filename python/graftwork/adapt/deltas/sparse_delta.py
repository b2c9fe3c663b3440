"""The sparse delta: what a fine-tune changed in a few weights of a model, as a thing of its own.

``docs/papers/sparse_finetuning.md`` describes it and its file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graftwork.adapt.deltas.arrangement import arranged, index_dtype, with_index_dtype
from graftwork.adapt.deltas.tuned_tensor import TunedTensor, check_finite, check_names, check_tensors
from graftwork.checkpoint import Checkpoint
from graftwork.delta.weights import Stateful
from graftwork.errors import DeltaError
from graftwork.ops.sparse_update import Support

if TYPE_CHECKING:
    from torch import nn

    from graftwork.adapt.deltas.composition import Overlap
    from graftwork.adapt.deltas.delta_set import AppliedDelta


class SparseDelta:
    """Changes of a few weights of named tensors, to be added to a base, and the tensors that were tuned in full.

    Weight ``j`` of a tensor becomes ``round(base_j + scale · value_j)``: the sum is in fp32 and rounded once to the
    tensor's dtype. A delta is not changed after it is made. Attributes are the parameters, with ``tensors`` sorted by name;
    indices are int32 unless a tensor has 2^31 elements or more.

    Parameters
    ----------
    tensors : sequence of TunedTensor
        The tensors whose weights could have been tuned, also those without a change; tied ones once.
    support : Support
        Where the changes are: row-major flat indices into each of ``tensors``.
    values : Tensor
        The changes: fp32 ``[support.entries]``, finite, on the support's device.
    full : mapping of str to Tensor, optional
        Tensors that were tuned in full, such as a new head, as they are after tuning: any dtype, contiguous.
    tied : mapping of str to str, optional
        Other names of tensors, to the name among ``tensors`` or ``full``.
    base_digest : str, optional
        The tensors digest of the whole base, by which a store knows it too.

    Raises
    ------
    DeltaError
        Two names are one, sizes do not fit the support, a value is not finite, or a dtype cannot be tuned.

    Examples
    --------
    >>> model = torch.nn.Linear(4, 2)
    >>> base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    >>> tuned = {name: tensor + torch.eye(2, 4) if tensor.ndim == 2 else tensor for name, tensor in base.items()}
    >>> delta = SparseDelta.from_models(base, tuned)
    >>> delta
    SparseDelta(2 of 10 weights in 1 of 2 tensors)
    >>> with delta.applied(model):
    ...     torch.allclose(model.weight, tuned["weight"])
    True
    >>> torch.equal(model.weight, base["weight"])
    True
    """

    __slots__ = ("__weakref__", "base_digest", "full", "support", "tensors", "tied", "values")

    def __init__(
        self,
        tensors: Sequence[TunedTensor],
        support: Support,
        values: Tensor,
        *,
        full: Mapping[str, Tensor] | None = None,
        tied: Mapping[str, str] | None = None,
        base_digest: str | None = None,
    ) -> None:
        full, tied = dict(full or {}), dict(tied or {})
        check_tensors(tensors, support)
        check_names(tensors, full, tied)
        support.check_entries("SparseDelta", "values", values, torch.float32)
        order = sorted(range(len(tensors)), key=lambda number: tensors[number].name)
        tensors = [tensors[number] for number in order]
        support, values = arranged(support, values.detach(), order, [tensor.numel for tensor in tensors])
        self.support = with_index_dtype(support, index_dtype(tensor.numel for tensor in tensors))
        self.values = values
        self.tensors: tuple[TunedTensor, ...] = tuple(tensors)
        self.full: Mapping[str, Tensor] = {name: full[name].detach() for name in sorted(full)}
        self.tied: Mapping[str, str] = {name: tied[name] for name in sorted(tied)}
        self.base_digest = base_digest
        check_finite(self.tensors, self.support, self.values)

    @classmethod
    def from_changes(
        cls, changes: Mapping[str, tuple[Tensor, Tensor]], base: Stateful, *, threads: int | None = None
    ) -> SparseDelta:
        """A delta from sorted unique row-major flat indices and values, by tensor name.

        ``base``, the weights that the values are to be added to, gives shapes, dtypes and digests, which ``threads``
        threads take. Errors are those of `Support`, and `BaseMismatch` for a tensor that the base lacks.
        """
        from graftwork.adapt.deltas.extract import from_changes

        return from_changes(changes, base, threads=threads)

    @classmethod
    def from_models(
        cls,
        base: Stateful,
        tuned: Stateful,
        *,
        k: int | None = None,
        density: float | None = None,
        eps: float | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        keep_full: Sequence[str] = (),
        threads: int | None = None,
    ) -> SparseDelta:
        """The difference of two models: all of it, or its largest entries.

        Parameters
        ----------
        base, tuned : mapping of str to Tensor, Module, Checkpoint or path
            The two models; checkpoints are read memory-mapped.
        k : int, optional
            Keep the k largest |tuned − base| of all tensors together, the first by (name, index) of equal ones.
        density : float, optional
            The same, with k = ⌊density · weights⌋.
        eps : float, optional
            Keep |tuned − base| > eps. Without any of the three every difference is kept.
        include, exclude : sequence of str
            Shell patterns (``*``, ``?``, ``[ab]``) of the tensors that are looked at; tied ones go by their first name.
        keep_full : sequence of str
            Patterns of tensors that are kept as they are in ``tuned``; ``base`` may lack them.
        threads : int, optional
            Threads that take the digests; all processors by default.

        Returns
        -------
        SparseDelta
            It has fewer than k entries if fewer weights changed. Values are fp32 differences: added to the base they
            give the tuned weight, to the last bit where fp32 can hold the difference. A store keeps fine-tunes bit for
            bit whatever they are.

        Raises
        ------
        DeltaError
            The models differ in shape or dtype, in a tensor of another dtype, or a difference is not finite.
        ValueError
            A pattern matches nothing, or the arguments contradict each other.

        Notes
        -----
        Selection is that of LT-SFT (Ansell et al., ACL 2022, section 3.1). Differs from the authors' code: exactly k
        where magnitudes are equal, and weights that did not change are never kept.
        """
        from graftwork.adapt.deltas.extract import Selection, from_models

        selection = Selection.of(k, density, eps)
        return from_models(
            base, tuned, selection, include=include, exclude=exclude, keep_full=keep_full, threads=threads
        )

    @classmethod
    def from_composable_sft(
        cls, folder: str | os.PathLike[str], *, base: Stateful | None = None, trust: bool = False
    ) -> SparseDelta:
        """A delta that the authors of LT-SFT released: a folder with ``pytorch_diff.bin``, or that file.

        With ``base``, the model that it is for, the delta knows its dtypes and digests (see `for_base`). The file is a
        pickle; torch's restricted unpickler reads it and makes nothing but tensors and numbers. ``trust=True`` says that
        you want that: `CheckpointError` otherwise, or if the file is not such a delta.
        """
        from graftwork.adapt.deltas.composable_sft import read_composable_sft

        found = read_composable_sft(folder, trust=trust)
        return found if base is None else found.for_base(base)

    @property
    def entries(self) -> int:
        """Changed weights in all."""
        return self.support.entries

    @property
    def numel(self) -> int:
        """Weights that could have been changed: the elements of all tensors."""
        return sum(tensor.numel for tensor in self.tensors)

    def density(self) -> float:
        """Changed weights as a share of those that could have been."""
        return self.entries / self.numel if self.numel else 0.0

    def changes(self, name: str) -> tuple[Tensor, Tensor]:
        """Indices and values of one tensor, by any of its names: views."""
        wanted = self.tied.get(name, name)
        for number, tensor in enumerate(self.tensors):
            if tensor.name == wanted:
                start, stop = self.support.offsets[number : number + 2].tolist()
                return self.support.indices[start:stop], self.values[start:stop]
        raise DeltaError("the delta has no such tensor", tensor=name, remedy="delta.tensors has the names")

    def names_of(self, name: str) -> list[str]:
        """All names of a tensor of ``tensors`` or ``full``, its own first."""
        return [name, *(other for other, own in self.tied.items() if own == name)]

    def apply_(
        self,
        model: nn.Module | Mapping[str, Tensor],
        scale: float = 1.0,
        *,
        with_full: bool = False,
        check_base: bool = True,
    ) -> AppliedDelta:
        """Add the delta to a model in memory; the handle that is returned takes it off again, exactly.

        Deltas that are applied to one model at the same time are kept as one `DeltaSet`: each weight is written as
        ``round(base + Σ scale · value)`` whenever one comes or goes, so they may go in any order.

        Parameters
        ----------
        model : Module or mapping of str to Tensor
            What to change, in place: contiguous tensors, on any device.
        scale : float
            Factor of the changes.
        with_full : bool
            Whether the tensors of ``full`` take the place of the model's. They are not scaled.
        check_base : bool
            Whether the tensors that are changed must have the digests of the delta's base. False adds the delta to
            other weights of the same shapes, which may have another dtype.

        Returns
        -------
        AppliedDelta
            Keep it for as long as the delta may have to be taken off: ``revert_()`` does that, and so does the end
            of a ``with`` block. The words of the base that it needs are held by it alone.

        Raises
        ------
        BaseMismatch
            The model lacks a tensor, or has another shape, dtype or content.
        CheckpointError, ValueError
            A tensor cannot be written to, or shares part of its memory; the delta is on the model already.
        """
        from graftwork.adapt.deltas.delta_set import apply_delta

        return apply_delta(self, model, scale, with_full=with_full, check_base=check_base)

    @contextmanager
    def applied(
        self,
        model: nn.Module | Mapping[str, Tensor],
        scale: float = 1.0,
        *,
        with_full: bool = False,
        check_base: bool = True,
    ) -> Iterator[AppliedDelta]:
        """`apply_` for the time of a ``with`` block."""
        with self.apply_(model, scale, with_full=with_full, check_base=check_base) as handle:
            yield handle

    def for_base(self, base: Stateful, *, threads: int | None = None) -> SparseDelta:
        """The same changes, to be added to ``base``, whose dtypes and digests the result has.

        LT-SFT does that: a task's delta is trained on top of a language's, and added to the base itself. `BaseMismatch`
        if the base lacks a tensor in which something changes, or has it in another shape.
        """
        from graftwork.adapt.deltas.extract import for_base

        return for_base(self, base, threads=threads)

    def renamed(self, rename: Callable[[str], str]) -> SparseDelta:
        """The same delta for a model that calls its tensors otherwise: ``rename`` is given each name."""
        tensors = [replace(tensor, name=rename(tensor.name)) for tensor in self.tensors]
        full = [(rename(name), tensor) for name, tensor in self.full.items()]
        tied = [(rename(name), rename(own)) for name, own in self.tied.items()]
        if len(dict(full)) < len(full) or len(dict(tied)) < len(tied):
            raise ValueError("renamed: two tensors would have one name")
        return SparseDelta(
            tensors, self.support, self.values, full=dict(full), tied=dict(tied), base_digest=self.base_digest
        )

    def without_full(self) -> SparseDelta:
        """The same delta without the tensors that were tuned in full."""
        own = {tensor.name for tensor in self.tensors}
        tied = {name: first for name, first in self.tied.items() if first in own}
        return SparseDelta(self.tensors, self.support, self.values, tied=tied, base_digest=self.base_digest)

    def overlap(self, other: SparseDelta) -> Overlap:
        """How much this delta and another one, of tensors of the same names and shapes, have in common."""
        from graftwork.adapt.deltas.composition import overlap

        return overlap(self, other)

    def __add__(self, other: SparseDelta) -> SparseDelta:
        return self._sum([self, other], [1.0, 1.0])

    def __sub__(self, other: SparseDelta) -> SparseDelta:
        """The tensors in full are those of the first."""
        return self._sum([self, other.without_full()], [1.0, -1.0])

    def __mul__(self, factor: float) -> SparseDelta:
        """The changes are scaled, the tensors in full are not."""
        return self._sum([self], [factor])

    __rmul__ = __mul__

    def __neg__(self) -> SparseDelta:
        return self * -1.0

    def _sum(self, deltas: list[SparseDelta], weights: list[float]) -> SparseDelta:
        from graftwork.adapt.deltas.composition import compose

        return compose(deltas, weights)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        values_dtype: torch.dtype = torch.float32,
        overwrite: bool = False,
        threads: int | None = None,
    ) -> None:
        """Write the delta as one safetensors file, whole or not at all.

        Parameters
        ----------
        path, overwrite
            The file, and whether one that stands there is replaced.
        values_dtype : torch.dtype
            How values are kept: fp32 exactly; bf16 or fp16 rounded, at half the size.
        threads : int, optional
            Threads to use; the bytes do not depend on it.

        Raises
        ------
        TargetExists, DeltaError
            Something stands at ``path``; a value is too large for ``values_dtype``.
        """
        from graftwork.adapt.deltas.delta_file import save_delta

        save_delta(self, path, values_dtype=values_dtype, overwrite=overwrite, threads=threads)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, threads: int | None = None) -> SparseDelta:
        """Read a delta that `save` wrote, and check every byte of it: `DeltaError` if it is malformed or damaged.

        Memory is taken for what the file holds, not for what it says: at most 64 times its size.
        """
        from graftwork.adapt.deltas.delta_file import load_delta

        return load_delta(path, threads=threads)

    def to_checkpoint(
        self,
        base: str | os.PathLike[str] | Checkpoint,
        out: str | os.PathLike[str],
        *,
        scale: float = 1.0,
        with_full: bool = False,
        check_base: bool = True,
    ) -> None:
        """Write base and delta as a dense checkpoint, tensor by tensor.

        Parameters
        ----------
        base : path or Checkpoint
            A safetensors file, or a folder of them.
        out : path
            What to create, of the same kind: files, shards and dtypes are the base's, and so is every byte that the
            delta does not change.
        scale, with_full, check_base
            As for `apply_`; the weights are the same to the last bit. Tensors of ``full`` that the base lacks are
            added to its last file.

        Raises
        ------
        TargetExists, BaseMismatch, CheckpointError
            Something stands at ``out``; as for `apply_`; the base cannot be read.
        """
        from graftwork.adapt.deltas.export import export_checkpoint

        export_checkpoint(self, base, out, scale=scale, with_full=with_full, check_base=check_base)

    def __repr__(self) -> str:
        changed = int((self.support.offsets.diff() > 0).sum())
        full = f", {len(self.full)} in full" if self.full else ""
        return f"SparseDelta({self.entries} of {self.numel} weights in {changed} of {len(self.tensors)} tensors{full})"
