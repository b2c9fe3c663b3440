"""Which parameters are tuned in part, in full, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork.adapt import assign_roles, untie_output_embedding_
from graftwork.adapt.roles import random_indices


class Tiny(nn.Module):
    """A model with a body, a normalisation, and a head that is tied to the embedding."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {"table": nn.Embedding(5, 4), "layer": nn.Linear(4, 4), "norm": nn.RMSNorm(4)}
        )
        self.lm_head = nn.Linear(4, 5)
        self.lm_head.weight = self.model["table"].weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def test_defaults_are_those_of_the_paper() -> None:
    roles = assign_roles(Tiny())
    assert list(roles.maskable) == ["model.table.weight", "model.layer.weight", "model.layer.bias"]
    assert list(roles.full) == ["lm_head.bias"]
    assert list(roles.frozen) == ["model.norm.weight"]
    assert roles.tied == {"lm_head.weight": "model.table.weight"} == roles.tied_of_trainable
    assert roles.numel == 20 + 16 + 4 + 4 + 5


def test_bert() -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra `hf` brings it)"
    )
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=11
    )
    model = transformers.BertForMaskedLM(config)
    roles = assign_roles(model)
    assert "bert.embeddings.word_embeddings.weight" in roles.maskable
    assert all(name.startswith("bert.") for name in roles.maskable)
    assert all("LayerNorm" in name for name in roles.frozen)
    assert set(roles.full) == {"cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias",
                               "cls.predictions.bias"}  # fmt: skip
    before = model.get_input_embeddings().weight
    copied = untie_output_embedding_(model)
    assert torch.equal(copied, before)
    assert copied.data_ptr() != before.data_ptr()
    roles = assign_roles(model)
    assert "cls.predictions.decoder.weight" in roles.frozen
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 11)


def test_choices_and_their_precedence() -> None:
    model = Tiny()
    roles = assign_roles(
        model, maskable=["model.*"], full="*bias", frozen=lambda name, p: p.dim() == 1 and "lm" in name
    )
    assert list(roles.maskable) == ["model.table.weight", "model.layer.weight", "model.norm.weight"]
    assert list(roles.full) == ["model.layer.bias"]
    assert list(roles.frozen) == ["lm_head.bias"]
    roles = assign_roles(model, maskable="model.layer.*", full=(), frozen=())
    assert list(roles.frozen) == ["model.table.weight", "model.norm.weight", "lm_head.bias"]
    model.model["layer"].requires_grad_(False)
    assert "model.layer.weight" in assign_roles(model).frozen
    with pytest.raises(ValueError, match="no parameter is left to be tuned in part"):
        assign_roles(model, maskable="model.layer.*")
    with pytest.raises(
        ValueError, match=r"full: the pattern 'head.bias' matches no parameter; is 'lm_head.bias' meant"
    ):
        assign_roles(model, full="head.bias")
    with pytest.raises(
        TypeError, match=r"'model.table.weight' must be float16, bfloat16 or float32 .*float64"
    ):
        assign_roles(Tiny().double())


def test_memory_that_is_shared_in_part_is_refused() -> None:
    model = nn.ParameterDict()
    memory = torch.zeros(10)
    model["a"] = nn.Parameter(memory[:6])
    model["b"] = nn.Parameter(memory[5:])
    with pytest.raises(ValueError, match="parameters 'a' and 'b' share a part of their memory"):
        assign_roles(model)
    model["b"] = nn.Parameter(memory[:6])
    assert assign_roles(model).tied == {"b": "a"}


def test_a_model_without_an_output_embedding() -> None:
    with pytest.raises(TypeError, match="Linear has no output embedding"):
        untie_output_embedding_(nn.Linear(1, 1))


@pytest.mark.parametrize("k", [0, 1, 5, 11])
def test_random_indices_are_sorted_free_and_in_range(k: int) -> None:
    params = [torch.empty(7), torch.empty(0), torch.empty(2, 4)]
    taken = [torch.tensor([0, 6]), torch.tensor([], dtype=torch.int64), torch.tensor([3, 4])]
    for seed in range(20):
        found = random_indices(params, k, taken, torch.Generator().manual_seed(seed))
        assert sum(map(len, found)) == k
        for mine, used, param in zip(found, taken, params, strict=True):
            assert (mine.diff() > 0).all()
            assert not set(mine.tolist()) & set(used.tolist())
            assert all(0 <= index < param.numel() for index in mine.tolist())
