"""Merges of models that transformers made or that are published: they load, and compute what the merge means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.models import minilm
from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.compose import merge
from graftwork.errors import MissingExtra
from tests.compose.models import contents, load
from tests.generators.transformers_models import save_bert, save_llama


def tune(folder: Path, base: Path, seed: int) -> Path:
    """A fine-tune of a model: its folder with other weights."""
    source = torch.Generator().manual_seed(seed)
    with open_checkpoint(base) as checkpoint:
        tensors = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=source)
            if (tensor := checkpoint.tensor(name)).is_floating_point()
            else tensor
            for name in checkpoint.tensors
        }
        files = {name: checkpoint.read_file(name) for name in checkpoint.other_files if name != "config.json"}
        write_checkpoint(folder, tensors, config=checkpoint.config, other_files=files)
    return folder


def recipe(base: Path, donors: list[str], **more: Any) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in donors]
    return {"merge_method": "task_arithmetic", "base_model": str(base), "models": models} | more


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_loads_and_computes_the_sum(tmp_path: Path, tied: bool) -> None:
    import transformers

    base = save_llama(tmp_path / "base", tied=tied)
    donors = [str(tune(tmp_path / f"tuned{seed}", base, seed)) for seed in (1, 2)]
    report = merge(recipe(base, donors), tmp_path / "out")
    merged, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert bool(report.tied) == tied
    states = [
        transformers.AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (base, *donors)
    ]
    for name, value in merged.state_dict().items():
        start, one, two = (state[name] for state in states)
        torch.testing.assert_close(value, start + 0.5 * (one - start) + 0.5 * (two - start))
    with torch.no_grad():
        logits = merged(torch.arange(10)[None]).logits
    assert bool(logits.isfinite().all())
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("the cat")["input_ids"]


def test_a_bert_in_bfloat16(tmp_path: Path) -> None:
    import transformers

    base = save_bert(tmp_path / "base")
    donors = [str(tune(tmp_path / f"tuned{seed}", base, seed)) for seed in (1, 2)]
    made = recipe(base, donors, merge_method="ties", parameters={"density": [0.3, 0.7]}, dtype="bfloat16")
    report = merge(made, tmp_path / "out")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16 and report.parameters > 0
    assert json.loads(contents(tmp_path / "out")["config.json"])["dtype"] == "bfloat16"


def test_a_model_with_an_adapter_is_a_donor(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    name = "model.layers.0.mlp.up_proj"
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 32, generator=source), torch.randn(64, 2, generator=source)
    keys = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    (tmp_path / "lora").mkdir()
    write_checkpoint(tmp_path / "lora" / "adapter_model.safetensors", keys)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    report = merge(recipe(base, [f"{base}+{tmp_path / 'lora'}"]), tmp_path / "out")
    merged, start = load(tmp_path / "out"), load(base)
    torch.testing.assert_close(merged[f"{name}.weight"], start[f"{name}.weight"] + 0.5 * 2 * b @ a)
    assert all(torch.equal(merged[key], start[key]) for key in start if key != f"{name}.weight")
    assert report.survival is not None and report.survival.total.changed == 64 * 32


def test_minilm_and_a_copy_with_other_weights(tmp_path: Path) -> None:
    try:
        base = minilm()
    except MissingExtra as error:
        pytest.skip(f"MiniLM is not installed: {error}")
    tuned = tune(tmp_path / "tuned", base, 1)
    report = merge(recipe(base, [str(tuned)], dtype="bfloat16", nan="refuse"), tmp_path / "out")
    start, one, merged = load(base), load(tuned), load(tmp_path / "out")
    assert report.parameters > 22_000_000 and report.survival is not None
    assert merged.keys() == start.keys()
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            wanted = start[name] + 0.5 * (one[name] - start[name])
            torch.testing.assert_close(tensor, wanted.bfloat16(), rtol=2**-7, atol=1e-7)
        else:
            assert torch.equal(tensor, start[name])
    assert set(contents(tmp_path / "out")) >= {"config.json", "tokenizer.json", "graftwork.json"}
