"""Numbers of a merge that are not finite, and what rounding leaves of an update."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graftwork.compose import METHODS, merge
from graftwork.errors import CheckpointError
from tests.compose.models import (
    change,
    contents,
    family,
    load,
    one_tensor,
    recipe,
    recipe_of,
    result,
)


def spoil(folder: Path) -> str:
    name = "model.layers.0.mlp.up_proj.weight"

    def by(tensors: dict[str, Tensor]) -> None:
        tensors[name][2, 3] = torch.nan
        tensors[name][4, 4] = -torch.inf

    change(folder, "two", by)
    return name


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_is_refused_kept_or_left_out(tmp_path: Path, method: str) -> None:
    family(tmp_path)
    name = spoil(tmp_path)
    more = recipe_of(tmp_path, method)
    if method in ("slerp", "nearswap", "passthrough"):
        more["models"] = [{"model": str(tmp_path / "two")}]
    with pytest.raises(CheckpointError, match="numbers that are not finite") as error:
        merge(more, tmp_path / "out")
    assert error.value.tensor == name and error.value.file == str(tmp_path / "two" / "model.safetensors")
    assert "nan at flat index 15, and 1 more" in str(error.value) and "nan: zero" in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    for policy in ("propagate", "zero"):
        report = merge(more | {"nan": policy}, tmp_path / policy)
        assert report.nonfinite == {str(tmp_path / "two"): 2}
        merged = load(tmp_path / policy)
        spoiled = {key: (~tensor.isfinite()).sum().item() for key, tensor in merged.items()}
        assert spoiled.pop(name) == (0 if policy == "zero" else spoiled_by(method, merged[name]))
        assert not any(spoiled.values())


def spoiled_by(method: str, merged: Tensor) -> int:
    """A NaN and an infinity spoil their own places alone; a draw may drop them."""
    bad = (~merged.isfinite()).nonzero().tolist()
    assert all(place in ([2, 3], [4, 4]) for place in bad)
    if not METHODS[method].keyed and method not in ("breadcrumbs", "breadcrumbs_ties", "sce"):
        assert len(bad) == 2
    return len(bad)


def test_a_zero_counts_for_nothing(tmp_path: Path) -> None:
    one_tensor(tmp_path, {"base": [1.0, 1.0], "one": [2.0, 3.0], "two": [math.nan, 3.0]})
    assert result(tmp_path, "task_arithmetic", [{"weight": 1.0}] * 2, nan="zero").tolist() == [2.0, 5.0]


def test_survival_against_the_exact_result(models: Path, tmp_path: Path) -> None:
    report = merge(recipe(models, each=[{"weight": 0.01}]), tmp_path / "out")
    assert report.survival is not None
    base, one, merged = load(models / "base"), load(models / "one"), load(tmp_path / "out")
    changed = lost = 0
    for name, tensor in merged.items():
        wanted = 0.01 * (one[name].float() - base[name].float())
        changed += int((wanted != 0).sum())
        lost += int(((wanted != 0) & (tensor == base[name])).sum())
    total = report.survival.total
    assert (total.changed, total.lost) == (changed, lost) and lost > 0.5 * changed
    assert len(report.survival.tensors) == len(merged) and 0 < (total.cosine or 0) < 0.9


def test_float32_loses_nothing(wide: Path, tmp_path: Path) -> None:
    report = merge(recipe(wide, preserve="stochastic"), tmp_path / "out")
    assert report.survival is not None and report.survival.total.lost == 0
    assert report.survival.total.cosine == 1.0
    assert any("preserve: stochastic has no effect" in note for note in report.notes)


def test_stochastic_rounding_keeps_the_update_in_expectation(tmp_path: Path) -> None:
    one_tensor(tmp_path, {"base": torch.ones(50000), "one": torch.full((50000,), 1.5)}, dtype=torch.bfloat16)
    each = [{"weight": 0.002}]  # 0.001 of a spacing of 0.0078
    report = merge(recipe(tmp_path, each=each), tmp_path / "near")
    assert float(load(tmp_path / "near")["up.weight"].float().mean()) == 1.0
    assert report.survival is not None and report.survival.total.lost == 50000
    report = merge(recipe(tmp_path, each=each, preserve="stochastic"), tmp_path / "random")
    assert abs(float(load(tmp_path / "random")["up.weight"].float().mean()) - 1.001) < 1e-4
    assert report.survival is not None and 40000 < report.survival.total.lost < 46000
    assert 0.2 < (report.survival.total.cosine or 0) < 0.5


def test_a_residual_makes_the_result_exact(models: Path, tmp_path: Path) -> None:
    from graftwork.delta.residual import RESIDUAL, add_residual

    merge(recipe(models, dtype="float32"), tmp_path / "exact")
    merge(recipe(models, preserve="residual"), tmp_path / "out")
    assert (tmp_path / "out" / RESIDUAL).exists()
    add_residual(tmp_path / "out", tmp_path / "added")
    exact, added = load(tmp_path / "exact"), load(tmp_path / "added")
    assert exact.keys() == added.keys() and all(torch.equal(exact[name], added[name]) for name in exact)
    merge(recipe(models), tmp_path / "plain")
    assert (
        contents(tmp_path / "plain")["model.safetensors"] == contents(tmp_path / "out")["model.safetensors"]
    )
