"""Heat maps of a measure over layers and modules, with their colour scale as legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graftwork.report.layers import Block, Cell
from graftwork.report.svg import FONT_WIDTH, drawing, tag, text, title
from graftwork.report.wording import GAP, count_of, show_name

__all__ = ["STEPS", "Measure", "Scale", "fit_scale", "heat_map", "legend"]

STEPS = 9
_ROW = 19
_LIMIT = 34


@dataclass(frozen=True, slots=True)
class Measure:
    """What a heat map shows: its value in a cell, how that reads, and the letter of its CSS palette."""

    name: str
    palette: str
    value: Callable[[Cell], float | None]
    show: Callable[[float | None], str]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to ``STEPS`` colours between ``low`` and ``high``, linearly or by logarithm.

    ``low > high`` turns the scale round: small values get the strong colours.
    """

    low: float
    high: float
    logarithmic: bool = False

    def step(self, value: float) -> int:
        """The colour of ``value``: 0 (faint) to ``STEPS - 1`` (strong)."""
        low, high, value = (self._project(x) for x in (self.low, self.high, value))
        share = (value - low) / (high - low) if high != low else 0.5
        return max(0, min(STEPS - 1, int(share * STEPS)))

    def at(self, share: float) -> float:
        """The value at ``share`` of the way from ``low`` to ``high``."""
        if self.logarithmic:
            return self.low ** (1 - share) * self.high**share
        return self.low + share * (self.high - self.low)

    def _project(self, value: float) -> float:
        return math.log(max(value, math.ulp(0.0))) if self.logarithmic else value


def fit_scale(blocks: Sequence[Block], measure: Measure) -> Scale:
    """A logarithmic scale over the measure's positive values, in at most three decades below the largest."""
    values = [measure.value(cell) for block in blocks for cell in block.cells.values()]
    positive = [v for v in values if v is not None and math.isfinite(v) and v > 0]
    if not positive:
        return Scale(0.0, 1.0)
    high = max(positive)
    return Scale(max(min(positive), high / 1000), high, logarithmic=True)


def heat_map(block: Block, measure: Measure, scale: Scale) -> str:
    """Draw ``measure`` over the rows and columns of ``block``; every cell tells its value as a tooltip."""
    if len(block.rows) == 1 and not block.rows[0]:
        block = Block(
            block.title, block.columns, ("",), {(c, r): cell for (r, c), cell in block.cells.items()}
        )
    wide = len(block.columns) <= 18
    cell_width = 48 if wide else 21
    rows = [show_name(row, _LIMIT) for row in block.rows]
    columns = [show_name(column, _LIMIT) for column in block.columns]
    left = 14 + FONT_WIDTH * max(map(len, rows), default=0)
    slant = FONT_WIDTH * max(map(len, columns), default=0) * math.sqrt(0.5)
    top = 12 + slant if any(columns) else 4
    parts = [
        text(label, left - 8, top + i * _ROW + 13, "end") for i, label in enumerate(rows)
    ] + [
        _slanted(label, left + i * cell_width + cell_width / 2, top - 5)
        for i, label in enumerate(columns)
        if label
    ]  # fmt: skip
    for i, row in enumerate(block.rows):
        for j, column in enumerate(block.columns):
            cell = block.cells.get((row, column))
            if cell is not None:
                x, y = left + j * cell_width, top + i * _ROW
                parts.append(_cell(cell, f"{row} {column}", measure, scale, x, y, cell_width, wide))
    width = left + len(columns) * cell_width + (slant if any(columns) else 0) + 4
    return drawing("".join(parts), width, top + len(rows) * _ROW + 2, f"{measure.name}, {block.title}")


def legend(measure: Measure, scale: Scale) -> str:
    """The colour scale with its values, and the mark of what could not be compared."""
    size, left = 34, 4
    parts = [
        tag("rect", class_=f"{measure.palette}{step}", x=left + step * size, y=2, width=size, height=11)
        for step in range(STEPS)
    ]
    for share in (0.0, 0.5, 1.0):
        anchor = "" if share == 0 else "middle" if share == 0.5 else "end"
        parts.append(text(measure.show(scale.at(share)), left + share * STEPS * size, 26, anchor or None))
    at = left + STEPS * size + 28
    parts.append(tag("rect", class_="void", x=at, y=2, width=size, height=11))
    parts.append(text("no counterpart or undefined", at + size + 7, 11.5))
    return drawing("".join(parts), at + size + 200, 30, f"colour scale: {measure.name}")


def _slanted(label: str, x: float, y: float) -> str:
    return text(label, x, y, transform=f"rotate(-45 {x:.1f} {y:.1f})")


def _cell(
    cell: Cell, name: str, measure: Measure, scale: Scale, x: float, y: float, width: int, wide: bool
) -> str:
    value = measure.value(cell)
    known = value is not None and math.isfinite(value)
    step = scale.step(value) if value is not None and known else 0
    hint = f"{show_name(name.strip())}: {measure.show(value) if known else cell.fact}"
    if cell.tensors > 1:
        hint += f" ({count_of(cell.tensors, 'tensor')})"
    rect = tag(
        "rect",
        title(hint),
        class_=f"{measure.palette}{step}" if known else "void",
        x=x, y=y, width=width - 1, height=_ROW - 1,
    )  # fmt: skip
    if not (wide and known):
        return rect
    shade = "in mid" if step < STEPS // 2 + 1 else "in mid over"
    return rect + text(measure.show(value).replace(GAP, ""), x + (width - 1) / 2, y + 13, shade)
