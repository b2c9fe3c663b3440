"""The configuration of a rebased model: the fine-tune's, with what the new base changed and the fine-tune did not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwork.rebase.sides import Side

__all__ = ["merged_config"]

_ITS_OWN = ("_name_or_path", "transformers_version", "vocab_size", "architectures", "tie_word_embeddings")
_DTYPE = ("dtype", "torch_dtype")
_MISSING = object()


def merged_config(old: Side, tuned: Side, new: Side) -> tuple[dict[str, Any] | None, list[str]]:
    """The configuration for weights in the fine-tune's frame, and the keys that come from the new base.

    A key that the fine-tune has as the old base had it takes the new base's value: the weights of the new base were
    trained with it (a longer context, another rotary base). The dtype is the new base's, in which the result is written.
    """
    checkpoint = tuned.checkpoint
    if checkpoint is None or checkpoint.config is None:
        return None, []
    changed: list[str] = []
    config = dict(checkpoint.config)
    if old.config and new.config:
        config = _merged(old.config, config, new.config, "", changed)
    dtype = next((new.config[key] for key in _DTYPE if key in new.config), None)
    if dtype is not None:
        config |= {key: dtype for key in _DTYPE if key in config}
    return config, changed


def _merged(
    old: Mapping[str, Any], tuned: Mapping[str, Any], new: Mapping[str, Any], where: str, changed: list[str]
) -> dict[str, Any]:
    result = dict(tuned)
    for key in [*tuned, *(key for key in new if key not in tuned)]:
        a, b, c = (side.get(key, _MISSING) for side in (old, tuned, new))
        if key in _ITS_OWN or key in _DTYPE or a == c:
            continue
        if isinstance(a, dict) and isinstance(b, dict) and isinstance(c, dict):
            result[key] = _merged(a, b, c, f"{where}{key}.", changed)
        elif a == b:
            changed.append(where + key)
            if c is _MISSING:
                del result[key]
            else:
                result[key] = c
    return result
