"""The stems on tiny inputs: every row, every check, and what a wrong result leads to."""

from __future__ import annotations

import pytest
import torch

from bench import checkpoints, entropy_delta, memory, sparse_update, store, sync
from bench.record import Contest, Measurement, Options, Row
from bench.updates import MAIN_UPDATE, STEP_UPDATE, UPDATES

ALLOWED = ("ignore:The given buffer is not writable", "ignore::DeprecationWarning")  # by what peers do
QUICK = Options(quick=True)


def found(taken: Measurement) -> dict[tuple[str, str, str, str, int], Row]:
    return {(row.operation, row.implementation, row.case, row.dtype, *row.shape): row for row in taken.rows}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy_delta, "SLOW_NUMEL", 4096)
    plan = ((torch.bfloat16, 65536, tuple(UPDATES)), (torch.float32, 65536, (MAIN_UPDATE,)))
    monkeypatch.setattr(entropy_delta, "QUICK", plan)


@pytest.mark.filterwarnings(*ALLOWED)
def test_entropy_delta_measures_every_case(tiny: None) -> None:
    taken = entropy_delta.measure(QUICK)
    assert taken.failures == []
    rows = found(taken)
    for case in UPDATES:
        encode = rows["encode_ordinal_rans", "graftwork", case, "bfloat16", 65536]
        assert encode.bytes == 131072
        assert {"bytes_moved", "size_percent", "ratio_to_bound", "memcpy_percent_1"} <= encode.facts.keys()
        assert encode.runs["1"].roofline_fraction
    assert rows["decode_ordinal_rans", "graftwork", MAIN_UPDATE, "float32", 65536].runs
    assert rows["decode_ordinal_rans", "reference", MAIN_UPDATE, "bfloat16", 4096].runs
    applied = rows["apply_sparse_delta_", "graftwork", STEP_UPDATE, "bfloat16", 65536]
    assert 0 < applied.facts["bytes_moved"] < 2 * 131072
    names = [target.name for target in taken.targets]
    assert "size by ordinal_rans, gaussian 5e-5" in names
    assert f"size by sparse_delta, {STEP_UPDATE}" in names


def test_entropy_delta_notices_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from graftwork.ops import entropy_delta as ours

    right = ours.decode_ordinal_rans

    def wrong(*arguments: torch.Tensor) -> torch.Tensor:
        restored = right(*arguments)
        restored.view(torch.uint8).reshape(-1)[7] ^= 1
        return restored

    monkeypatch.setattr(ours, "decode_ordinal_rans", wrong)
    taken, base = Measurement([]), torch.linspace(-1, 1, 4096).bfloat16().view(4, 1024)
    pair = entropy_delta.Pair(MAIN_UPDATE, base, base * 1.01, "cpu", Contest(), [])
    entropy_delta._measure_case(pair, taken, QUICK, reference=True)
    assert taken.failures == [f"{MAIN_UPDATE} bfloat16: decode_ordinal_rans restored something else"]


def test_sparse_update_measures_every_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_update, "QUICK", 1 << 16)
    monkeypatch.setattr(sparse_update, "DENSITIES", (0.01,))
    monkeypatch.setattr(sparse_update, "SCATTERED", (64, 1 << 14))
    taken = sparse_update.measure(QUICK)
    assert taken.failures == []
    rows = {(row.operation, row.implementation, row.case): row for row in taken.rows}
    for operation, case in (("step", "4 %"), ("values", "1 %"), ("topk", "4 %"), ("merge", "4 %")):
        assert rows[operation, "graftwork", case].runs["1"].roofline_fraction
    assert rows["values", "eager", "1 %"].facts["us"] > 0
    assert rows["gather", "torch.index_select", "64 entries"].facts["calls"] == 200
    assert rows["swap", "graftwork", "16384 entries"].facts["calls"] == 122
    names = {target.name for target in taken.targets}
    assert {"topk, share of the peak, 4 %", "gather above torch.index_select, 64 entries"} <= names


def test_sparse_update_notices_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sparse_update.merge_deltas

    def wrong(*arguments: object) -> tuple:
        support, values = right(*arguments)
        return support, values + 1

    monkeypatch.setattr(sparse_update, "merge_deltas", wrong)
    world = sparse_update.World(4096, torch.Generator().manual_seed(0))
    sparse_update._merge(world, QUICK)
    assert world.failures == ["merge_deltas made something else"]


@pytest.mark.filterwarnings(*ALLOWED)
def test_store_measures_sizes_speeds_and_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "BASE_ROWS", {True: 512})
    monkeypatch.setattr(checkpoints, "UPDATES", {name: UPDATES[name] for name in (MAIN_UPDATE, STEP_UPDATE)})
    monkeypatch.setattr(store, "real_cases", lambda: iter(()))
    taken = store.measure(QUICK)
    assert taken.failures == []
    rows = {(row.operation, row.implementation, row.case): row for row in taken.rows}
    for codec in store.CODECS:
        facts = rows["pack", f"graftwork {codec}", MAIN_UPDATE].facts
        assert 0 <= facts["other_files_percent"] < facts["size_percent"] < 60
        assert facts["digests_percent_1"] > 0
        assert rows["checkout", f"graftwork {codec}", MAIN_UPDATE].facts["digests_percent_1"] > 0
        assert not any("digests" in fact for fact in rows["pack", f"graftwork {codec}", STEP_UPDATE].facts)
    assert rows["pack", "graftwork auto", "real: the demo's"].status == "not measured"
    assert [target.name for target in taken.targets[:2]] == [
        f"size by small, {MAIN_UPDATE}",
        f"size by small, {STEP_UPDATE}",
    ]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layers.{index}": torch.randn(300, 500, generator=generator).bfloat16() for index in range(3)}
    monkeypatch.setattr(sync, "_model", lambda quick: ("tiny", weights))


@pytest.mark.filterwarnings(*ALLOWED)
def test_sync_measures_and_leaves_the_base_alone(model: None) -> None:
    before = {name: tensor.clone() for name, tensor in sync._model(quick=True)[1].items()}
    taken = sync.measure(QUICK)
    assert taken.failures == []
    rows = {(row.operation, row.implementation): row for row in taken.rows}
    assert 0 < rows["encode", "graftwork"].facts["payload_percent"] < 2
    for name in ("graftwork", "graftwork, changed chunks"):
        row = rows["apply", name]
        assert row.bytes == 3 * 300 * 500 * 2
        assert {"peak_extra_mb", "memcpy_percent_1"} <= row.facts.keys()
    assert sync.equal(before, sync._model(quick=True)[1])


def test_sync_notices_a_wrong_result(model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    base = sync._model(quick=True)[1]
    monkeypatch.setattr(sync, "APPLY", {"graftwork": lambda words, payload, threads: words})
    tuned = {name: -tensor for name, tensor in base.items()}
    assert sync._differences(base, tuned, {"graftwork": b""}, ["graftwork"]) == [
        "graftwork made other weights"
    ]


def test_the_shapes_that_stand_for_smollm2_are_its_shapes() -> None:
    folder = sync.smollm2_folder()
    if folder is None:
        pytest.skip("SmolLM2 is not installed")
    from graftwork.checkpoint import open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        shapes = {name: tuple(meta.shape) for name, meta in checkpoint.tensors.items()}
    assert shapes == sync.smollm2_shapes()


def test_a_peak_is_what_a_process_takes_in_between() -> None:
    code = """
import sys
before = bytearray(b"x" * (20 << 20))
print("ready", flush=True)
sys.stdin.readline()
held = bytearray(b"x" * (50 << 20))
del held
print("done", flush=True)
sys.stdin.readline()
after = bytearray(b"x" * (200 << 20))
"""
    peak, highest = memory.peak_above_start(code)
    assert 50 < peak < 130, "the 52 MB, the bytes that they come from, and nothing of before or after"
    assert highest > peak


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('ready', flush=True); input(); raise SystemExit(3)", "exit code 3"),
        (
            "print('ready', flush=True); input(); print('done', flush=True); input(); raise SystemExit(4)",
            "in the end",
        ),
    ],
)
def test_a_process_that_fails_gives_no_peak(code: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        memory.peak_above_start(code)
