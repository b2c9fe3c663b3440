"""Texts for training: files, division, order, pieces and masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graftwork.adapt.training.data import Order, divide
from graftwork.errors import DataError
from graftwork.texts.corpus import Document, read_corpus
from graftwork.texts.hugging_face import load_tokenizer
from graftwork.texts.tasks import TASKS
from tests.generators.transformers_models import (
    sentences,
)

pytest.importorskip("transformers", reason="transformers is not installed (the extra `hf` brings it)")


@pytest.mark.parametrize(
    "name, content, labelled, words",
    [
        ("t.csv", b"a", False, [".csv", ".txt or .jsonl"]),
        ("t.txt", b"a", True, [".txt", ".jsonl with text and label"]),
        ("t.txt", b"\n \n\n", False, ["no text"]),
        ("t.txt", b"a\nb\xff", False, ["line 2", "UTF-8"]),
        ("t.jsonl", b'{"text": "a"}\n{"text"', False, ["line 2", "not JSON"]),
        ("t.jsonl", b"[1]", False, ["line 1", "not an object"]),
        ("t.jsonl", b'\n{"txt": "a"}', False, ["line 2", "no key 'text'"]),
        ("t.jsonl", b'{"text": " "}', False, ["line 1", "'text' has no text"]),
        ("t.jsonl", b'{"text": "\\ud800"}', False, ["line 1", "surrogate"]),
        ("t.jsonl", b'{"text": "a"}', True, ["line 1", "no key 'label'"]),
        ("t.jsonl", b'{"text": "a", "label": true}', True, ["line 1", "text or a whole number"]),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": "1"}', True, ["numbers", "text"]),
        ("t.jsonl", b'{"text": "a", "label": 1}', True, ["one class"]),
    ],
)
def test_data_that_are_malformed(
    tmp_path: Path, name: str, content: bytes, labelled: bool, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_corpus([tmp_path / name], labelled=labelled)
    for word in (*words, name):
        assert word in str(caught.value)


def test_documents_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nline more\n \t\ntwo\n\n\n three \n")
    (tmp_path / "b.jsonl").write_text(
        '\ufeff{"text": "four", "label": 7, "other": []}\r\n\n{"text": "five", "label": 2}\n'
    )
    both = read_corpus([tmp_path / "a.txt", tmp_path / "b.jsonl"], labelled=False)
    assert [document.text for document in both.documents] == [
        "one\nline more",
        "two",
        "three",
        "four",
        "five",
    ]
    corpus = read_corpus([tmp_path / "b.jsonl"], labelled=True)
    assert corpus.documents == [Document("four", 7), Document("five", 2)] and corpus.labels == [2, 7]
    assert corpus.digest != both.digest


def test_order_is_the_same_from_any_place() -> None:
    order = Order(7, 3).take(0, 40)
    for epoch in range(5):
        assert sorted(order[7 * epoch : 7 * epoch + 7]) == list(range(7))
    for start in (0, 3, 7, 20, 33):
        assert Order(7, 3).take(start, 7) == order[start : start + 7]
    assert Order(7, 4).take(0, 40) != order


def test_dividing_documents() -> None:
    learned, held = divide(40, 0.2, 0)
    assert len(held) == 8 and sorted(learned + held) == list(range(40)) and learned == sorted(learned)
    assert divide(40, 0.2, 0)[1] == held != divide(40, 0.2, 1)[1]
    assert divide(3, 0.0, 0) == ([0, 1, 2], []) and len(divide(3, 0.01, 0)[1]) == 1


def test_pieces_of_long_texts(tiny_models: Path) -> None:

    texts = [Document(text, 1) for text in sentences(5)]
    bert, llama = (load_tokenizer(tiny_models / name) for name in ("bert", "llama"))
    masked, causal = TASKS["masked_lm"](bert, 8, "the cat"), TASKS["causal_lm"](llama, 8, "the cat")
    for text, framed, plain in zip(texts, masked.pieces(texts), causal.pieces(texts), strict=True):
        assert all(p.ids[0] == 2 and p.ids[-1] == 3 and len(p.ids) <= 8 for p in framed)
        assert [token for p in framed for token in p.ids[1:-1]] == bert(text.text)["input_ids"][1:-1]
        assert [token for p in plain for token in p.ids] == [*llama(text.text)["input_ids"], 3]
    classes = TASKS["classification"](bert, 8, "the cat", [0, 1])
    assert [p[0].target for p in classes.pieces(texts)] == [1] * 5 and classes.cut > 0


def test_masks_leave_special_tokens_and_padding_alone(tiny_models: Path) -> None:

    tokenizer = load_tokenizer(tiny_models / "bert")
    task = TASKS["masked_lm"](tokenizer, 24, "the cat")
    pieces = [piece for found in task.pieces([Document(text) for text in sentences(400)]) for piece in found]
    batch = task.batch(pieces, torch.Generator().manual_seed(0))
    hidden = batch.targets != -100
    original = torch.where(hidden, batch.targets, batch.ids)
    assert not (hidden & ((batch.mask == 0) | (original < 5))).any()
    ordinary = (original >= 5) & (batch.mask == 1)
    assert hidden.sum() / ordinary.sum() == pytest.approx(0.15, abs=0.02)
    masked = hidden & (batch.ids == tokenizer.mask_token_id)
    assert masked.sum() / hidden.sum() == pytest.approx(0.8, abs=0.04)
    assert batch.predicted == int(hidden.sum())
