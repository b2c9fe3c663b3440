"""A line through a few points, for what a loss does along a path."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graftwork.report.svg import drawing, tag, text, title
from graftwork.report.wording import show_measure

__all__ = ["line_chart"]

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 520, 150, 62, 10, 34


def line_chart(points: Sequence[tuple[float, float]], across: str, up: str, ends: tuple[str, str]) -> str:
    """Draw the points that are finite, joined in the order of their places; ``ends`` name the first and the last one."""
    found = sorted(point for point in points if all(map(math.isfinite, point)))
    if len(found) < 2:
        return ""
    xs, ys = [x for x, _ in found], [y for _, y in found]
    low, high = min(0.0, *ys), max(ys)
    span = high - low or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across_share = (x - xs[0]) / ((xs[-1] - xs[0]) or 1.0)
        return _LEFT + across_share * _WIDTH, _TOP + (1 - (y - low) / span) * _HEIGHT

    places = [place(x, y) for x, y in found]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [
        tag("line", x1=_LEFT, y1=_TOP + _HEIGHT, x2=_LEFT + _WIDTH, y2=_TOP + _HEIGHT, stroke="var(--line)"),
        tag("polyline", points=line, fill="none", stroke="var(--blue)", stroke_width=2),
    ]
    for (x, y), (at, value) in zip(places, found, strict=True):
        hint = title(f"{across} {show_measure(at)}: {up} {show_measure(value)}")
        parts.append(tag("circle", hint, cx=x, cy=y, r=3.5, class_="stored"))
    bottom = _TOP + _HEIGHT + 16
    parts += [
        text(show_measure(high), _LEFT - 8, _TOP + 4, "end"),
        text(show_measure(low), _LEFT - 8, _TOP + _HEIGHT + 4, "end"),
        text(ends[0], _LEFT, bottom),
        text(ends[1], _LEFT + _WIDTH, bottom, "end"),
    ]
    return drawing("".join(parts), _LEFT + _WIDTH + 12, _TOP + _HEIGHT + _BOTTOM, f"{up} by {across}")
