"""The command ``graftwork``: one verb a file, which imports its job when it runs, so that help is quick.

Exit codes: 0 done; 1 ``diff`` and ``verify`` found differences; 2 bad input or a failure; 130 interrupted.
"""

from __future__ import annotations

from graftwork.cli.program import app, main

__all__ = ["app", "main"]
