from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from bench.tiny import TinyConfig, TinyLM, byte_tokens, evaluate, train

SMALL = TinyConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=16,
)
TEXT = byte_tokens(["the quick brown fox jumps over the lazy dog, again and again. " * 20])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_byte_tokens_end_every_document():
    assert byte_tokens(["a", "é"]).tolist() == [97, 0, 195, 169, 0]


def test_fresh_weights_depend_on_the_seed_alone():
    one, same, other = TinyLM(SMALL, seed=1), TinyLM(SMALL, seed=1), TinyLM(SMALL, seed=2)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_training_learns_and_repeats_bit_for_bit():
    runs = []
    for _ in range(2):
        model = TinyLM(SMALL)
        before = evaluate(model, TEXT)
        losses = train(model, TEXT, steps=40, batch=8)
        runs.append((losses, model.lm_head.weight.detach().clone()))
    assert evaluate(model, TEXT) < 0.7 * before
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_every_step_is_reported():
    seen = []
    losses = train(
        TinyLM(SMALL), TEXT, steps=3, batch=2, on_step=lambda step, loss: seen.append((step, loss))
    )
    assert seen == list(enumerate(losses))


def test_no_byte_sees_what_follows_it():
    model, tokens = TinyLM(SMALL), TEXT[None, :16].clone()
    before = model(tokens)
    tokens[0, 10] = 7
    after = model(tokens)
    torch.testing.assert_close(after[0, :10], before[0, :10])
    assert not torch.equal(after[0, 10], before[0, 10])


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="at least 17"):
        train(TinyLM(SMALL), TEXT[:16], steps=1)


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_give_equal_logits(tmp_path, tied):
    model = TinyLM(dataclasses.replace(SMALL, tie_word_embeddings=tied))
    model.save(tmp_path / "model")
    again = TinyLM.load(tmp_path / "model")
    tokens = TEXT[None, :16]
    assert again.config == model.config
    assert torch.equal(again(tokens), model(tokens))


def test_a_narrower_dtype_is_recorded(tmp_path):
    TinyLM(SMALL).save(tmp_path / "model", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert TinyLM.load(tmp_path / "model").lm_head.weight.dtype == torch.float32


def test_transformers_opens_the_folder_and_agrees(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from bench.models.loading import transformers_offline

    model = TinyLM(SMALL)
    model.save(tmp_path / "model")
    llama = transformers_offline().AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = TEXT[None, :16]
    # Two orders of the same fp32 sums: a few ulp of logits of size 1.
    torch.testing.assert_close(llama(tokens).logits, model(tokens), rtol=0, atol=1e-5)
