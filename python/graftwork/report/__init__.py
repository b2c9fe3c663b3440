"""Results for people: tables in the terminal (`graftwork.report.tables`) and a single-file HTML report."""

from __future__ import annotations

from graftwork.report.html import Table, write_report

__all__ = ["Table", "write_report"]
