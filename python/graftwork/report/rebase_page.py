"""A single-file HTML page on a rebase: verdict, retention, layers, and what was not carried or did not survive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from os import PathLike
from typing import TYPE_CHECKING

from graftwork import __version__
from graftwork.checkpoint.files import write_file
from graftwork.report.heat_map import Measure, Scale, fit_scale, heat_map, legend
from graftwork.report.html import page
from graftwork.report.layers import Block, Cell, place
from graftwork.report.markup import bullets, grid, tiles, warning
from graftwork.report.rebase_chart import line_chart
from graftwork.report.rebase_facts import (
    evidence_rows,
    rebase_facts,
    survival_sentence,
    tensors_by_doubt,
    verdict_sentence,
)
from graftwork.report.wording import (
    count_of,
    show_cosine,
    show_measure,
    show_name,
    show_relative,
    show_share,
)

if TYPE_CHECKING:
    from graftwork.rebase import Evidence, RebaseReport
    from graftwork.rebase.statistics import TensorStatistics

__all__ = ["write_rebase_page"]

MAX_ROWS = 400
TOP = 12
BANDS = 48
COLUMNS = 30
OTHERS = "all others"


@dataclass(frozen=True, slots=True)
class _Compared(Cell):
    """A cell of a heat map: the statistics of its tensors, added up."""

    found: TensorStatistics | None = None


def write_rebase_page(path: str | PathLike[str], report: RebaseReport) -> None:
    """Write one self-contained HTML file about a rebase, atomically; an older page is replaced.

    Raises
    ------
    OSError
        The file cannot be written; an older one is left as it was.
    """
    title = f"{show_name(report.tuned)} on {show_name(report.new)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _verdict(report),
        _retention(report),
        _carried(report),
        _survival(report),
        _layers(report),
        _tensors(report),
        f"<footer>graftwork {escape(__version__)}</footer>",
    ]
    write_file(path, page(title, "\n".join(body)).encode())


def _verdict(report: RebaseReport) -> str:
    found, evidence = report.compatibility, report.evidence
    total = found.statistics
    facts = [
        ({"go": "go", "risky": "risky", "dont": "don't"}[found.verdict], f"verdict; scale {report.scale:g}"),
        (show_share(found.predicted), "of the gain retained, predicted from the weights"),
        (show_measure(found.correlation), "correlation of the bases' weights"),
        (show_measure(total.drift), "distance of the bases in fine-tune lengths"),
        (show_cosine(total.cosine), "cosine between the base's change and the fine-tune's"),
    ]
    if evidence is not None:
        facts[2:2] = [
            (show_share(evidence.retained), "retained on the examples that chose"),
            (show_share(evidence.retained_held_out), "retained on held-out examples"),
        ]
    reasons = bullets(found.reasons)
    sentence = verdict_sentence(report)
    return (
        tiles(*facts)
        + (f"<p>{escape(sentence)}</p>" if found.verdict == "go" else warning(sentence))
        + reasons
    )


def _retention(report: RebaseReport) -> str:
    evidence = report.evidence
    parts = ["<h2>Retention</h2>"]
    if evidence is None:
        parts.append(
            "<p>No examples were given: the retention is a prediction from the weights alone. "
            "<code>--examples</code> measures it.</p>"
        )
        return "\n".join(parts)
    columns = ("", "old base", "fine-tune", "new base", "result")
    parts.append(grid(columns, evidence_rows(report)))
    if evidence.why_not:
        parts.append(warning(evidence.why_not))
    parts.append(_paths(evidence))
    if evidence.cka:
        rows = [(layer, value) for layer, value in evidence.cka.items()]
        parts += ["<h3>Similarity of the bases' representations (CKA)</h3>", grid(("layer", "CKA"), rows)]
    return "\n".join(parts)


def _paths(evidence: Evidence) -> str:
    parts = []
    if evidence.path:
        barrier = show_share(evidence.relative_barrier)
        parts.append(
            f"<h3>Loss on the straight way from the fine-tune to the result (barrier {barrier} of the gain)</h3>"
        )
        parts.append(line_chart(evidence.path, "share of the way", "loss", ("fine-tune", "result")))
    if evidence.trials:
        trials = [(scale, found.merit) for scale, found in evidence.trials]
        ends = (f"scale {min(trials)[0]:g}", f"scale {max(trials)[0]:g}")
        what = "score" if evidence.trials[0][1].score is not None else "negative loss"
        parts.append(f"<h3>{what.capitalize()} by scale, on the examples that chose</h3>")
        parts.append(line_chart(trials, "scale", what, ends))
    return "\n".join(parts)


def _carried(report: RebaseReport) -> str:
    parts = ["<h2>What is carried over</h2>", bullets(rebase_facts(report))]
    kept = [row for row in report.compatibility.pairing.rows if row.action != "difference"]
    if kept:
        rows = [(row.name, str(list(row.shape)), row.action, row.note) for row in kept[:MAX_ROWS]]
        table = grid(("tensor", "shape", "taken from", "why"), rows, names=True)
        summary = f"<summary>{count_of(len(kept), 'tensor')} without a difference</summary>"
        parts.append(f"<details>{summary}{table}</details>")
    return "\n".join(parts)


def _survival(report: RebaseReport) -> str:
    if report.out is None or not report.survival.tensors:
        return ""
    total = report.survival.total
    facts = tiles(
        (show_cosine(total.cosine), "cosine of the written update with the exact one"),
        (show_share(total.retained_norm), "of the update's norm is there"),
        (show_share(total.lost_share), "of the changed weights fell back to the new base's"),
        (show_share(report.survival.unchanged_share), "of all weights are the new base's"),
    )
    rows = [
        (
            row.name,
            row.dtype,
            show_cosine(row.survival.cosine),
            show_share(row.survival.retained_norm),
            show_share(row.survival.lost_share),
        )
        for row in report.survival.worst(TOP)
    ]
    columns = ("tensor", "dtype", "cosine", "norm kept", "weights lost")
    sentence = f"<p>{escape(survival_sentence(report).capitalize())}.</p>"
    return f"<h2>What rounding left of the update</h2>{facts}{sentence}{grid(columns, rows, names=True)}"


def _of(measure: Callable[[TensorStatistics], float | None]) -> Callable[[Cell], float | None]:
    return lambda cell: measure(cell.found) if isinstance(cell, _Compared) and cell.found else None


CORRELATION = Measure("correlation of the bases' weights", "s", _of(lambda row: row.correlation), show_cosine)
DRIFT = Measure("distance of the bases in fine-tune lengths", "u", _of(lambda row: row.drift), show_measure)


def _layers(report: RebaseReport) -> str:
    found = _blocks(report)
    parts = ["<h2>Layers</h2>"]
    for measure, scale in ((CORRELATION, Scale(1.0, 0.0)), (DRIFT, fit_scale(found, DRIFT))):
        parts.append(f"<h3>{escape(measure.name.capitalize())}</h3>{legend(measure, scale)}")
        for block in found:
            parts.append(f'<p class="soft"><code>{escape(show_name(block.title))}</code></p>')
            parts.append(heat_map(block, measure, scale))
    return "\n".join(parts)


def _blocks(report: RebaseReport) -> list[Block]:
    """Tensors by stack, layer and module; neighbouring layers of a deep stack in bands, rare modules in one column."""
    stacks: dict[str, list[tuple[int | None, str, TensorStatistics]]] = {}
    for name, row in report.compatibility.tensors.items():
        at = place(name)
        stacks.setdefault(at.stack if at.layer is not None else "", []).append((at.layer, at.module, row))
    return [_block(stack, members) for stack, members in stacks.items()]


def _block(stack: str, members: list[tuple[int | None, str, TensorStatistics]]) -> Block:
    size: dict[str, int] = {}
    for _, module, row in members:
        size[module] = size.get(module, 0) + row.elements
    kept = set(sorted(size, key=lambda module: -size[module])[:COLUMNS])
    layers = sorted({layer for layer, _, _ in members if layer is not None})
    width = max(1, -(-len(layers) // BANDS))
    label: dict[int | None, str] = {None: ""}
    for start in range(0, len(layers), width):
        band = layers[start : start + width]
        label |= dict.fromkeys(band, str(band[0]) if len(band) == 1 else f"{band[0]} … {band[-1]}")
    cells: dict[tuple[str, str], Cell] = {}
    for layer, module, row in sorted(members, key=lambda member: member[0] or 0):
        at = (label[layer], module if module in kept else OTHERS)
        before = cells.get(at)
        whole = row if not isinstance(before, _Compared) or before.found is None else before.found + row
        cells[at] = _Compared((before.tensors if before else 0) + 1, None, "constant or not tuned", whole)
    rows = tuple(dict.fromkeys(row for row, _ in cells))
    columns = tuple(sorted(dict.fromkeys(column for _, column in cells), key=lambda column: column == OTHERS))
    return Block(stack or "outside layers", rows, columns, cells)


def _tensors(report: RebaseReport) -> str:
    rows = [
        (
            name,
            row.elements,
            show_cosine(row.correlation),
            show_measure(row.drift),
            show_cosine(row.cosine),
            show_relative(row.relative_update),
            show_relative(row.relative_drift),
        )
        for name, row in tensors_by_doubt(report)
    ]
    columns = ("tensor", "weights", "correlation", "drift", "cosine", "update norm", "base's change")
    parts = ["<h2>Tensors, least correlated first</h2>", grid(columns, rows[:TOP], names=True)]
    rest = rows[TOP:MAX_ROWS]
    if rest:
        summary = f"<summary>{count_of(len(rest), 'more tensor')}</summary>"
        parts.append(f"<details>{summary}{grid(columns, rest, names=True)}</details>")
    return "\n".join(parts)
