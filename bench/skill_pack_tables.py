"""The README's tables of skill packs: what a codec keeps of a fine-tune, and who chooses between packs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.markdown import Document, markdown, per_machine, unique


def codecs(documents: Sequence[Document]) -> str:
    """Bits a weight, error of the change and score of the task by codec, for each fine-tune."""
    return per_machine(documents, _codecs)


def selections(documents: Sequence[Document]) -> str:
    """Accuracy over several tasks by who chooses the pack."""
    return per_machine(documents, _selections)


def _codecs(document: Document) -> str:
    rows = [row for row in document["records"] if row["operation"] in ("model", "codec", "auto")]
    cases = unique(row["case"] for row in rows)
    cells = {(row["operation"], row["implementation"], row["case"]): row["facts"] for row in rows}
    lines = []
    for operation, name in dict.fromkeys(key[:2] for key in cells):
        label = f"automatic, {name}" if operation == "auto" else name
        found = [cells.get((operation, name, case)) for case in cases]
        lines.append([f"**{label}**" if operation == "model" else label, *(_cell(facts) for facts in found)])
    head = [f"{case}: accuracy, % (bits a weight, error of the change)" for case in cases]
    return markdown(["codec of the matrices", *head], lines)


def _cell(facts: Document | None) -> str:
    if facts is None:
        return "–"
    score = f"{facts['accuracy']:.1f}"
    if "bits_per_weight" not in facts:
        return score
    return f"{score} ({facts['bits_per_weight']:.2f}, {facts['relative_error']:.2f})"


def _selections(document: Document) -> str:
    rows = [row for row in document["records"] if row["operation"] == "selection"]
    lines = [[row["implementation"], f"{row['facts']['accuracy']:.1f}"] for row in rows]
    return markdown([f"{rows[0]['case'] if rows else ''}, chosen by", "accuracy, %"], lines)
