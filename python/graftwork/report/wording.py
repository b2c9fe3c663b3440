"""Numbers and names as people read them; the terminal and the HTML report say them alike."""

from __future__ import annotations

import math

NOTHING = "–"
GAP = "\N{NO-BREAK SPACE}"


def show_bytes(count: int) -> str:
    """Decimal units and three digits, on one line: ``532 B``, ``1.23 kB``, ``88.0 MB``."""
    if count < 1000:
        return f"{count}{GAP}B"
    power = next((p for p in (1, 2, 3) if count < 999.5 * 1000**p), 4)
    return f"{_digits(count / 1000**power)}{GAP}{('kB', 'MB', 'GB', 'TB')[power - 1]}"


def show_share(share: float | None) -> str:
    """A percentage of three digits; ``–`` for None; what is neither 0 nor 1 never reads as 0 % or 100 %."""
    if share is None or not math.isfinite(share):
        return NOTHING
    if share in (0, 1):
        return f"{share:.0%}".replace("%", f"{GAP}%")
    percent = 100 * share
    if percent < 0.01:
        return f"<{GAP}0.01{GAP}%"
    return f">{GAP}99.9{GAP}%" if 99.95 <= percent < 100 else f"{_digits(percent)}{GAP}%"


def show_relative(value: float | None) -> str:
    """A ratio that may be tiny, as a percentage of three significant digits; ``–`` for None."""
    return NOTHING if value is None or not math.isfinite(value) else f"{_significant(100 * value)}{GAP}%"


def show_measure(value: float | None) -> str:
    """Three significant digits; ``–`` for None or what is not finite."""
    return NOTHING if value is None or not math.isfinite(value) else _significant(value)


def show_cosine(value: float | None) -> str:
    """Three decimals, so that .999 and 1 differ; ``–`` for None."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f">{GAP}0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def show_name(name: str, limit: int = 96) -> str:
    """A name from a file, made safe to print: control characters escaped, overlong ones cut in the middle."""
    if len(name) > limit:
        name = f"{name[: limit // 2]}…{name[-(limit // 2 - 1) :]}"
    return show_text(name)


def show_text(text: str) -> str:
    """A text with its control characters, line breaks and direction marks escaped."""
    return "".join(c if c.isprintable() or c == GAP else c.encode("unicode_escape").decode() for c in text)


def show_shape(dtype: str | None, shape: tuple[int, ...] | None) -> str:
    """``BF16 [30522, 384]``; ``–`` where the tensor is absent."""
    return NOTHING if dtype is None else f"{dtype} {list(shape or ())}"


def count_of(count: int, noun: str) -> str:
    """``1 file``, ``2 files``, ``3 entries``."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _significant(value: float) -> str:
    if value == 0 or abs(value) >= 999.5:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:#.3g}".rstrip(".")


def _digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
