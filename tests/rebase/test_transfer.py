"""The transfer of a difference: the sheet's checks, and what is written around the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.delta.residual import add_residual
from graftwork.errors import CheckpointError
from graftwork.rebase import transfer, transfer_state
from graftwork.rebase.lineage import LINEAGE
from tests.generators.checkpoints import file_hashes, write_folder
from tests.rebase.models import base_state, exact_sum, moved, read_state, write_family

BUFFERS = ("model.layers.0.attn.rotary_emb.inv_freq", "model.position_ids")


def test_scale_zero_is_the_new_base_bit_for_bit(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    transfer(*family.paths, tmp_path / "out", scale=0.0)
    found = read_state(tmp_path / "out")
    assert all(torch.equal(found[name], family.new[name]) for name in family.new)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_onto_its_own_base_is_the_fine_tune_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    old = base_state(dtype)
    tuned = moved(old, 0.05, 3)  # of other signs and sizes: in fp32 alone old + (tuned - old) would differ
    family = write_family(tmp_path, old=old, tuned=tuned, new=old)
    transfer(*family.paths, tmp_path / "out")
    found = read_state(tmp_path / "out")
    assert all(torch.equal(found[name], tuned[name]) for name in tuned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_one_rounding(tmp_path: Path, dtype: torch.dtype, scale: float) -> None:
    family = write_family(tmp_path, dtype=dtype)
    report = transfer(*family.paths, tmp_path / "out", scale=scale)
    found = read_state(tmp_path / "out")
    for name in family.old:
        if name in BUFFERS:
            assert torch.equal(found[name], family.tuned[name])
            continue
        wanted = exact_sum(family.old[name], family.tuned[name], family.new[name], scale)
        if dtype == torch.float32:  # two roundings to fp32, of the difference and of the sum
            torch.testing.assert_close(found[name], wanted, rtol=3e-7, atol=1e-9)
        else:
            assert torch.equal(found[name], wanted), name
    assert report.verdict == "go" and report.out == tmp_path / "out"


def test_a_narrow_difference_would_lose_weights() -> None:
    """What this does with a bf16 difference instead: weights do not come back (the sheet's 0.8 %)."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(200_000, generator=generator) * 0.02).bfloat16()
    tuned = (base.float() + torch.randn(200_000, generator=generator) * 5e-4).bfloat16()
    found = transfer_state({"w": base}, {"w": tuned}, {"w": base})["w"]
    assert torch.equal(found, tuned)
    naive = base + (tuned - base)
    lost = (naive != tuned).double().mean().item()
    assert 0.006 < lost < 0.011


def test_new_rows_carry_the_fine_tunes_rows(tmp_path: Path) -> None:
    old, new = ({"model.embed_tokens.weight": torch.randn(4, 5)} for _ in range(2))
    tuned = {"model.embed_tokens.weight": torch.randn(6, 5)}
    for name, state in (("old", old), ("tuned", tuned), ("new", new)):
        write_folder(tmp_path / name, state)
    report = transfer(*(tmp_path / name for name in ("old", "tuned", "new")), tmp_path / "out", method="diff")
    (found,) = read_state(tmp_path / "out").values()
    (a,), (b,), (c,) = old.values(), tuned.values(), new.values()
    assert found.shape == (6, 5) and torch.equal(found[4:], b[4:])
    torch.testing.assert_close(found[:4], c + (b[:4] - a))
    assert "rows" in report.compatibility.pairing.rows[0].note


def test_rows_follow_their_tokens(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    old, tuned, new = (torch.randn(rows, 3) for rows in (4, 5, 4))
    tokens = {
        "old": {"a": 0, "b": 1, "c": 2, "d": 3},
        "tuned": {"a": 0, "b": 1, "c": 2, "d": 3, "<mine>": 4},
        "new": {"d": 0, "a": 1, "b": 2, "other": 3},
    }
    states = [{name: table} for table in (old, tuned, new)]
    family = write_family(tmp_path, old=states[0], tuned=states[1], new=states[2], tokens=tokens)
    report = transfer(*family.paths, tmp_path / "out", method="diff")
    found = read_state(tmp_path / "out")[name]
    for row, source in ((0, 1), (1, 2), (3, 0)):
        torch.testing.assert_close(found[row], new[source] + (tuned[row] - old[row]))
    torch.testing.assert_close(found[2], tuned[2] - old[2])  # the new base has no such token
    assert torch.equal(found[4], tuned[4])
    assert any("other" in lost for lost in report.compatibility.pairing.not_carried)
    with pytest.raises(CheckpointError, match="the vocabularies differ"):
        transfer(*family.paths, tmp_path / "strict", resize_vocab="refuse")


def test_linear_in_the_scale() -> None:
    old, tuned, new = (
        base_state(torch.float32),
        *(moved(base_state(torch.float32), s, 5) for s in (1e-2, 2e-2)),
    )
    one, two, both = (transfer_state(old, tuned, new, scale=scale) for scale in (0.25, 0.5, 0.75))
    for name in old:
        if name not in BUFFERS:
            ulp = torch.nextafter(both[name].abs(), torch.tensor(torch.inf)) - both[name].abs()
            gap = (one[name].double() + two[name].double() - new[name].double() - both[name].double()).abs()
            # each of the three results is rounded to within an ulp of its own
            scales = torch.stack([one[name].abs(), two[name].abs(), new[name].abs()]).amax(0)
            room = torch.maximum(ulp, torch.nextafter(scales, torch.tensor(torch.inf)) - scales)
            assert bool((gap <= 2 * room).all())


def test_task_arithmetic_of_other_tools() -> None:
    """mergekit's task_arithmetic on the old base, both others with weight 1: old + ((tuned − old) + (new − old))."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(50, 40, generator=generator)
    tuned, new = (old + 0.05 * torch.randn(50, 40, generator=generator) for _ in range(2))
    found = transfer_state({"w": old}, {"w": tuned}, {"w": new})["w"]
    other = old + ((tuned - old) + (new - old))
    ulp = torch.nextafter(found.abs(), torch.tensor(torch.inf)) - found.abs()
    assert bool(((found - other).abs() <= torch.maximum(2 * ulp, torch.tensor(1.2e-7))).all())


def test_files_configuration_and_tokenizer(tmp_path: Path) -> None:
    configs = {
        "old": {"rope_theta": 1e4, "dtype": "float32", "nested": {"a": 1, "b": 1}, "gone": 1},
        "tuned": {"rope_theta": 1e4, "dtype": "float32", "mine": True, "nested": {"a": 2, "b": 1}, "gone": 1},
        "new": {
            "rope_theta": 5e5,
            "dtype": "bfloat16",
            "nested": {"a": 1, "b": 3},
            "rope_scaling": {"factor": 8},
        },
    }
    tokens = {role: {"a": 0, "b": 1} for role in configs}
    family = write_family(tmp_path, configs=configs, tokens=tokens, shards=3)
    (tmp_path / "tuned" / "sub").mkdir()
    (tmp_path / "tuned" / "sub" / "notes.txt").write_text("kept")
    report = transfer(*family.paths, tmp_path / "out")
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == 5e5 and config["mine"] is True and config["dtype"] == "bfloat16"
    assert (
        config["nested"] == {"a": 2, "b": 3}
        and config["rope_scaling"] == {"factor": 8}
        and "gone" not in config
    )
    assert set(report.config_changes) == {"rope_theta", "nested.b", "rope_scaling", "gone"}
    for name in ("tokenizer.json", "generation_config.json", "sub/notes.txt"):
        assert (out / name).read_bytes() == (tmp_path / "tuned" / name).read_bytes()
    with open_checkpoint(out) as found, open_checkpoint(tmp_path / "tuned") as tuned:
        assert {n: i.file for n, i in found.tensors.items()} == {n: i.file for n, i in tuned.tensors.items()}
    lineage = json.loads((out / LINEAGE).read_text())
    assert (
        lineage["job"] == "rebase"
        and lineage["base"]["name"] == "new"
        and lineage["settings"]["scale"] == 1.0
    )
    assert [model["role"] for model in lineage["models"]] == ["old", "tuned", "new"]


def test_the_bytes_do_not_depend_on_threads_or_places(tmp_path: Path) -> None:
    first = write_family(tmp_path / "here")
    second = write_family(tmp_path / "there")
    transfer(*first.paths, tmp_path / "one", threads=1)
    transfer(*second.paths, tmp_path / "two", threads=7)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")


def test_a_single_file(tmp_path: Path) -> None:
    old = base_state()
    states = old, moved(old, 2e-3, 1), moved(old, 1e-3, 2)
    paths = [tmp_path / f"{name}.safetensors" for name in ("old", "tuned", "new")]
    for path, state in zip(paths, states, strict=True):
        write_checkpoint(path, state)
    transfer(*paths, tmp_path / "out.safetensors")
    found = read_state(tmp_path / "out.safetensors")
    name = "lm_head.weight"
    assert torch.equal(found[name], exact_sum(*(state[name] for state in states)))
    with open_checkpoint(tmp_path / "out.safetensors") as checkpoint:
        (header,) = checkpoint.headers.values()
        assert json.loads(header.metadata[LINEAGE])["base"]["name"] == "new.safetensors"
    with pytest.raises(CheckpointError, match="no place for a residual"):
        transfer(*paths, tmp_path / "other.safetensors", preserve="residual")


def test_the_result_has_the_new_bases_dtype(tmp_path: Path) -> None:
    old = base_state(torch.float32)
    new = {name: t.bfloat16() if t.is_floating_point() else t for name, t in moved(old, 1e-3, 2).items()}
    family = write_family(tmp_path, old=old, new=new)
    transfer(*family.paths, tmp_path / "out")
    found = read_state(tmp_path / "out")["lm_head.weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(
        found, exact_sum(old["lm_head.weight"], family.tuned["lm_head.weight"], new["lm_head.weight"])
    )


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    old = {name: tensor for name, tensor in base_state().items() if name != "lm_head.weight"}
    configs = {role: {"tie_word_embeddings": True} for role in ("old", "tuned", "new")}
    family = write_family(tmp_path, old=old, configs=configs)
    transfer(*family.paths, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as found:
        assert "lm_head.weight" not in found.tensors and found.tied == {
            "lm_head.weight": "model.embed_tokens.weight"
        }
    name = "model.embed_tokens.weight"
    assert torch.equal(
        read_state(tmp_path / "out")[name], exact_sum(old[name], family.tuned[name], family.new[name])
    )


@pytest.mark.parametrize("own", ["tuned", "new"])
def test_other_tie_settings(tmp_path: Path, own: str) -> None:
    full = base_state()
    states, configs = {}, {}
    for number, role in enumerate(("old", "tuned", "new")):
        state = moved(full, 1e-3, number) if number else dict(full)
        if role != own:
            del state["lm_head.weight"]
        states[role], configs[role] = state, {"tie_word_embeddings": role != own}
    family = write_family(tmp_path, **states, configs=configs)
    with pytest.raises(CheckpointError, match="is tied in one model"):
        transfer(*family.paths, tmp_path / "out")
    report = transfer(*family.paths, tmp_path / "out", on_mismatch="skip", method="diff")
    found = read_state(tmp_path / "out")
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    tuned_head = states["tuned"].get(head, states["tuned"][embedding])
    new_head = states["new"].get(head, states["new"][embedding])
    assert torch.equal(found[head], exact_sum(full[embedding], tuned_head, new_head))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert report.compatibility.pairing.frame == own and report.verdict != "go"


def test_what_the_fine_tune_alone_has_and_lacks(tmp_path: Path) -> None:
    old = base_state()
    tuned = moved(old, 2e-3, 1)
    del tuned["lm_head.weight"]
    tuned["classifier.weight"] = torch.randn(3, 16)
    family = write_family(tmp_path, old=old, tuned=tuned)
    report = transfer(*family.paths, tmp_path / "out")
    found = read_state(tmp_path / "out")
    assert (
        torch.equal(found["classifier.weight"], tuned["classifier.weight"]) and "lm_head.weight" not in found
    )
    assert any("dropped 1 tensor" in note for note in report.compatibility.pairing.notes)


def test_names_with_another_prefix(tmp_path: Path) -> None:
    old = base_state()
    tuned = {f"bert.{name}": tensor for name, tensor in moved(old, 2e-3, 1).items()}
    tuned["classifier.weight"] = torch.randn(3, 16)
    family = write_family(tmp_path, old=old, tuned=tuned)
    report = transfer(*family.paths, tmp_path / "out")
    name = "model.layers.1.mlp.up.weight"
    found = read_state(tmp_path / "out")[f"bert.{name}"]
    assert torch.equal(found, exact_sum(old[name], tuned[f"bert.{name}"], family.new[name]))
    assert any("'bert.' is left out" in note for note in report.compatibility.pairing.notes)


def test_stochastic_rounding_keeps_the_update_in_expectation(tmp_path: Path) -> None:
    old = {"w": torch.ones(64, 1024, dtype=torch.bfloat16)}
    tuned = {"w": torch.full((64, 1024), 1.0 + 2**-7, dtype=torch.bfloat16)}
    new = {"w": torch.full((64, 1024), 1.5, dtype=torch.bfloat16)}
    family = write_family(tmp_path, old=old, tuned=tuned, new=new)
    lost = transfer(*family.paths, tmp_path / "nearest", scale=0.25, method="diff")
    kept = transfer(
        *family.paths, tmp_path / "stochastic", scale=0.25, preserve="stochastic", seed=3, method="diff"
    )
    assert lost.survival.total.lost_share == 1.0 and lost.survival.total.cosine == 0.0
    mean = read_state(tmp_path / "stochastic")["w"].double().mean().item()
    assert mean == pytest.approx(1.5 + 0.25 * 2**-7, abs=1e-4)
    assert 0.7 < (kept.survival.total.lost_share or 0) < 0.8  # a quarter of the steps is taken
    again = transfer(
        *family.paths, tmp_path / "again", scale=0.25, preserve="stochastic", seed=3, method="diff"
    )
    assert again.lineage == kept.lineage
    assert file_hashes(tmp_path / "again") == file_hashes(tmp_path / "stochastic")


def test_a_residual_brings_the_exact_result(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    transfer(*family.paths, tmp_path / "out", scale=0.3, preserve="residual")
    add_residual(tmp_path / "out", tmp_path / "exact")
    name = "model.layers.1.mlp.up.weight"
    a, b, c = (state[name].float() for state in (family.old, family.tuned, family.new))
    assert torch.equal(read_state(tmp_path / "exact")[name], c + torch.tensor(0.3) * (b - a))


def test_survival_is_reported(tmp_path: Path) -> None:
    old = base_state()
    tuned = {n: (t.float() + 1e-5).to(t.dtype) if t.dtype == torch.bfloat16 else t for n, t in old.items()}
    family = write_family(tmp_path, old=old, tuned=tuned)
    report = transfer(*family.paths, tmp_path / "out", method="diff")
    total = report.survival.total
    assert total.changed and 0 < total.lost < total.changed and 0 < (total.cosine or 0) < 1
    assert (
        json.loads(json.dumps(report.to_dict(), allow_nan=False))["survival"]["total"]["lost"] == total.lost
    )
