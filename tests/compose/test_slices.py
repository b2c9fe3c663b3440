"""Slices: layers by any naming scheme, what stands outside of them, and configurations of the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from graftwork.compose.recipe import Slice, Source
from graftwork.compose.slices import LayerStack, ModelLayout, find_stack, find_stacks, plan_slices
from graftwork.errors import CheckpointError, RecipeError

LLAMA = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def llama(layers: int, tied: bool = False, **config: Any) -> ModelLayout:
    names = [
        f"model.layers.{n}.{part}.weight"
        for n in range(layers)
        for part in ("mlp.up_proj", "self_attn.q_proj")
    ]
    names += [name for name in LLAMA if not (tied and name == "lm_head.weight")]
    ties = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
    return ModelLayout(names, {"num_hidden_layers": layers, "tie_word_embeddings": tied} | config, ties)


def slices(*rows: tuple[str, int, int]) -> list[Slice]:
    return [Slice((Source(model, layers=(start, stop)),)) for model, start, stop in rows]


@pytest.mark.parametrize(
    ("names", "stacks"),
    [
        (["model.layers.0.q.weight", "model.layers.1.q.weight", "lm_head.weight"], [("model.layers.", 2)]),
        (["transformer.h.0.ln_1.weight", "transformer.h.1.ln_2.weight"], [("transformer.h.", 2)]),
        (["layer_0.w", "layer_1.w", "layer_2.w"], [("layer_", 3)]),
        (
            ["blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"],
            [("blocks.", 1)],
        ),  # fc1, fc2 do not start at 0
        (["0.weight", "2.weight"], []),  # with a gap: modules of a sequence, not layers
        (["layers.0.experts.0.w", "layers.0.experts.1.w", "layers.1.experts.0.w"], [("layers.", 2)]),
        (
            ["encoder.block.0.w", "encoder.block.1.w", "decoder.block.0.w"],
            [("encoder.block.", 2), ("decoder.block.", 1)],
        ),
        (["layers.00.w", "layers.01.w"], []),
        (["layers.0", "layers.1"], []),  # tensors, not layers
        (["conv1.weight", "fc2.weight"], []),
    ],
)
def test_stacks_are_found_by_names(names: list[str], stacks: list[tuple[str, int]]) -> None:
    assert find_stacks(names) == [LayerStack(*row) for row in stacks]


def test_names_split_at_their_layer() -> None:
    stack = LayerStack("h.", 11)
    assert stack.split("h.10.mlp.weight") == (10, ".mlp.weight")
    assert stack.split("h.1") == (1, "")
    assert stack.split("h.11.mlp.weight") is None
    assert stack.split("hx.1.mlp.weight") is None
    assert stack.split("h.1x.mlp") is None


def test_the_configuration_chooses_among_stacks() -> None:
    names = [f"vision.layers.{n}.w" for n in range(4)] + [f"text.layers.{n}.w" for n in range(2)]
    assert find_stack(ModelLayout(names, {"text_config": {"num_hidden_layers": 2}})).prefix == "text.layers."
    assert find_stack(ModelLayout(names), "vision.layers.").layers == 4
    with pytest.raises(RecipeError, match=r"vision.layers.\* \(4\), text.layers.\* \(2\)"):
        find_stack(ModelLayout(names))
    with pytest.raises(RecipeError, match="one stack of 3 layers, as the configuration says"):
        find_stack(ModelLayout(names, {"num_hidden_layers": 3}))
    with pytest.raises(RecipeError, match="no numbered layers"):
        find_stack(ModelLayout(["w"]), what="my-model")


def test_a_frankenmerge() -> None:
    plan = plan_slices(slices(("a", 0, 3), ("b", 1, 4), ("a", 2, 4)), {"a": llama(4), "b": llama(4)})
    assert plan.layers == 8
    assert plan.origins == [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3), ("a", 2), ("a", 3)]
    assert plan.rows["model.layers.3.mlp.up_proj.weight"].sources == (
        ("b", "model.layers.1.mlp.up_proj.weight"),
    )
    assert plan.rows["model.layers.7.self_attn.q_proj.weight"] == (
        (("a", "model.layers.3.self_attn.q_proj.weight"),),
        2,
        7,
    )
    assert plan.rows["model.embed_tokens.weight"] == ((("a", "model.embed_tokens.weight"),), 0, None)
    assert plan.rows["lm_head.weight"].slice == plan.rows["model.norm.weight"].slice == 2
    assert len(plan.rows) == 8 * 2 + 3
    assert plan.ties is None
    assert plan.notes == ()


def test_layers_are_in_the_naming_of_the_first_model_or_the_base() -> None:
    gpt = ModelLayout(
        [f"h.{n}.{part}.weight" for n in range(4) for part in ("mlp.up_proj", "self_attn.q_proj")]
        + list(LLAMA)
    )
    layouts = {"a": llama(4), "b": gpt}
    plan = plan_slices(slices(("a", 0, 1), ("b", 3, 4)), layouts)
    assert plan.rows["model.layers.1.mlp.up_proj.weight"].sources == (("b", "h.3.mlp.up_proj.weight"),)
    plan = plan_slices(slices(("a", 0, 1), ("b", 3, 4)), layouts, base="b")
    assert plan.rows["h.0.mlp.up_proj.weight"].sources == (("a", "model.layers.0.mlp.up_proj.weight"),)


def test_several_sources_of_a_slice_are_merged_layer_by_layer() -> None:
    part = Slice((Source("a", layers=(0, 2)), Source("b", layers=(2, 4))))
    plan = plan_slices([part], {"a": llama(4), "b": llama(4)})
    name = "model.layers.1.mlp.up_proj.weight"
    assert plan.rows[name].sources == (("a", name), ("b", name.replace("1", "3")))
    assert plan.rows["lm_head.weight"].sources == (("a", "lm_head.weight"), ("b", "lm_head.weight"))


def test_the_configuration_says_the_new_layers() -> None:
    kinds = ["full", "slide", "slide", "full"]
    a = llama(4, layer_types=kinds, eos_token_id=[0, 1, 2, 3])
    b = llama(4, layer_types=["b0", "b1", "b2", "b3"])
    plan = plan_slices(slices(("a", 0, 2), ("b", 1, 4)), {"a": a, "b": b})
    config: Mapping[str, Any] = a.config or {}
    patched = plan.patch_config(config)
    assert patched["num_hidden_layers"] == 5
    assert patched["layer_types"] == ["full", "slide", "b1", "b2", "b3"]
    assert patched["eos_token_id"] == [0, 1, 2, 3]
    assert config["num_hidden_layers"] == 4
    inner = ModelLayout(
        a.names, {"text_config": {"num_hidden_layers": 4, "layer_types": kinds}, "vision": {"depth": 4}}
    )
    plan = plan_slices(slices(("a", 0, 3), ("a", 3, 4), ("a", 3, 4)), {"a": inner})
    patched = plan.patch_config(inner.config or {})
    assert patched["text_config"] == {"num_hidden_layers": 5, "layer_types": [*kinds, "full"]}
    assert patched["vision"] == {"depth": 4}


def test_a_list_of_the_configuration_that_is_too_short() -> None:
    a = llama(4, layer_types=["full"])
    plan = plan_slices(slices(("a", 0, 4)), {"a": a})
    with pytest.raises(CheckpointError, match="shorter than the model has layers"):
        plan.patch_config(a.config or {})


@pytest.mark.parametrize("first", [True, False])
def test_tied_and_untied_ends(first: bool) -> None:
    """The output's head stands alone, and is that of the last slice's model: its embeddings if it is tied."""
    layouts = {"a": llama(2, tied=first), "b": llama(2, tied=not first)}
    plan = plan_slices(slices(("a", 0, 1), ("b", 1, 2)), layouts)
    wanted = "lm_head.weight" if first else "model.embed_tokens.weight"
    assert plan.rows["lm_head.weight"].sources == (("b", wanted),)
    assert plan.rows["model.embed_tokens.weight"].sources == (("a", "model.embed_tokens.weight"),)
    assert plan.ties is False
    assert plan.patch_config(layouts["a"].config or {})["tie_word_embeddings"] is False
    assert "stands alone" in plan.notes[0]


def test_two_tied_ends_stay_tied() -> None:
    layouts = {"a": llama(2, tied=True), "b": llama(2, tied=True)}
    plan = plan_slices(slices(("a", 0, 1), ("b", 1, 2)), layouts)
    assert plan.ties is True
    assert "lm_head.weight" not in plan.rows
    assert "first slice" in plan.notes[0]
    assert plan_slices(slices(("a", 0, 1), ("a", 1, 2)), layouts).notes == ()


def test_ranges_beyond_the_layers_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"\[2, 5\](.|\n)*at most 4, the layers model.layers.\*"):
        plan_slices(slices(("a", 0, 2), ("a", 2, 5)), {"a": llama(4)})


def test_layers_of_other_architectures_are_refused() -> None:
    fused = ModelLayout(["model.layers.0.mlp.gate_up.weight", *LLAMA])
    both = Slice((Source("a", layers=(0, 1)), Source("b", layers=(0, 1))))
    with pytest.raises(CheckpointError, match=r"no mlp\.(gate_up|up_proj)\.weight in layer 0"):
        plan_slices([both], {"a": llama(1), "b": fused})
    headless = ModelLayout([name for name in llama(1).names if name != "model.norm.weight"])
    with pytest.raises(CheckpointError, match=r"lacks a tensor(.|\n)*model\.norm\.weight"):
        plan_slices([both], {"a": llama(1), "b": headless})


def test_what_stands_before_and_behind_the_layers() -> None:
    before = [
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "embeddings.LayerNorm.weight",
        "rotary.inv_freq",
    ]
    behind = ["transformer.ln_f.weight", "embed_out.weight", "pooler.dense.bias", "score.weight", "norm"]
    names = [*before, *behind, "h.0.w", "h.1.w"]
    plan = plan_slices(slices(("a", 0, 1), ("b", 1, 2)), {"a": ModelLayout(names), "b": ModelLayout(names)})
    assert {name for name, row in plan.rows.items() if row.sources[0][0] == "a"} == {*before, "h.0.w"}
    assert {name for name, row in plan.rows.items() if row.sources[0][0] == "b"} == {*behind, "h.1.w"}
