"""What one fine-tune changed, as a section of the HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from graftwork.report.facts import diff_facts, diff_warnings, ranked, tensor_note
from graftwork.report.heat_map import Measure, Scale, fit_scale, heat_map, legend
from graftwork.report.layers import Block, Cell, blocks
from graftwork.report.markup import bullets, grid, tiles, warning
from graftwork.report.wording import (
    count_of,
    show_bytes,
    show_cosine,
    show_measure,
    show_name,
    show_relative,
    show_shape,
    show_share,
)

if TYPE_CHECKING:
    from graftwork.store.diff import CheckpointDiff, TensorDiff

__all__ = ["diff_section"]

TOP = 15
_MEASURES = 3
_COLUMNS = (
    "tensor", "kind", "changed", "update norm", "largest change", "bf16: cosine", "bf16: norm kept",
    "entropy", "note",
)  # fmt: skip


def _relative_norm(cell: Cell) -> float | None:
    return cell.stats.relative_norm if cell.stats else None


def _changed_share(cell: Cell) -> float | None:
    return cell.stats.changed_share if cell.stats else None


def _bf16_cosine(cell: Cell) -> float | None:
    return cell.stats.bf16.cosine if cell.stats and cell.stats.bf16 else None


UPDATE = Measure("relative update norm", "u", _relative_norm, show_relative)
CHANGED = Measure("share of changed elements", "c", _changed_share, show_share)
SURVIVAL = Measure("cosine of the update that survives in bf16", "s", _bf16_cosine, show_cosine)


def diff_section(name: str, diff: CheckpointDiff, *, max_cells: int, max_rows: int) -> str:
    """Totals, what the reader should not miss, heat maps, and the tensors that changed most."""
    parts = [f"<h2>{escape(show_name(name))}: what changed</h2>", _totals(diff)]
    parts += [warning(text) for text in diff_warnings(diff)]
    parts.append(bullets(diff_facts(diff)))
    if any(t.stats is not None for t in diff.tensors):
        parts.append(_heat_maps(blocks(diff, max_cells // _MEASURES)))
    parts.append(_tensors(ranked(diff), max_rows))
    return "\n".join(parts)


def _totals(diff: CheckpointDiff) -> str:
    total = diff.total
    entropy = show_share(diff.entropy_bytes / diff.tuned_bytes if diff.tuned_bytes else None)
    facts = [
        (show_share(total.changed_share), f"of {total.elements:,} compared elements changed"),
        (show_relative(total.relative_norm), "update norm relative to the base"),
        (entropy, f"of {show_bytes(diff.tuned_bytes)} is the entropy of the update"),
    ]
    for dtype, survival in (("bf16", total.bf16), ("fp16", total.fp16)):
        if survival is not None:
            kept = show_share(survival.retained_norm)
            lost = show_share(survival.lost_share)
            facts.append(
                (
                    show_cosine(survival.cosine),
                    f"cosine if saved in {dtype}; norm kept {kept}, elements lost {lost}",
                )
            )
    return tiles(*facts)


def _heat_maps(found: Sequence[Block]) -> str:
    parts = []
    for measure in (UPDATE, CHANGED, SURVIVAL):
        values = [v for b in found for c in b.cells.values() if (v := measure.value(c)) is not None]
        if not values:
            continue
        parts.append(f"<h3>{escape(measure.name.capitalize())}</h3>")
        if measure is SURVIVAL and min(values) >= 0.9995:
            parts.append("<p>Every update survives in bf16: no cosine is below .9995.</p>")
            continue
        if measure is UPDATE and not any(values):
            parts.append("<p>No update: every compared tensor is equal.</p>")
            continue
        scale = {"u": fit_scale(found, measure), "c": Scale(0.0, 1.0), "s": Scale(1.0, 0.0)}[measure.palette]
        parts.append(legend(measure, scale))
        for block in found:
            if any(measure.value(cell) is not None for cell in block.cells.values()):
                parts.append(f'<p class="soft"><code>{escape(show_name(block.title))}</code></p>')
                parts.append(heat_map(block, measure, scale))
    return "\n".join(parts)


def _tensors(tensors: Sequence[TensorDiff], max_rows: int) -> str:
    parts = ["<h3>Tensors, by relative update norm</h3>", grid(_COLUMNS, _rows(tensors[:TOP]), names=True)]
    rest = tensors[TOP:max_rows]
    if rest:
        summary = f"<summary>{count_of(len(rest), 'more tensor')}</summary>"
        parts.append(f"<details>{summary}{grid(_COLUMNS, _rows(rest), names=True)}</details>")
    if len(tensors) > max_rows > TOP:
        left = count_of(len(tensors) - max_rows, "tensor")
        parts.append(
            f'<p class="soft">{left} with smaller updates left out; graftwork diff --json lists all.</p>'
        )
    return "\n".join(parts)


def _rows(tensors: Sequence[TensorDiff]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for tensor in tensors:
        stats = tensor.stats
        bf16 = stats.bf16 if stats else None
        kind = show_shape(tensor.tuned_dtype or tensor.base_dtype, tensor.tuned_shape or tensor.base_shape)
        if tensor.fact in ("dtype differs", "shape differs"):
            kind = f"{show_shape(tensor.base_dtype, tensor.base_shape)} → {kind}"
        rows.append(
            (
                show_name(tensor.name),
                kind,
                show_share(stats.changed_share if stats else None),
                show_relative(stats.relative_norm if stats else None),
                show_measure(stats.max_update if stats else None),
                show_cosine(bf16.cosine if bf16 else None),
                show_share(bf16.retained_norm if bf16 else None),
                show_bytes(tensor.entropy_bytes) if tensor.tuned_dtype else "",
                tensor_note(tensor),
            )
        )
    return rows
