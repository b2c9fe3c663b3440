from __future__ import annotations

from typing import Any

from bench.skill_pack_tables import codecs, selections


def document(*rows: tuple[str, str, str, dict[str, Any]]) -> dict[str, Any]:
    keys = ("operation", "implementation", "case", "facts")
    machine = {"cpu": "a CPU", "cores": 2, "isa_level": "avx2", "torch": "2"}
    records = [dict(zip(keys, row, strict=True)) for row in rows]
    return {"machine": machine, "date": "2026-01-01", "commit": "abc", "dirty": False, "records": records}


def test_codecs_stand_beside_the_models() -> None:
    facts = {"accuracy": 97.06, "bits_per_weight": 1.298, "relative_error": 0.3612}
    table = codecs(
        [
            document(
                ("model", "base", "digits", {"accuracy": 9.0}),
                ("codec", "SVD", "digits", facts),
                ("auto", "1 bits a weight", "sayings", facts),
            )
        ]
    )
    assert "| **base** | 9.0 | – |" in table
    assert "| SVD | 97.1 (1.30, 0.36) | – |" in table
    assert "| automatic, 1 bits a weight | – | 97.1 (1.30, 0.36) |" in table


def test_who_chooses_a_pack() -> None:
    found = document(("selection", "route", "three tasks", {"accuracy": 98.2}))
    assert "| three tasks, chosen by | accuracy, % |" in selections([found])
    assert "| route | 98.2 |" in selections([found])
    assert "not measured" in codecs([])
