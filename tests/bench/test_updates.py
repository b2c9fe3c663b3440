"""The synthetic updates and the cases: what each says it is, and an absent one named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import checkpoints, store
from bench.checkpoints import SMOLLM2_CASE, real_cases, synthetic_cases
from bench.updates import STEP_UPDATE, UPDATES, nudged, nudged_by_row, stepped
from graftwork.ops.lossless_delta import delta_stats


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_step_moves_one_word_in_a_hundred_by_one(dtype: torch.dtype) -> None:
    base = torch.randn(1000, 100, generator=generator()).to(dtype)
    base[:500] = 0
    tuned = stepped(base, generator(), 0.01)
    classes = delta_stats(base, tuned).histogram.sum(dim=0)
    middle = len(classes) // 2
    assert classes[middle - 1 : middle + 2].sum() == base.numel(), "no difference but -1, 0 and 1"
    assert 900 < (tuned != base).sum() < 1100
    assert tuned.isfinite().all()


def test_the_scales_of_rows_span_a_decade_around_their_mean() -> None:
    base = torch.zeros(4000, 500)
    scales = nudged_by_row(base, generator(), 2e-4).std(dim=1)
    assert 8 < scales.max() / scales.min() < 13, "a factor of ten, and what the estimates add"
    assert scales.mean().item() == pytest.approx(2e-4, rel=0.05)
    logarithms = scales.log10()
    lower_half = (logarithms < (logarithms.max() + logarithms.min()) / 2).float().mean().item()
    assert lower_half == pytest.approx(0.5, abs=0.05)
    same = nudged(base, generator(), 2e-4).std(dim=1)
    assert same.max() / same.min() < 1.5


def test_every_update_is_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "BASE_ROWS", {True: 64, False: 64})
    cases = [(case.name, case.aligned) for case in synthetic_cases(tmp_path, quick=True)]
    assert cases == [(name, True) for name in UPDATES]
    assert cases[-1][0] == STEP_UPDATE


def test_real_cases_are_there_when_somebody_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "smollm2_folder", lambda: tmp_path / "cache")
    output, tuned = tmp_path / "output", tmp_path / "stdlib-source"
    assert list(real_cases(output, tuned)) == []
    assert store.missing([]) == ["real: the demo's", SMOLLM2_CASE]
    for folder in (output / "bfloat16" / "base", output / "bfloat16" / "chat", tuned):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    cases = list(real_cases(output, tuned))
    assert [case.name for case in cases] == ["real: chat, bfloat16", SMOLLM2_CASE]
    assert (cases[1].base, cases[1].tuned) == (tmp_path / "cache", tuned)
    assert store.missing(cases) == []
    assert store.missing(cases[:1]) == [SMOLLM2_CASE]
    monkeypatch.setattr(checkpoints, "smollm2_folder", lambda: None)
    assert len(list(real_cases(output, tuned))) == 1
