"""A skill pack as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graftwork.report.wording import count_of, show_bytes, show_name, show_text

if TYPE_CHECKING:
    from graftwork.store.skill_pack import PackSummary

__all__ = ["skill_pack_table"]

_MOST = 40


def skill_pack_table(path: Path, said: Mapping[str, Any], report: PackSummary) -> RenderableType:
    """One line a tensor, those of most bytes first; then the sum."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("tensor", "role", "codec"):
        table.add_column(title, overflow="fold")
    for title in ("stored", "bits/weight", "error"):
        table.add_column(title, justify="right")
    rows = sorted(report.tensors, key=lambda row: -row.nbytes)
    for row in rows[:_MOST]:
        name, error = show_name(row.name), f"{100 * row.relative_error:.2f} %"
        table.add_row(
            name, row.role, show_text(row.codec), show_bytes(row.nbytes), f"{row.bits_per_weight:.3f}", error
        )
    notes = [
        f"{show_name(str(path))}: {show_bytes(said['file_bytes'])}, {report.bits_per_weight:.3f} bits for each of the "
        f"{report.weights:,} weights that changed, error {100 * report.relative_error:.2f} % of the change"
    ]
    if len(rows) > _MOST:
        notes.append(f"{len(rows) - _MOST} more tensors; --json has all")
    if report.unchanged:
        notes.append(f"{count_of(len(report.unchanged), 'tensor')} unchanged")
    if report.left_out:
        names = ", ".join(map(show_name, list(report.left_out)[:5]))
        notes.append(f"left out, because they are no floats: {names}")
    return Group(table, *map(Text, notes))
