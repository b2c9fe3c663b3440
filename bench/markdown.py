"""What all tables of the README are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Document = dict[str, Any]
NOT_MEASURED = "not measured"


def per_machine(documents: Sequence[Document], table: Callable[[Document], str]) -> str:
    """One table a machine, each under a line that says where it was measured."""
    if not documents:
        return f"*{NOT_MEASURED}*"
    return "\n\n".join(f"{_place(document)}\n\n{table(document)}" for document in documents)


def _place(document: Document) -> str:
    facts = document["machine"]
    parts = [f"{facts['cpu']}, {facts['cores']} cores, {facts['isa_level']}", f"torch {facts['torch']}"]
    if "gpu" in facts:
        parts = [facts["gpu"], f"CUDA {facts['cuda']}", f"torch {facts['torch']}"]
    commit = document["commit"] + (" with local changes" if document["dirty"] else "")
    return f"*Measured on {', '.join(parts)}; {document['date']}, commit {commit}.*"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns after the first are set right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def unique(values: Iterable[str]) -> list[str]:
    """The distinct values in their first order."""
    return list(dict.fromkeys(values))
