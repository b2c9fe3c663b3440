"""Merges as LoRA, as entries of a store and as dense checkpoints: what is carried, and what the report says is not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.compose import to_dense, to_lora, to_store
from graftwork.compose.lora import open_donor
from graftwork.errors import AdapterError, CheckpointError
from graftwork.store import open_store
from tests.generators.adapters import factors, save_adapter

UP, DOWN, NORM, EMBEDDINGS = (
    "layers.0.up.weight",
    "layers.0.down.weight",
    "norm.weight",
    "embed_tokens.weight",
)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def base_tensors() -> dict[str, Tensor]:
    return {
        UP: normal(12, 7),
        DOWN: normal(7, 12, seed=1),
        NORM: normal(7, seed=2),
        EMBEDDINGS: normal(9, 7, seed=3),
    }


def low_rank(out: int, width: int, rank: int, seed: int) -> Tensor:
    return normal(out, rank, seed=seed) @ normal(rank, width, seed=seed + 1) * 0.1


def pair(
    root: Path, changes: dict[str, Tensor], tensors: dict[str, Tensor] | None = None, **config: Any
) -> tuple[Path, Path]:
    """A base and a merge of it, as folders."""
    root.mkdir(exist_ok=True)
    held = tensors or base_tensors()
    merged = {name: tensor + changes.get(name, 0) for name, tensor in held.items()}
    for name, weights in (("base", held), ("merged", merged)):
        write_checkpoint(root / name, weights, config={"model_type": "llama"} | config)
    return root / "base", root / "merged"


def weights(folder: Path) -> dict[str, Tensor]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}


def donor_weights(base: Path, adapter: Path) -> dict[str, Tensor]:
    with open_donor(base, adapter) as donor:
        return {name: donor.tensor(name).clone() for name in donor.metas}


def test_an_update_of_low_rank_is_carried_whole(tmp_path: Path) -> None:
    changes = {UP: low_rank(12, 7, 2, 10), DOWN: low_rank(7, 12, 1, 20), EMBEDDINGS: low_rank(9, 7, 2, 30)}
    base, merged = pair(tmp_path, changes)
    export = to_lora(base, merged, tmp_path / "lora", rank=2)
    assert {row.name: row.rank for row in export.rows} == dict.fromkeys(changes, 2)
    assert export.energy_left < 1e-10
    found = donor_weights(base, tmp_path / "lora")
    for name, tensor in weights(merged).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[NORM], weights(base)[NORM])


def test_the_error_is_the_tail_of_the_spectrum(tmp_path: Path) -> None:
    change = normal(12, 7, seed=10)
    base, merged = pair(tmp_path, {UP: change})
    values = torch.linalg.svdvals((weights(merged)[UP] - weights(base)[UP]).double())
    for rank in (1, 3, 7):
        export = to_lora(base, merged, tmp_path / f"lora{rank}", rank=rank)
        (row,) = export.rows
        assert row.update_norm == pytest.approx(float(values.norm()), rel=1e-6)
        assert row.error_norm == pytest.approx(float(values[rank:].norm()), rel=1e-4, abs=1e-5)
        left = float(values[rank:].square().sum() / values.square().sum())
        assert export.energy_left == pytest.approx(left, rel=1e-3, abs=1e-9)
        found = donor_weights(base, tmp_path / f"lora{rank}")[UP] - weights(merged)[UP]
        assert float(found.norm()) == pytest.approx(row.error_norm, rel=1e-4, abs=1e-5)


def test_ranks_by_energy_and_by_pattern(tmp_path: Path) -> None:
    base, merged = pair(tmp_path, {UP: normal(12, 7, seed=10), DOWN: low_rank(7, 12, 1, 20)})
    export = to_lora(base, merged, tmp_path / "energy", energy=0.9)
    ranks = {row.name: row.rank for row in export.rows}
    assert ranks[DOWN] == 1
    assert ranks[UP] in range(3, 7)
    assert all(row.energy_left <= 0.1 for row in export.rows)
    capped = to_lora(base, merged, tmp_path / "capped", energy=0.9, rank=2)
    assert {row.name: row.rank for row in capped.rows} == {UP: 2, DOWN: 1}
    patterns = to_lora(base, merged, tmp_path / "patterns", rank={"*.up.*": 5, "*": 1})
    assert {row.name: row.rank for row in patterns.rows} == {UP: 5, DOWN: 1}
    config = json.loads((tmp_path / "patterns" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert {config["r"], *config["rank_pattern"].values()} == {1, 5}
    with pytest.raises(AdapterError, match=r"no pattern gives a tensor its rank(.|\n)*down"):
        to_lora(base, merged, tmp_path / "never", rank={"*.up.*": 5})
    assert not (tmp_path / "never").exists()


def test_a_rank_above_the_smaller_side_is_that_side(tmp_path: Path) -> None:
    base, merged = pair(tmp_path, {UP: normal(12, 7, seed=10)})
    (row,) = to_lora(base, merged, tmp_path / "lora", rank=64).rows
    assert row.rank == 7
    assert row.energy_left < 1e-10


def test_factors_in_bfloat16_report_their_rounding(tmp_path: Path) -> None:
    base, merged = pair(tmp_path, {UP: low_rank(12, 7, 2, 10)})
    (row,) = to_lora(base, merged, tmp_path / "lora", rank=2, dtype="bfloat16").rows
    assert 1e-7 < row.energy_left < 1e-4
    found = donor_weights(base, tmp_path / "lora")[UP] - weights(merged)[UP]
    assert float(found.norm()) == pytest.approx(row.error_norm, rel=1e-3)


def test_what_is_no_matrix_is_kept_dropped_or_refused(tmp_path: Path) -> None:
    base, merged = pair(tmp_path, {UP: low_rank(12, 7, 1, 10), NORM: torch.ones(7)})
    export = to_lora(base, merged, tmp_path / "saved", rank=1)
    assert {row.name: row.carried for row in export.rows} == {UP: "factors", NORM: "full"}
    assert torch.equal(donor_weights(base, tmp_path / "saved")[NORM], weights(merged)[NORM])
    dropped = to_lora(base, merged, tmp_path / "dropped", rank=1, others="drop")
    row = next(row for row in dropped.rows if row.name == NORM)
    assert (row.carried, row.energy_left) == ("dropped", 1.0)
    assert dropped.energy_left == pytest.approx(
        7 / (7 + next(r for r in dropped.rows if r.name == UP).update_norm ** 2)
    )
    assert torch.equal(donor_weights(base, tmp_path / "dropped")[NORM], weights(base)[NORM])
    with pytest.raises(AdapterError, match=r"no matrix of a module(.|\n)*norm.weight(.|\n)*others='save'"):
        to_lora(base, merged, tmp_path / "never", rank=1, others="refuse")


def test_a_tensor_that_no_adapter_can_hold(tmp_path: Path) -> None:
    experts = {"layers.0.experts.up": normal(3, 4, 5), UP: normal(12, 7)}
    base, merged = pair(tmp_path, {"layers.0.experts.up": torch.ones(3, 4, 5)}, experts)
    with pytest.raises(AdapterError, match="others='drop' leaves it out"):
        to_lora(base, merged, tmp_path / "never", rank=1)
    export = to_lora(base, merged, tmp_path / "dropped", rank=1, others="drop")
    assert export.energy_left == 1.0
    container = {
        "cls.bias": normal(4),
        "cls.dense.weight": normal(4, 5),
        UP: normal(12, 7),
    }  # peft would copy all of cls
    base, merged = pair(tmp_path / "container", {"cls.bias": torch.ones(4)}, container)
    with pytest.raises(AdapterError, match=r"no matrix of a module(.|\n)*cls.bias"):
        to_lora(base, merged, tmp_path / "never", rank=1)


def test_biases_convolutions_and_grown_tables(tmp_path: Path) -> None:
    tensors = base_tensors() | {
        "layers.0.up.bias": normal(12, seed=4),
        "conv.weight": normal(5, 3, 2, 2, seed=5),
    }
    base, merged = pair(tmp_path, {"layers.0.up.bias": torch.ones(12), UP: low_rank(12, 7, 1, 10)}, tensors)
    grown = weights(merged)
    grown[EMBEDDINGS] = torch.cat([grown[EMBEDDINGS], torch.ones(2, 7)])
    grown["conv.weight"] += low_rank(5, 12, 1, 40).view(5, 3, 2, 2)
    write_checkpoint(tmp_path / "grown", grown, config={"model_type": "llama"})
    export = to_lora(base, tmp_path / "grown", tmp_path / "lora", rank=1)
    carried = {row.name: row.carried for row in export.rows}
    assert carried == {
        UP: "factors",
        "layers.0.up.bias": "full",
        "conv.weight": "factors",
        EMBEDDINGS: "full",
    }
    found = donor_weights(base, tmp_path / "lora")
    for name, tensor in grown.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_matrices_of_gpt2_are_stored_in_out(tmp_path: Path) -> None:
    tensors = {"h.0.attn.c_proj.weight": normal(6, 6), "h.0.mlp.c_fc.weight": normal(6, 24)}
    changes = {name: low_rank(*tensor.shape, 1, 10) for name, tensor in tensors.items()}
    base, merged = pair(tmp_path, changes, tensors, model_type="gpt2")
    to_lora(base, merged, tmp_path / "lora", rank=1)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    found = donor_weights(base, tmp_path / "lora")
    for name, tensor in weights(merged).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("untied", [False, True])
def test_a_tied_head_gets_factors_of_its_own(tmp_path: Path, untied: bool) -> None:
    base, merged = pair(tmp_path, {EMBEDDINGS: low_rank(9, 7, 1, 10)}, tie_word_embeddings=True)
    head = weights(merged)[EMBEDDINGS].clone()
    if untied:
        head += low_rank(9, 7, 1, 20)
        tensors = weights(merged) | {"lm_head.weight": head}
        write_checkpoint(tmp_path / "untied", tensors, config={"tie_word_embeddings": False})
        merged = tmp_path / "untied"
    to_lora(base, merged, tmp_path / "lora", rank=2)
    with open_donor(base, tmp_path / "lora") as donor:
        assert donor.untied == ("lm_head.weight",)
        torch.testing.assert_close(donor.tensor("lm_head.weight"), head, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            donor.tensor(EMBEDDINGS), weights(merged)[EMBEDDINGS], rtol=1e-5, atol=1e-5
        )


def test_a_head_that_the_merge_ties(tmp_path: Path) -> None:
    tensors = base_tensors() | {"lm_head.weight": normal(9, 7, seed=8)}
    write_checkpoint(tmp_path / "base", tensors, config={"tie_word_embeddings": False})
    write_checkpoint(tmp_path / "merged", base_tensors(), config={"tie_word_embeddings": True})
    to_lora(tmp_path / "base", tmp_path / "merged", tmp_path / "lora", rank=7)
    found = donor_weights(tmp_path / "base", tmp_path / "lora")["lm_head.weight"]
    torch.testing.assert_close(found, base_tensors()[EMBEDDINGS], rtol=1e-5, atol=1e-5)


def test_exports_that_are_refused(tmp_path: Path) -> None:
    base, merged = pair(tmp_path, {})
    with pytest.raises(AdapterError, match=r"changed nothing"):
        to_lora(base, merged, tmp_path / "never", rank=1)
    broken = weights(base)
    broken[UP][3, 4] = math.nan
    write_checkpoint(tmp_path / "nan", broken)
    with pytest.raises(CheckpointError, match=r"not finite(.|\n)*up.weight(.|\n)*flat index 25"):
        to_lora(base, tmp_path / "nan", tmp_path / "never", rank=1)
    write_checkpoint(tmp_path / "less", {UP: broken[UP]})
    with pytest.raises(CheckpointError, match="lacks tensors of the base"):
        to_lora(base, tmp_path / "less", tmp_path / "never", rank=1)
    for arguments, said in (
        ({}, "give rank, energy or both"), ({"rank": 0}, "at least 1"), ({"rank": {"*": 1.5}}, "whole numbers"),
        ({"energy": 0.0}, r"\(0, 1\]"), ({"rank": 1, "others": "no"}, "'save', 'drop'"),
        ({"rank": 1, "dtype": "int8"}, "float32"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            to_lora(base, merged, tmp_path / "never", **arguments)
    assert not (tmp_path / "never").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    base, merged = pair(tmp_path / "more", {UP: torch.ones(12, 7)})
    with pytest.raises(FileExistsError):
        to_lora(base, merged, tmp_path / "taken", rank=1)


def test_the_report_is_for_people_and_programs(tmp_path: Path) -> None:
    base, merged = pair(tmp_path, {UP: normal(12, 7, seed=10)}, architectures=["LlamaForCausalLM"])
    export = to_lora(base, merged, tmp_path / "lora", rank=2, base_name="me/base")
    said = json.loads(json.dumps(export.to_dict()))
    assert said["tensors"][0]["rank"] == 2
    assert said["nbytes"] == 4 * 2 * (12 + 7)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("me/base", "CAUSAL_LM")
    assert config["target_modules"] == ["layers.0.up"]


# ---- stores and dense checkpoints


def test_an_entry_of_a_store(tmp_path: Path) -> None:
    base, merged = pair(tmp_path, {UP: normal(12, 7, seed=10)})
    result = to_store(merged, tmp_path / "store", base=base, name="mine")
    assert [(entry.name, entry.status) for entry in result.entries] == [("mine", "added")]
    with open_store(tmp_path / "store", base) as store:
        assert torch.equal(store.tensor("mine", UP), weights(merged)[UP])


def test_a_model_with_an_adapter_as_one_checkpoint(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in base_tensors().items()}
    write_checkpoint(
        tmp_path / "model", tensors, config={"dtype": "bfloat16"}, other_files={"tokenizer.json": b"{}"}
    )
    own = factors("layers.0.up", 12, 7)
    adapter = save_adapter(tmp_path / "lora", {name: 1e-2 * tensor for name, tensor in own.items()})
    with open_donor(tmp_path / "model", adapter) as donor:
        exact = donor.tensor(UP).clone()
        report = to_dense(donor, tmp_path / "dense")
        to_dense(donor, tmp_path / "wide", dtype="float32", max_shard_bytes=400)
    found = weights(tmp_path / "dense")
    assert torch.equal(found[UP], exact.bfloat16())
    assert torch.equal(found[DOWN], tensors[DOWN])
    assert list(report.tensors) == [UP]
    assert report.total.lost_share is not None
    assert 0.5 < report.total.lost_share < 1  # an update that small does not survive bfloat16
    wide = weights(tmp_path / "wide")
    assert torch.equal(wide[UP], exact)
    assert wide[DOWN].dtype == torch.float32
    with open_checkpoint(tmp_path / "wide") as checkpoint:
        assert checkpoint.config == {"dtype": "float32"}
        assert "tokenizer.json" in checkpoint.other_files
        assert len(checkpoint.headers) > 1
    with open_donor(tmp_path / "model", adapter) as donor, pytest.raises(ValueError, match="float64"):
        to_dense(donor, tmp_path / "never", dtype="float64")


def test_an_adapter_that_grows_the_vocabulary_as_one_checkpoint(tmp_path: Path) -> None:
    config = {"vocab_size": 9, "tie_word_embeddings": True}
    write_checkpoint(
        tmp_path / "model",
        base_tensors(),
        config=config,
        other_files={"tokenizer.json": b"{}", "vocab.json": b"{}"},
    )
    adapter = save_adapter(
        tmp_path / "lora", {EMBEDDINGS: torch.ones(11, 7), "score.weight": torch.ones(2, 7)}
    )
    (adapter / "tokenizer.json").write_text('{"more": 1}')
    with open_donor(tmp_path / "model", adapter) as donor:
        report = to_dense(donor, tmp_path / "dense")
    assert report.tensors == {}
    with open_checkpoint(tmp_path / "dense") as checkpoint:
        assert checkpoint.config == {"vocab_size": 11, "tie_word_embeddings": False}
        assert checkpoint.read_file("tokenizer.json") == b'{"more": 1}'
        assert "vocab.json" not in checkpoint.other_files
        assert checkpoint.tensors["score.weight"].shape == (2, 7)
        assert torch.equal(checkpoint.tensor("lm_head.weight"), base_tensors()[EMBEDDINGS])
