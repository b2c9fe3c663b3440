"""Merges of small models: what comes out, what a plan says, and targets that are taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.compose import METHODS, merge, read_recipe
from graftwork.delta.pipeline import default_threads
from graftwork.errors import RecipeError, SourceChanged, TargetExists
from tests.compose.models import contents, family, load, one_tensor, recipe, recipe_of, result, save, weights


def test_the_sheets_sce(tmp_path: Path) -> None:
    rows = [[1, -2, 0.5, 0], [3, 1, 0.5, 0], [-1, 1, 0.4, 2]]
    one_tensor(tmp_path, {"base": [0.0] * 4} | dict(zip(("one", "two", "three"), rows, strict=True)))
    merged = result(tmp_path, "sce", [{}] * 3, {"select_topk": 0.5})
    torch.testing.assert_close(merged, torch.tensor([2.33333, 1.0, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_ties_by_hand(tmp_path: Path) -> None:
    one_tensor(tmp_path, {"base": [1.0, 1, 1, 1], "one": [2.0, 0.9, 4, 1], "two": [0.5, 3, 2, 1.1]})
    each = [{"weight": 1.0, "density": 0.5}, {"weight": 1.0, "density": 0.5}]
    # d: [1, ., 3, .] and [., 2, 1, .]: nothing clashes; the third has two that agree
    assert result(tmp_path, "ties", each).tolist() == [2.0, 3.0, 3.0, 1.0]


def test_the_density_and_weight_of_ties_clash(tmp_path: Path) -> None:
    one_tensor(tmp_path, {"base": [0.0, 0], "one": [3.0, 1], "two": [-2.0, 1]})
    each = [{"weight": 1.0}, {"weight": 2.0}]
    assert result(tmp_path, "ties", each).tolist() == [-2.0, 1.0]  # 3 < 2·2: the sign is the second's


def test_task_arithmetic_of_one_restores_it(models: Path, tmp_path: Path) -> None:
    merge(recipe(models, each=[{"weight": 1.0}]), tmp_path / "out")
    assert contents(tmp_path / "out")["model.safetensors"] == contents(models / "one")["model.safetensors"]
    merge(recipe(models, each=[{"weight": 0.0}]), tmp_path / "zero")
    assert contents(tmp_path / "zero")["model.safetensors"] == contents(models / "base")["model.safetensors"]


def test_no_models_beside_the_base_give_the_base(models: Path, tmp_path: Path) -> None:
    base = str(models / "base")
    merge({"merge_method": "ties", "base_model": base, "models": [{"model": base}]}, tmp_path / "out")
    assert contents(tmp_path / "out")["model.safetensors"] == contents(models / "base")["model.safetensors"]


@pytest.mark.parametrize("method", METHODS)
def test_copies_of_the_base_give_the_base(tmp_path: Path, method: str) -> None:
    for name in ("base", "one", "two", "three"):
        save(tmp_path / name, weights(), dtype=torch.bfloat16)
    merge(recipe_of(tmp_path, method), tmp_path / "out")
    wanted = load(tmp_path / "base")
    if method in ("multislerp", "karcher", "slerp", "nuslerp"):  # unit vectors and back
        torch.testing.assert_close(load(tmp_path / "out"), wanted, rtol=2**-8, atol=0)
    else:
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in load(tmp_path / "out").items())


def test_tensors_too_large_for_memory_lie_in_a_file(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftwork.compose import memory

    merge(recipe(models, "ties"), tmp_path / "held")
    monkeypatch.setattr(memory, "IN_MEMORY", 16)
    merge(recipe(models, "ties"), tmp_path / "mapped")
    assert contents(tmp_path / "held") == contents(tmp_path / "mapped")


def test_sums_are_exact_and_rounded_once(models: Path, tmp_path: Path) -> None:
    merge(recipe(models), tmp_path / "out", threads=1)
    base, (one, two, three) = load(models / "base"), (load(models / name) for name in ("one", "two", "three"))
    for name, merged in load(tmp_path / "out").items():
        start = base[name].double()
        exact = start + sum(
            weight * (tensor[name].double() - start)
            for weight, tensor in ((0.5, one), (0.3, two), (0.4, three))
        )
        torch.testing.assert_close(merged.double(), exact, rtol=2**-8, atol=1e-30)
        assert (merged != exact.to(torch.bfloat16)).sum() <= 1  # a value next to the middle of two words


def test_gradients_and_filters(wide: Path, tmp_path: Path) -> None:
    weight = [{"filter": "mlp", "value": [0.0, 1.0]}, {"filter": "norm", "value": 0.25}, {"value": 1.0}]
    merge(recipe(wide, each=[{"weight": weight}]), tmp_path / "out")
    base, one, merged = load(wide / "base"), load(wide / "one"), load(tmp_path / "out")
    wanted = {
        "model.layers.0.mlp.up_proj.weight": 0.0, "model.layers.1.mlp.up_proj.weight": 0.5,
        "model.layers.2.mlp.up_proj.weight": 1.0, "model.norm.weight": 0.25, "model.layers.1.input_layernorm.weight": 0.25,
        "lm_head.weight": 1.0,
    }  # fmt: skip
    for name, share in wanted.items():
        torch.testing.assert_close(merged[name], base[name] + share * (one[name] - base[name]))


def test_densities_0_and_1(wide: Path, tmp_path: Path) -> None:
    for method in ("ties", "dare_ties", "della", "breadcrumbs"):
        each = [{"weight": 1.0, "density": 0.0}]
        shared = {"normalize": False}
        merge(recipe(wide, method, each, parameters=shared), tmp_path / method)
        assert torch.equal(load(tmp_path / method)["lm_head.weight"], load(wide / "base")["lm_head.weight"])
        merge(recipe(wide, method, [{"weight": 1.0}], parameters=shared), tmp_path / f"{method}-all")
        torch.testing.assert_close(load(tmp_path / f"{method}-all"), load(wide / "one"))


def test_dare_keeps_the_mean(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(3)
    one = 1 + 0.1 * torch.randn(40000, generator=source)
    one_tensor(tmp_path, {"base": torch.zeros(40000), "one": one})
    for rescale, mean in ((True, 1.0), ("l1", 1.0), ("probability", 1.0), (False, 0.25)):
        merge(recipe(tmp_path, "dare_linear", [{"weight": 1.0, "density": 0.25}], parameters={"rescale": rescale}),
              tmp_path / f"out-{rescale}")  # fmt: skip
        merged = load(tmp_path / f"out-{rescale}")["up.weight"]
        assert abs(float(merged.mean()) - mean) < 0.02
        assert abs(float((merged != 0).float().mean()) - 0.25) < 0.01


def test_della_keeps_the_larger_ones_more_often(tmp_path: Path) -> None:
    one_tensor(tmp_path, {"base": torch.zeros(500, 40), "one": torch.arange(1.0, 41).expand(500, 40).clone()})
    each = [{"weight": 1.0, "density": 0.5, "epsilon": 0.4}]
    merge(recipe(tmp_path, "della_linear", each), tmp_path / "out")
    kept = (load(tmp_path / "out")["up.weight"] != 0).float().mean(0)
    assert abs(float(kept[:4].mean()) - 0.13) < 0.05 and abs(float(kept[-4:].mean()) - 0.87) < 0.05


def test_seeds_and_equal_donors_draw_differently(wide: Path, tmp_path: Path) -> None:
    each = [{"weight": 1.0, "density": 0.5}]
    outputs = []
    for seed in (0, 0, 1):
        merge(recipe(wide, "dare_linear", each, seed=seed), tmp_path / f"{len(outputs)}")
        outputs.append(load(tmp_path / f"{len(outputs)}")["lm_head.weight"])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    twice = recipe(wide, "dare_linear", each) | {
        "models": [recipe(wide, "dare_linear", each)["models"][0]] * 2
    }
    merge(twice, tmp_path / "twice")
    base = load(wide / "base")["lm_head.weight"]
    dropped_by_both = float((load(tmp_path / "twice")["lm_head.weight"] == base).float().mean())
    assert dropped_by_both < 0.4  # a quarter, were it many elements; a half if both drew the same


def test_passthrough_slices(wide: Path, tmp_path: Path) -> None:
    parts = [("base", [0, 2]), ("one", [1, 3])]
    slices = [{"sources": [{"model": str(wide / name), "layer_range": span}]} for name, span in parts]
    report = merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    merged, base, one = load(tmp_path / "out"), load(wide / "base"), load(wide / "one")
    assert json.loads(contents(tmp_path / "out")["config.json"])["num_hidden_layers"] == 4
    for layer, (model, own) in enumerate(((base, 0), (base, 1), (one, 1), (one, 2))):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(merged[name.format(layer)], model[name.format(own)])
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert torch.equal(merged["lm_head.weight"], one["lm_head.weight"])
    assert report.tensors == 3 + 4 * 3


def test_slices_are_merged_with_gradients_of_their_own(wide: Path, tmp_path: Path) -> None:
    def slice_of(start: int, stop: int, **parameters: Any) -> dict[str, Any]:
        sources = [{"model": str(wide / name), "layer_range": [start, stop]} for name in ("base", "one")]
        return {"sources": sources, "parameters": parameters}

    made = {
        "merge_method": "slerp", "base_model": str(wide / "base"), "parameters": {"t": 0.5},
        "slices": [slice_of(0, 1, t=0.0), slice_of(1, 3, t=[0.0, 1.0])],
    }  # fmt: skip
    merge(made, tmp_path / "out")
    merged, base, one = load(tmp_path / "out"), load(wide / "base"), load(wide / "one")
    name = "model.layers.{}.mlp.up_proj.weight"
    for layer, model in ((0, base), (1, base), (2, one)):
        torch.testing.assert_close(merged[name.format(layer)], model[name.format(layer)])


def test_a_dry_run_writes_nothing_and_says_what_it_takes(models: Path, tmp_path: Path) -> None:
    report = merge(recipe_of(models, "ties"), tmp_path / "sub" / "out", dry_run=True)
    assert report.dry_run and not (tmp_path / "sub").exists()
    real = merge(recipe_of(models, "ties"), tmp_path / "out")
    assert report.estimate.read_bytes == real.estimate.read_bytes > 0
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.estimate.write_bytes == written and report.estimate.seconds > 0
    assert (
        report.parameters
        == real.parameters
        == sum(tensor.numel() for tensor in load(tmp_path / "out").values())
    )
    assert report.digest is None and report.survival is None
    json.dumps(report.to_dict(), allow_nan=False)
    json.dumps(real.to_dict(), allow_nan=False)


def test_the_target_must_be_free(models: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge(recipe(models), tmp_path / "out")  # an empty folder may stand there
    with pytest.raises(TargetExists):
        merge(recipe(models), tmp_path / "out", dry_run=True)
    with pytest.raises(RecipeError, match="a merge makes a folder"):
        merge(recipe(models), tmp_path / "out.safetensors")


def test_a_model_that_changes_meanwhile(tmp_path: Path) -> None:
    family(tmp_path)
    file = tmp_path / "two" / "model.safetensors"

    def touch(stage: str, done: int, total: int) -> None:
        if stage == "merge" and done == total:
            file.touch()

    with pytest.raises(SourceChanged, match="changed while it was in use"):
        merge(recipe(tmp_path), tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_progress_ends_with_all_bytes(models: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = merge(recipe(models), tmp_path / "out", progress=lambda *row: seen.append(row))
    assert seen[-1] == ("merge", report.estimate.read_bytes, report.estimate.read_bytes)
    assert [row[1] for row in seen] == sorted(row[1] for row in seen)


def test_a_recipe_can_be_read_once_and_merged(models: Path, tmp_path: Path) -> None:
    merge(read_recipe(recipe(models)), tmp_path / "out", threads=default_threads())
    assert (tmp_path / "out" / "graftwork.json").exists()
