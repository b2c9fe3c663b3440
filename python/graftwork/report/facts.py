"""What a checkpoint diff says in words; the terminal and the HTML report say it alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.report.wording import count_of, show_name, show_share

if TYPE_CHECKING:
    from graftwork.store.diff import CheckpointDiff, FileDiff, TensorDiff

__all__ = ["diff_facts", "diff_warnings", "ranked", "tensor_note"]

_NAMED = 3
_LOST_COSINE = 0.9


def ranked(diff: CheckpointDiff) -> list[TensorDiff]:
    """Tensors that cannot be compared in full first, then by relative update norm, then by changed share."""

    def rank(tensor: TensorDiff) -> tuple[bool, float, float]:
        stats = tensor.stats
        norm = (stats.relative_norm or 0.0) if stats else 0.0
        return (tensor.fact in ("same", "changed"), -norm, -((stats.changed_share or 0.0) if stats else 0.0))

    return sorted(diff.tensors, key=rank)


def tensor_note(tensor: TensorDiff) -> str:
    """What is particular about a tensor; empty if both sides have it and can be compared."""
    return show_name(tensor.note) or ("" if tensor.fact in ("same", "changed") else tensor.fact)


def diff_facts(diff: CheckpointDiff) -> list[str]:
    """One sentence for each kind of difference, naming the first few tensors or files."""
    total = len(diff.tensors)
    facts = [f"{diff.count('same')} of {count_of(total, 'tensor')} equal bit for bit."]
    for fact, compared, words in (
        ("only in tuned", False, "only in the fine-tune"),
        ("only in base", False, "only in the base"),
        ("dtype differs", False, "of another dtype, not compared"),
        ("dtype differs", True, "of another dtype, compared with the base cast to it"),
        ("shape differs", False, "of another shape, not compared"),
        ("shape differs", True, "with more or fewer rows, compared in those that both have"),
    ):
        names = [t.name for t in diff.tensors if t.fact == fact and (t.stats is not None) == compared]
        if names:
            facts.append(f"{count_of(len(names), 'tensor')} {words}: {_some(names)}.")
    for side, tied in (("base", diff.base_tied), ("fine-tune", diff.tuned_tied)):
        if tied:
            facts.append(f"Tied in the {side}: {_some([f'{a} = {b}' for a, b in tied.items()])}.")
    if diff.files:
        facts.append(f"Other files that differ: {_some([_file(f) for f in diff.files], limit=8)}.")
    facts += [f"Layout: {line}." for line in diff.layout]
    return facts


def diff_warnings(diff: CheckpointDiff) -> list[str]:
    """What a user should not miss: values that are no numbers, and updates that saving would lose."""
    total, found = diff.total, []
    if total.tuned_nan or total.tuned_inf:
        where = [t.name for t in diff.tensors if t.stats and t.stats.tuned_nan + t.stats.tuned_inf]
        found.append(
            f"The fine-tune holds {total.tuned_nan:,} NaN and {total.tuned_inf:,} infinite values "
            f"(the base {total.base_nan:,} and {total.base_inf:,}): {_some(where)}."
        )
    for dtype, survival in (("bf16", total.bf16), ("fp16", total.fp16)):
        if survival is None:
            continue
        if survival.overflow:
            found.append(f"Saved in {dtype}, {survival.overflow:,} finite values become infinite.")
        if survival.cosine is not None and survival.cosine < _LOST_COSINE:
            found.append(
                f"Saved in {dtype}, {show_share(survival.lost_share)} of the changed elements fall back to "
                f"the base's value, and what is left of the update has cosine {survival.cosine:.2f} with it."
            )
    return found


def _file(file: FileDiff) -> str:
    if file.base_digest is None:
        return f"{file.name} (only in the fine-tune)"
    return f"{file.name} (only in the base)" if file.tuned_digest is None else file.name


def _some(names: list[str], limit: int = _NAMED) -> str:
    shown = ", ".join(show_name(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
