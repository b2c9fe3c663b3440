"""What changed between two checkpoints, tensor by tensor, and how much of it survives a narrower dtype."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import add
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from graftwork.checkpoint import Checkpoint
from graftwork.checkpoint.dtypes import DTYPES
from graftwork.delta.basis import Basis, BasisReader, find_basis
from graftwork.delta.pipeline import Progress, Scratch, default_threads, ordered_map
from graftwork.store.stored import Readable, check_store_base, open_readable, source_of
from graftwork.store.update_stats import Survival, UpdateStats

if TYPE_CHECKING:
    import torch

    from graftwork.checkpoint import TensorInfo
    from graftwork.ops.lossless_delta import UpdateSurvival as SurvivalSums

__all__ = ["CheckpointDiff", "FileDiff", "Survival", "TensorDiff", "UpdateStats", "diff"]

CHUNK_BYTES = 2 << 20
_SURVIVING = ("F16", "BF16", "F32", "F64", "C64")
_INDEX = ".safetensors.index.json"

Fact = Literal["same", "changed", "only in base", "only in tuned", "dtype differs", "shape differs"]


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor of either checkpoint.

    ``stats`` covers the elements that have a basis in the base (`graftwork.delta.basis`): all of them; the
    first rows where only the number of rows differs (a grown vocabulary); none (None) where other dimensions
    differ or a side is absent. Where the float dtypes differ, the base is cast to the fine-tune's.
    """

    name: str
    fact: Fact
    base_dtype: str | None
    tuned_dtype: str | None
    base_shape: tuple[int, ...] | None
    tuned_shape: tuple[int, ...] | None
    tuned_bytes: int
    entropy_bytes: int
    stats: UpdateStats | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "stats"}
        return {**plain, "stats": self.stats and self.stats.to_dict()}


@dataclass(frozen=True, slots=True)
class FileDiff:
    """A file beside the tensors that differs: SHA-256 on either side, None where it is absent."""

    name: str
    base_digest: str | None
    tuned_digest: str | None

    def to_dict(self) -> dict[str, str | None]:
        """JSON-able."""
        return {"name": self.name, "base_digest": self.base_digest, "tuned_digest": self.tuned_digest}


@dataclass(frozen=True, slots=True)
class CheckpointDiff:
    """The outcome of `diff`.

    ``tensors`` come in the fine-tune's order, then those that only the base has. ``total`` adds their stats
    up; integer tensors count in its counts and its entropy, not in its norms. ``layout`` says how the
    containers differ (shards, headers, indices) although that changes no tensor. ``base_tied`` and
    ``tuned_tied`` map the name of a tensor that is not stored to the one it is tied to.
    """

    base: str
    tuned: str
    tensors: tuple[TensorDiff, ...]
    total: UpdateStats
    files: tuple[FileDiff, ...]
    layout: tuple[str, ...]
    base_tied: Mapping[str, str]
    tuned_tied: Mapping[str, str]

    @property
    def identical(self) -> bool:
        """Whether every tensor is equal bit for bit and every other file byte for byte, layout aside."""
        return all(t.fact == "same" for t in self.tensors) and not self.files

    @property
    def tuned_bytes(self) -> int:
        """Bytes of the fine-tune's tensors."""
        return sum(t.tuned_bytes for t in self.tensors)

    @property
    def entropy_bytes(self) -> int:
        """Entropy of the update in bytes (see `UpdateStats`); elements without a counterpart count raw."""
        return sum(t.entropy_bytes for t in self.tensors)

    def count(self, fact: Fact) -> int:
        """How many tensors ``fact`` holds for."""
        return sum(t.fact == fact for t in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; every number is finite, and None stands for what is undefined."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "identical": self.identical,
            "tuned_bytes": self.tuned_bytes,
            "entropy_bytes": self.entropy_bytes,
            "total": self.total.to_dict(),
            "tensors": [t.to_dict() for t in self.tensors],
            "files": [f.to_dict() for f in self.files],
            "layout": list(self.layout),
            "base_tied": dict(self.base_tied),
            "tuned_tied": dict(self.tuned_tied),
        }


def diff(
    a: str | PathLike[str] | Checkpoint,
    b: str | PathLike[str] | Checkpoint,
    *,
    store_base: str | PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CheckpointDiff:
    """Compare a fine-tune with its base, reading both once in pieces of a few MiB.

    Parameters
    ----------
    a, b : path or Checkpoint
        The base and the fine-tune: a folder of safetensors files, one such file, or ``STORE:NAME``, an entry of
        a store (unless a file or folder has just that name).
    store_base : path, optional
        The folder of the base that the entries of such a store are differences to, unless it holds that.
    threads : int, optional
        Threads that read and compare; all processors by default. The result does not depend on it.
    progress : callable, optional
        ``progress(stage, done_bytes, total_bytes)``, called as work advances.

    Returns
    -------
    CheckpointDiff
        Facts and measures, per tensor and in total; ``.identical`` is the verdict.

    Raises
    ------
    CheckpointError, StoreError
        A checkpoint is malformed, or a store has no such entry.
    BaseRequired, BaseMismatch
        An entry's base is not at hand, or another one was given.
    SourceChanged
        A file changed while it was being read.
    """
    threads = threads or default_threads()
    check_store_base(store_base, a, b)
    with ExitStack() as stack:
        base, tuned = (
            stack.enter_context(open_readable(source, store_base, threads=threads, progress=progress))
            for source in (a, b)
        )
        tensors = tuple(_tensor_diffs(base, tuned, threads, progress))
        result = CheckpointDiff(
            base=str(base.path),
            tuned=str(tuned.path),
            tensors=tensors,
            total=reduce(add, map(_for_total, tensors), UpdateStats()),
            files=tuple(_file_diffs(base, tuned)),
            layout=tuple(_layout_differences(base, tuned)),
            base_tied=dict(base.tied),
            tuned_tied=dict(tuned.tied),
        )
        base.check_unchanged()
        tuned.check_unchanged()
    return result


class _Pair(NamedTuple):
    """A tensor's two sides, and the basis that the base's side is of the other."""

    name: str
    base: TensorInfo | None
    tuned: TensorInfo | None
    basis: Basis | None

    @property
    def compared(self) -> int:
        """Bytes of the fine-tune that can be compared."""
        return self.basis.nbytes if self.basis else 0

    @property
    def fact(self) -> Fact | None:
        """What holds whatever the values are; None if the values decide."""
        if self.base is None or self.tuned is None:
            return "only in tuned" if self.base is None else "only in base"
        if self.base.dtype != self.tuned.dtype:
            return "dtype differs"
        return "shape differs" if self.base.shape != self.tuned.shape else None


def _pairs(base: Readable, tuned: Readable) -> Iterator[_Pair]:
    for name in dict.fromkeys((*tuned.tensors, *base.tensors)):
        a, b = base.tensors.get(name), tuned.tensors.get(name)
        yield _Pair(name, a, b, find_basis(b, a, "") if b else None)


def _word(code: str) -> str:
    """Name of the torch dtype that a safetensors dtype's words are read as.

    A complex number is two floats; dtypes below one byte and bare exponents are compared as bytes.
    """
    dtype = DTYPES[code]
    name = dtype.torch_name or ""
    if (dtype.kind == "integer" and "float" in name) or not name:
        name = "uint8"
    elif dtype.bits > 8 * dtype.word_bytes:
        name = f"float{8 * dtype.word_bytes}"
    return name


def _ranges(pair: _Pair) -> Iterator[tuple[int, int]]:
    """``(offset, length)`` in bytes of every piece to compare; pieces hold whole words."""
    for offset in range(0, pair.compared, CHUNK_BYTES):
        yield offset, min(CHUNK_BYTES, pair.compared - offset)


def _tensor_diffs(
    base: Readable, tuned: Readable, threads: int, progress: Progress | None
) -> Iterator[TensorDiff]:
    from graftwork.ops.lossless_delta import conditional_entropy_bits

    pairs = list(_pairs(base, tuned))
    total = sum(length for pair in pairs for _, length in _ranges(pair))
    scratch, reader = Scratch(), BasisReader(source_of(base))

    def compare(job: tuple[str, Basis | None, int, int]) -> tuple[UpdateStats, torch.Tensor]:
        name, basis, offset, length = job
        info, right = tuned.tensors[name], scratch.buffer("tuned", length)
        tuned.read_into(info, offset, right)
        return _compare(reader.read(basis, info.dtype, offset, length), right, info.dtype)

    jobs = ((pair.name, pair.basis, offset, length) for pair in pairs for offset, length in _ranges(pair))
    results = ordered_map(compare, jobs, threads=threads)
    done = 0
    for pair in pairs:
        stats, histogram = UpdateStats(), None
        for _, length in _ranges(pair):
            part, counts = next(results)
            stats += part
            histogram = counts if histogram is None else histogram.add_(counts)
            done += length
            if progress:
                progress("diff", done, total)
        bits = 0.0 if histogram is None else conditional_entropy_bits(histogram)
        yield _tensor_diff(pair, replace(stats, entropy_bits=bits), base.tied, tuned.tied)


def _compare(left: memoryview, right: memoryview, code: str) -> tuple[UpdateStats, torch.Tensor]:
    """Stats and class histogram of one piece of two tensors."""
    import torch

    from graftwork.ops.lossless_delta import delta_stats, update_survival

    dtype = getattr(torch, _word(code))
    base, tuned = torch.frombuffer(left, dtype=dtype), torch.frombuffer(right, dtype=dtype)
    found = delta_stats(base, tuned)
    stats = UpdateStats(base.numel(), *found.counts.tolist(), *found.sums.tolist())
    if code in _SURVIVING:
        bf16, fp16 = (update_survival(base, tuned, saved) for saved in (torch.bfloat16, torch.float16))
        stats = replace(stats, bf16=_survival(bf16), fp16=_survival(fp16))
    return stats, found.histogram


def _survival(measured: SurvivalSums) -> Survival:
    return Survival(*measured.counts.tolist(), *measured.sums.tolist())


def _tensor_diff(
    pair: _Pair, stats: UpdateStats, base_tied: Mapping[str, str], tuned_tied: Mapping[str, str]
) -> TensorDiff:
    base, tuned = pair.base, pair.tuned
    fact: Fact = pair.fact or ("changed" if stats.changed else "same")
    note = ""
    if pair.basis and base and tuned and fact != "changed":
        notes = [f"the base cast from {base.dtype} to {tuned.dtype}"] if base.dtype != tuned.dtype else []
        if base.shape != tuned.shape:
            rows = base.shape[0], tuned.shape[0]
            notes.append(f"{rows[0]} → {rows[1]} rows, the first {min(rows)} compared")
        note = "; ".join(notes)
    elif fact == "only in tuned" and pair.name in base_tied:
        note = f"not in the base, where it is tied to {base_tied[pair.name]!r}"
    elif fact == "only in base" and pair.name in tuned_tied:
        note = f"not in the fine-tune, where it is tied to {tuned_tied[pair.name]!r}"
    tuned_bytes = tuned.nbytes if tuned else 0
    return TensorDiff(
        name=pair.name,
        fact=fact,
        base_dtype=base.dtype if base else None,
        tuned_dtype=tuned.dtype if tuned else None,
        base_shape=tuple(base.shape) if base else None,
        tuned_shape=tuple(tuned.shape) if tuned else None,
        tuned_bytes=tuned_bytes,
        entropy_bytes=math.ceil(stats.entropy_bits / 8) + tuned_bytes - pair.compared,
        stats=stats if pair.compared or pair.fact is None else None,
        note=note,
    )


def _for_total(tensor: TensorDiff) -> UpdateStats:
    """The stats that a tensor adds to the total: the norms of integers say nothing about weights."""
    stats = tensor.stats or UpdateStats()
    if tensor.tuned_dtype is None or DTYPES[tensor.tuned_dtype].kind == "float":
        return stats
    return replace(stats, update_square=0.0, base_square=0.0, tuned_square=0.0, max_update=0.0)


def _file_diffs(base: Readable, tuned: Readable) -> Iterator[FileDiff]:
    for name in sorted({*base.other_files, *tuned.other_files}):
        if not name.endswith(_INDEX):
            left, right = _file_digest(base, name), _file_digest(tuned, name)
            if left != right:
                yield FileDiff(name, left, right)


def _file_digest(checkpoint: Readable, name: str) -> str | None:
    if name not in checkpoint.other_files:
        return None
    digest = hashlib.sha256()
    for piece in checkpoint.file_pieces(name):
        digest.update(piece)
    return digest.hexdigest()


def _layout_differences(base: Readable, tuned: Readable) -> Iterator[str]:
    """Containers may differ and hold the same tensors: one sentence for each way they do."""
    if set(base.headers) != set(tuned.headers):
        yield f"other tensor files: {len(base.headers)} in the base, {len(tuned.headers)} in the fine-tune"
    for name in sorted(set(base.headers) & set(tuned.headers)):
        left, right = base.headers[name], tuned.headers[name]
        if left.metadata != right.metadata:
            yield f"{name}: the header's metadata differ"
        elif left.raw != right.raw:
            yield f"{name}: the headers differ (tensors, their order, or padding)"
    for name in sorted({n for c in (base, tuned) for n in c.other_files if n.endswith(_INDEX)}):
        if _file_digest(base, name) != _file_digest(tuned, name):
            yield f"{name}: the indices differ"
