"""A merge, and the methods that there are, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from graftwork.report.wording import (
    NOTHING,
    count_of,
    show_bytes,
    show_cosine,
    show_name,
    show_relative,
    show_share,
    show_text,
)

if TYPE_CHECKING:
    from graftwork.compose import ComposeReport, LoraExport, Method
    from graftwork.store import PackResult

__all__ = ["compose_table", "export_lines", "methods_table"]

_WORST = 8
_DIGEST = 12


def compose_table(report: ComposeReport) -> RenderableType:
    """The models, what was written or would be, what survives of the update, and notes."""
    parts: list[RenderableType] = [_models(report), _facts(_rows(report))]
    if report.survival is not None and report.survival.worst(_WORST):
        parts.append(_survival(report))
    parts += [Text(f"• {show_text(note)}") for note in report.notes]
    return Group(*parts)


def _models(report: ComposeReport) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for title in ("model", "as", "digest"):
        table.add_column(title, overflow="fold")
    table.add_column("not finite", justify="right")
    table.add_column("not in the output", justify="right")
    for donor in report.donors:
        digest = NOTHING if donor.digest is None else donor.digest[:_DIGEST]
        counts = (f"{donor.nonfinite:,}", f"{len(donor.extra):,}")
        table.add_row(Text(show_name(donor.name)), donor.role, digest, *counts)
    return table


def _rows(report: ComposeReport) -> dict[str, str]:
    dtypes = ", ".join(f"{code} {count:,}" for code, count in report.dtypes.items())
    rows = {
        "method": report.method,
        "output": f"{report.parameters:,} parameters in {count_of(report.tensors, 'tensor')}: {dtypes}",
    }
    need = report.estimate
    if report.dry_run:
        rows["would read"] = show_bytes(need.read_bytes)
        rows["would write"] = f"{show_bytes(need.write_bytes)} to {report.out}"
        rows["peak memory"] = f"about {show_bytes(need.memory_bytes)} beside the libraries"
        rows["time"] = f"about {need.seconds:,.1f} s, if the disk keeps up"
        return rows
    rows["read, written"] = f"{show_bytes(need.read_bytes)}, {show_bytes(need.write_bytes)}"
    rows["folder"] = f"{report.out}, {count_of(report.files, 'file')}"
    if report.digest is not None:
        rows["digest"] = report.digest
    rows["time"] = (
        f"{report.seconds:,.1f} s ({report.cpu_seconds:,.1f} s of CPU, {report.digest_seconds:,.1f} s of it for digests)"
    )
    if report.resumed:
        rows["taken up"] = f"{count_of(report.resumed, 'tensor')} of an interrupted run"
    if report.survival is not None:
        total = report.survival.total
        rows["update kept"] = (
            f"cosine {show_cosine(total.cosine)}, norm kept {show_share(total.retained_norm)}, changed elements lost "
            f"{show_share(total.lost_share)}"
        )
    return rows


def _survival(report: ComposeReport) -> RenderableType:
    """The tensors whose update suffers most from rounding."""
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("tensor, the worst first", no_wrap=True, overflow="ellipsis")
    for title in ("dtype", "cosine", "norm kept", "lost"):
        table.add_column(title, justify="right")
    for row in report.survival.worst(_WORST) if report.survival else ():
        kept = row.survival
        table.add_row(
            Text(show_name(row.name)), row.dtype, show_cosine(kept.cosine), show_relative(kept.retained_norm),
            show_share(kept.lost_share),
        )  # fmt: skip
    return table


def _facts(rows: dict[str, str]) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in rows.items():
        table.add_row(Text(key, style="dim"), Text(value))
    return Padding(table, (0, 0, 1, 0), expand=False)


def export_lines(lora: LoraExport | None, packed: PackResult | None) -> list[RenderableType]:
    """A line for each other form that the merge was written in."""
    lines: list[RenderableType] = []
    if lora is not None:
        lines.append(
            Text(
                f"adapter {lora.path}: {show_bytes(lora.nbytes)} for {count_of(len(lora.rows), 'changed tensor')}, "
                f"{show_share(lora.energy_left)} of the update's energy left out"
            )
        )
    for entry in packed.entries if packed is not None else ():
        lines.append(
            Text(f"entry {show_name(entry.name)} of {packed.store}: {show_bytes(entry.stored_bytes)} stored")
            if packed is not None
            else Text("")
        )
    return lines


def methods_table(methods: Iterable[Method]) -> RenderableType:
    """Every method with its parameters, their ranges and defaults."""
    parts: list[RenderableType] = []
    for method in methods:
        base = {"required": "needs a base", "optional": "may have a base", "none": "has no base"}[method.base]
        parts.append(
            Text.assemble((method.name, "bold"), f"  {method.title}; {base}  ", (method.link, "dim"))
        )
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for row in method.parameters:
            default = (
                "required" if row.default is None and not row.optional else f"default {_spelled(row.default)}"
            )
            own = "each model" if row.each else "the merge"
            table.add_row(Text(row.name), own, row.range, default, Text(row.says, style="dim"))
        parts.append(Padding(table, (0, 0, 1, 0), expand=False))
    return Group(*parts)


def _spelled(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
