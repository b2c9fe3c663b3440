"""The README's tables come from the records: in step, complete, and honest about what nobody measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import readme, record
from bench.measure import Timing
from bench.record import Measurement, Options, Row, Target
from bench.tables import TABLES


def test_the_readme_is_in_step_with_the_records() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.missing(text) == []
    assert readme.render(text) == text, "run python -m bench.readme --write"


def test_the_committed_records_may_be_published() -> None:
    for path in record.RESULTS.glob("*/*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert (found["stem"], found["void"], found["quick"], found["failures"]) == (
            path.stem,
            False,
            False,
            [],
        )


def markers(stem: str, table: str, body: str = "old\n") -> str:
    return f"before\n<!-- bench:{stem}:{table} -->\n{body}<!-- /bench -->\nafter\n"


@pytest.mark.parametrize(
    ("stem", "table"), [(stem, table) for stem, names in TABLES.items() for table in names]
)
def test_without_a_record_a_table_says_so(stem: str, table: str, tmp_path: Path) -> None:
    rendered = readme.render(markers(stem, table), tmp_path)
    assert "*not measured*" in rendered
    assert rendered.startswith("before\n")
    assert rendered.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in rendered
    assert readme.render(rendered, tmp_path) == rendered


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="bench:store:size"):
        readme.render(markers("store", "size"), tmp_path)


def test_missing_names_the_tables_without_a_marker() -> None:
    assert "bench:store:sizes" not in readme.missing(markers("store", "sizes"))
    assert "bench:store:speeds" in readme.missing(markers("store", "sizes"))


def timed(row: Row, **seconds: float) -> Row:
    for label, median in seconds.items():
        row.add_run(label.removeprefix("t"), Timing.of([median]), Timing.of([median / 2]))
    return row


def rendered(stem: str, table: str, taken: Measurement, results: Path, **facts: Any) -> str:
    found = record.document(stem, taken, Options(), [None])
    found["machine"] |= facts
    record.write(found, results)
    return readme.render(markers(stem, table), results)


def test_sizes_and_speeds(tmp_path: Path) -> None:
    case = {"case": "gaussian 2e-4", "bytes": 10**6}
    fast = timed(Row("pack", "graftwork fast", **case), t1=0.01, t2=0.005)
    fast.facts |= {"size_percent": 30.125, "digests_percent_1": 12.4}
    small = Row("pack", "graftwork small", **case, facts={"size_percent": 25.6, "other_files_percent": 1.0})
    peer = timed(Row("pack", "ZipNN", **case), t1=0.02, t2=0.04)
    peer.facts["size_percent"] = 66.2
    bound = Row("pack", "bound", **case, facts={"size_percent": 24.1})
    absent = Row("pack", "fireworks arc_v2", **case, status="not installed")
    digests = timed(Row("digests", "floor", **case), t1=0.001)
    taken = Measurement([bound, fast, small, peer, absent, digests])
    sizes = rendered("store", "sizes", taken, tmp_path).splitlines()
    assert "| **graftwork fast** | 30.12 |" in sizes
    assert "| fireworks arc_v2 | not installed |" in sizes
    assert sizes.index("| *entropy given the base's exponent* | 24.10 |") > sizes.index("| ZipNN | 66.20 |")
    assert "| *small ÷ that entropy* | 1.021 |" in sizes, "of the weights, without the other files"
    assert "| *auto ÷ that entropy* |  |" in sizes
    speeds = readme.render(markers("store", "speeds"), tmp_path)
    none = "not measured"
    assert f"| **graftwork fast**, 1 thread | 100 | 12% | {none} | {none} | {none} |" in speeds
    assert f"| **graftwork fast**, 2 threads | 200 | {none} | {none} | {none} | {none} |" in speeds
    assert f"| ZipNN | 50 | – | {none} | – | – |" in speeds, "a peer's best thread count"
    assert f"| fireworks arc_v2 | not installed | – | {none} | – | – |" in speeds
    assert "| *SHA-256 of base and fine-tune* | 1,000 | – | 1,000 | – | 1,000 |" in speeds


def test_codes_stand_beside_memcpy_and_the_bound(tmp_path: Path) -> None:
    def row(operation: str, implementation: str, **facts: float) -> Row:
        made = Row(
            operation, implementation, "bfloat16", (2 << 20,), "gaussian 2e-4", bytes=10**9, facts=facts
        )
        return made if implementation == "bound" else timed(made, t1=0.5)

    rows = [
        row("copy", "floor"),
        row("encode_ordinal_rans", "graftwork", size_percent=25.0, memcpy_percent_1=5.2),
        row("encode_ordinal_rans", "graftwork, best segment", size_percent=24.9, memcpy_percent_1=3.0),
        row("decode_ordinal_rans", "graftwork", memcpy_percent_1=0.53),
        row("encode", "ZipNN on XOR", size_percent=50.0, memcpy_percent_1=2.0),
        row("decode", "ZipNN on XOR", memcpy_percent_1=3.0),
        row("encode", "bound", size_percent=20.0),
    ]
    rows.append(Row("encode", "zstd", "bfloat16", (2 << 20,), "gaussian 2e-4", status="not installed"))
    table = rendered("entropy_delta", "codes", Measurement(rows), tmp_path)
    case = "gaussian 2e-4, bfloat16 2Mi"
    assert f"| {case}: **ordinal_rans** | 25.00 | 1.250 | 2,000 (5%) | 2,000 (0.5%) |" in table
    assert f"| {case}: ZipNN on XOR | 50.00 | 2.500 | 2,000 (2%) | 2,000 (3%) |" in table
    assert f"| {case}: zstd | – | – | not installed | not installed |" in table
    assert "best segment" not in table


def test_a_step_has_its_payload_and_its_memory(tmp_path: Path) -> None:
    facts = {"payload_percent": 0.6474, "memcpy_percent_1": 20.0}
    encode = timed(Row("encode", "graftwork", case="SmolLM2", bytes=10**9, facts=facts), t1=0.5)
    facts = {"memcpy_percent_1": 40.0, "peak_extra_mb": 8.7}
    apply_ = timed(Row("apply", "graftwork", case="SmolLM2", bytes=10**9, facts=facts), t1=0.25)
    absent = Row("encode", "fireworks arc_v3", case="SmolLM2", status="not installed")
    table = rendered("sync", "step", Measurement([encode, apply_, absent]), tmp_path)
    assert "| **graftwork** | 0.647 | 2 (20%) | 4 (40%) | 9 |" in table
    assert "| fireworks arc_v3 | – | not installed | – | – |" in table


def test_updates_have_their_peers_beside_them(tmp_path: Path) -> None:
    def row(name: str, seconds: float, calls: int = 1) -> Row:
        made = Row("step", name, "float32", (64 << 20,), "4 %", bytes=10**9, facts={"calls": calls})
        return timed(made, t1=2 * seconds, t2=seconds)

    rows = [row("graftwork", 0.02), row("mask + AdamW", 0.3), row("eager", 0.4)]
    table = rendered("sparse_update", "updates", Measurement(rows), tmp_path)
    assert "64Mi fp32 weights" in table
    assert "| step, 4 % | 40 | 20 | 50% | mask + AdamW: 300 (15.0×); eager: 400 (20.0×) |" in table
    table = rendered("sparse_update", "updates", Measurement([row("graftwork", 0.02, 10)]), tmp_path)
    assert "| step, 4 % | 4 | 2 | 50% |  |" in table


def test_methods_of_fine_tuning(tmp_path: Path) -> None:
    facts = {"accuracy": 71.234, "standard_error": 0.456, "tuned": 908129, "optimizer_mb": 18.2}
    facts |= {"delta_mb": 4.1, "step_ms": 200.0, "update_ms": 7.25}
    full = Row("fine-tune", "full", case="topics", facts=facts | {"delta_mb": 0.0})
    table = rendered(
        "sparse_finetuning",
        "methods",
        Measurement([Row("fine-tune", "LT-SFT", case="topics", facts=facts), full]),
        tmp_path,
    )
    assert "| LT-SFT | 71.23 ± 0.46 | 908,129 | 18.20 | 4.10 | 200 | 7.2 |" in table
    assert "| full | 71.23 ± 0.46 | 908,129 | 18.20 | – | 200 | 7.2 |" in table


def test_transfer_by_what_is_added(tmp_path: Path) -> None:
    def row(arm: str, case: str, *found: float) -> Row:
        facts = {"accuracy": sum(found) / len(found), "standard_error": 0.5, "accuracies": list(found)}
        return Row("transfer", arm, case=case, facts=facts)

    rows = [
        row("lottery", "German, task alone", 50.0, 52.0),
        row("lottery", "German, task + German", 60.0, 60.0),
    ]
    rows.append(row("most frequent", "German, task alone", 40.0))
    table = rendered("cross_lingual", "transfer", Measurement(rows), tmp_path)
    assert "| German, task alone | 51.0 ± 0.5 | 40.0 |" in table
    assert "| German, task + German | 60.0 ± 0.5 | – |" in table


def test_operations_say_whether_a_gpu_was_measured(tmp_path: Path) -> None:
    ours = timed(Row("delta_stats", "graftwork", "bfloat16", (16 << 20,), bytes=10**9), t1=0.1, t2=0.05)
    chain = timed(Row("delta_stats", "numpy chain", "bfloat16", (16 << 20,), bytes=10**9), t1=1.0)
    table = rendered("lossless_delta", "operations", Measurement([ours, chain]), tmp_path)
    assert "| `delta_stats` bfloat16 16Mi | 10 (50%) | 20 (50%) | 1 |" in table
    assert "GPU: *not measured*" in table
    on_gpu = timed(Row("delta_stats", "graftwork", "bfloat16", (16 << 20,), bytes=10**9), cuda=0.001)
    gpu = {"gpu": "NVIDIA H100 80GB HBM3", "cuda": "13.0"}
    table = rendered("lossless_delta", "operations", Measurement([on_gpu]), tmp_path, **gpu)
    assert "| `delta_stats` bfloat16 16Mi | 1e+03 (50%) |" in table
    assert "not measured" not in table


def test_imports_and_memory(tmp_path: Path) -> None:
    rows = [timed(Row(name, "graftwork"), t1=0.0125) for name in ("import torch", "import graftwork")]
    taken = Measurement(rows, [Target("beyond", 12.5, 100.0, "ms")])
    assert "after `import torch` | 12.5 | 100 |" in rendered("imports", "times", taken, tmp_path)
    facts = {"checkpoint_mb": 4295.0, "largest_tensor_mb": 268.4, "peak_rss_anon_mb": 151.2}
    taken = Measurement([Row("pack", "graftwork small", facts=facts)], [Target("peak", 151.2, 836.9, "MB")])
    table = rendered("memory", "peaks", taken, tmp_path)
    assert "| pack (small) of 4.3 GB, largest tensor 268 MB | 151 | 837 |" in table
