"""A model with a LoRA adapter as a donor: against the formula in fp64, and every adapter that must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.checkpoint import write_checkpoint
from graftwork.compose.lora import open_donor
from graftwork.errors import AdapterError, CheckpointError
from tests.generators.adapters import factors, save_adapter

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance).bfloat16()

    return {
        "model.embed_tokens.weight": normal(11, 4),
        f"{UP}.weight": normal(6, 4),
        f"{UP}.bias": normal(6),
        f"{DOWN}.weight": normal(4, 6),
        "model.norm.weight": normal(4),
    }


@pytest.fixture
def model(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    write_checkpoint(tmp_path / "model", weights, config={"model_type": "llama", "tie_word_embeddings": True})
    return tmp_path / "model"


def exact(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return weight.double() + scale * b.double() @ a.double()


def read(model: Path, adapter: Path, name: str) -> Tensor:
    with open_donor(model, adapter) as donor:
        return donor.tensor(name).clone()


def test_a_matrix_is_its_own_and_the_product(model: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    tensors = factors(UP, 6, 4)
    adapter = save_adapter(tmp_path / "lora", tensors)
    with open_donor(model, adapter) as donor:
        found = donor.tensor(f"{UP}.weight")
        assert found.dtype == torch.float32
        wanted = exact(weights[f"{UP}.weight"], *tensors.values(), scale=2.0)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=4e-6)
        assert donor.changed == {f"{UP}.weight"}
        meta = donor.metas[f"{UP}.weight"]
        assert (meta.dtype, tuple(meta.shape), meta.nbytes) == ("F32", (6, 4), 96)
        assert torch.equal(donor.tensor(f"{DOWN}.weight"), weights[f"{DOWN}.weight"])
        assert donor.tied == {"lm_head.weight": "model.embed_tokens.weight"}
        assert donor.untied == donor.added == ()


def test_the_update_alone_and_bytes_piece_by_piece(model: Path, tmp_path: Path) -> None:
    tensors = factors(UP, 6, 4)
    with open_donor(model, save_adapter(tmp_path / "lora", tensors)) as donor:
        update = donor.update(f"{UP}.weight")
        a, b = tensors.values()
        assert update is not None
        torch.testing.assert_close(update.double(), exact(torch.zeros(6, 4), a, b, 2.0), rtol=0, atol=2e-6)
        assert donor.update(f"{DOWN}.weight") is None
        whole, parts = donor.tensor(f"{UP}.weight"), bytearray(96)
        for at in range(0, 96, 32):
            donor.read_into(f"{UP}.weight", at, memoryview(parts)[at : at + 32])
        assert bytes(parts) == whole.numpy().tobytes()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_bytes_do_not_depend_on_threads(tmp_path: Path, threads: int) -> None:
    chance = torch.Generator().manual_seed(3)
    write_checkpoint(tmp_path / "model", {"up.weight": torch.randn(515, 303, generator=chance)})
    adapter = save_adapter(tmp_path / "lora", factors("up", 515, 303, rank=300), r=300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = read(tmp_path / "model", adapter, "up.weight")
        torch.set_num_threads(1)
        assert torch.equal(found, read(tmp_path / "model", adapter, "up.weight"))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "rank", "scale"),
    [
        ({"use_rslora": True}, 2, 4 / 2**0.5),
        ({"lora_alpha": 3}, 2, 1.5),
        ({"rank_pattern": {"up_proj": 3}}, 3, 4 / 3),
        ({"rank_pattern": {r"layers\.\d+\.mlp\.up_proj": 3}, "alpha_pattern": {"mlp.up_proj": 6}}, 3, 2.0),
        ({"alpha_pattern": {"p_proj": 6, "other": 5}}, 2, 2.0),  # a pattern ends at a whole component
    ],
)
def test_scales_and_patterns(
    model: Path, tmp_path: Path, weights: dict[str, Tensor], settings: dict[str, Any], rank: int, scale: float
) -> None:
    tensors = factors(UP, 6, 4, rank)
    adapter = save_adapter(tmp_path / "lora", tensors, **settings)
    wanted = exact(weights[f"{UP}.weight"], *tensors.values(), scale=scale)
    torch.testing.assert_close(read(model, adapter, f"{UP}.weight").double(), wanted, rtol=0, atol=1e-5)


def test_matrices_stored_in_out(tmp_path: Path) -> None:
    """Conv1D: shapes show it, and a square matrix follows the others, or the setting."""
    square, wide = torch.eye(4), torch.zeros(4, 6)
    write_checkpoint(tmp_path / "model", {"h.0.proj.weight": square, "h.0.fc.weight": wide})
    both = factors("h.0.proj", 4, 4) | factors("h.0.fc", 6, 4, seed=1)
    adapter = save_adapter(tmp_path / "both", both)
    a, b = list(both.values())[:2]
    turned = square.double() + 2 * (b.double() @ a.double()).T
    torch.testing.assert_close(
        read(tmp_path / "model", adapter, "h.0.proj.weight").double(), turned, rtol=0, atol=1e-5
    )
    a, b = list(both.values())[2:]
    found = read(tmp_path / "model", adapter, "h.0.fc.weight").double()
    torch.testing.assert_close(found, 2 * (b.double() @ a.double()).T, rtol=0, atol=1e-5)
    for flag in (False, True):
        alone = save_adapter(tmp_path / f"alone-{flag}", factors("h.0.proj", 4, 4), fan_in_fan_out=flag)
        product = read(tmp_path / "model", alone, "h.0.proj.weight") - square
        a, b = factors("h.0.proj", 4, 4).values()
        wanted = 2 * b @ a
        torch.testing.assert_close(product, wanted.T if flag else wanted, rtol=0, atol=1e-5)


def test_embeddings_convolutions_and_biases(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance)

    model = {
        "tok.weight": normal(9, 4),
        "conv.weight": normal(5, 3, 2, 2),
        "up.weight": normal(6, 4),
        "up.bias": normal(6),
    }
    write_checkpoint(tmp_path / "model", model)
    tensors = {
        "tok.lora_embedding_A": normal(2, 9), "tok.lora_embedding_B": normal(4, 2),
        "conv.lora_A.weight": normal(2, 3, 2, 2), "conv.lora_B.weight": normal(5, 2, 1, 1),
        "up.lora_A.weight": normal(2, 4), "up.lora_B.weight": normal(6, 2), "up.lora_B.bias": normal(6),
    }  # fmt: skip
    adapter = save_adapter(tmp_path / "lora", tensors)
    with open_donor(tmp_path / "model", adapter) as donor:
        a, b = tensors["tok.lora_embedding_A"], tensors["tok.lora_embedding_B"]
        torch.testing.assert_close(donor.tensor("tok.weight"), model["tok.weight"] + 2 * (b @ a).T)
        a, b = tensors["conv.lora_A.weight"], tensors["conv.lora_B.weight"]
        wanted = model["conv.weight"] + 2 * torch.einsum("or,rihw->oihw", b[..., 0, 0], a)
        torch.testing.assert_close(donor.tensor("conv.weight"), wanted)
        torch.testing.assert_close(donor.tensor("up.bias"), model["up.bias"] + 2 * tensors["up.lora_B.bias"])


def test_dora_scales_rows_to_its_magnitudes(model: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    tensors = factors(UP, 6, 4) | {f"{UP}.lora_magnitude_vector": torch.arange(1.0, 7.0)}
    found = read(model, save_adapter(tmp_path / "lora", tensors, use_dora=True), f"{UP}.weight")
    torch.testing.assert_close(found.norm(dim=1), torch.arange(1.0, 7.0))
    a, b, _ = tensors.values()
    way = exact(weights[f"{UP}.weight"], a, b, 2.0)
    assert torch.nn.functional.cosine_similarity(found.double(), way, dim=1).min() > 1 - 1e-9


def test_modules_saved_in_full(model: Path, tmp_path: Path) -> None:
    """A grown embedding, a new head and a bias; names as old and new versions of peft write them."""
    tensors = factors(UP, 6, 4) | {
        "model.embed_tokens.modules_to_save.default.weight": torch.ones(13, 4),
        "score.weight": torch.full((2, 4), 3.0),
        f"{UP}.base_layer.bias": torch.full((6,), 5.0),
    }
    with open_donor(model, save_adapter(tmp_path / "lora", tensors, bias="lora_only")) as donor:
        assert donor.metas["model.embed_tokens.weight"].shape == (13, 4)
        assert donor.tensor("model.embed_tokens.weight").sum() == 52
        assert donor.added == ("score.weight",)
        assert donor.tensor(f"{UP}.bias").tolist() == [5.0] * 6
        # the head was tied: it keeps the model's own rows, as in a model with the adapter loaded
        assert donor.untied == ("lm_head.weight",)
        assert donor.metas["lm_head.weight"].shape == (11, 4)


def test_a_head_saved_with_its_embeddings_stays_tied(model: Path, tmp_path: Path) -> None:
    same = {name: torch.ones(11, 4) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    with open_donor(model, save_adapter(tmp_path / "lora", same)) as donor:
        assert donor.untied == ()
        assert donor.tensor("lm_head.weight").sum() == 44
    apart = same | {"lm_head.weight": torch.zeros(11, 4)}
    with open_donor(model, save_adapter(tmp_path / "apart", apart)) as donor:
        assert donor.untied == ("lm_head.weight",)
        assert donor.tensor("lm_head.weight").sum() == 0


def test_factors_on_a_tensor_that_is_there_in_full(model: Path, tmp_path: Path) -> None:
    """peft saves the embeddings of the model that it trains beside their factors."""
    tensors = factors(UP, 6, 4) | {f"{UP}.base_layer.weight": torch.ones(6, 4)}
    a, b, own = tensors.values()
    found = read(model, save_adapter(tmp_path / "lora", tensors), f"{UP}.weight")
    torch.testing.assert_close(found.double(), exact(own, a, b, 2.0), rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("model.layers.0.up", "layers.0.up"),
        ("layers.0.up", "model.layers.0.up"),
        ("model.layers.0.up", "language_model.model.layers.0.up"),
        ("model.language_model.layers.0.up", "language_model.model.layers.0.up"),
    ],
)
def test_a_renamed_prefix_is_found(tmp_path: Path, mine: str, theirs: str) -> None:
    write_checkpoint(tmp_path / "model", {f"{theirs}.weight": torch.zeros(6, 4)})
    with open_donor(tmp_path / "model", save_adapter(tmp_path / "lora", factors(mine, 6, 4))) as donor:
        assert donor.changed == {f"{theirs}.weight"}


def refused(model: Path, adapter: Path) -> str:
    with pytest.raises(AdapterError) as caught, open_donor(model, adapter):
        pass
    return str(caught.value)


def test_an_adapter_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    text = refused(model, save_adapter(tmp_path / "none", factors("transformer.h.0.mlp", 6, 4)))
    assert "no module of the adapter is in the model" in text
    assert "0 of 1" in text
    some = factors(UP, 6, 4) | factors("model.layers.1.mlp.up_proj", 6, 4)
    text = refused(model, save_adapter(tmp_path / "some", some))
    assert "lacks modules" in text
    assert "model.layers.1.mlp.up_proj.weight" in text
    assert "1 of 2" in text
    text = refused(model, save_adapter(tmp_path / "shape", factors(UP, 6, 5)))
    assert "another shape" in text
    assert "[6, 4]" in text


def test_a_prefix_that_fits_twice_is_refused(tmp_path: Path) -> None:
    names = ("text_model.layers.0.up.weight", "vision_model.layers.0.up.weight")
    write_checkpoint(tmp_path / "model", {name: torch.zeros(6, 4) for name in names})
    text = refused(tmp_path / "model", save_adapter(tmp_path / "lora", factors("layers.0.up", 6, 4)))
    assert "several places" in text
    assert "vision_model" in text


def test_a_module_elsewhere_is_not_taken_for_one_that_is_missing(tmp_path: Path) -> None:
    names = ("bert.layers.0.dense.weight", "cls.transform.dense.weight")
    write_checkpoint(tmp_path / "model", {name: torch.zeros(6, 4) for name in names})
    adapter = save_adapter(
        tmp_path / "lora", factors("bert.layers.0.dense", 6, 4) | factors("bert.pooler.dense", 6, 4)
    )
    assert "bert.pooler.dense.weight" in refused(tmp_path / "model", adapter)


def test_fused_matrices_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", {"layers.0.attn.qkv_proj.weight": torch.zeros(18, 4)})
    text = refused(tmp_path / "model", save_adapter(tmp_path / "lora", factors("layers.0.attn.q_proj", 6, 4)))
    assert "layers.0.attn.qkv_proj.weight" in text
    assert "fuses or splits" in text


def test_quantised_models_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", {"up.weight": torch.zeros(6, 4, dtype=torch.int8)})
    text = refused(tmp_path / "model", save_adapter(tmp_path / "lora", factors("up", 6, 4)))
    assert "I8" in text
    assert "before it was quantised" in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "another kind"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"trainable_token_indices": [1]}, "single rows"),
        ({"target_parameters": ["experts"]}, "no weight of a module"),
        ({"alora_invocation_tokens": [5]}, "switched on by tokens"),
        ({"use_qalora": True}, "unknown here"),
        ({"init_lora_weights": "pissa_niter_4"}, "its training changed first"),
        ({"init_lora_weights": "olora"}, "its training changed first"),
        ({"r": 3}, "not that of the configuration"),
        ({"lora_alpha": None}, "gives no scale"),
        ({"lora_alpha": float("inf")}, "gives no scale"),
        ({"use_dora": True}, "disagree on DoRA"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"alpha_pattern": [1]}, "a pattern is no object"),
    ],
)
def test_configurations_that_are_no_plain_sum(
    model: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    assert said in refused(model, save_adapter(tmp_path / "lora", factors(UP, 6, 4), **settings))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{UP}.lora_A.weight": torch.ones(2, 4)}, "one factor of two"),
        (
            {f"{UP}.lora_A.weight": torch.ones(2, 4), f"{UP}.lora_B.weight": torch.ones(6, 3)},
            "do not fit together",
        ),
        ({f"{UP}.token_adapter.trainable_tokens_delta": torch.ones(2, 4)}, "no known part"),
        ({f"{UP}.lora_E.weight": torch.ones(2, 4)}, "no known part"),
        (factors(UP, 6, 4) | {f"{UP}.lora_A.second.weight": torch.ones(2, 4)}, "are for one place"),
        (factors(DOWN, 4, 6) | {f"{DOWN}.lora_B.bias": torch.ones(4)}, "a module that has none"),
    ],
)
def test_tensors_that_are_no_adapter(
    model: Path, tmp_path: Path, tensors: dict[str, Tensor], said: str
) -> None:
    assert said in refused(model, save_adapter(tmp_path / "lora", tensors))


def test_folders_that_are_no_adapter(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "adapter_config.json" in refused(model, empty)
    (empty / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "adapter_model.safetensors" in refused(model, empty)
    (empty / "adapter_model.bin").write_bytes(b"\x80\x02")
    assert "never unpickles" in refused(model, empty)
    foreign = save_adapter(tmp_path / "foreign", factors(UP, 6, 4))
    (foreign / "adapter_model.safetensors").unlink()
    write_checkpoint(
        foreign / "adapter_model.safetensors", {"lora_unet_up.lora_down.weight": torch.ones(2, 4)}
    )
    assert "not named as peft names them" in refused(model, foreign)
    (foreign / "adapter_model.safetensors").unlink()
    write_checkpoint(foreign / "adapter_model.safetensors", {})
    assert "changes nothing" in refused(model, foreign)


def test_links_out_of_the_folder_are_refused(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "lora", factors(UP, 6, 4))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).rename(tmp_path / name)
        (adapter / name).symlink_to(tmp_path / name)
        with pytest.raises(CheckpointError, match="leads out of the folder"), open_donor(model, adapter):
            pass


def test_the_tokenizer_is_the_adapters_if_it_has_one(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "lora", factors(UP, 6, 4))
    with open_donor(model, adapter) as donor:
        assert donor.vocabulary_folder == model
    (adapter / "tokenizer.json").write_text("{}")
    with open_donor(model, adapter) as donor:
        assert donor.vocabulary_folder == adapter
