"""The README's tables of the rebase: verdicts against retention, and what recycling is worth."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from bench.markdown import Document, markdown, per_machine, unique

KINDS = (
    ("by the weights alone", "verdict", "retained"),
    ("with examples", "verdict_with_examples", "retained_with_examples"),
)
WORDS = {"go": "go", "risky": "risky", "dont": "don't"}


def verdicts(documents: Sequence[Document]) -> str:
    """How many pairs got which verdict, and what was retained of their fine-tunes' gains."""
    return per_machine(documents, _verdicts)


def versions(documents: Sequence[Document]) -> str:
    """Accuracy by start and by steps of fine-tuning after it."""
    return per_machine(documents, _versions)


def _verdicts(document: Document) -> str:
    pairs = [row["facts"] for row in document["records"] if row["operation"] == "pair"]
    rows = []
    for role in unique(facts["role"] for facts in pairs):
        for words, kind, what in KINDS:
            mine = [facts for facts in pairs if facts["role"] == role]
            for verdict, word in WORDS.items():
                kept = sorted(facts[what] for facts in mine if facts[kind] == verdict)
                rows.append([f"{role} pairs, {words}: **{word}**", str(len(kept)), *_spread(kept)])
    return markdown(["share of the gain retained, %", "pairs", "least", "median", "most"], rows)


def _spread(kept: Sequence[float]) -> Iterator[str]:
    if not kept:
        yield from ("–", "–", "–")
        return
    for value in (kept[0], statistics.median(kept), kept[-1]):
        yield f"{100 * value:.0f}"


def _versions(document: Document) -> str:
    rows = [row for row in document["records"] if row["operation"] == "versions" and row["case"]]
    steps = unique(row["case"] for row in rows)
    cells = {(row["implementation"], row["case"]): row["facts"] for row in rows}
    lines = []
    for start in unique(row["implementation"] for row in rows):
        lines.append([start, *(_accuracy(cells.get((start, step))) for step in steps)])
    return markdown(["accuracy on the task, %, started from", *steps], lines)


def _accuracy(facts: Document | None) -> str:
    return "" if facts is None else f"{facts['accuracy']:.1f} ± {facts['standard_error']:.1f}"
