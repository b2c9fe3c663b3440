from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graftwork.errors import RecipeError
from graftwork.store.skill_pack import SVD, CompressionPlan, Drop, Prune, Quantize, Raw, Sparse
from graftwork.store.skill_pack.low_rank import most_triples
from graftwork.store.skill_pack.recipe import load_plan
from graftwork.store.skill_pack.roles import matrix_shape, role_of, stack_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "skill_pack.yaml"


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("model.embed_tokens.weight", (9, 4), "embedding"),
        ("embeddings.word_embeddings.weight", (9, 4), "embedding"),
        ("transformer.wte.weight", (9, 4), "embedding"),
        ("lm_head.weight", (9, 4), "head"),
        ("gpt_neox.embed_out.weight", (9, 4), "head"),
        ("classifier.weight", (9, 4), "head"),
        ("model.layers.3.self_attn.q_proj.weight", (4, 4), "attention"),
        ("encoder.layer.0.attention.output.dense.weight", (4, 4), "attention"),
        ("transformer.h.0.attn.c_attn.weight", (4, 4), "attention"),
        ("model.layers.3.mlp.down_proj.weight", (4, 4), "mlp"),
        ("encoder.layer.0.intermediate.dense.weight", (4, 4), "mlp"),
        ("encoder.layer.0.output.dense.weight", (4, 4), "mlp"),
        ("layers.0.mlp.experts.gate_up_proj", (2, 4, 4), "experts"),
        ("conv1.weight", (4, 3, 5), "conv"),
        ("features.0.weight", (4, 3, 5, 5), "conv"),
        ("encoder.layer.0.attention.output.LayerNorm.weight", (4,), "norm"),
        ("transformer.h.0.ln_1.bias", (4,), "norm"),
        ("mlp.fc1.bias", (4,), "bias"),
        ("logit_scale", (), "vector"),
        ("pooler.dense.weight", (4, 4), "matrix"),
    ],
)
def test_roles(name: str, shape: tuple[int, ...], role: str) -> None:
    assert role_of(name, shape) == role


def test_what_matrices_a_tensor_is() -> None:
    assert (
        matrix_shape("conv.weight", (8, 3, 5, 7)) == (8, 105) and stack_of("conv.weight", (8, 3, 5, 7)) == 1
    )
    assert matrix_shape("experts.w", (6, 4, 5)) == (4, 5) and stack_of("experts.w", (6, 4, 5)) == 6
    assert matrix_shape("scale", ()) == (1, 1) and matrix_shape("bias", (7,)) == (1, 7)


def test_the_first_rule_that_fits_decides() -> None:
    plan = CompressionPlan(
        {r"layers\.0\.": Raw(), "@attention|mlp": SVD(rank=4), "@bias": Drop(), "": Quantize(2)}
    )
    assert plan.codec("layers.0.self_attn.q_proj.weight", (4, 4)) == Raw()
    assert plan.codec("layers.1.self_attn.q_proj.weight", (4, 4)) == SVD(rank=4)
    assert plan.codec("layers.1.mlp.fc1.bias", (4,)) == Drop()
    assert plan.codec("pooler.weight", (4, 4)) == Quantize(2)


def test_svd_leaves_vectors_to_the_next_rule() -> None:
    plan = CompressionPlan({"mlp": SVD(rank=4), "norm|bias": Raw("fp32")})
    assert plan.codec("mlp.weight", (4, 4)) == SVD(rank=4)
    assert plan.codec("mlp.bias", (4,)) == Raw("fp32")


def test_a_tensor_without_a_rule_is_an_error() -> None:
    with pytest.raises(RecipeError, match="no rule of the plan") as caught:
        CompressionPlan({"@mlp": SVD()}).codec("lm_head.weight", (4, 4))
    assert caught.value.tensor == "lm_head.weight" and "role head" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CompressionPlan({"@atention": Drop()}), "no such role"),
        (lambda: CompressionPlan({"(": Drop()}), "no regular expression"),
        (lambda: CompressionPlan({"": 3}), "has no codec"),  # type: ignore[dict-item]
        (lambda: CompressionPlan({}, target_bpw=0), "target_bpw is no budget"),
        (lambda: Prune(1.5), "no share"),
        (lambda: Prune(0.5, "fp8"), "no such form"),  # type: ignore[arg-type]
        (lambda: Sparse("random"), "no such rule"),  # type: ignore[arg-type]
        (lambda: Sparse(seed=-1), "seed is out of range"),
        (lambda: Raw("fp64"), "no such dtype"),  # type: ignore[arg-type]
        (lambda: Quantize(5), "strange bits"),
        (lambda: Quantize(4, "sign"), "no scheme 'sign' of 4 bits"),
        (lambda: Quantize(4, block=12), "strange length"),
        (lambda: Quantize(4, block=-8), "strange length"),
        (lambda: Quantize(4, scale_dtype="fp8"), "scales have no such dtype"),  # type: ignore[arg-type]
        (lambda: SVD(rank=-1), "no number of triples"),
        (lambda: SVD(energy=1.1), "no share"),
        (lambda: SVD(bpw=0), "no budget"),
        (lambda: SVD(bits=()), "no groups"),
        (lambda: SVD(bits=((2, 5),)), "strange bits"),
        (lambda: SVD(bits=((None, 2), (3, 2))), "only the last group"),
        (lambda: SVD(bits=((0, 2),)), "strange count"),
    ],
)
def test_a_wrong_setting_is_an_error(make: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make()


def test_a_budget_caps_the_rank_by_the_shape() -> None:
    """1000 triples of the paper's script would take three bits a weight of a key projection."""
    script = SVD(rank=1000, bits=((20, 8), (180, 4), (800, 2)))
    assert most_triples(script, (1024, 4096)) == 1000
    capped = most_triples(script, (1024, 4096), cap=1.0)
    assert 150 < capped < 350
    assert 900 < most_triples(SVD(bpw=1.0), (4096, 4096)) < 1002  # of which the scales are a part
    assert most_triples(SVD(rank=5, bpw=1.0), (4096, 4096)) == 5
    assert most_triples(SVD(), (7, 9)) == 7


def test_the_example_is_a_plan() -> None:
    recipe = load_plan(EXAMPLE)
    plan = recipe.arguments()["plan"]
    assert isinstance(plan, CompressionPlan)
    assert plan.codec("layers.1.self_attn.k_proj.weight", (64, 64)) == SVD(
        rank=256, bits=((2, 8), (32, 3), (None, 2))
    )


def recipe(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_plan(path)


def test_ready_plans(tmp_path: Path) -> None:
    assert recipe(tmp_path, "plan: auto\nbpw: 1.5\n").arguments() == {
        "plan": "auto", "bpw": 1.5, "quantizer": "mse", "seed": 0,
    }  # fmt: skip
    found = recipe(tmp_path, "plan: module_aware\nbpw: 2\n").arguments()
    assert found["plan"].target_bpw == 2.0 and "bpw" not in found


def test_rules_with_settings(tmp_path: Path) -> None:
    text = "rules:\n- {match: '', codec: svd, bits: 4, rank: 3}\n- {role: mlp, codec: quantize, bits: 2, block: 0}\n"
    plan = recipe(tmp_path, text).to_plan()
    assert plan.rules == {"": SVD(rank=3, bits=((None, 4),)), "@mlp": Quantize(2, block=0)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bpw: 1\n", "either one of the ready ones or rules"),
        ("plan: auto\nrules: [{match: a, codec: drop}]\n", "either one of the ready ones or rules"),
        ("plan: automatic\n", "wrong value for 'plan'"),
        ("plan: auto\nbwp: 1\n", "unknown key 'bwp'"),
        ("plan: auto\ntarget_bpw: 1\n", "target_bpw goes with rules"),
        ("rules: [{match: a, codec: drop}]\nbpw: 1\n", "bpw goes with a ready plan"),
        ("rules: [{match: a, codec: drop}, {match: a, codec: raw}]\n", "two rules are for the same"),
        ("rules: [{codec: drop}]\n", "which tensors it is for"),
        ("rules: [{match: a, role: mlp, codec: drop}]\n", "which tensors it is for"),
        ("rules: [{role: mpl, codec: drop}]\n", "no such role"),
        ("rules: [{match: a, codec: drop, keep: 0.1}]\n", "has no setting 'keep'"),
        ("rules: [{match: a, codec: svd, ranks: 3}]\n", "unknown key 'rules"),
        ("rules: [{match: a, codec: quantize}]\n", "needs bits"),
        ("rules: [{match: a, codec: prune}]\n", "needs keep"),
        ("rules: [{match: a, codec: svd, bits: [[1, 2, 3]]}]\n", r"not \[count, bits\]"),
        ("rules: [{match: a, codec: quantize, bits: 7}]\n", "strange bits"),
        ("rules: [{match: a, codec: quantize, bits: two}]\n", "wrong value for 'rules"),
    ],
)
def test_a_wrong_recipe_is_an_error_that_names_the_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        recipe(tmp_path, text)
    assert caught.value.file == str(tmp_path / "plan.yaml")
