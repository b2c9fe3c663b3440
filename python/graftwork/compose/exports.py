"""A merge as a LoRA of given rank or as an entry of a store; and a model with a LoRA as a dense checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.checkpoint import Checkpoint
from graftwork.checkpoint.dtypes import torch_dtype
from graftwork.checkpoint.folder import SUFFIX
from graftwork.checkpoint.writer import Planned, stream_checkpoint
from graftwork.compose.lora import LoraDonor
from graftwork.compose.lora_export import to_lora
from graftwork.compose.lora_rows import LoraExport, LoraRow
from graftwork.compose.tokenizer_files import TOKENIZER_FILES, folder_file
from graftwork.delta.survival import SurvivalReport
from graftwork.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from graftwork.store import PackResult

__all__ = ["LoraExport", "LoraRow", "to_dense", "to_lora", "to_store"]

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_FLOATS = (*_CODES.values(),)


def to_store(
    merged: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str],
    name: str | None = None,
    **options: Any,
) -> PackResult:
    """Pack a merged checkpoint into a store, as a lossless difference to its base; see `graftwork.store.pack`.

    ``name`` is the entry's (default: the folder's); ``options`` are those of ``pack``.
    """
    from graftwork.store import pack

    return pack(base, merged if name is None else {name: merged}, out=store, **options)


def to_dense(
    donor: LoraDonor,
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
) -> SurvivalReport:
    """Write a model with an adapter on it as a checkpoint of its own, and say what of the adapter survived that.

    Parameters
    ----------
    donor : LoraDonor
    out : path
        The new folder.
    dtype : "float32", "bfloat16" or "float16", optional
        Of all float tensors; default: each tensor's in the model. Sums are in fp32 and are rounded once.
    max_shard_bytes : int, optional
        As in `graftwork.checkpoint.write_checkpoint`.

    Returns
    -------
    SurvivalReport
        For every tensor that the adapter changes and that the model has in the same shape.
    """
    if dtype is not None and dtype not in _CODES:
        raise ValueError(f"dtype must be one of {', '.join(_CODES)}, got {dtype!r}")
    plan = {
        name: Planned(_code(donor, name, dtype), tuple(donor.metas[name].shape))
        for name in donor.metas
        if name not in donor.tied
    }
    report = SurvivalReport()

    def make(name: str) -> Tensor:
        exact, wanted = donor.tensor(name), torch_dtype(plan[name].code)
        if wanted is None:
            raise CheckpointError("torch has no tensor of this type", tensor=name, got=plan[name].code)
        if name in donor.changed and name not in donor.added and plan[name].code in _FLOATS:
            before = donor.model.tensor(name)
            if before.shape == exact.shape and before.is_floating_point():
                report.record(name, before, exact.float(), wanted)
        return exact.to(wanted)

    stream_checkpoint(
        out,
        plan,
        make,
        config=_config(donor, dtype),
        max_shard_bytes=max_shard_bytes,
        other_files=_other_files(donor.model, donor.vocabulary_folder),
    )
    donor.model.check_unchanged()
    return report


def _code(donor: LoraDonor, name: str, dtype: str | None) -> str:
    own = donor.metas[name].dtype
    held = donor.model.tensors.get(donor.model.tied.get(name, name))
    if own not in _FLOATS:
        return own
    if dtype is not None:
        return _CODES[dtype]
    return held.dtype if held is not None and held.dtype in _FLOATS else own


def _config(donor: LoraDonor, dtype: str | None) -> dict[str, Any] | None:
    if donor.model.config is None:
        return None
    config = dict(donor.model.config)
    for key in ("dtype", "torch_dtype") if dtype is not None else ():
        if key in config:
            config[key] = dtype
    if donor.untied:
        config["tie_word_embeddings"] = False
    rows = {
        donor.metas[name].shape[0]
        for name in donor.changed
        if name in donor.model.tensors and _has_grown(donor, name)
    }
    if len(rows) == 1 and "vocab_size" in config:
        config["vocab_size"] = rows.pop()
    return config


def _has_grown(donor: LoraDonor, name: str) -> bool:
    """Whether the adapter holds a table with other rows than the model's."""
    before, after = tuple(donor.model.tensors[name].shape), tuple(donor.metas[name].shape)
    return len(before) == len(after) == 2 and before[1:] == after[1:] and before != after


def _other_files(
    model: Checkpoint, vocabulary: Path
) -> dict[str, bytes | Callable[[], Iterable[bytes | memoryview]]]:
    """The model's files that are no weights; the tokenizer's are the adapter's, if it has them."""
    files: dict[str, bytes | Callable[[], Iterable[bytes | memoryview]]] = {
        name: partial(model.file_pieces, name)
        for name in model.other_files
        if name != "config.json" and not name.endswith(f"{SUFFIX}.index.json")
    }
    if vocabulary != model.root:
        files = {name: data for name, data in files.items() if name not in TOKENIZER_FILES}
        own = {name: folder_file(vocabulary, name) for name in TOKENIZER_FILES}
        files |= {name: data for name, data in own.items() if data is not None}
    return files
