"""Tables and tiles of the HTML report; every text is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from graftwork.report.wording import NOTHING, show_measure, show_text

_NUMERIC = re.compile(r"[-+<>]?\s?[\d.,]+(e[-+]?\d+)?(\s?[%×x]|\s?[kMGT]?B(/s)?|\s?[mµ]?s)?")


def grid(columns: Sequence[str], rows: Sequence[Sequence[object]], *, names: bool = False) -> str:
    """A table; columns of numbers are set right, and with ``names`` the first is set in monospace."""
    shown = [[_cell(value) for value in row] for row in rows]
    style = [' class="n"' if _numeric(row[i] for row in shown) else "" for i in range(len(columns))]
    if names and style:
        style[0] = ' class="name"'
    head = "".join(
        f"<th{s if 'name' not in s else ''}>{escape(show_text(c))}</th>"
        for c, s in zip(columns, style, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(f'<td{s}>{escape(v)}</td>' for v, s in zip(row, style, strict=True))}</tr>\n"
        for row in shown
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def tiles(*facts: tuple[str, str]) -> str:
    """Large values with a line of explanation each."""
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for v, k in facts)
    return f'<div class="tiles">{cells}</div>'


def warning(text: str) -> str:
    """A sentence that the reader should not miss."""
    return f'<div class="warn">{escape(text)}</div>'


def bullets(items: Sequence[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{escape(show_text(item))}</li>' for item in items)}</ul>" if items else ""


def _numeric(values: Iterable[str]) -> bool:
    """Whether there are values, and all that are not empty are numbers, with or without a unit."""
    filled = [value for value in values if value not in ("", NOTHING)]
    return bool(filled) and all(map(_NUMERIC.fullmatch, filled))


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return NOTHING if value is None else "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return show_measure(value) if isinstance(value, float) else show_text(str(value))
