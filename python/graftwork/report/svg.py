"""The few SVG elements that the charts need, as text."""

from __future__ import annotations

from html import escape

FONT_WIDTH = 6.4
"""Pixels that one character of the charts' 11 px font takes at most, on average."""


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; ``content`` is markup already, attribute values are escaped here.

    Underscores in attribute names stand for hyphens, and a trailing one is dropped (``class_``).
    """
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{listed}>{content}</{name}>" if content else f"<{name}{listed}/>"


def text(content: str, x: float, y: float, class_: str | None = None, **attributes: object) -> str:
    """A piece of text at (x, y)."""
    return tag("text", escape(content), x=x, y=y, class_=class_, **attributes)


def title(content: str) -> str:
    """A tooltip."""
    return tag("title", escape(content))


def drawing(content: str, width: float, height: float, label: str) -> str:
    """A whole picture; ``label`` is what a screen reader says. It scrolls sideways where it does not fit."""
    picture = tag(
        "svg",
        content,
        width=width,
        height=height,
        viewBox=f"0 0 {_text(width)} {_text(height)}",
        role="img",
        aria_label=label,
    )
    return f'<div class="scroll">{picture}</div>'


def _text(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
