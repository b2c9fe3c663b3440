"""Residuals: what rounding took from a result, kept beside it, so that result and residual are the exact fp32 result.

A residual is a sealed delta file. Each of its tensors is an exact fp32 result whose basis is the tensor that was written
(bf16 or fp16, which widen to fp32 exactly), so it holds the ordinal differences between the two: below 2^17 for bf16, about
two bytes a weight. Digests of both sides tell a wrong or damaged partner. ``docs/merge-forms.md`` specifies the file.

In a folder it stands at `RESIDUAL`, one level down, because loaders take every safetensors file at the top for a part of
the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from graftwork.checkpoint import Checkpoint, open_checkpoint
from graftwork.checkpoint.closing import Closing
from graftwork.checkpoint.digest import bytes_digest, tree_digest
from graftwork.checkpoint.dtypes import code_of, torch_dtype
from graftwork.checkpoint.files import AtomicFile
from graftwork.checkpoint.source import ReadableFile
from graftwork.checkpoint.writer import Planned, stream_checkpoint
from graftwork.delta.basis import Basis, BasisReader
from graftwork.delta.container import DeltaFile, DeltaWriter
from graftwork.delta.encoder import ChunkEncoder, ChunkJob, codec_of
from graftwork.delta.manifest import TensorRecord, check_format
from graftwork.delta.pipeline import default_threads, ordered_map
from graftwork.delta.seal import check_spelling, read_sealed, seal_metadata
from graftwork.delta.source import CheckpointSource, TensorSource, leaf_ranges
from graftwork.delta.weights import StateSource
from graftwork.errors import BaseMismatch, CheckpointError, DeltaError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["RESIDUAL", "ResidualFile", "ResidualWriter", "add_residual"]

RESIDUAL = "residual/residual.safetensors"
"""Where the residual stands in the folder of the weights that it belongs to."""

FORMAT = "graftwork-residual"
VERSION = (1, 0)
WRITTEN = ("BF16", "F16")
"""Dtype codes of written tensors that can have a residual."""

_DOMAIN, _KIND = b"graftwork-residual-1", "residual"
_SAID = {"format": FORMAT, "min_reader": list(VERSION), "version": list(VERSION)}
_TEXT = json.dumps(_SAID, sort_keys=True, separators=(",", ":"))
_ROOM = 1024
_REMEDY = "the file is damaged: restore it from a copy, or write the weights again"
_REMEDIES = ("read other delta files through a store", _REMEDY)
_OTHER_WEIGHTS = "give the weights that the residual was written with, unchanged"


class ResidualWriter:
    """Writes the residual of weights while these are written; use it as a context manager.

    Parameters
    ----------
    path : path
        The file; its folder exists. It appears whole when the block is left, and not at all after an exception.
    names : iterable of str
        The tensors that may be added.
    threads : int, optional
        Worker threads; the bytes do not depend on it.
    """

    def __init__(
        self, path: str | os.PathLike[str], names: Iterable[str], *, threads: int | None = None
    ) -> None:
        self._names = set(names)
        self._threads = threads or default_threads()
        self._atomic = AtomicFile(path)
        self._writer: DeltaWriter | None = None

    def __enter__(self) -> Self:
        file = self._atomic.__enter__()
        try:
            self._writer = DeltaWriter(file, None, sorted(self._names), metadata_bytes=_ROOM)
        except BaseException as failure:
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._writer is not None:
            try:
                self._writer.finish(lambda manifest: seal_metadata(_DOMAIN, _KIND, _TEXT, manifest))
            except BaseException as failure:
                self._atomic.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._atomic.__exit__(kind, error, trace)

    def add(self, name: str, written: Tensor, exact: Tensor) -> None:
        """Keep the difference between a tensor as it is written (bf16, fp16) and its exact result (fp32).

        Any bit patterns come back, NaN and infinities too. The bytes of the file depend on the order of calls.
        """
        if self._writer is None:
            raise ValueError("a residual is written in a `with` block")
        code = self._check(name, written, exact)
        base, tuned = StateSource({name: written}), StateSource({name: exact.contiguous()})
        basis = Basis(name, _digest(base, name), code, exact.nbytes)
        encode = ChunkEncoder(BasisReader(base), tuned)
        nbytes = tuned.metas[name].nbytes
        jobs = (ChunkJob(name, "F32", offset, length, basis, None) for offset, length in leaf_ranges(nbytes))
        chunks = []
        for chunk, parts in ordered_map(
            encode, jobs, threads=self._threads if nbytes else 1, weigh=attrgetter("length")
        ):
            self._writer.write_payload(parts)
            chunks.append(chunk)
        digest = tree_digest(nbytes, [chunk.leaf for chunk in chunks])
        record = TensorRecord(name, "F32", tuple(exact.shape), nbytes, digest, codec_of(chunks), basis)
        self._writer.finish_tensor(record, chunks)

    def _check(self, name: str, written: Tensor, exact: Tensor) -> str:
        import torch

        if name not in self._names:
            raise ValueError(f"{name!r} was not announced, or is added twice")
        code = code_of(written.dtype)
        if code not in WRITTEN or exact.dtype != torch.float32 or written.shape != exact.shape:
            raise DeltaError(
                "a tensor can have no residual",
                tensor=name,
                got=f"written {written.dtype} {list(written.shape)}, exact {exact.dtype} {list(exact.shape)}",
                wanted="written bfloat16 or float16, exact float32, of one shape",
            )
        self._names.remove(name)
        return str(code)


def _digest(source: StateSource, name: str) -> str:
    nbytes = source.metas[name].nbytes
    view = source.view(name, 0, nbytes)
    if view is None:
        view = memoryview(bytearray(nbytes))
        source.read_into(name, 0, view)
    return bytes_digest(view)


class ResidualFile(Closing):
    """A residual, open for reading; a context manager. ``records`` are its tensors: the exact results, by name.

    Raises
    ------
    DeltaError, ChecksumError, VersionTooNew
        The file is none of a residual, damaged, or of a newer version.
    """

    def __init__(self, path: str | os.PathLike[str] | ReadableFile) -> None:
        self._file = DeltaFile(Path(path) if isinstance(path, str | os.PathLike) else path)
        try:
            said = read_sealed(self._file, _DOMAIN, _KIND, what="a residual", remedies=_REMEDIES)
            self._check(said)
        except BaseException:
            self._file.close()
            raise

    def _check(self, said: str) -> None:
        try:
            content = json.loads(said)
            check_format(content, FORMAT, VERSION, self._file.path)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, DeltaError):
                raise
            raise DeltaError(
                f"what the residual says of itself is malformed: {error!r}",
                file=self._file.path,
                remedy=_REMEDY,
            ) from error
        check_spelling(self._file, _KIND, remedy=_REMEDY)
        for record in self._file.records.values():
            basis = record.basis
            fits = record.dtype == "F32" and basis is not None and basis.dtype in WRITTEN
            if not fits or basis is None or (basis.name, basis.nbytes) != (record.name, record.nbytes):
                raise DeltaError(
                    "a tensor of a residual is not an exact result beside a written one",
                    file=self._file.path,
                    tensor=record.name,
                    remedy=_REMEDY,
                )

    @property
    def records(self) -> Mapping[str, TensorRecord]:
        """The exact results that can be had, by name."""
        return self._file.records

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._file.size

    def tensor(self, name: str, written: TensorSource, *, threads: int | None = None) -> Tensor:
        """The exact fp32 result, restored from the written tensor and checked against its digest.

        Raises
        ------
        BaseMismatch
            ``written`` has no such tensor, or one of another dtype or shape.
        ChecksumError
            The file is damaged, or the written tensor is not the one that the residual is for.
        """
        import torch

        record, meta = self._file.records[name], written.metas.get(name)
        basis = record.basis
        found = None if meta is None else (meta.dtype, tuple(meta.shape))
        if basis is None or found != (basis.dtype, record.shape):
            raise BaseMismatch(
                "the weights are not those that the residual belongs to",
                file=self._file.path,
                tensor=name,
                got="no such tensor" if meta is None else f"{meta.dtype} {list(meta.shape)}",
                wanted=f"{basis.dtype if basis else '?'} {list(record.shape)}",
                remedy=_OTHER_WEIGHTS,
            )
        data = torch.empty(record.nbytes, dtype=torch.uint8)
        whole, reader = data.numpy().data, BasisReader(written)
        pieces = list(leaf_ranges(record.nbytes))

        def restore(number: int) -> None:
            offset, length = pieces[number]
            self._file.read_chunk(name, number, reader, whole[offset : offset + length])

        workers = min(threads or default_threads(), len(pieces))
        for _ in ordered_map(restore, range(len(pieces)), threads=workers):
            pass
        return data.view(torch.float32).view(record.shape)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def add_residual(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    threads: int | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write the exact result as a checkpoint of its own: the weights in ``folder`` with the residual that they have.

    Parameters
    ----------
    folder : path
        A checkpoint with a residual at `RESIDUAL`.
    out : path
        The new folder; every file that is no weight is copied, the residual is not.
    dtype : "float32", "bfloat16" or "float16"
        ``float32`` gives the exact result, other float tensors widened; the others round it once, to nearest even, and
        leave tensors without a residual as they are.
    threads, max_shard_bytes : optional
        As in `graftwork.checkpoint.write_checkpoint`.

    Raises
    ------
    CheckpointError, DeltaError, BaseMismatch, ChecksumError
        The folder has no residual, or one that does not belong to its weights.
    TargetExists
        Something stands at ``out``.
    """
    wanted = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}.get(dtype)
    if wanted is None:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    with open_checkpoint(folder) as checkpoint:
        if RESIDUAL not in checkpoint.other_files:
            raise CheckpointError(
                "the folder holds no residual",
                file=checkpoint.path,
                wanted=RESIDUAL,
                remedy="write the weights with preserve: residual",
            )
        with ResidualFile(checkpoint.root / RESIDUAL) as residual:
            _check_complete(residual, checkpoint)
            source = CheckpointSource(checkpoint)
            plan = {
                name: Planned(_target(info.dtype, name in residual.records, wanted), info.shape)
                for name, info in checkpoint.tensors.items()
            }

            def make(name: str) -> Tensor:
                exact = name in residual.records
                tensor = residual.tensor(name, source, threads=threads) if exact else checkpoint.tensor(name)
                return tensor if code_of(tensor.dtype) == plan[name].code else tensor.to(_dtype(plan[name]))

            stream_checkpoint(
                out,
                plan,
                make,
                config=_config(checkpoint, dtype),
                max_shard_bytes=max_shard_bytes,
                other_files=_other_files(checkpoint),
            )
        checkpoint.check_unchanged()


def _check_complete(residual: ResidualFile, checkpoint: Checkpoint) -> None:
    for name in residual.records:
        if name not in checkpoint.tensors:
            raise BaseMismatch(
                "the weights lack a tensor that the residual has",
                file=checkpoint.path,
                tensor=name,
                remedy=_OTHER_WEIGHTS,
            )


def _target(code: str, exact: bool, wanted: str) -> str:
    return wanted if exact or (wanted == "F32" and code in WRITTEN) else code


def _dtype(planned: Planned) -> torch.dtype:
    dtype = torch_dtype(planned.code)
    if dtype is None:
        raise CheckpointError("torch has no tensor of this type", got=planned.code)
    return dtype


def _config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any] | None:
    """The configuration, with the dtype that the weights have now where it says one."""
    if checkpoint.config is None:
        return None
    said = {key: dtype for key in ("dtype", "torch_dtype") if key in checkpoint.config}
    return checkpoint.config | said


def _other_files(checkpoint: Checkpoint) -> dict[str, bytes | Callable[[], Iterable[bytes | memoryview]]]:
    made_anew = ("config.json", RESIDUAL)
    names = [name for name in checkpoint.other_files if name not in made_anew]
    index = ".safetensors.index.json"
    return {
        name: partial(checkpoint.file_pieces, name)
        for name in names
        if "/" in name or not name.endswith(index)
    }
