"""A horizontal bar chart of grouped sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwork.report.svg import FONT_WIDTH, drawing, tag, text, title
from graftwork.report.wording import show_bytes, show_name, show_share

__all__ = ["Bar", "Group", "bar_chart"]

_LABEL, _PLOT, _VALUE = 150, 520, 190
_BAR, _GAP = 15, 14


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it shows, how long it is, and the CSS class that paints it."""

    label: str
    nbytes: int
    style: str


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that belong together; the first is the whole that the others are shares of."""

    name: str
    bars: tuple[Bar, ...]


def bar_chart(groups: Sequence[Group], label: str) -> str:
    """Draw ``groups`` one below the other on one scale, each bar with its size and its share of the first."""
    longest = max((bar.nbytes for group in groups for bar in group.bars), default=0) or 1
    parts: list[str] = []
    y = 4.0
    for group in groups:
        parts.append(_group(group, y, longest))
        y += len(group.bars) * (_BAR + 3) + _GAP
    return drawing("".join(parts), _LABEL + _PLOT + _VALUE, max(y - _GAP + 4, 1), label)


def _group(group: Group, top: float, longest: int) -> str:
    middle = top + len(group.bars) * (_BAR + 3) / 2 + 3
    name = show_name(group.name, int(_LABEL / FONT_WIDTH) - 2)
    parts = [text(name, _LABEL - 12, middle, "end strong")]
    whole = group.bars[0].nbytes
    for index, bar in enumerate(group.bars):
        y = top + index * (_BAR + 3)
        width = max(1.5 if bar.nbytes else 0.0, _PLOT * bar.nbytes / longest)
        share = f" · {show_share(bar.nbytes / whole)}" if index and whole else ""
        value = f"{show_bytes(bar.nbytes)}{share} · {bar.label}"
        rect = tag(
            "rect",
            title(f"{show_name(group.name)}: {bar.label} {bar.nbytes:,} bytes"),
            class_=bar.style, x=_LABEL, y=y, width=width, height=_BAR, rx=2,
        )  # fmt: skip
        parts.append(rect + text(value, _LABEL + width + 7, y + _BAR - 3.5))
    return "".join(parts)
