"""The README's tables, each made from the records of every machine that has one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.store import CODECS, MAIN_CASE

Document = dict[str, Any]
NOT_MEASURED = "not measured"
FLOORS = {"copy": "copy in memory", "sha256": "SHA-256 of the bytes", "write": "write and fsync"}


def sizes(documents: Sequence[Document]) -> str:
    """Percent of the fine-tune file, by codec or peer and case."""
    return _per_machine(documents, _sizes)


def speeds(documents: Sequence[Document]) -> str:
    """MB/s of fine-tune bytes, by implementation and thread count, for one case."""
    return _per_machine(documents, _speeds)


def operations(documents: Sequence[Document]) -> str:
    """GB/s and share of the measured peak, by operation, dtype and size."""
    table = _per_machine(documents, _operations)
    return (
        table
        if any("gpu" in document["machine"] for document in documents)
        else f"{table}\n\nGPU: *{NOT_MEASURED}*"
    )


def times(documents: Sequence[Document]) -> str:
    """Milliseconds of imports and commands."""
    return _per_machine(documents, _times)


def peaks(documents: Sequence[Document]) -> str:
    """Peak anonymous memory of pack and checkout, and its limit."""
    return _per_machine(documents, _peaks)


TABLES: dict[str, dict[str, Callable[[Sequence[Document]], str]]] = {
    "store": {"sizes": sizes, "speeds": speeds},
    "lossless_delta": {"operations": operations},
    "imports": {"times": times},
    "memory": {"peaks": peaks},
}


def _per_machine(documents: Sequence[Document], table: Callable[[Document], str]) -> str:
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


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


# ---- store ----


def _sizes(document: Document) -> str:
    packed = [row for row in document["records"] if row["operation"] == "pack"]
    cases = _unique(row["case"] for row in packed)
    cells = {(row["implementation"], row["case"]): _size(row) for row in packed}
    names = _unique(row["implementation"] for row in packed)
    names.sort(key=lambda name: name == "bound")  # stable: the bound last
    rows = [[_label(name), *(cells.get((name, case), "") for case in cases)] for name in names]
    return _markdown(["% of the fine-tune file", *cases], rows)


def _label(name: str) -> str:
    if name == "bound":
        return "*entropy given the base's exponent*"
    return f"**{name}**" if name.startswith("graftwork") else name


def _size(row: Document) -> str:
    return f"{row['facts']['size_percent']:.2f}" if "size_percent" in row["facts"] else row["status"]


def _speeds(document: Document) -> str:
    rows = [row for row in document["records"] if row["case"] == MAIN_CASE]
    found = {(row["operation"], row["implementation"]): row for row in rows}
    lines = []
    for codec in CODECS:
        for threads in ("1", "2"):
            runs = [found.get((job, f"graftwork {codec}")) for job in ("pack", "checkout", "tensor")]
            plural = "thread" if threads == "1" else "threads"
            lines.append(
                [f"**graftwork {codec}**, {threads} {plural}", *(_speed(row, threads) for row in runs)]
            )
    peers = _unique(row["implementation"] for row in rows if row["operation"] == "pack")
    for name in (name for name in peers if name != "bound" and not name.startswith("graftwork")):
        runs = [found.get((job, name)) for job in ("pack", "checkout")]
        lines.append([name, *(_speed(row, _best(row)) for row in runs), "–"])
    for job, label in FLOORS.items():
        row = found.get((job, "floor"))
        lines.append([f"*{label}*", *[_speed(row, _best(row))] * 3])
    head = [f"MB/s of fine-tune bytes ({MAIN_CASE})", "pack", "checkout", "`.tensor`"]
    return _markdown(head, lines)


def _best(row: Document | None) -> str:
    """The thread count with the shortest median."""
    runs = row["runs"] if row else {}
    return min(runs, key=lambda label: runs[label]["seconds"]["median"], default="1")


def _speed(row: Document | None, threads: str) -> str:
    if row is None or threads not in row["runs"]:
        return NOT_MEASURED if row is None or row["status"] == "measured" else row["status"]
    return f"{row['runs'][threads]['bytes_per_second'] / 1e6:,.0f}"


# ---- lossless_delta ----


def _operations(document: Document) -> str:
    rows = document["records"]
    labels = _unique(label for row in rows for label in row["runs"])
    found = {
        (row["operation"], row["dtype"], tuple(row["shape"]), row["implementation"]): row for row in rows
    }
    others = [name for name in _unique(row["implementation"] for row in rows) if name != "graftwork"]
    lines = []
    for operation, dtype, shape in dict.fromkeys(key[:3] for key in found):
        ours = found[operation, dtype, shape, "graftwork"]
        name = f"`{operation}` {dtype} {shape[0] >> 20}Mi"
        cells = [_bandwidth(ours, label) for label in labels]
        for other in others:
            row = found.get((operation, dtype, shape, other))
            cells.append(_bandwidth(row, _best(row), fraction=False) if row else "–")
        lines.append([name, *cells])
    columns = ["GPU" if label == "cuda" else f"{label} thread{'s' * (label != '1')}" for label in labels]
    head = ["GB/s (share of the measured peak)", *(f"graftwork, {column}" for column in columns), *others]
    return _markdown(head, lines)


def _bandwidth(row: Document, label: str, *, fraction: bool = True) -> str:
    run = row["runs"].get(label)
    if run is None:
        return NOT_MEASURED
    text = f"{run['bytes_per_second'] / 1e9:.3g}"
    return f"{text} ({run['roofline_fraction']:.0%})" if fraction and run["roofline_fraction"] else text


# ---- imports and memory ----


def _times(document: Document) -> str:
    rows = [
        [f"`{row['operation']}`", f"{row['runs']['1']['seconds']['median'] * 1000:,.1f}", ""]
        for row in document["records"]
    ]
    for row in rows:
        if row[0] == "`import graftwork`":
            row[0], row[2] = "`import graftwork` after `import torch`", f"{document['targets'][0]['limit']:g}"
    return _markdown(["", "ms", "limit"], rows)


def _peaks(document: Document) -> str:
    rows = []
    for row, target in zip(document["records"], document["targets"], strict=True):
        facts = row["facts"]
        size, largest = facts["checkpoint_mb"] / 1000, facts["largest_tensor_mb"]
        what = f"{row['operation']} of {size:.1f} GB, largest tensor {largest:.0f} MB"
        rows.append([what, f"{facts['peak_rss_anon_mb']:.0f}", f"{target['limit']:.0f}"])
    return _markdown(["MB above `import torch`", "peak RssAnon", "limit (300 MB + 2 tensors)"], rows)
