"""``python -m graftwork.cli``."""

from __future__ import annotations

from graftwork.cli.program import main

main()
