from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.errors import CheckpointError, SourceChanged
from graftwork.ops.lossless_delta import conditional_entropy_bits, delta_stats
from graftwork.store.diff import CheckpointDiff, diff
from graftwork.store.update_stats import Survival, UpdateStats
from tests.generators.checkpoints import base_tensors, random_tensor, tuned_tensors, updated, write_folder

SIZES = (0, 1, 31, 33, 1000, 4097)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 128 bytes, so that small tensors take many."""
    monkeypatch.setattr(sys.modules["graftwork.store.diff"], "CHUNK_BYTES", 128)


def compare(tmp_path: Path, base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]) -> CheckpointDiff:
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    return diff(tmp_path / "base", tmp_path / "tuned")


def tensor_of(found: CheckpointDiff, name: str):
    return next(tensor for tensor in found.tensors if tensor.name == name)


def close(value: float | None, wanted: float) -> bool:
    return value is not None and math.isclose(value, wanted, rel_tol=1e-12, abs_tol=1e-300)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_measures_equal_those_of_whole_tensors_in_fp64(tmp_path: Path, dtype: torch.dtype) -> None:
    base = {f"t{n}": random_tensor((n,), dtype, n) for n in SIZES}
    tuned = {name: updated(tensor, 3e-4, 7) for name, tensor in base.items()}
    found = compare(tmp_path, base, tuned)
    for name, tensor in base.items():
        stats, other = tensor_of(found, name).stats, tuned[name]
        assert stats is not None
        b, t = tensor.double(), other.double()
        assert stats.elements == tensor.numel()
        assert stats.changed == int((tensor != other).sum())
        assert close(stats.update_norm, (t - b).norm().item())
        assert close(stats.max_update, (t - b).abs().max().item() if b.numel() else 0.0)
        if b.numel():
            assert close(stats.relative_norm, ((t - b).norm() / b.norm()).item())
        for survival, saved in ((stats.bf16, torch.bfloat16), (stats.fp16, torch.float16)):
            wanted, kept = t - b, other.to(saved).double() - tensor.to(saved).double()
            if not b.numel():
                continue
            assert survival is not None
            assert survival.lost == int(((wanted != 0) & (kept == 0)).sum())
            if wanted.any() and kept.any():
                cosine = torch.dot(wanted, kept) / (wanted.norm() * kept.norm())
                assert math.isclose(survival.cosine or 0, cosine.item(), rel_tol=1e-9)
                assert close(survival.retained_norm, (kept.norm() / wanted.norm()).item())


@pytest.mark.usefixtures("small_chunks")
def test_bound_is_the_entropy_of_the_merged_histogram(tmp_path: Path) -> None:
    base, tuned = base_tensors(), tuned_tensors(base_tensors())
    found = compare(tmp_path, base, tuned)
    for name, tensor in base.items():
        bits = conditional_entropy_bits(delta_stats(tensor, tuned[name]).histogram)
        assert tensor_of(found, name).entropy_bytes == math.ceil(bits / 8)
    assert found.entropy_bytes == sum(t.entropy_bytes for t in found.tensors) < found.tuned_bytes


@pytest.mark.usefixtures("small_chunks")
def test_result_does_not_depend_on_threads(tmp_path: Path) -> None:
    base = base_tensors(torch.float32)
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned_tensors(base))
    one, two, five = (diff(tmp_path / "base", tmp_path / "tuned", threads=n) for n in (1, 2, 5))
    assert one == two == five


def test_total_adds_the_tensors_up(tmp_path: Path) -> None:
    base = base_tensors(torch.float32) | {"positions": torch.arange(4096)}
    found = compare(tmp_path, base, tuned_tensors(base))
    parts = [t.stats for t in found.tensors if t.stats and t.name != "positions"]
    assert found.total.elements == sum(t.numel() for t in base.values())
    assert found.total.changed == sum(part.changed for part in parts)
    assert close(found.total.base_square, sum(part.base_square for part in parts))
    assert found.total.bf16 is not None
    assert found.total.bf16.lost == sum(part.bf16.lost for part in parts if part.bf16)
    assert tensor_of(found, "positions").stats.base_square > found.total.base_square


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int64, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.complex64),
    ],
)
def test_other_dtypes_count_what_changed(tmp_path: Path, dtype: torch.dtype) -> None:
    words = torch.randint(0, 2, (33 * dtype.itemsize,), dtype=torch.uint8)
    if dtype is not torch.bool:
        words = torch.randint(0, 120, (33 * dtype.itemsize,), dtype=torch.uint8)
    base = words.view(dtype)
    changed = words.clone()
    changed[5 * dtype.itemsize] ^= 1
    found = compare(tmp_path, {"t": base}, {"t": changed.view(dtype)})
    stats = tensor_of(found, "t").stats
    assert stats is not None and stats.changed == 1
    assert (stats.bf16 is None) == (dtype is not torch.complex64)
    assert not found.identical


def test_values_that_are_no_numbers_are_counted_and_stay_out_of_the_norms(tmp_path: Path) -> None:
    base = torch.tensor([1.0, math.inf, math.nan, 2.0])
    tuned = torch.tensor([math.nan, -math.inf, math.nan, 2.5])
    stats = tensor_of(compare(tmp_path, {"t": base}, {"t": tuned}), "t").stats
    assert stats is not None
    assert (stats.changed, stats.base_nan, stats.base_inf, stats.tuned_nan, stats.tuned_inf) == (
        3,
        1,
        1,
        2,
        1,
    )
    assert (stats.update_norm, stats.max_update) == (0.5, 0.5)


def test_minus_zero_and_nan_payloads_are_changes(tmp_path: Path) -> None:
    base = torch.tensor([0, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    tuned = torch.tensor([-(1 << 31), 0x7FC00001], dtype=torch.int32).view(torch.float32)
    found = compare(tmp_path, {"t": base}, {"t": tuned})
    assert found.total.changed == 2 and tensor_of(found, "t").fact == "changed"


def test_json_is_finite_whatever_the_weights(tmp_path: Path) -> None:
    base = {
        "huge": torch.tensor([1e300, -1e300], dtype=torch.float64),
        "zero": torch.zeros(3),
        "none": torch.ones(0),
    }
    tuned = {"huge": -base["huge"], "zero": torch.ones(3), "none": torch.ones(0)}
    result = json.loads(json.dumps(compare(tmp_path, base, tuned).to_dict(), allow_nan=False))
    rows = {row["name"]: row["stats"] for row in result["tensors"]}
    assert rows["huge"]["update_norm"] is None
    assert rows["zero"]["relative_norm"] is None
    assert rows["none"]["changed_share"] is None


def test_facts_of_tensors_that_do_not_match(tmp_path: Path) -> None:
    base = {
        "same": torch.ones(3),
        "cast": torch.ones(4),
        "grown": torch.ones(5, 4),
        "cut": torch.ones(5, 4),
        "turned": torch.ones(2, 3),
        "flat": torch.ones(6),
        "gone": torch.ones(7),
    }
    tuned = {
        "same": torch.ones(3),
        "cast": torch.ones(4, dtype=torch.bfloat16),
        "grown": torch.full((7, 4), 2.0),
        "cut": torch.ones(2, 4),
        "turned": torch.ones(3, 2),
        "flat": torch.ones(2, 3),
        "new": torch.ones(8),
    }
    found = compare(tmp_path, base, tuned)
    assert {t.name: t.fact for t in found.tensors} == {
        "same": "same",
        "cast": "dtype differs",
        "grown": "shape differs",
        "cut": "shape differs",
        "turned": "shape differs",
        "flat": "shape differs",
        "gone": "only in base",
        "new": "only in tuned",
    }
    grown, cut = tensor_of(found, "grown"), tensor_of(found, "cut")
    assert (grown.stats.elements, grown.stats.changed) == (20, 20)
    assert grown.entropy_bytes >= 2 * 4 * 4
    assert "5 → 7 rows, the first 5 compared" in grown.note
    assert (cut.stats.elements, cut.stats.changed) == (8, 0)
    cast = tensor_of(found, "cast")
    assert (cast.stats.elements, cast.stats.changed, cast.entropy_bytes) == (4, 0, 0), cast
    assert cast.note == "the base cast from F32 to BF16"
    assert all(tensor_of(found, name).stats is None for name in ("turned", "flat", "gone", "new"))
    assert tensor_of(found, "gone").entropy_bytes == 0
    assert [t.name for t in found.tensors][-1] == "gone"
    assert not found.identical


def test_identical_whatever_the_layout(tmp_path: Path) -> None:
    base = base_tensors()
    write_folder(tmp_path / "one", base)
    write_folder(tmp_path / "many", base, shards=3, metadata={"note": "x"})
    found = diff(tmp_path / "one", tmp_path / "many")
    assert found.identical and found.count("same") == len(base)
    assert any("1 in the base, 3 in the fine-tune" in line for line in found.layout)
    assert any("model.safetensors.index.json" in line for line in found.layout)
    write_folder(tmp_path / "meta", base, metadata={"note": "y"})
    assert diff(tmp_path / "one", tmp_path / "meta").layout == (
        "model.safetensors: the header's metadata differ",
    )


def test_other_files_are_compared_by_digest(tmp_path: Path) -> None:
    base = base_tensors()
    write_folder(tmp_path / "a", base)
    write_folder(tmp_path / "b", base, config={"other": 1})
    (tmp_path / "a" / "only.txt").write_text("x")
    found = diff(tmp_path / "a", tmp_path / "b")
    assert not found.identical
    assert [(f.name, f.base_digest is None, f.tuned_digest is None) for f in found.files] == [
        ("config.json", False, False),
        ("only.txt", False, True),
    ]


def test_tied_weights_are_facts(tmp_path: Path) -> None:
    base = {"model.embed_tokens.weight": torch.ones(4, 2)}
    write_folder(tmp_path / "a", base, config={"tie_word_embeddings": True})
    write_folder(tmp_path / "b", base | {"lm_head.weight": torch.ones(4, 2)})
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.base_tied == {"lm_head.weight": "model.embed_tokens.weight"} and not found.tuned_tied
    assert "tied to 'model.embed_tokens.weight'" in tensor_of(found, "lm_head.weight").note


def test_takes_files_and_open_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", {"t": torch.ones(3)})
    write_checkpoint(tmp_path / "b.safetensors", {"t": torch.zeros(3)})
    with open_checkpoint(tmp_path / "a.safetensors") as a:
        found = diff(a, tmp_path / "b.safetensors")
        assert a.tensor("t").sum() == 3
    assert found.total.changed == 3 and not found.files


@pytest.mark.usefixtures("small_chunks")
def test_progress_counts_bytes_and_never_falls(tmp_path: Path) -> None:
    base = base_tensors()
    write_checkpoint(tmp_path / "a", base)
    calls: list[tuple[str, int, int]] = []
    diff(tmp_path / "a", tmp_path / "a", progress=lambda *call: calls.append(call))
    total = sum(t.nbytes for t in base.values())
    assert {(stage, whole) for stage, _, whole in calls} == {("diff", total)}
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[-1][1] == total


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", {"t": torch.ones(3)})
    write_checkpoint(tmp_path / "b", {"t": torch.ones(3)})
    with pytest.raises(SourceChanged, match=r"model\.safetensors"):
        diff(
            tmp_path / "a",
            tmp_path / "b",
            progress=lambda *_: os.utime(tmp_path / "b/model.safetensors", (1, 1)),
        )


def test_a_missing_checkpoint_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        diff(tmp_path / "nowhere", tmp_path / "nowhere")


def test_survival_measures_at_their_edges() -> None:
    assert Survival(0, 0, 0, 0.0, 0.0, 0.0).to_dict()["cosine"] is None
    assert Survival(2, 2, 0, 1.0, 0.0, 0.0).cosine == 0.0
    assert Survival(2, 0, 0, 0.1, 0.1, 0.1).cosine == 1.0
    nothing, some = UpdateStats(), UpdateStats(2, 1, max_update=3.0, bf16=Survival(1, 1, 0, 1.0, 0.0, 0.0))
    assert nothing + some == some
    assert (some + some).max_update == 3.0 and (some + some).bf16.lost == 2
