"""``python -m bench.readme``: the README's tables, generated from the records and never typed.

A table stands between ``<!-- bench:STEM:TABLE -->`` and ``<!-- /bench -->``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import record
from bench.machine import ROOT
from bench.tables import TABLES

README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- bench:(\w+):(\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables into the README, or check that they are there as the records have them."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the tables")
    what.add_argument("--check", action="store_true", help="exit with 1 if a table differs from the records")
    given = parser.parse_args(arguments)
    before = README.read_text(encoding="utf-8")
    after = render(before)
    if given.write:
        README.write_text(after, encoding="utf-8")
    elif after != before:
        print("README.md and bench/results differ; run python -m bench.readme --write", file=sys.stderr)
        return 1
    return 0


def render(text: str, results: Path = record.RESULTS) -> str:
    """``text`` with every table between markers made anew from the records; KeyError for an unknown table."""

    def table(match: re.Match[str]) -> str:
        opening, stem, name, closing = match.groups()
        if name not in TABLES.get(stem, {}):
            known = ", ".join(f"{stem}:{name}" for stem, tables in TABLES.items() for name in tables)
            raise KeyError(f"the README asks for bench:{stem}:{name}; there are {known}")
        return f"{opening}\n{TABLES[stem][name](record.read_all(stem, results))}\n\n{closing}"

    return BLOCK.sub(table, text)


def missing(text: str) -> list[str]:
    """Tables that ``text`` has no marker for."""
    present = {(stem, name) for _, stem, name, _ in BLOCK.findall(text)}
    return [
        f"bench:{stem}:{name}"
        for stem, names in TABLES.items()
        for name in names
        if (stem, name) not in present
    ]


if __name__ == "__main__":
    sys.exit(main())
