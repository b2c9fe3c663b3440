"""The files beside the weights: the keeper's, fitted to what the output is."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from graftwork.checkpoint.foreign import PICKLE_SUFFIXES
from graftwork.checkpoint.paths import suffix_of
from graftwork.compose.lineage import FILE
from graftwork.compose.plan import MergePlan
from graftwork.delta.residual import RESIDUAL

__all__ = ["companion_files", "copied_files"]

_WEIGHTS = (*PICKLE_SUFFIXES, ".safetensors", ".onnx", ".h5", ".msgpack", ".gguf", ".tflite", ".ot")
_OWN = (FILE, RESIDUAL, "README.md", ".gitattributes", "mergekit_config.yml")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def copied_files(plan: MergePlan) -> tuple[list[str], list[str]]:
    """The keeper's files that the output takes as they are, and those that it leaves out: other weights, its card."""
    taken: list[str] = []
    left: list[str] = []
    for file in plan.keeper.model.other_files:
        weights = suffix_of(file) in _WEIGHTS or file.endswith(".index.json")
        (left if weights or file in _OWN else taken).append(file)
    return taken, left


def companion_files(plan: MergePlan) -> dict[str, bytes]:
    """The files that are not copied as they are: the configuration and the tokenizer, where they change."""
    replaced = dict(plan.vocabulary.files)
    config = plan.keeper.config
    if config is not None:
        changed = _config(plan, config)
        if changed != config:
            replaced["config.json"] = _json(changed)
    taken, _ = copied_files(plan)
    files = {name: data for name, data in replaced.items() if data is not None}
    for name in taken:
        if name not in replaced:
            files[name] = b"".join(bytes(piece) for piece in plan.keeper.model.file_pieces(name))
    return files


def _config(plan: MergePlan, config: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for patch in plan.layout.patches:
        changed = patch(changed)
    for key, value in plan.vocabulary.config.items():
        changed[key] = changed[key] | value if isinstance(value, dict) else value
    written = _written_dtype(plan)
    for inner in (changed, changed.get("text_config")):
        for key in ("dtype", "torch_dtype"):
            if isinstance(inner, dict) and isinstance(inner.get(key), str) and written is not None:
                inner[key] = written
    return changed


def _written_dtype(plan: MergePlan) -> str | None:
    """The float dtype of most of the output's weights."""
    counts: dict[str, int] = {}
    for row in plan.tensors.values():
        if row.form.code in _DTYPES:
            counts[row.form.code] = counts.get(row.form.code, 0) + row.form.nbytes
    return _DTYPES[max(counts, key=lambda code: counts[code])] if counts else None


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
