"""The results of the store's jobs as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from graftwork.report.facts import diff_facts, diff_warnings, ranked, tensor_note
from graftwork.report.wording import (
    NOTHING,
    count_of,
    show_bytes,
    show_cosine,
    show_measure,
    show_name,
    show_relative,
    show_share,
    show_text,
)

if TYPE_CHECKING:
    from graftwork.adapt import ApplyReport, Evaluation, TrainReport
    from graftwork.store.diff import CheckpointDiff, TensorDiff
    from graftwork.store.results import (
        CheckoutResult,
        EntryInfo,
        EntryReport,
        GcReport,
        PackResult,
        VerifyReport,
    )

__all__ = [
    "apply_table",
    "checkout_table",
    "diff_table",
    "environment_table",
    "gc_table",
    "list_table",
    "pack_table",
    "remove_table",
    "squash_table",
    "train_table",
    "verify_table",
]

_TOP = 10
_DIGEST = 12


def pack_table(result: PackResult) -> RenderableType:
    """One line an entry: status, sizes, codecs; then the sum."""
    table = _table("fine-tune", "status", ">tensors", ">files", ">stored", ">share", "codecs")
    for entry in result.entries:
        codecs = ", ".join(f"{codec} {use.tensors}" for codec, use in entry.codecs.items())
        sizes = _sizes(entry.file_bytes, entry.stored_bytes)
        table.add_row(_name(entry.name), entry.status, f"{entry.tensors:,}", *sizes, codecs)
    if len(result.entries) > 1:
        whole, stored = (
            sum(getattr(entry, field) for entry in result.entries) for field in ("file_bytes", "stored_bytes")
        )
        table.add_section()
        table.add_row("in all", "", "", *_sizes(whole, stored), "", style="bold")
    return Group(table, _line(f"store {result.store}, base {result.base_digest[:_DIGEST]}"))


def list_table(entries: Sequence[EntryInfo], base_digest: str, holds_base: bool) -> RenderableType:
    """One line an entry: sizes and digest, and in a store with chains its parent; then where the base is."""
    chained = any(entry.base_digest not in (None, base_digest) for entry in entries)
    parent = ("difference to",) if chained else ()
    table = _table("entry", ">tensors", ">files", ">stored", ">share", *parent, "digest")
    for entry in entries:
        sizes = _sizes(entry.file_bytes, entry.stored_bytes)
        below = (_parent(entry, base_digest),) if chained else ()
        table.add_row(_name(entry.name), f"{entry.tensors:,}", *sizes, *below, entry.digest[:_DIGEST])
    held = "held by the store" if holds_base else "referred to by digest"
    count = count_of(len(entries), "entry")
    return Group(table, _line(f"{count}; base {base_digest[:_DIGEST]}, {held}"))


def _parent(entry: EntryInfo, base_digest: str) -> Text:
    """What an entry is a difference to: an entry, the base, or nothing."""
    if entry.base_digest is None:
        return Text(NOTHING)
    if entry.base_digest == base_digest:
        return Text("the base", style="dim")
    return Text("?", style="bold red") if entry.parent is None else _name(entry.parent)


def diff_table(diff: CheckpointDiff) -> RenderableType:
    """Totals, facts and warnings, and the tensors that changed most."""
    verdict = "identical" if diff.identical else "different"
    parts: list[RenderableType] = [Text(f"\n{diff.base} and {diff.tuned} are {verdict}.\n", style="bold")]
    if diff.total.changed:
        parts.append(_totals(diff))
    parts += [Text(f"• {fact}") for fact in diff_facts(diff)]
    parts += [Text(f"! {text}", style="yellow") for text in diff_warnings(diff)]
    worth = [t for t in ranked(diff) if t.fact != "same"]
    if worth:
        parts.append(_tensors(worth[:_TOP]))
        if len(worth) > _TOP:
            parts.append(_line(f"and {count_of(len(worth) - _TOP, 'more tensor')}: see --json or --report"))
    return Group(*parts)


def _totals(diff: CheckpointDiff) -> RenderableType:
    total = diff.total
    share = show_share(diff.entropy_bytes / diff.tuned_bytes if diff.tuned_bytes else None)
    rows = {
        "elements changed": f"{show_share(total.changed_share)} of {total.elements:,}",
        "update norm": f"{show_relative(total.relative_norm)} of the base's",
        "update's entropy": f"{show_bytes(diff.entropy_bytes)}, {share} of {show_bytes(diff.tuned_bytes)}",
    }
    for dtype, survival in (("bf16", total.bf16), ("fp16", total.fp16)):
        if survival is not None:
            rows[f"if saved in {dtype}"] = (
                f"cosine {show_cosine(survival.cosine)}, norm kept {show_share(survival.retained_norm)}, "
                f"changed elements lost {show_share(survival.lost_share)}"
            )
    return _facts(rows)


def _tensors(tensors: Sequence[TensorDiff]) -> RenderableType:
    table = _table("tensor", ">changed", ">update norm", ">largest", ">bf16 cosine")
    for tensor in tensors:
        stats = tensor.stats
        measures = (NOTHING,) * 4
        if stats is not None:
            measures = (
                show_share(stats.changed_share),
                show_relative(stats.relative_norm),
                show_measure(stats.max_update),
                show_cosine(stats.bf16.cosine if stats.bf16 else None),
            )
        name, note = _name(tensor.name), tensor_note(tensor)
        table.add_row(name.append(f"\n  {note}", style="dim") if note else name, *measures)
    return table


def verify_table(report: VerifyReport) -> RenderableType:
    """The verdict, every problem, and remarks."""
    checked = f"{count_of(report.files, 'file')}, {show_bytes(report.bytes)}"
    restored = f", {count_of(report.restored, 'tensor')} restored" if report.restored else ""
    verdict = (
        "the store is intact" if report.ok else f"the store has {count_of(len(report.problems), 'problem')}"
    )
    lines = [Text(f"{verdict} ({checked}{restored})", style="green" if report.ok else "bold red")]
    lines += [Text(f"• {problem}") for problem in report.problems]
    lines += [Text(f"  {note}", style="dim") for note in report.notes]
    return Group(*lines)


def checkout_table(result: CheckoutResult) -> RenderableType:
    """What was restored, and where."""
    size = f"{count_of(result.files, 'file')}, {show_bytes(result.file_bytes)}"
    return Text(f"{show_name(result.name)} restored to {result.path}: {size}, every digest equal")


def gc_table(report: GcReport) -> RenderableType:
    """What was removed."""
    return Text(f"removed {count_of(report.files, 'file')}, {show_bytes(report.bytes)}")


def squash_table(report: EntryReport) -> RenderableType:
    """What became of the entry, and what comes next."""
    if report.status == "unchanged":
        return Text(f"{show_name(report.name)} is no difference to another entry: nothing to do")
    stored = show_bytes(report.stored_bytes)
    return Text(
        f"{show_name(report.name)} squashed: {stored} stored; graftwork gc frees what it leaves behind"
    )


def remove_table(name: str) -> RenderableType:
    """What was taken out, and what comes next."""
    return Text(f"{show_name(name)} removed; graftwork gc frees its space")


def train_table(report: TrainReport) -> RenderableType:
    """What each phase did to loss and accuracy, what was tuned, and what it cost."""
    table = _table(
        "phase", ">updates", ">loss", ">before", ">after", ">right before", ">after", ">seconds", ">optimizer"
    )
    for phase in report.phases:
        several = f" {phase.iteration + 1}" if report.phases[-1].iteration else ""
        before, after = _scores(phase.before), _scores(phase.after)
        table.add_row(
            *(f"{phase.kind}{several}", f"{phase.steps:,}", show_measure(phase.train_loss)),
            *(before[0], after[0], before[1], after[1]),
            *(f"{phase.seconds:,.1f}", show_bytes(phase.optimizer_bytes)),
        )
    rows = {
        "weights tuned": f"{report.tuned:,}, {show_share(report.density)} of {report.tunable:,}",
        "chosen but unchanged": f"{report.unchanged:,} of {report.chosen:,}",
        "tuned in full": f"{report.full:,}",
        "texts": f"{report.texts:,}, and {report.held_out:,} held out",
        "delta": f"{report.out}, {show_bytes(report.delta_bytes)}",
    }
    if report.not_chosen:
        rows["not chosen"] = f"{report.not_chosen:,}: no more weights changed in the full phase"
    if report.labels:
        rows["classes"] = show_text(", ".join(map(str, report.labels)))
    if report.cut:
        rows["cut"] = f"{count_of(report.cut, 'text')} longer than max_tokens"
    return Group(table, _facts(rows), *(Text(f"• {note}") for note in report.notes))


def _scores(evaluation: Evaluation | None) -> tuple[str, str]:
    """Loss and accuracy."""
    if evaluation is None:
        return NOTHING, NOTHING
    return show_measure(evaluation.loss), show_share(evaluation.accuracy)


def apply_table(report: ApplyReport) -> RenderableType:
    """What was added to what."""
    full = f", {count_of(len(report.full), 'tensor')} in full" if report.full else ""
    deltas = count_of(len(report.deltas), "delta")
    changed = f"{report.changed:,} weights changed, {show_share(report.density)}{full}"
    return Text(f"{deltas} added to {report.base}: {changed}; written to {report.out}")


def environment_table(facts: Mapping[str, Any]) -> RenderableType:
    """The facts of `graftwork.report.environment`, and how to install what is missing."""
    rows = {name: facts[name] or "not installed" for name in ("graftwork", "python", "torch", "triton")}
    rows["CPU level"] = facts["cpu_level"] or "native core not built: everything runs by the slow reference"
    rows["threads"] = str(facts["threads"])
    rows["GPU"] = ", ".join(facts["gpus"]) or "none"
    rows["CUDA kernels"] = "built" if facts["cuda_built"] else "not built (needs nvcc, GRAFTWORK_CUDA=ON)"
    for extra, missing in facts["extras"].items():
        advice = f"lacks {', '.join(missing)}: pip install 'graftwork[{extra}]'"
        rows[f"extra {extra}"] = advice if missing else "installed"
    return _facts(rows)


def _facts(rows: Mapping[str, str]) -> RenderableType:
    """Names and values, one a line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in rows.items():
        table.add_row(Text(key, style="dim"), Text(value))
    return Padding(table, (0, 0, 1, 0), expand=False)


def _table(first: str, *columns: str) -> Table:
    """A table whose first column is cut where it does not fit; ``>`` before a name sets a column right."""
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column(first, no_wrap=True, overflow="ellipsis")
    for column in columns:
        right = column.startswith(">")
        justify: JustifyMethod = "right" if right else "left"
        table.add_column(column.lstrip(">"), justify=justify, no_wrap=right)
    return table


def _name(name: str) -> Text:
    return Text(show_name(name))


def _line(text: str) -> Text:
    return Text(text, style="dim")


def _sizes(whole: int, stored: int) -> tuple[str, str, str]:
    return show_bytes(whole), show_bytes(stored), show_share(stored / whole if whole else None)
