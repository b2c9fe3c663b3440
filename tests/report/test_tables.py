from __future__ import annotations

from rich.console import Console

from graftwork.report import tables
from graftwork.store.results import EntryInfo, EntryReport, GcReport, VerifyReport
from tests.report.handmade import checkpoint_diff, lone_tensor, pack_result, tensor_diff, transformer


def shown(renderable) -> str:
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().replace("\N{NO-BREAK SPACE}", " ")


def test_pack() -> None:
    text = shown(tables.pack_table(pack_result("mail", "code")))
    assert "mail" in text and "ordz 3, same 1" in text and "10.0 %" in text
    assert "in all" in text and "200 kB" in text
    assert "in all" not in shown(tables.pack_table(pack_result("mail")))


def test_list() -> None:
    entries = [EntryInfo("mail", "d" * 64, "b" * 64, 3, 1_000_000, 100_000)]
    text = shown(tables.list_table(entries, "b" * 64, False))
    assert "mail" in text and "dddddddddddd" in text and "1 entry; base bbbbbbbbbbbb, referred to" in text
    assert "held by the store" in shown(tables.list_table([], "b" * 64, True))
    assert "difference to" not in text


def test_list_of_a_chain() -> None:
    rows = [("base", None, None), ("mail", "b", None), ("mail-2", "c", "mail"), ("lost", "e", None)]
    entries = [
        EntryInfo(name, "d" * 64, base and base * 64, 3, 1_000_000, 100_000, parent)
        for name, base, parent in rows
    ]
    lines = shown(tables.list_table(entries, "b" * 64, True)).splitlines()
    assert "difference to" in lines[1]
    below = {line.split()[0]: " ".join(line.split()[8:-1]) for line in lines if "dddd" in line}
    assert below == {"base": "–", "mail": "the base", "mail-2": "mail", "lost": "?"}


def test_squash() -> None:
    done, nothing = (
        EntryReport("mail", "d" * 64, status, 1, 2000, 3, {}, {}) for status in ("squashed", "unchanged")
    )
    assert "mail squashed: 2.00 kB stored" in shown(tables.squash_table(done))
    assert "nothing to do" in shown(tables.squash_table(nothing))


def test_diff_names_what_changed_most_and_what_is_lost() -> None:
    text = shown(tables.diff_table(transformer(4)))
    assert "base and tuned are different" in text
    assert "lm_head.weight" in text and "only in tuned" in text
    assert "Saved in bf16" in text and "more tensors: see --json or --report" in text


def test_diff_of_equal_checkpoints_is_short() -> None:
    text = shown(tables.diff_table(checkpoint_diff([])))
    assert "identical" in text and "update norm" not in text


def test_markup_in_names_stays_text() -> None:
    text = shown(
        tables.diff_table(checkpoint_diff([tensor_diff("l.0.[bold]x[/nope]"), lone_tensor("[red]y")]))
    )
    assert "[bold]x[/nope]" in text and "[red]y" in text


def test_verify() -> None:
    good = VerifyReport(True, (), ("a note",), 3, 1000, 7)
    assert "intact (3 files, 1.00 kB, 7 tensors restored)" in shown(tables.verify_table(good))
    bad = VerifyReport(False, ("an object differs [x]",), (), 3, 1000, 0)
    assert "1 problem" in shown(tables.verify_table(bad)) and "differs [x]" in shown(tables.verify_table(bad))


def test_gc_and_remove() -> None:
    assert "removed 2 files, 10 B" in shown(tables.gc_table(GcReport(2, 10)))
    assert "mail removed" in shown(tables.remove_table("mail"))


def test_environment_says_how_to_install_what_is_missing() -> None:
    facts = {
        **dict.fromkeys(("graftwork", "python", "torch"), "1"),
        "triton": None,
        "cpu_level": None,
        "threads": 2,
        "cuda_built": False,
        "gpus": [],
        "extras": {"hf": ["transformers"], "dev": []},
    }
    text = shown(tables.environment_table(facts))
    assert "pip install 'graftwork[hf]'" in text and "lacks transformers" in text
    assert "not installed" in text and "slow reference" in text
