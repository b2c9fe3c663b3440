"""The tables of the rebase: verdicts counted by role, and starts by steps."""

from __future__ import annotations

from typing import Any

from bench.rebase import targets
from bench.rebase_tables import verdicts, versions
from bench.record import Row

MACHINE = {"cpu": "CPU", "cores": 2, "isa_level": "avx2", "torch": "2"}


def pair(role: str, verdict: str, retained: float) -> dict[str, Any]:
    facts = {"role": role, "verdict": verdict, "retained": retained}
    return facts | {"verdict_with_examples": verdict, "retained_with_examples": retained + 0.01}


def document(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {"machine": MACHINE, "date": "2026-01-01", "commit": "c", "dirty": False, "records": records}


FOUND = [
    pair("calibration", "go", 0.9), pair("calibration", "go", 0.6), pair("calibration", "risky", 0.5),
    pair("held out", "dont", 0.25), pair("held out", "dont", -0.1),
]  # fmt: skip


def test_verdicts() -> None:
    text = verdicts([document([{"operation": "pair", "facts": facts} for facts in FOUND])])
    assert "| calibration pairs, by the weights alone: **go** | 2 | 60 | 75 | 90 |" in text
    assert "| calibration pairs, by the weights alone: **don't** | 0 | – | – | – |" in text
    assert "| held out pairs, with examples: **don't** | 2 | -9 | 8 | 26 |" in text


def test_versions() -> None:
    def row(start: str, steps: str, accuracy: float) -> dict[str, Any]:
        facts = {"accuracy": accuracy, "standard_error": 0.5}
        return {"operation": "versions", "implementation": start, "case": steps, "facts": facts}

    records = [
        row("diff", "at once", 94.36),
        row("diff", "10 steps", 95.0),
        row("new", "10 steps", 1.0),
        row("x", "", 1),
    ]
    text = versions([document(records)])
    assert "| accuracy on the task, %, started from | at once | 10 steps |" in text
    assert (
        "| diff | 94.4 ± 0.5 | 95.0 ± 0.5 |" in text
        and "| new |  | 1.0 ± 0.5 |" in text
        and "| x" not in text
    )


def test_targets_look_at_both_roles_and_kinds() -> None:
    rows = []
    for facts in FOUND:
        row = Row("pair", "family")
        row.facts = facts
        rows.append(row)
    found = {target.name: (target.got, target.met) for target in targets(rows)}
    assert found["pairs"] == (5, False)
    assert found["least retained of a go, by the weights, calibration"] == (0.6, True)
    assert found["most retained of a don't, with examples, held out"] == (0.26, True)
    assert found["least retained of a go, by the weights, held out"] == (1.0, True)  # there is none
    bad = Row("pair", "family")
    bad.facts = pair("held out", "go", 0.3)
    assert not next(
        t for t in targets([*rows, bad]) if t.name.startswith("least retained of a go, by the weights, held")
    ).met
