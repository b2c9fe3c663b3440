"""The result of a rebase, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

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
    show_text,
)

if TYPE_CHECKING:
    from graftwork.rebase import RebaseReport

__all__ = ["rebase_table"]

_TOP = 8
_STYLES = {"go": "bold green", "risky": "bold yellow", "dont": "bold red"}


def rebase_table(report: RebaseReport) -> RenderableType:
    """The verdict with its reasons, what was measured, what was written, and the tensors that are most in doubt."""
    found = report.compatibility
    parts: list[RenderableType] = [Text(f"\n{verdict_sentence(report)}\n", style=_STYLES[found.verdict])]
    parts += [Text(f"• {show_text(reason)}") for reason in found.reasons]
    parts.append(_facts(report))
    rows = evidence_rows(report)
    if rows:
        parts.append(_grid(("on examples", ">old base", ">fine-tune", ">new base", ">result"), rows))
    parts += [Text(f"• {show_text(fact)}", style="dim") for fact in rebase_facts(report)]
    parts.append(_tensors(report))
    if report.out is not None:
        parts.append(Text(f"{survival_sentence(report)}; written to {report.out}"))
    return Group(*parts)


def _facts(report: RebaseReport) -> RenderableType:
    found, table = report.compatibility, Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    total, evidence = found.statistics, found.evidence
    rows = {
        "bases' correlation": show_measure(found.correlation),
        "‖new − old‖ / ‖tuned − old‖": show_measure(total.drift),
        "cosine of the two": show_cosine(total.cosine),
        "update norm": f"{show_relative(total.relative_update)} of the old base's",
        "retained, by the weights": show_share(found.predicted),
    }
    if evidence is not None:
        rows["retained, on examples"] = show_share(evidence.retained)
        rows["retained, held out"] = show_share(evidence.retained_held_out)
        rows["barrier"] = f"{show_share(evidence.relative_barrier)} of the gain"
    for key, value in rows.items():
        table.add_row(Text(key, style="dim"), Text(value))
    return Padding(table, (1, 0), expand=False)


def _tensors(report: RebaseReport) -> RenderableType:
    names = tensors_by_doubt(report)
    rows = [
        (
            show_name(name),
            show_measure(row.correlation),
            show_measure(row.drift),
            show_cosine(row.cosine),
            show_relative(row.relative_update),
        )
        for name, row in names[:_TOP]
    ]
    table = _grid(("tensor", ">correlation", ">drift", ">cosine", ">update norm"), rows)
    left = len(names) - len(rows)
    if left <= 0:
        return table
    return Group(table, Text(f"and {count_of(left, 'more tensor')}: see --json or --html", style="dim"))


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for number, column in enumerate(columns):
        right = column.startswith(">")
        table.add_column(
            column.lstrip(">"), justify="right" if right else "left", no_wrap=True,
            overflow="ellipsis" if not number else "fold",
        )  # fmt: skip
    for row in rows:
        table.add_row(*map(Text, row))
    return table
