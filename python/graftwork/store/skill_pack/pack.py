"""A skill pack: what a fine-tune changed, small and with loss, to be mounted on the base and taken off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import Tensor, nn

from graftwork.checkpoint.closing import Closing
from graftwork.delta.weights import Stateful
from graftwork.errors import DeltaError
from graftwork.store.skill_pack.file import REMEDY, PackFile, write_pack
from graftwork.store.skill_pack.forms import PIECES
from graftwork.store.skill_pack.low_rank import LowRank
from graftwork.store.skill_pack.manifest import Manifest, TensorRow, parse_manifest
from graftwork.store.skill_pack.pieces import Piece, dense
from graftwork.store.skill_pack.plan import CompressionPlan
from graftwork.store.skill_pack.report import SPECTRUM_AT, PackSummary, TensorSummary
from graftwork.store.skill_pack.roles import role_of

if TYPE_CHECKING:
    from graftwork.delta.pipeline import Progress

__all__ = ["SkillPack"]

Quantizer = Literal["rtn", "mse", "gptq"]


class SkillPack(Closing):
    """The changes of a fine-tune in a compressed form: made by `build`, `open` or `distill_scales`.

    Attributes
    ----------
    tensors : mapping of str to TensorRow
        What is stored, by the name in the base: codec, shape, dtype, digest of the base's tensor, error.
    unchanged : sequence of str
        Names that are equal in base and fine-tune.
    left_out : mapping of str to str
        Names that changed and are not stored, with the reason (integers have no difference to scale).
    base_digest : str
        Digest of all tensors of the base.
    digest : str
        Identity of the pack: SHA-256 of its manifest, which has the digests of all fields.

    Examples
    --------
    >>> import torch
    >>> from graftwork.store import SkillPack, mount
    >>> from graftwork.store.skill_pack import CompressionPlan, Quantize
    >>> base = {"w": torch.zeros(2, 8)}
    >>> tuned = {"w": torch.tensor([[1.0] * 8, [-2.0] * 8])}
    >>> pack = SkillPack.build(tuned, base, CompressionPlan({"": Quantize(bits=1, block=0)}))
    >>> pack.save("skill.safetensors")
    >>> with SkillPack.open("skill.safetensors") as pack, mount(base, [(pack, 0.5)]):
    ...     base["w"][:, 0].tolist()
    [0.5, -1.0]
    >>> base["w"].any().item()
    False
    """

    def __init__(self, manifest: Manifest, pieces: Mapping[str, Piece], file: PackFile | None = None) -> None:
        self._manifest = manifest
        self._pieces = dict(pieces)
        self._file = file
        self.tensors: Mapping[str, TensorRow] = manifest.tensors
        self.unchanged = manifest.unchanged
        self.left_out = manifest.left_out
        self.base_digest = manifest.base
        self.recipe = manifest.recipe

    @classmethod
    def build(
        cls,
        tuned: Stateful,
        base: Stateful,
        plan: CompressionPlan | Literal["auto"] = "auto",
        *,
        bpw: float | None = None,
        calibration: Sequence[Any] | None = None,
        model: nn.Module | None = None,
        quantizer: Quantizer = "mse",
        only: Collection[str] | None = None,
        seed: int = 0,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> SkillPack:
        """Compress what ``tuned`` changed of ``base``.

        Parameters
        ----------
        tuned, base : mapping of str to Tensor, Module, path or Checkpoint
            Of the same names and shapes. Read tensor by tensor; nothing of them is changed.
        plan : CompressionPlan or "auto"
            "auto" tries several codecs for each tensor (a quantiser on a sample of its rows) and takes those of least
            squared error in the budget; it is never worse than one codec for all tensors in the same budget.
        bpw : float, optional
            With "auto": bits a weight, over all tensors that changed. 1 by default.
        calibration : sequence of batches, optional
            With "gptq": inputs for the model. A mapping gives keyword arguments, a tuple or list positional ones.
        model : Module, optional
            What runs on the batches; by default ``base`` or ``tuned``, if one of them is a Module. It is copied.
        quantizer : "rtn", "mse" or "gptq"
            Round to nearest with the scales of the scheme; with scales of least squared error; or the second moments of
            each linear layer's inputs decide, layer after layer, with all layers before it as the pack restores them.
        only : collection of str, optional
            Names of the tensors to look at.
        seed : int
            Of the random projections of SVDs.
        threads, progress : optional
            For the digests of the base.

        Returns
        -------
        SkillPack
            In memory. Deterministic but for the last bits of SVD and GPTQ, which depend on BLAS.

        Raises
        ------
        CheckpointError
            Names or shapes differ, or a change is not finite.
        RecipeError
            No rule of the plan is for a tensor, or the budget is too small for what must be kept.
        DataError
            "gptq" has no batches or no model.
        """
        from graftwork.store.skill_pack.build import build_pack

        return build_pack(
            tuned,
            base,
            plan,
            bpw=bpw,
            calibration=calibration,
            model=model,
            quantizer=quantizer,
            only=only,
            seed=seed,
            threads=threads,
            progress=progress,
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a pack's file: header, seal and manifest are checked, and each tensor when it is first used.

        Raises
        ------
        DeltaError, CheckpointError
            The file is malformed, damaged, or of another kind.
        """
        file = PackFile(path)
        try:
            manifest = parse_manifest(file.manifest, file.version, file.path)
            wanted = {
                f"{row.name}::{name}": form
                for row in manifest.tensors.values()
                for name, form in row.forms().items()
            }
            if wanted != file.forms:
                other = sorted(
                    name
                    for name in wanted.keys() | file.forms.keys()
                    if wanted.get(name) != file.forms.get(name)
                )
                raise DeltaError(
                    "the fields are not those of the manifest", file=file.path, got=other[:8], remedy=REMEDY
                )
        except BaseException:
            file.close()
            raise
        return cls(manifest, {}, file)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the pack as one file, all at once.

        Raises
        ------
        TargetExists
            There is a file already, and not ``overwrite``.
        """
        fields = {
            f"{name}::{field}": tensor.cpu()
            for name in self.tensors
            for field, tensor in self.piece(name).fields().items()
        }
        write_pack(path, self._manifest.to_json(), fields, overwrite=overwrite)

    def piece(self, name: str) -> Piece:
        """The stored form of a tensor's change; that of a file is memory-mapped.

        Raises
        ------
        KeyError
            The pack does not change such a tensor.
        ChecksumError
            The file is damaged.
        """
        row = self.tensors[name]
        if name not in self._pieces and self._file is not None:
            fields = self._file.fields(name, row.forms(), row.digest)
            try:
                self._pieces[name] = PIECES[row.codec].read(row.facts, row.outline, fields)
            except (ValueError, TypeError, KeyError) as error:
                raise DeltaError(
                    f"a tensor's fields are malformed: {error}",
                    file=self._file.path,
                    tensor=name,
                    remedy=REMEDY,
                ) from error
        return self._pieces[name]

    def delta(self, name: str) -> Tensor:
        """The change of a tensor as the pack restores it, float32 of the tensor's shape."""
        row = self.tensors[name]
        return dense(self.piece(name)).mul_(row.scale).view(row.shape)

    def with_rows(self, rows: Mapping[str, TensorRow], recipe: Mapping[str, Any]) -> SkillPack:
        """The same stored forms with other rows of the manifest, and more in the recipe."""
        tensors = {**self.tensors, **rows}
        manifest = replace(self._manifest, tensors=tensors, recipe={**self.recipe, **recipe})
        return SkillPack(manifest, {name: self.piece(name) for name in self.tensors})

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self._manifest.to_json().encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all fields; a file has its header besides."""
        return sum(row.nbytes for row in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of all fields for each weight of the tensors that changed."""
        weights = sum(row.outline.numel for row in self.tensors.values())
        return 8 * self.nbytes / weights if weights else 0.0

    def verify(self) -> None:
        """Read all of the file, and check it.

        Raises
        ------
        ChecksumError, DeltaError
            Something is damaged.
        """
        for name in self.tensors:
            self.piece(name)

    def report(self) -> PackSummary:
        """Codec, size, error and spectrum of each tensor."""
        rows = tuple(self._summaries())
        errors = [row.error for row in self.tensors.values()]
        return PackSummary(
            rows,
            tuple(self.unchanged),
            dict(self.left_out),
            self.nbytes,
            sum(row.outline.numel for row in self.tensors.values()),
            sum(error.squared for error in errors),
            sum(error.energy for error in errors),
        )

    def _summaries(self) -> Iterator[TensorSummary]:
        for name, row in self.tensors.items():
            piece, weights, error = self.piece(name), row.outline.numel, row.error
            spectrum = None
            if isinstance(piece, LowRank) and error.energy:
                energies = piece.energies().cumsum(0) / error.energy
                spectrum = {at: float(energies[at - 1]) for at in SPECTRUM_AT if at <= len(energies)}
            yield TensorSummary(
                name,
                role_of(name, row.shape),
                piece.words(),
                row.shape,
                row.nbytes,
                8 * row.nbytes / weights if weights else 0.0,
                error.rel_l2,
                error.max_abs,
                spectrum,
            )

    def close(self) -> None:
        """Close the file; what has been read of it stays valid."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"SkillPack({len(self)} tensors, {self.bits_per_weight:.3f} bits a weight)"
