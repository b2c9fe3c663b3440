"""Merges of models with different vocabularies: every row of the output's tables is the one of its token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.checkpoint import open_checkpoint
from graftwork.compose import merge
from graftwork.errors import CheckpointError, VocabularyMismatch
from tests.generators.tokenizers import WIDTH, save, table

tokenizers = pytest.importorskip("tokenizers", reason="the extra hf brings it")


def weights(folder: Path, name: str = "model.embed_tokens.weight") -> Tensor:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.tensor(name).clone()


def rows_by_token(folder: Path, name: str = "model.embed_tokens.weight") -> dict[str, list[float]]:
    """What the output's table has for each token of the output's tokenizer."""
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    held = weights(folder, name)
    return {token: held[number].tolist() for token, number in made.get_vocab().items()}


def model(folder: Path, weight: float = 1.0) -> dict[str, Any]:
    return {"model": str(folder), "parameters": {"weight": weight}}


def linear(tmp_path: Path, models: list[Path], **keys: Any) -> Path:
    recipe = {
        "merge_method": "linear",
        "models": [model(folder) for folder in models],
        "parameters": {"normalize": False},
    }
    merge(recipe | keys, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("tied", [True, False])
def test_a_union_of_two_models(tmp_path: Path, tied: bool) -> None:
    one = save(tmp_path / "a", ["the", "cat"], 0, tied=tied)
    two = save(tmp_path / "b", ["cat", "le"], 1, tied=tied)
    out = linear(tmp_path, [one, two], base_model=str(one), tokenizer_source="union")
    for name, shift in (("model.embed_tokens.weight", 0), *([("lm_head.weight", 100)] if not tied else ())):
        a, b, found = table(3, shift), table(3, shift + 1), rows_by_token(out, name)
        assert found["the"] == (a[1] + a[1]).tolist()  # b lacks it: the base's
        assert found["cat"] == (a[2] + b[1]).tolist()
        assert found["le"] == (b[2] + b[2]).tolist()
        assert found["[UNK]"] == (a[0] + b[0]).tolist()
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 4
    assert torch.equal(weights(out, "layers.0.up.weight"), table(3, 50) + table(3, 51))


def test_a_fine_tune_with_new_tokens_keeps_them(tmp_path: Path) -> None:
    """Task arithmetic: a row that the base lacks is the fine-tune's."""
    base, tuned = save(tmp_path / "a", ["the"], 0), save(tmp_path / "b", ["the", "<chat>"], 1)
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(base), "models": [model(tuned)], "tokenizer_source": "union",
    }  # fmt: skip
    report = merge(recipe, tmp_path / "out")
    torch.testing.assert_close(weights(tmp_path / "out"), table(3, 1))
    assert report.survival is not None


def test_the_vocabulary_of_a_donor(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a", ["the", "cat"], 0), save(tmp_path / "b", ["cat"], 1, rows=5)
    out = linear(tmp_path, [one, two], base_model=str(one), tokenizer_source=str(two))
    assert weights(out).shape == (5, WIDTH)
    assert rows_by_token(out)["cat"] == (table(3, 0)[2] + table(5, 1)[1]).tolist()
    assert (out / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()


def test_equal_size_but_other_strings_is_refused(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a", ["the", "cat"], 0), save(tmp_path / "b", ["cat", "the"], 1)
    with pytest.raises(
        VocabularyMismatch, match=r"2 ids differ; id 1 is 'cat'(.|\n)*'the'(.|\n)*tokenizer_source"
    ) as caught:
        linear(tmp_path, [one, two], base_model=str(one))
    assert caught.value.file is not None
    assert not (tmp_path / "out").exists()
    out = linear(tmp_path, [one, two], base_model=str(one), tokenizer_source="base")
    assert rows_by_token(out)["cat"] == (table(3, 0)[2] + table(3, 1)[1]).tolist()


def test_tables_of_other_sizes_are_never_cut(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a", ["the"], 0, rows=8), save(tmp_path / "b", ["the"], 1, rows=6)
    with pytest.raises(CheckpointError, match="another shape"):
        linear(tmp_path, [one, two], base_model=str(one))
    out = linear(tmp_path, [one, two], base_model=str(one), tokenizer_source="base")
    a, b = table(8, 0), table(6, 1)
    torch.testing.assert_close(weights(out), torch.cat([a[:6] + b, 2 * a[6:]]))


def test_bytes_do_not_depend_on_the_order_or_on_threads(tmp_path: Path) -> None:
    folders = [save(tmp_path / name, words, seed) for seed, (name, words) in enumerate(
        {"a": ["the", "cat"], "b": ["cat", "le", "chat"], "c": ["chat", "dog", "the"]}.items()
    )]  # fmt: skip
    found = []
    for place, order in enumerate(([0, 1, 2], [2, 1, 0], [1, 2, 0])):
        recipe = {
            "merge_method": "linear", "models": [model(folders[number], number + 1.0) for number in order],
            "base_model": str(folders[0]), "tokenizer": {"source": "union", "pad_to_multiple_of": 4},
        }  # fmt: skip
        out = tmp_path / f"out{place}"
        merge(recipe, out, threads=place + 1)
        found.append(
            {
                file.name: file.read_bytes()
                for file in out.iterdir()
                if file.suffix == ".safetensors" or "token" in file.name
            }
        )
    assert found[0] == found[1] == found[2]
    assert weights(tmp_path / "out0").shape == (8, WIDTH)


def test_slow_files_that_would_contradict_the_union_are_left_out(tmp_path: Path) -> None:
    one = save(tmp_path / "a", ["the"], 0)
    (one / "vocab.json").write_text("{}")
    (one / "merges.txt").write_text("")
    (one / "special_tokens_map.json").write_text("{}")
    two = save(tmp_path / "b", ["the", "cat"], 1)
    out = linear(tmp_path, [one, two], base_model=str(one), tokenizer_source="union")
    names = {file.name for file in out.iterdir()}
    assert "vocab.json" not in names
    assert "merges.txt" not in names
    assert "special_tokens_map.json" in names


def test_zero_and_forced_tokens_end_up_in_the_table(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a", ["the", "cat"], 0), save(tmp_path / "b", ["the", "le"], 1)
    tokens = {
        "le": {"source": {"kind": "zero"}, "force": True},
        "cat": {"source": {"kind": "model_token", "model": str(two), "token": "the"}, "force": True},
    }
    out = linear(tmp_path, [one, two], base_model=str(one), tokenizer={"source": "union", "tokens": tokens})
    found = rows_by_token(out)
    assert found["le"] == [0.0] * WIDTH
    assert found["cat"] == (2 * table(3, 1)[1]).tolist()


def test_the_models_tokenizer_loads_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf brings it")
    from tests.generators.transformers_models import save_llama

    one = save_llama(tmp_path / "a", tied=True)
    two = save_llama(tmp_path / "b", tied=True)
    grown = transformers.AutoTokenizer.from_pretrained(two)
    grown.add_tokens(["<think>", "violin"])
    grown.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    tuned = transformers.AutoModelForCausalLM.from_pretrained(two)
    tuned.resize_token_embeddings(len(grown) + 3)
    tuned.save_pretrained(two)
    grown.save_pretrained(two)
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(one), "models": [model(two)], "tokenizer_source": "union",
    }  # fmt: skip
    merge(recipe, tmp_path / "out")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the cat <think> sat violin <|call|>"
    assert read(text)["input_ids"] == grown(text)["input_ids"]
    assert read.decode(grown(text)["input_ids"], skip_special_tokens=True) == grown.decode(
        grown(text)["input_ids"], skip_special_tokens=True
    )
    ids = torch.tensor([grown(text)["input_ids"]])
    with torch.no_grad():
        wanted = tuned(input_ids=ids).logits[..., : len(grown)]
        torch.testing.assert_close(
            merged(input_ids=ids).logits[..., : len(grown)], wanted, rtol=1e-4, atol=1e-4
        )


def test_no_code_of_a_configuration_is_run(tmp_path: Path) -> None:
    save(tmp_path / "a", ["the"], 0)
    config = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    recipe = {"merge_method": "linear", "models": [model(tmp_path / "a")], "tokenizer_source": "union"}
    merge(recipe, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
