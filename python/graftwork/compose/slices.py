"""Slices: an output whose layers are taken, in any order and number, from layers of models.

A model's layers are found by their names alone, whatever the scheme (``model.layers.0.``, ``transformer.h.0.``,
``blocks.0.``, ``layer_0.``): numbers from 0 without a gap, at the first place in a name where there are such. Tensors
outside the layers are the first slice's, if they stand before the layers (embeddings), or the last slice's, if they stand
behind them (final norm, heads).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graftwork.compose.recipe import Slice, Source
from graftwork.errors import CheckpointError, RecipeError

__all__ = ["LayerStack", "ModelLayout", "SlicePlan", "SliceRow", "find_stack", "find_stacks", "plan_slices"]

_NUMBERED = re.compile(r"(|.*?\D)(0|[1-9]\d*)", re.DOTALL)
_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "decoder_layers",
    "depth",
)
_PER_LAYER = (
    "layer_types", "mlp_layer_types", "layers_block_type", "block_types", "attention_layers", "no_rope_layers",
    "num_attention_heads", "num_key_value_heads", "intermediate_size", "ffn_intermediate_size",
)  # fmt: skip
"""Lists of a configuration with one value a layer."""
_BEHIND = re.compile(
    r"lm_head|embed_out|output|score|classifier|pooler|cls|predictions|qa_outputs|"
    r"norm|norm_f|ln_f|final_layer_?norm|final_norm|layer_?norm|ln_post"
)
_EMBEDS = re.compile(r"embed|^w[tp]e$")


class LayerStack(NamedTuple):
    """Layers of a model: their names are ``prefix``, a number below ``layers``, and what follows."""

    prefix: str
    layers: int

    def split(self, name: str) -> tuple[int, str] | None:
        """The layer's number and what follows it, with its dot; None for a tensor of no layer."""
        if not name.startswith(self.prefix):
            return None
        number, dot, rest = name[len(self.prefix) :].partition(".")
        return (int(number), dot + rest) if number.isdecimal() and int(number) < self.layers else None


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """A model as slices see it: its tensors' names, ``tied`` (absent name to present), its configuration."""

    names: Collection[str]
    config: Mapping[str, Any] | None = None
    tied: Mapping[str, str] = field(default_factory=dict)


class SliceRow(NamedTuple):
    """One output tensor: ``(model, name there)`` of each source, in the slice's order.

    ``slice`` is the slice's number; ``layer`` the output's layer, None outside the layers.
    """

    sources: tuple[tuple[str, str], ...]
    slice: int
    layer: int | None


@dataclass(frozen=True)
class SlicePlan:
    """Where every tensor of the output comes from.

    ``origins`` has, for each layer of the output, the model and layer of its first source; ``ties`` whether the output's
    head is its embeddings (None: the models have no tied head); ``counts`` are the models' numbers of layers; ``notes``
    say what is not as in the models.
    """

    rows: Mapping[str, SliceRow]
    layers: int
    origins: Sequence[tuple[str, int]]
    layouts: Mapping[str, ModelLayout]
    counts: frozenset[int]
    ties: bool | None
    notes: tuple[str, ...]

    def patch_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration of one of the models as that of the output: number of layers, lists by layer, tied head."""
        patched = copy.deepcopy(dict(config))
        for path in ((), ("text_config",)):
            inner = _inner(patched, path)
            if inner is None:
                continue
            for key in _COUNTS:
                if type(inner.get(key)) is int and inner[key] in self.counts:
                    inner[key] = self.layers
            for key in _PER_LAYER:
                if isinstance(inner.get(key), list):
                    inner[key] = [self._of_layer(path, key, *origin, inner[key]) for origin in self.origins]
            if self.ties is not None and "tie_word_embeddings" in inner:
                inner["tie_word_embeddings"] = self.ties
        if self.ties is False:
            patched["tie_word_embeddings"] = False
        return patched

    def _of_layer(self, path: tuple[str, ...], key: str, model: str, layer: int, default: list[Any]) -> Any:
        own = (_inner(self.layouts[model].config or {}, path) or {}).get(key)
        values = own if isinstance(own, list) else default
        if layer >= len(values):
            raise CheckpointError(
                "a list of the configuration is shorter than the model has layers",
                file=model,
                got=f"{key}: {len(values)} values",
                wanted=f"one for layer {layer}, too",
            )
        return values[layer]


def find_stacks(names: Iterable[str]) -> list[LayerStack]:
    """All stacks of layers among tensors' names, those with most layers first. Stacks inside of layers do not count."""
    groups: dict[str, set[int]] = {}
    split = [name.split(".") for name in names]
    for parts in split:
        for place, prefix, number in _numbers(parts):
            if place < len(parts) - 1:  # a layer holds tensors; it is none
                groups.setdefault(prefix, set()).add(number)
    whole = {
        prefix: len(found)
        for prefix, found in groups.items()
        if max(found) == len(found) - 1 and (len(found) > 1 or prefix.endswith(".") or not prefix)
    }
    outer: dict[str, int] = {}
    for parts in split:
        for _, prefix, _ in _numbers(parts):
            if prefix in whole:
                outer[prefix] = whole[prefix]
                break
    return sorted(
        (LayerStack(*row) for row in outer.items()), key=lambda stack: (-stack.layers, stack.prefix)
    )


def _numbers(parts: Sequence[str]) -> Iterable[tuple[int, str, int]]:
    """The components that end in a number: place, what stands before the number, the number."""
    before = ""
    for place, part in enumerate(parts):
        if found := _NUMBERED.fullmatch(part):
            yield place, before + found[1], int(found[2])
        before += f"{part}."


def find_stack(layout: ModelLayout, prefix: str | None = None, *, what: str = "the model") -> LayerStack:
    """The stack that slices are of: that with as many layers as the configuration says, or the only one; or ``prefix``'s.

    Raises
    ------
    RecipeError
        There is none, or several come into question.
    """
    stacks = find_stacks(layout.names)
    found = [stack for stack in stacks if prefix is None or stack.prefix == prefix]
    said = _said_layers(layout.config)
    if prefix is None and said is not None:
        found = [stack for stack in found if stack.layers == said]
    if len(found) == 1:
        return found[0]
    got = ", ".join(f"{stack.prefix}* ({stack.layers})" for stack in stacks[:6]) or "no numbered layers"
    wanted = (
        "one stack of layers" if said is None else f"one stack of {said} layers, as the configuration says"
    )
    if prefix is not None:
        wanted = f"layers called {prefix}*"
    remedy = "slices are of models with one stack of layers; merge an encoder and a decoder one by one"
    raise RecipeError(
        "it is not plain what a model's layers are", file=what, got=got, wanted=wanted, remedy=remedy
    )


def plan_slices(
    slices: Sequence[Slice], layouts: Mapping[str, ModelLayout], *, base: str | None = None
) -> SlicePlan:
    """Say for every tensor of the output where it comes from.

    Parameters
    ----------
    slices : sequence of Slice
        Their sources' ``layers`` are ``[start, stop)``, of one length in a slice. None stands for all layers.
    layouts : mapping of str to ModelLayout
        Every model that the slices name.
    base : str, optional
        The model whose names the output has; default: the first source of the first slice.

    Raises
    ------
    RecipeError
        A range reaches beyond a model's layers, or the layers of a model cannot be told.
    CheckpointError
        A model lacks a tensor that its neighbour in the slice has, or has one that the neighbour lacks.
    """
    stacks = {name: find_stack(layout, what=name) for name, layout in layouts.items()}
    tensors = {name: _by_layer(layout, stacks[name]) for name, layout in layouts.items()}
    naming = stacks[base if base is not None else slices[0].sources[0].model]
    rows: dict[str, SliceRow] = {}
    origins: list[tuple[str, int]] = []
    for number, part in enumerate(slices):
        spans = [_span(source, stacks[source.model]) for source in part.sources]
        for step in range(spans[0][1] - spans[0][0]):
            places = [
                (source.model, start + step) for source, (start, _) in zip(part.sources, spans, strict=True)
            ]
            for rest, held in _layer(places, tensors).items():
                rows[f"{naming.prefix}{len(origins)}{rest}"] = SliceRow(held, number, len(origins))
            origins.append(places[0])
    outside, ties, notes = _outside(slices, stacks, layouts)
    counts = frozenset(stack.layers for stack in stacks.values())
    return SlicePlan(outside | rows, len(origins), origins, layouts, counts, ties, notes)


def _span(source: Source, stack: LayerStack) -> tuple[int, int]:
    start, stop = source.layers or (0, stack.layers)
    if stop > stack.layers:
        raise RecipeError(
            "a slice reaches beyond the model's layers",
            file=source.model,
            got=f"layer_range: [{start}, {stop}]",
            wanted=f"at most {stack.layers}, the layers {stack.prefix}*",
        )
    return start, stop


def _by_layer(layout: ModelLayout, stack: LayerStack) -> list[dict[str, str]]:
    """The names of each layer's tensors by what follows the layer's number."""
    layers: list[dict[str, str]] = [{} for _ in range(stack.layers)]
    for name in layout.names:
        if place := stack.split(name):
            layers[place[0]][place[1]] = name
    return layers


def _layer(
    places: Sequence[tuple[str, int]], tensors: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """The tensors of one layer: what follows the number, and (model, name) of each source."""
    held = [tensors[model][layer] for model, layer in places]
    for (model, layer), mine in zip(places, held, strict=True):
        if mine.keys() != held[0].keys():
            rest = min(mine.keys() ^ held[0].keys())
            raise CheckpointError(
                "two layers that a slice merges have different tensors",
                file=model if rest not in mine else places[0][0],
                tensor=(held[0].get(rest) or mine[rest]),
                got=f"no {rest.lstrip('.')} in layer {layer if rest not in mine else places[0][1]}",
                wanted="layers of one architecture",
            )
    return {
        rest: tuple((model, mine[rest]) for (model, _), mine in zip(places, held, strict=True))
        for rest in held[0]
    }


def _outside(
    slices: Sequence[Slice], stacks: Mapping[str, LayerStack], layouts: Mapping[str, ModelLayout]
) -> tuple[dict[str, SliceRow], bool | None, tuple[str, ...]]:
    """The rows of the tensors outside the layers, whether the head is tied, and notes."""
    rows: dict[str, SliceRow] = {}
    notes: list[str] = []
    for behind in (False, True):
        number = len(slices) - 1 if behind else 0
        models = [source.model for source in slices[number].sources]
        for name in layouts[models[0]].names:
            if stacks[models[0]].split(name) is None and _is_behind(name) is behind:
                sources = tuple((model, _same_name(name, model, models[0], layouts)) for model in models)
                rows[name] = SliceRow(sources, number, None)
    first, last = (layouts[slices[end].sources[0].model] for end in (0, -1))
    if not (first.tied or last.tied):
        return rows, None, tuple(notes)
    if bool(first.tied) == bool(last.tied):
        if first is not last:
            notes.append("the head is tied to the embeddings of the first slice's model")
        return rows, True, tuple(notes)
    tied = first.tied or last.tied
    notes.append("one end's head is tied and the other's is not: the output's stands alone")
    for head, embeddings in tied.items():
        if head not in rows and last.tied:
            sources = tuple((source.model, embeddings) for source in slices[-1].sources)
            rows[head] = SliceRow(sources, len(slices) - 1, None)
    return rows, False, tuple(notes)


def _same_name(name: str, model: str, first: str, layouts: Mapping[str, ModelLayout]) -> str:
    if name in layouts[model].names:
        return name
    if name in layouts[model].tied:
        return layouts[model].tied[name]
    raise CheckpointError(
        "a model lacks a tensor that its neighbour in a slice has",
        file=model,
        tensor=name,
        wanted=f"the tensors of {first} outside the layers",
    )


def _is_behind(name: str) -> bool:
    """Whether a tensor outside the layers is of the model's end: its final norm, or a head."""
    parts = name.split(".")[:-1] or [name]
    return not any(_EMBEDS.search(part) for part in parts if part != "embed_out") and any(
        _BEHIND.fullmatch(part.lower()) for part in parts
    )


def _said_layers(config: Mapping[str, Any] | None) -> int | None:
    for path in ((), ("text_config",)):
        inner = _inner(config or {}, path)
        for key in _COUNTS if inner else ():
            if inner is not None and type(inner.get(key)) is int:
                return int(inner[key])
    return None


def _inner(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    inner: Any = config
    for key in path:
        inner = inner.get(key)
        if not isinstance(inner, dict):
            return None
    return inner
