"""The demo's results as tables, for the terminal and for the HTML report alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.progress import Progress
from rich.text import Text

from demo import peers
from demo.tasks import FineTune
from graftwork.report import Table
from graftwork.report.wording import NOTHING, show_bytes, show_cosine, show_relative, show_share
from graftwork.store import CheckpointDiff, PackResult


def scores(
    tunes: Sequence[FineTune], restored: Mapping[str, float], differences: Mapping[str, Sequence[str]]
) -> Table:
    """Scores before, after, and of the restored model, to the last digit."""
    rows = []
    for tune in tunes:
        again, wrong = restored[tune.name], differences[tune.name]
        rows.append(
            (
                tune.name,
                tune.task.metric,
                f"{tune.before:.4f}",
                repr(tune.score),
                "equal" if again == tune.score else f"DIFFERENT: {again!r}",
                f"DIFFERENT: {', '.join(wrong)}" if wrong else "all equal",
            )
        )
    befores = {tune.task.name: tune.task.before for tune in tunes}
    return Table(
        "Scores",
        ("fine-tune", "metric", "before", "after", "restored: score", "restored: SHA-256"),
        rows,
        note="on held-out text; before: " + "; ".join(f"{name}: {what}" for name, what in befores.items()),
    )


def sizes(tunes: Sequence[FineTune], packed: PackResult, bars: Progress) -> Table:
    """Stored bytes beside what zstd and ZipNN make of the same model.safetensors."""
    bar = bars.add_task("zstd, ZipNN", total=len(tunes))
    rows = []
    for tune, entry in zip(tunes, packed.entries, strict=True):
        file, base = tune.folder / "model.safetensors", tune.base / "model.safetensors"
        whole = file.stat().st_size
        cells = [_size(peers.zstd_bytes(file)), _size(peers.zipnn_bytes(file, tune.precision))]
        aligned = base.stat().st_size == whole
        cells.append(_size(peers.zipnn_bytes(file, tune.precision, base)) if aligned else "sizes differ")
        ours = entry.stored_bytes
        rows.append((tune.name, show_bytes(whole), show_bytes(ours), show_share(ours / whole), *cells))
        bars.advance(bar)
    return Table(
        "Sizes",
        ("fine-tune", "file", "graftwork", "share", "zstd -3", "ZipNN", "ZipNN on XOR"),
        rows,
        note="graftwork: all that the entry adds to the store, tokenizer and config files included; XOR with the base "
        "needs files of the same size, and the package fine-tunes have a head more than their base",
    )


def codecs(packed: PackResult) -> Table:
    """How each entry's tensors are stored."""
    rows = [
        (entry.name, codec, use.tensors, show_bytes(use.raw_bytes), show_bytes(use.stored_bytes))
        for entry in packed.entries
        for codec, use in entry.codecs.items()
    ]
    return Table("Codecs", ("fine-tune", "codec", "tensors", "raw", "stored"), rows)


def survival(tunes: Sequence[FineTune], diffs: Mapping[str, CheckpointDiff]) -> Table:
    """What each fine-tune changed, and how much of an fp32 update would survive in bf16 and fp16."""
    rows = []
    for tune in tunes:
        total = diffs[tune.name].total
        narrower = (total.bf16, total.fp16) if tune.precision == "float32" else (None, None)
        kept = [
            f"{show_cosine(narrow.cosine)}, {show_share(narrow.lost_share)}" if narrow else NOTHING
            for narrow in narrower
        ]
        rows.append((tune.name, show_share(total.changed_share), show_relative(total.relative_norm), *kept))
    return Table(
        "Did the fine-tune survive?",
        ("fine-tune", "words changed", "update norm", "bf16: cosine, lost", "fp16: cosine, lost"),
        rows,
        note="against the base of the same precision; bf16, fp16: what saving the fp32 weights in 16 bits does: cosine "
        "of the update that is left with the trained one, share of the changed words that fall back to the base",
    )


def times(seconds: Mapping[str, float]) -> Table:
    """Seconds of every stage and in all."""
    rows = [*seconds.items(), ("in all", sum(seconds.values()))]
    return Table("Time", ("stage", "seconds"), [(name, f"{value:.1f}") for name, value in rows])


def render(table: Table) -> RenderableType:
    """The table for the terminal."""
    shown = rich.table.Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for row in table.rows:
        shown.add_row(*map(str, row))
    note = Text(f"{table.note}\n" if table.note else "", style="dim")
    return Group(Text(f"\n{table.title}", style="bold"), shown, note)


def _size(stored: int | None) -> str:
    return "not installed" if stored is None else show_bytes(stored)
