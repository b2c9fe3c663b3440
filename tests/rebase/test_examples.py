"""Texts as examples: Hugging Face models patched in memory, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from graftwork.errors import CheckpointError, DataError, MissingExtra
from graftwork.rebase import transfer
from tests.generators.transformers_models import WORDS, save_bert, save_llama
from tests.rebase.models import moved, read_state


def write_texts(file: Path, count: int = 40, *, labels: bool = True) -> Path:
    chance = random.Random(0)
    rows = []
    for number in range(count):
        good = number % 3 == 0
        words = [chance.choice(WORDS[:16]) for _ in range(6)]
        words[2] = "good" if good else "poor"
        rows.append({"text": " ".join(words)} | ({"label": int(good)} if labels else {}))
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def family(tmp_path: Path, save: object, **options: object) -> tuple[Path, Path, Path]:
    from safetensors.torch import save_file

    paths = tuple(save(tmp_path / role, **options) for role in ("old", "tuned", "new"))  # type: ignore[operator]
    state = read_state(paths[0])
    for path, sigma, seed in ((paths[1], 0.02, 1), (paths[2], 0.01, 2)):
        save_file(moved(state, sigma, seed), path / "model.safetensors", metadata={"format": "pt"})
    return paths  # type: ignore[return-value]


def test_a_classifier_has_accuracy(tmp_path: Path) -> None:
    paths = family(tmp_path, save_bert, architecture="BertForSequenceClassification", num_labels=2)
    texts = write_texts(tmp_path / "texts.jsonl")
    report = transfer(*paths, tmp_path / "out", examples=texts, method="diff")
    evidence = report.evidence
    assert evidence is not None and evidence.result.score is not None and evidence.held_out
    assert report.scale == evidence.scale and len(evidence.path) == 11
    assert evidence.cka.keys() == {"layer 0", "layer 1", "layer 2"} and all(
        0 <= v <= 1 for v in evidence.cka.values()
    )
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_numbers_are_those_of_the_models(tmp_path: Path) -> None:
    import transformers

    paths = family(tmp_path, save_llama, tied=True)
    texts = write_texts(tmp_path / "texts.jsonl", labels=False)
    report = transfer(*paths, tmp_path / "out", examples=texts, scale=1.0, method="diff")
    evidence = report.evidence
    assert evidence is not None and evidence.result.score is None
    tokenizer = transformers.AutoTokenizer.from_pretrained(paths[1])
    documents = [json.loads(line)["text"] for line in texts.read_text().split("\n")][::2]
    for folder, found in (
        (paths[0], evidence.old),
        (paths[1], evidence.tuned),
        (tmp_path / "out", evidence.result),
    ):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        loss, count = 0.0, 0
        for text in documents:
            ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
            with torch.no_grad():
                logits = model(ids).logits[0, :-1]
            loss += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        assert found.loss == pytest.approx(loss / count, rel=1e-5)


def test_masked_models_see_the_same_masks(tmp_path: Path) -> None:
    paths = family(tmp_path, save_bert)
    texts = write_texts(tmp_path / "texts.jsonl", labels=False)
    found = [transfer(*paths, None, examples=texts, scale=1.0).evidence for _ in range(2)]
    assert found[0] == found[1]


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = family(tmp_path, save_bert, architecture="BertForSequenceClassification", num_labels=2)
    with pytest.raises(DataError, match="too few examples"):
        transfer(*paths, None, examples=write_texts(tmp_path / "few.jsonl", 4))
    with pytest.raises(DataError, match="no key 'label'"):
        transfer(*paths, None, examples=write_texts(tmp_path / "bare.jsonl", labels=False))
    many = tmp_path / "many.jsonl"
    many.write_text("\n".join(json.dumps({"text": "the cat", "label": number}) for number in range(9)))
    with pytest.raises(DataError, match="more labels than the model has classes"):
        transfer(*paths, None, examples=many)
    config = json.loads((paths[1] / "config.json").read_text())
    (paths[1] / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    texts = write_texts(tmp_path / "texts.jsonl")
    with pytest.raises(CheckpointError, match="does not tell what it predicts"):
        transfer(*paths, None, examples=texts)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtra, match="not installed"):
        transfer(*paths, None, examples=texts)
