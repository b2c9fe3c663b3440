"""Text of optional Debian packages: manual pages of many languages, fortunes of many topics."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from graftwork.errors import MissingExtra

MANUALS = Path("/usr/share/man")
FORTUNES = Path("/usr/share/games/fortunes")

_ESCAPE = re.compile(r"\\f[BIRP]|\\f\(..|\\[&|^/%c]|\\s[-+]?\d")
_SPECIAL = {r"\-": "-", r"\(co": "©", r"\(bu": "•", r"\(aq": "'", r"\(dq": '"', r"\(em": "—", r"\e": "\\"}


def manual_pages(locale: str = "", *, root: Path = MANUALS) -> dict[str, str]:
    """The plain text of the manual pages of one locale (``""`` is English), by file name.

    Raises
    ------
    MissingExtra
        If no page of that locale is installed.
    """
    package = f"manpages-{locale.lower().replace('_', '-')}" if locale else "manpages"
    pages = {}
    for path in sorted((root / locale).glob("man[1-8]/*.gz")):
        text = _without_roff(gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore"))
        if text:
            pages[path.name.removesuffix(".gz")] = text
    if not pages:
        raise MissingExtra(f"no manual page under {root / locale}", remedy=f"apt-get install {package}")
    return pages


def fortunes(*, root: Path = FORTUNES) -> dict[str, list[str]]:
    """The sayings of each topic file.

    Raises
    ------
    MissingExtra
        If none is installed.
    """
    topics = {}
    for path in sorted(root.glob("*")):
        if path.is_file() and not path.suffix:
            items = path.read_text(encoding="utf-8", errors="ignore").split("\n%\n")
            topics[path.name] = [item.strip() for item in items if item.strip()]
    if not topics:
        raise MissingExtra(f"no fortunes under {root}", remedy="apt-get install fortunes")
    return topics


def _without_roff(page: str) -> str:
    """Drop requests and comments, keep the words of font macros (``.B word``), resolve common escapes."""
    kept = []
    for line in page.splitlines():
        if match := re.match(r"\.(?:[BI]R?|RB|RI|BI|IB|SH|SS|PP|TP)\s+(.*)", line):
            kept.append(match[1].replace('"', ""))
        elif not line.startswith((".", "'")):
            kept.append(line)
    text = _ESCAPE.sub("", "\n".join(kept))
    for escape, character in _SPECIAL.items():
        text = text.replace(escape, character)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
