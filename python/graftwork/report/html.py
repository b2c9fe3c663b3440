"""A single-file HTML report: no scripts, no network, the same bytes for the same results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files as resources
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING

from graftwork import __version__
from graftwork.checkpoint.files import write_file
from graftwork.report.bar_chart import Bar, Group, bar_chart
from graftwork.report.diff_section import diff_section
from graftwork.report.heat_map import STEPS
from graftwork.report.markup import grid, tiles
from graftwork.report.wording import count_of, show_bytes, show_name, show_share, show_text

if TYPE_CHECKING:
    from graftwork.store.diff import CheckpointDiff
    from graftwork.store.results import PackResult

__all__ = ["Table", "page", "write_report"]

MAX_CELLS = 2700
MAX_ROWS = 500
MAX_SECTIONS = 20
MAX_ENTRIES = 120
_PALETTES = {"u": "blue", "c": "teal", "s": "rust"}


@dataclass(frozen=True, slots=True)
class Table:
    """A caller's own table: numbers are set right, everything is escaped."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


def write_report(
    path: str | PathLike[str],
    *,
    title: str,
    pack: PackResult | None = None,
    diffs: Mapping[str, CheckpointDiff] | None = None,
    tables: Sequence[Table] = (),
) -> None:
    """Write one self-contained HTML file: sizes, the caller's tables, and what each fine-tune changed.

    Parameters
    ----------
    path : path
        The file to write, atomically; an older report is replaced.
    title : str
        The heading.
    pack : PackResult, optional
        Brings the chart of sizes and the table of entries.
    diffs : mapping, optional
        Name to `CheckpointDiff`: one section each, with heat maps; names of entries of ``pack`` also bring
        the entropy into its chart.
    tables : sequence of Table, optional
        Shown as they are, between the two.

    Raises
    ------
    OSError
        The file cannot be written; an older one is left as it was.

    Notes
    -----
    However many tensors there are, the file stays below 1 MB: layers are drawn in bands, and of the tensors
    those that changed most are listed.
    """
    diffs = diffs or {}
    body = [f"<h1>{escape(show_name(title))}</h1>"]
    if pack is not None:
        body.append(_pack_section(pack, diffs))
    for table in tables:
        note = f'<p class="soft">{escape(show_text(table.note))}</p>' if table.note else ""
        body.append(f"<h2>{escape(show_text(table.title))}</h2>{note}{grid(table.columns, table.rows)}")
    sections = min(len(diffs), MAX_SECTIONS)
    for name, diff in islice(diffs.items(), sections):
        body.append(diff_section(name, diff, max_cells=MAX_CELLS // sections, max_rows=MAX_ROWS // sections))
    if len(diffs) > sections:
        rest = count_of(len(diffs) - sections, "more fine-tune")
        body.append(f'<p class="soft">{rest} left out; graftwork diff --report shows each.</p>')
    body.append(f"<footer>graftwork {escape(__version__)}</footer>")
    write_file(path, page(title, "\n".join(body)).encode())


def page(title: str, body: str) -> str:
    """A whole document around ``body``, which is markup already."""
    style = resources("graftwork.report").joinpath("style.css").read_text()
    for letter, colour in _PALETTES.items():
        for step in range(STEPS):
            ink = 5 + step * 95 // (STEPS - 1)
            style += f".{letter}{step}{{fill:color-mix(in oklab,var(--{colour}) {ink}%,var(--paper))}}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(show_name(title))}</title>\n<style>\n{style}\n</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _pack_section(pack: PackResult, diffs: Mapping[str, CheckpointDiff]) -> str:
    whole = sum(entry.file_bytes for entry in pack.entries)
    stored = sum(entry.stored_bytes for entry in pack.entries)
    groups, rows = [], []
    for entry in pack.entries[:MAX_ENTRIES]:
        bars = [Bar("original", entry.file_bytes, "whole"), Bar("stored", entry.stored_bytes, "stored")]
        entropy = diffs[entry.name].entropy_bytes if entry.name in diffs else None
        if entropy is not None:
            bars.append(Bar("entropy", entropy, "bound"))
        groups.append(Group(entry.name, tuple(bars)))
        share = show_share(entry.stored_bytes / entry.file_bytes if entry.file_bytes else None)
        codecs = ", ".join(f"{codec} × {use.tensors}" for codec, use in entry.codecs.items())
        rows.append(
            (show_name(entry.name), entry.status, entry.tensors, show_bytes(entry.file_bytes),
             show_bytes(entry.stored_bytes), share, codecs)
        )  # fmt: skip
    heading = tiles(
        (count_of(len(pack.entries), "fine-tune"), "packed"),
        (show_bytes(whole), "as files"),
        (show_bytes(stored), "stored"),
        (show_share(stored / whole if whole else None), "of the files' size"),
    )
    note = (
        '<p class="soft">Stored: bytes that the entry added to the store. Entropy: what the classes of the '
        "differences need, given the base's exponents, with the bits below as they are, tensor by tensor.</p>"
    )
    if len(pack.entries) > MAX_ENTRIES:
        note += f'<p class="soft">Only the first {MAX_ENTRIES} are shown; the sums count all.</p>'
    columns = ("fine-tune", "status", "tensors", "files", "stored", "share", "codecs")
    return (
        heading + "<h2>Sizes</h2>" + bar_chart(groups, "sizes of the fine-tunes") + note + grid(columns, rows)
    )
