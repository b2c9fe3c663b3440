"""Reading an adapter folder of peft as data: which modules it changes, by what factors, on what scale.

Only what can be added to weights exactly is read: LoRA and DoRA on linear, convolution and embedding modules, modules
saved in full, and biases. Anything else is an `AdapterError`, before a tensor is read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from graftwork.checkpoint import Checkpoint, open_checkpoint
from graftwork.checkpoint.closing import Closing
from graftwork.checkpoint.folder import read_config
from graftwork.checkpoint.foreign import CONVERT_PICKLE
from graftwork.checkpoint.paths import resolve_inside
from graftwork.errors import AdapterError

__all__ = ["Adapter", "Factors", "open_adapter"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?P<leaf>\.weight|\.bias)?"
)
_SAVED = re.compile(r"\.(?:modules_to_save(?:\.(?!weight$|bias$)[^.]+)?|base_layer)(?=\.)")
_REFUSED = {
    "layer_replication": "it repeats layers of the model",
    "trainable_token_indices": "it trains single rows of the embeddings",
    "target_parameters": "it changes parameters that are no weight of a module",
    "alora_invocation_tokens": "it is switched on by tokens of the input",
    "arrow_config": "it routes every token to other adapters",
}
"""Settings whose effect is not W + s·BA: why not."""

_KNOWN_SWITCHES = {"use_rslora", "use_dora"}
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin training that change the model's own weights, which the adapter then does not stand on."""


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of one module: names of its tensors in the adapter's file, its rank, and s of s·BA.

    ``bias`` is that of B, ``magnitude`` DoRA's vector.
    """

    module: str
    a: str
    b: str
    rank: int
    scale: float
    is_embedding: bool = False
    bias: str | None = None
    magnitude: str | None = None


class Adapter(Closing):
    """An adapter folder, open for reading; a context manager. Made by `open_adapter`.

    Attributes
    ----------
    path : Path
    config : dict
        ``adapter_config.json``, as data.
    factors : mapping of str to Factors
        By the path of the module in the model, without peft's prefix.
    full : mapping of str to str
        Tensors that stand in the adapter in full (``modules_to_save``, biases): their name in the model, and in the
        adapter's file.
    file : Checkpoint
        ``adapter_model.safetensors``.
    """

    def __init__(self, path: Path, config: dict[str, Any], file: Checkpoint) -> None:
        self.path = path
        self.config = config
        self.file = file
        _check_kind(path, config)
        parts, full = _sorted(path, file)
        self.full: Mapping[str, str] = MappingProxyType(full)
        self.factors: Mapping[str, Factors] = MappingProxyType(
            {module: _factors(self, module, named) for module, named in parts.items()}
        )
        if not self.factors and not self.full:
            raise AdapterError(
                "the adapter changes nothing",
                file=path / WEIGHTS,
                got=f"{len(file.tensors)} tensors, none of an adapter",
            )

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the configuration says that the model's matrices are stored ``[in, out]`` (Conv1D)."""
        return self.config.get("fan_in_fan_out") is True

    @property
    def ties_embeddings(self) -> bool:
        """Whether what changes the input embeddings changes a head that is tied to them, too."""
        return self.config.get("ensure_weight_tying") is True

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def open_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Open an adapter folder as peft writes it: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises
    ------
    AdapterError
        It is no such folder; it is a pickle; its kind cannot be added to weights; its tensors contradict its
        configuration.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        remedy = "give the folder that holds it (a named adapter has a folder of its own below)"
        raise AdapterError("this is no adapter folder", file=path, wanted=CONFIG, remedy=remedy)
    if not (path / WEIGHTS).is_file():
        pickled = (path / _PICKLE).exists()
        raise AdapterError(
            "the adapter has no safetensors file",
            file=path,
            got=f"{_PICKLE} (pickle)" if pickled else None,
            wanted=WEIGHTS,
            remedy=CONVERT_PICKLE if pickled else "download the adapter again",
        )
    config = read_config(resolve_inside(path, CONFIG))
    with ExitStack() as opened:
        file = opened.enter_context(open_checkpoint(resolve_inside(path, WEIGHTS)))
        adapter = Adapter(path, config, file)
        opened.pop_all()
        return adapter


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    def refuse(what: str, got: object, **details: str) -> NoReturn:
        remedy = "merge it with peft (merge_and_unload) and give the merged model"
        raise AdapterError(what, file=path / CONFIG, got=got, **{"remedy": remedy, **details})

    if config.get("peft_type") != "LORA":
        refuse("the adapter is of another kind", config.get("peft_type"), wanted="peft_type LORA")
    for key, why in _REFUSED.items():
        if config.get(key):
            refuse(f"the adapter is more than a sum: {why}", f"{key}: {config[key]!r:.80}")
    for key, value in config.items():
        if key.startswith("use_") and value and key not in _KNOWN_SWITCHES:
            refuse("the adapter uses a variant that is unknown here", f"{key}: {value!r:.80}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_THE_BASE):
        refuse(
            "the adapter stands on weights that its training changed first",
            f"init_lora_weights: {start}",
            remedy="save it with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
        )


def _sorted(path: Path, file: Checkpoint) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Module to part to tensor, and what is there in full."""
    parts: dict[str, dict[str, str]] = {}
    full: dict[str, str] = {}
    for name in file.tensors:
        own = name.removeprefix(_PREFIX)
        if own == name:
            raise AdapterError(
                "a tensor is not named as peft names them",
                file=path / WEIGHTS,
                tensor=name,
                wanted=f"{_PREFIX}…",
                remedy="convert the adapter to peft's format",
            )
        found = _FACTOR.fullmatch(own)
        if found:
            part = found["part"] + (".bias" if found["leaf"] == ".bias" else "")
            mine = parts.setdefault(_SAVED.sub("", found["module"]), {})
            taken, mine[part] = mine.get(part), name
        else:
            if not own.endswith((".weight", ".bias")) or "lora_" in own or ".token_adapter." in own:
                raise AdapterError(
                    "a tensor is of no known part of an adapter", file=path / WEIGHTS, tensor=name
                )
            taken, full[_SAVED.sub("", own)] = full.get(_SAVED.sub("", own)), name
        if taken is not None:
            raise AdapterError(
                "two tensors of the adapter are for one place",
                file=path / WEIGHTS,
                tensor=name,
                got=taken,
                remedy="save each adapter into a folder of its own",
            )
    return parts, full


def _factors(adapter: Adapter, module: str, named: Mapping[str, str]) -> Factors:
    where = adapter.path / WEIGHTS

    def refuse(what: str, **details: Any) -> NoReturn:
        raise AdapterError(what, file=where, tensor=f"{_PREFIX}{module}", **details)

    embedding = "embedding_A" in named or "embedding_B" in named
    wanted = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if not named.keys() >= {*wanted}:
        refuse("a module has one factor of two", got=sorted(named), wanted=" and ".join(wanted))
    a, b = (named[part] for part in wanted)
    shapes = [adapter.file.tensors[name].shape for name in (a, b)]
    if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][1]:
        refuse(
            "the factors of a module do not fit together", got=shapes, wanted="A [rank, in], B [out, rank]"
        )
    rank = shapes[0][0]
    said = _pattern(adapter, "rank_pattern", module, adapter.config.get("r"))
    if said != rank:
        refuse("the factors' rank is not that of the configuration", got=rank, wanted=said)
    alpha = _pattern(adapter, "alpha_pattern", module, adapter.config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha) or not rank:
        refuse("the configuration gives no scale", got=f"lora_alpha {alpha!r}, rank {rank}")
    scale = alpha / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank)
    magnitude = named.get("magnitude_vector")
    if bool(adapter.config.get("use_dora")) != (magnitude is not None):
        refuse(
            "the configuration and the tensors disagree on DoRA",
            got="a magnitude vector" if magnitude else "no magnitude vector",
            wanted=f"use_dora: {adapter.config.get('use_dora')}",
        )
    unknown = sorted(named.keys() - {*wanted, "B.bias", "magnitude_vector"})
    if unknown:
        refuse("a module has parts that do not go together", got=unknown)
    return Factors(module, a, b, rank, scale, embedding, named.get("B.bias"), magnitude)


def _pattern(adapter: Adapter, key: str, module: str, default: object) -> Any:
    """The value of the first pattern that the module's path ends with, as peft matches them; else ``default``."""
    patterns = adapter.config.get(key) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(
            "a pattern is no object", file=adapter.path / CONFIG, got=f"{key}: {patterns!r:.80}"
        )
    for pattern, value in patterns.items():
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise AdapterError(
                "a pattern is no regular expression",
                file=adapter.path / CONFIG,
                got=f"{key}: {pattern!r:.80} ({error})",
            ) from None
        if found:
            return value
    return default
