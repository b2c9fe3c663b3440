"""What a rebase says in words; the terminal and the HTML page say it alike."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from graftwork.report.wording import NOTHING, count_of, show_measure, show_name, show_share

if TYPE_CHECKING:
    from graftwork.rebase import Evaluation, RebaseReport
    from graftwork.rebase.statistics import TensorStatistics

__all__ = [
    "evidence_rows",
    "rebase_facts",
    "survival_sentence",
    "tensors_by_doubt",
    "verdict_sentence",
]

_NAMED = 3
_VERDICTS = {"go": "go", "risky": "risky", "dont": "don't"}
_ACTIONS = {
    "difference": "get the fine-tune's difference",
    "tuned": "are taken from the fine-tune as they are",
    "new": "stay as they are in the new base",
}


def verdict_sentence(report: RebaseReport) -> str:
    """The verdict, and what became of it."""
    done = "" if report.out is not None else ", nothing written"
    return f"{_VERDICTS[report.verdict]}: {report.tuned} onto {report.new}, scale {report.scale:g}{done}"


def rebase_facts(report: RebaseReport) -> list[str]:
    """What happens to the tensors, what is not carried over, and what comes from the new base."""
    found = report.compatibility
    counts: Counter[str] = Counter(row.action for row in found.pairing.rows)
    facts = [
        f"{count_of(counts[action], 'tensor')} {words}"
        for action, words in _ACTIONS.items()
        if counts[action]
    ]
    kept = [row.name for row in found.pairing.rows if row.action == "tuned"]
    if kept:
        facts[-1] += f": {_some(kept)}" if not counts["new"] else ""
    if found.pairing.frame == "new":
        facts.append(
            "files, configuration and tokenizer are the new base's, since the fine-tune's do not fit it"
        )
    if found.pairing.not_carried:
        facts.append(f"not carried over: {_some(found.pairing.not_carried)}")
    if report.config_changes:
        facts.append(f"settings taken from the new base: {_some(report.config_changes)}")
    facts += [row.note for row in found.pairing.rows if row.note.startswith("vocabulary")][:_NAMED]
    return facts + found.pairing.notes


def survival_sentence(report: RebaseReport) -> str:
    """What the rounding left of the update."""
    total = report.survival.total
    if total.cosine is None:
        return "the update is zero"
    text = (
        f"after rounding {show_share(total.retained_norm)} of the update's norm is there, "
        f"{show_share(total.lost_share)} of the changed weights fell back to the new base's"
    )
    return text + (", the exact rest stands in the residual" if report.preserve == "residual" else "")


def evidence_rows(report: RebaseReport) -> list[tuple[str, str, str, str, str]]:
    """Losses and scores of the four models, on the examples that chose and on those held out."""
    evidence = report.evidence
    if evidence is None:
        return []
    roles = ("old", "tuned", "new", "result")
    parts: list[tuple[str, dict[str, Evaluation]]] = [
        ("", {role: getattr(evidence, role) for role in roles}),
        (", held out", evidence.held_out),
    ]
    rows = []
    for words, found in parts:
        if not found:
            continue
        losses, scores = ([getattr(found[role], part) for role in roles] for part in ("loss", "score"))
        rows.append(_row(f"loss{words}", [show_measure(value) for value in losses]))
        if any(score is not None for score in scores):
            shares = [NOTHING if value is None else _score(value) for value in scores]
            rows.append(_row(f"score{words}", shares))
    return rows


def _score(value: float) -> str:
    return show_share(value) if 0 <= value <= 1 else show_measure(value)


def _row(name: str, cells: list[str]) -> tuple[str, str, str, str, str]:
    one, two, three, four = cells
    return name, one, two, three, four


def tensors_by_doubt(report: RebaseReport) -> list[tuple[str, TensorStatistics]]:
    """Tensors whose bases correlate least first; those without a correlation last, by how far they moved."""

    def doubt(item: tuple[str, TensorStatistics]) -> tuple[bool, float]:
        row = item[1]
        return row.correlation is None, row.correlation if row.correlation is not None else -(
            row.drift or 0.0
        )

    return sorted(report.compatibility.tensors.items(), key=doubt)


def _some(names: list[str]) -> str:
    shown = ", ".join(show_name(name) for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
