from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_model

from graftwork.checkpoint.reader import open_checkpoint
from graftwork.checkpoint.ties import find_ties
from tests.checkpoint.handmade import make_tree, shard

EMBED = "model.embed_tokens.weight"
TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("names", "metadata", "config", "ties"),
    [
        ([EMBED], {}, TIED, {"lm_head.weight": EMBED}),
        ([EMBED], {}, {"text_config": TIED}, {"lm_head.weight": EMBED}),
        (["transformer.wte.weight"], {}, TIED, {"lm_head.weight": "transformer.wte.weight"}),
        ([EMBED, "lm_head.weight"], {}, TIED, {}),
        ([EMBED, "model.lm_head.weight"], {}, TIED, {}),
        ([EMBED], {}, {"tie_word_embeddings": False, "text_config": TIED}, {}),
        ([EMBED], {}, {"tie_word_embeddings": "yes"}, {}),
        ([EMBED], {}, {"text_config": 3}, {}),
        ([EMBED], {}, None, {}),
        ([EMBED, "decoder.embed_tokens.weight"], {}, TIED, {}),
        (["x"], {}, TIED, {}),
        (["x"], {"y": "x", "format": "pt"}, None, {"y": "x"}),
        (["x", "y"], {"y": "x"}, None, {}),
        (["x"], {"y": "z"}, None, {}),
        ([EMBED], {"lm_head.weight": EMBED}, TIED, {"lm_head.weight": EMBED}),
    ],
)
def test_ties(names, metadata, config, ties):
    assert find_ties(dict.fromkeys(names), metadata, config) == ties


def test_a_tied_name_reads_the_tensor_it_is_tied_to(tmp_path):
    make_tree(tmp_path, {"model.safetensors": shard(EMBED, fill=7), "config.json": TIED})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tied == {"lm_head.weight": EMBED}
        assert "lm_head.weight" not in checkpoint.tensors
        assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor(EMBED))


def test_ties_that_the_stock_library_writes(tmp_path):
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)}
    )
    model["b"].weight = model["a"].weight
    save_model(model, str(tmp_path / "m.safetensors"))
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert dict(checkpoint.tied) == {"b.weight": "a.weight"}
        assert torch.equal(checkpoint.tensor("b.weight"), model["b"].weight)
