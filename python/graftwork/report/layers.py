"""The layer-by-module view of a checkpoint diff, from tensor names alone: no list of architectures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from graftwork.store.diff import CheckpointDiff, TensorDiff
    from graftwork.store.update_stats import UpdateStats

__all__ = ["Block", "Cell", "Place", "blocks", "place"]

MAX_COLUMNS = 40
MIN_BANDS = 4
OTHERS = "all others"


class Place(NamedTuple):
    """Where a tensor stands: the stack of layers, its layer there, and the module within the layer."""

    stack: str
    layer: int | None
    module: str


@dataclass(frozen=True, slots=True)
class Cell:
    """Several tensors' stats added up; None where none of them could be compared (``fact`` says why)."""

    tensors: int
    stats: UpdateStats | None
    fact: str


@dataclass(frozen=True, slots=True)
class Block:
    """One stack of layers: rows are layers (or bands of them), columns are modules."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)


def place(name: str) -> Place:
    """Split a tensor's name at its first number.

    >>> place("encoder.layer.3.mlp.experts.7.up.weight")
    Place(stack='encoder.layer', layer=3, module='mlp.experts.*.up')
    >>> place("embeddings.LayerNorm.bias")
    Place(stack='', layer=None, module='embeddings.LayerNorm.bias')
    """
    parts = name.removesuffix(".weight").split(".")
    at = next((i for i, part in enumerate(parts) if _is_number(part)), None)
    if at is None:
        return Place("", None, ".".join(parts))
    module = ".".join("*" if _is_number(part) else part for part in parts[at + 1 :])
    return Place(".".join(parts[:at]), int(parts[at]), module or "weight")


def blocks(diff: CheckpointDiff, max_cells: int = 1200) -> list[Block]:
    """The diff's tensors by stack, layer and module: one block a stack, then one of what is outside layers.

    Where a stack has more cells than its share of ``max_cells``, neighbouring layers are added up into bands,
    and so are the smaller modules, into one column; there are never more than 41 columns.
    """
    stacks: dict[str, list[tuple[Place, TensorDiff]]] = {}
    outside: list[tuple[Place, TensorDiff]] = []
    for tensor in diff.tensors:
        found = place(tensor.name)
        (outside if found.layer is None else stacks.setdefault(found.stack, [])).append((found, tensor))
    room = max(1, max_cells // max(1, len(stacks)))
    result = [_stack(title or "layers", members, room) for title, members in stacks.items()]
    if outside:
        kept = _largest(outside, min(MAX_COLUMNS, room))
        pairs = [(p.module if p.module in kept else OTHERS, "", t) for p, t in outside]
        result.append(_block("outside layers", pairs))
    return result


def _stack(title: str, members: list[tuple[Place, TensorDiff]], room: int) -> Block:
    kept = _largest(members, min(MAX_COLUMNS, max(1, room // MIN_BANDS)))
    layers = sorted({p.layer for p, _ in members if p.layer is not None})
    width = -(-len(layers) // max(1, room // (len(kept) + 1)))
    label: dict[int | None, str] = {}
    for start in range(0, len(layers), width):
        band = layers[start : start + width]
        label |= dict.fromkeys(band, f"{band[0]}" if len(band) == 1 else f"{band[0]} … {band[-1]}")
    ordered = sorted(members, key=lambda member: member[0].layer or 0)
    return _block(title, [(label[p.layer], p.module if p.module in kept else OTHERS, t) for p, t in ordered])


def _block(title: str, placed: list[tuple[str, str, TensorDiff]]) -> Block:
    members: dict[tuple[str, str], list[TensorDiff]] = {}
    for row, column, tensor in placed:
        members.setdefault((row, column), []).append(tensor)
    return Block(
        title,
        tuple(dict.fromkeys(row for row, _, _ in placed)),
        tuple(sorted(dict.fromkeys(column for _, column, _ in placed), key=lambda c: c == OTHERS)),
        {at: _cell(tensors) for at, tensors in members.items()},
    )


def _cell(tensors: list[TensorDiff]) -> Cell:
    total: UpdateStats | None = None
    for tensor in tensors:
        if tensor.stats is not None:
            total = tensor.stats if total is None else total + tensor.stats
    facts = dict.fromkeys(tensor.fact for tensor in tensors)
    return Cell(len(tensors), total, ", ".join(facts))


def _largest(members: Iterable[tuple[Place, TensorDiff]], limit: int) -> set[str]:
    """The ``limit`` modules with the most bytes."""
    size: dict[str, int] = {}
    for found, tensor in members:
        size[found.module] = size.get(found.module, 0) + tensor.tuned_bytes
    return set(sorted(size, key=lambda module: -size[module])[:limit])


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 9
