"""The README's tables, each made from the records of every machine that has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.markdown import NOT_MEASURED, Document, markdown, per_machine, unique
from bench.rebase_tables import verdicts, versions
from bench.skill_pack_tables import codecs as pack_codecs
from bench.skill_pack_tables import selections as pack_selections
from bench.store import CODECS
from bench.updates import MAIN_UPDATE

JOBS = ("pack", "checkout")
FLOORS = {
    "copy": "copy in memory",
    "sha256": "SHA-256 of the bytes",
    "digests": "SHA-256 of base and fine-tune",
    "write": "write and fsync",
}


def sizes(documents: Sequence[Document]) -> str:
    """Percent of the fine-tune file, by codec or peer and case, and its ratio to the entropy bound."""
    return per_machine(documents, _sizes)


def speeds(documents: Sequence[Document]) -> str:
    """MB/s of fine-tune bytes, by implementation and thread count, for one case, and how much of it is digests."""
    return per_machine(documents, _speeds)


def operations(documents: Sequence[Document]) -> str:
    """GB/s and share of the measured peak, by operation, dtype and size."""
    table = per_machine(documents, _operations)
    return (
        table
        if any("gpu" in document["machine"] for document in documents)
        else f"{table}\n\nGPU: *{NOT_MEASURED}*"
    )


def codes(documents: Sequence[Document]) -> str:
    """Size and MB/s of entropy codes of one tensor, by case and implementation."""
    return per_machine(documents, _codes)


def step(documents: Sequence[Document]) -> str:
    """Payload, GB/s and memory of one weight sync."""
    return per_machine(documents, _step)


def updates(documents: Sequence[Document]) -> str:
    """Milliseconds of the sparse updates, their share of the measured peak, and the peers' times beside."""
    return per_machine(documents, _updates)


def methods(documents: Sequence[Document]) -> str:
    """Accuracy, tuned weights, memory and time by method of fine-tuning."""
    return per_machine(documents, _methods)


def transfer(documents: Sequence[Document]) -> str:
    """Accuracy by what is added to the base, and by how the deltas were made."""
    return per_machine(documents, _transfer)


def times(documents: Sequence[Document]) -> str:
    """Milliseconds of imports and commands."""
    return per_machine(documents, _times)


def peaks(documents: Sequence[Document]) -> str:
    """Peak anonymous memory of pack and checkout, and its limit."""
    return per_machine(documents, _peaks)


TABLES: dict[str, dict[str, Callable[[Sequence[Document]], str]]] = {
    "store": {"sizes": sizes, "speeds": speeds},
    "lossless_delta": {"operations": operations},
    "entropy_delta": {"codes": codes},
    "sparse_update": {"updates": updates},
    "sparse_finetuning": {"methods": methods},
    "cross_lingual": {"transfer": transfer},
    "rebase": {"verdicts": verdicts, "versions": versions},
    "skill_pack": {"codecs": pack_codecs, "selections": pack_selections},
    "sync": {"step": step},
    "imports": {"times": times},
    "memory": {"peaks": peaks},
}


# ---- store ----


def _sizes(document: Document) -> str:
    packed = [row for row in document["records"] if row["operation"] == "pack"]
    cases = unique(row["case"] for row in packed)
    cells = {(row["implementation"], row["case"]): _size(row) for row in packed}
    names = unique(row["implementation"] for row in packed)
    names.sort(key=lambda name: name == "bound")  # stable: the bound last
    rows = [[_label(name), *(cells.get((name, case), "") for case in cases)] for name in names]
    found = {(row["implementation"], row["case"]): row["facts"] for row in packed}
    for codec in ("auto", "small"):
        ratios = [
            _ratio(found.get((f"graftwork {codec}", case)), found.get(("bound", case))) for case in cases
        ]
        rows.append([f"*{codec} ÷ that entropy*", *ratios])
    return markdown(["% of the fine-tune file", *cases], rows)


def _label(name: str) -> str:
    if name == "bound":
        return "*entropy given the base's exponent*"
    return f"**{name}**" if name.startswith("graftwork") else name


def _size(row: Document) -> str:
    return f"{row['facts']['size_percent']:.2f}" if "size_percent" in row["facts"] else row["status"]


def _ratio(ours: Document | None, bound: Document | None) -> str:
    """Of what the weights take; the files beside them are no part of the bound."""
    if not ours or not bound:
        return ""
    weights = ours["size_percent"] - ours.get("other_files_percent", 0)
    return f"{weights / bound['size_percent']:.3f}"


def _speeds(document: Document) -> str:
    rows = [row for row in document["records"] if row["case"] == MAIN_UPDATE]
    found = {(row["operation"], row["implementation"]): row for row in rows}
    lines = []
    for codec in CODECS:
        name = f"graftwork {codec}"
        for threads in ("1", "2"):
            cells: list[str] = []
            for job in JOBS:
                row = found.get((job, name))
                cells += [_speed(row, threads), _digests(row, threads)]
            cells.append(_speed(found.get(("tensor", name)), threads))
            lines.append([f"**{name}**, {_threads(threads)}", *cells])
    peers = unique(row["implementation"] for row in rows if row["operation"] == "pack")
    for name in (name for name in peers if name != "bound" and not name.startswith("graftwork")):
        pack, checkout = (_speed(row, _best(row)) for row in (found.get((job, name)) for job in JOBS))
        lines.append([name, pack, "–", checkout, "–", "–"])
    for job, label in FLOORS.items():
        row = found.get((job, "floor"))
        speed = _speed(row, _best(row))
        lines.append([f"*{label}*", speed, "–", speed, "–", speed])
    digests = "of it SHA-256"
    head = [f"MB/s of fine-tune bytes ({MAIN_UPDATE})", "pack", digests, "checkout", digests, "`.tensor`"]
    return markdown(head, lines)


def _threads(label: str) -> str:
    return "GPU" if label == "cuda" else f"{label} thread{'s' * (label != '1')}"


def _digests(row: Document | None, threads: str) -> str:
    share = row["facts"].get(f"digests_percent_{threads}") if row else None
    return NOT_MEASURED if share is None else f"{share:.0f}%"


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
    labels = unique(label for row in rows for label in row["runs"])
    found = {
        (row["operation"], row["dtype"], tuple(row["shape"]), row["implementation"]): row for row in rows
    }
    others = [name for name in unique(row["implementation"] for row in rows) if name != "graftwork"]
    lines = []
    for operation, dtype, shape in dict.fromkeys(key[:3] for key in found):
        ours = found[operation, dtype, shape, "graftwork"]
        name = f"`{operation}` {dtype} {shape[0] >> 20}Mi"
        cells = [_bandwidth(ours, label) for label in labels]
        for other in others:
            row = found.get((operation, dtype, shape, other))
            cells.append(_bandwidth(row, _best(row), fraction=False) if row else "–")
        lines.append([name, *cells])
    head = [
        "GB/s (share of the measured peak)",
        *(f"graftwork, {_threads(label)}" for label in labels),
        *others,
    ]
    return markdown(head, lines)


def _bandwidth(row: Document, label: str, *, fraction: bool = True) -> str:
    run = row["runs"].get(label)
    if run is None:
        return NOT_MEASURED
    text = f"{run['bytes_per_second'] / 1e9:.3g}"
    return f"{text} ({run['roofline_fraction']:.0%})" if fraction and run["roofline_fraction"] else text


# ---- entropy_delta and sync ----

CALLS = {
    "encode_ordinal_rans": ("decode_ordinal_rans", "**ordinal_rans**"),
    "encode_sparse_delta": ("apply_sparse_delta_", "**sparse_delta**"),
    "encode": ("decode", ""),
}


def _codes(document: Document) -> str:
    rows = [row for row in document["records"] if row["implementation"] != "graftwork, best segment"]
    keys = ("operation", "implementation", "case", "dtype")
    found = {(*(row[key] for key in keys), row["shape"][0]): row for row in rows}
    bounds = {key[2:]: row["facts"]["size_percent"] for key, row in found.items() if key[1] == "bound"}
    labels = unique(label for row in rows for label in row["runs"])
    lines = []
    for (operation, implementation, *rest), row in found.items():
        if operation not in CALLS or implementation == "bound":
            continue
        decode, name = CALLS[operation]
        if implementation != "graftwork":
            name = implementation
        case, dtype, numel = rest
        size = row["facts"].get("size_percent")
        cells = ["–", "–"] if size is None else [f"{size:.2f}", f"{size / bounds[tuple(rest)]:.3f}"]
        other = found.get((decode, implementation, *rest), row)
        cells += [_beside_memcpy(call, label, 1e6) for call in (row, other) for label in labels]
        lines.append([f"{case}, {dtype} {_numel(numel)}: {name}", *cells])
    columns = [f"{call}, {_threads(label)}" for call in ("encode", "decode + apply") for label in labels]
    return markdown(["MB/s of fine-tune bytes (% of memcpy)", "size, %", "÷ entropy", *columns], lines)


def _numel(count: int) -> str:
    return f"{count >> 20}Mi" if count >= 1 << 20 else f"{count >> 10}Ki"


def _beside_memcpy(row: Document | None, label: str, unit: float) -> str:
    """Speed and percent of a copy's; what is slower than a hundredth of it has digits after the point."""
    run = row["runs"].get(label) if row else None
    if row is None or run is None:
        return row["status"] if row and row["status"] != "measured" else "–"
    speed, share = run["bytes_per_second"] / unit, row["facts"][f"memcpy_percent_{label}"]
    text = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
    return f"{text} ({share:.0f}%)" if share >= 1 else f"{text} ({share:.1g}%)"


def _step(document: Document) -> str:
    found = {(row["operation"], row["implementation"]): row for row in document["records"]}
    labels = unique(label for row in document["records"] for label in row["runs"])
    lines = []
    for name in unique(
        name for call in ("apply", "encode") for operation, name in found if operation == call
    ):
        encode, apply_ = found.get(("encode", name)), found.get(("apply", name))
        payload = f"{encode['facts']['payload_percent']:.3f}" if encode and encode["runs"] else "–"
        memory = f"{apply_['facts']['peak_extra_mb']:.0f}" if apply_ else "–"
        cells = [_beside_memcpy(call, label, 1e9) for call in (encode, apply_) for label in labels]
        lines.append([_label(name), payload, *cells, memory])
    columns = [f"{call}, {_threads(label)}" for call in ("encode", "apply") for label in labels]
    case = document["records"][0]["case"] if document["records"] else ""
    head = [f"GB/s of the weights of {case} (% of memcpy)", "payload, %", *columns, "memory of apply, MB"]
    return markdown(head, lines)


# ---- sparse_update and sparse_finetuning ----


def _updates(document: Document) -> str:
    rows = document["records"]
    labels = unique(label for row in rows for label in row["runs"])
    found = {(row["operation"], row["case"], row["implementation"]): row for row in rows}
    lines = []
    for operation, case in dict.fromkeys(key[:2] for key in found):
        ours = found[operation, case, "graftwork"]
        times = [_milliseconds(ours, label) for label in labels]
        fraction = ours["runs"][labels[-1]]["roofline_fraction"]
        peers = [
            f"{name}: {_milliseconds(row, _best(row))} ({_times_ours(row, ours, labels[-1]):.1f}×)"
            for (called, where, name), row in found.items()
            if (called, where) == (operation, case) and name != "graftwork"
        ]
        lines.append(
            [f"{operation}, {case}", *times, f"{fraction:.0%}" if fraction else "–", "; ".join(peers)]
        )
    size = f"{rows[0]['shape'][0] >> 20}Mi fp32 weights" if rows else ""
    head = [f"ms a call, {size}", *(_threads(label) for label in labels), "of the peak", "peers (× ours)"]
    return markdown(head, lines)


def _milliseconds(row: Document, label: str) -> str:
    return f"{1e3 * row['runs'][label]['seconds']['median'] / row['facts']['calls']:.3g}"


def _times_ours(row: Document, ours: Document, label: str) -> float:
    seconds = row["runs"][_best(row)]["seconds"]["median"] / row["facts"]["calls"]
    return seconds / (ours["runs"][label]["seconds"]["median"] / ours["facts"]["calls"])


def _methods(document: Document) -> str:
    lines = []
    for row in document["records"]:
        facts = row["facts"]
        stored = f"{facts['delta_mb']:.2f}" if facts["delta_mb"] else "–"
        lines.append(
            [
                row["implementation"],
                f"{facts['accuracy']:.2f} ± {facts['standard_error']:.2f}",
                f"{facts['tuned']:,}",
                f"{facts['optimizer_mb']:.2f}",
                stored,
                f"{facts['step_ms']:.0f}",
                f"{facts['update_ms']:.1f}",
            ]
        )
    case = document["records"][0]["case"] if document["records"] else ""
    head = [
        case,
        "accuracy, %",
        "tuned weights",
        "optimizer, MB",
        "delta, MB",
        "step, ms",
        "of it update, ms",
    ]
    return markdown(head, lines)


def _transfer(document: Document) -> str:
    found = {(row["case"], row["implementation"]): row["facts"] for row in document["records"]}
    cases, arms = (unique(key[part] for key in found) for part in (0, 1))
    lines = [[case, *(_score(found.get((case, arm))) for arm in arms)] for case in cases]
    return markdown(["accuracy, %", *arms], lines)


def _score(facts: Document | None) -> str:
    if facts is None:
        return "–"
    error = f" ± {facts['standard_error']:.1f}" if len(facts["accuracies"]) > 1 else ""
    return f"{facts['accuracy']:.1f}{error}"


# ---- imports and memory ----


def _times(document: Document) -> str:
    rows = [
        [f"`{row['operation']}`", f"{row['runs']['1']['seconds']['median'] * 1000:,.1f}", ""]
        for row in document["records"]
    ]
    for row in rows:
        if row[0] == "`import graftwork`":
            row[0], row[2] = "`import graftwork` after `import torch`", f"{document['targets'][0]['limit']:g}"
    return markdown(["", "ms", "limit"], rows)


def _peaks(document: Document) -> str:
    rows = []
    for row, target in zip(document["records"], document["targets"], strict=True):
        facts = row["facts"]
        size, largest = facts["checkpoint_mb"] / 1000, facts["largest_tensor_mb"]
        codec = row["implementation"].removeprefix("graftwork ")
        what = f"{row['operation']} ({codec}) of {size:.1f} GB, largest tensor {largest:.0f} MB"
        rows.append([what, f"{facts['peak_rss_anon_mb']:.0f}", f"{target['limit']:.0f}"])
    return markdown(["MB above `import torch`", "peak RssAnon", "limit (300 MB + 2 tensors)"], rows)
