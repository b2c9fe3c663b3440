"""Recycling along a chain of bases: the sheet's scalars, folders with lineage, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from graftwork.checkpoint import write_checkpoint
from graftwork.errors import CheckpointError
from graftwork.rebase import recycle
from graftwork.rebase.lineage import LINEAGE
from tests.generators.checkpoints import write_folder
from tests.rebase.models import read_state

BASES = (0.0, 1.0, 1.5)


def scalar(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value])}


def halfway(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """FT(m) = m + ½ (4 − m)."""
    return {"w": model["w"] + 0.5 * (4 - model["w"])}


class Trainer:
    """`halfway` on folders; counts its calls, and fails at one of them."""

    def __init__(self, fails_at: int = 0) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fails_at = fails_at

    def __call__(self, start: Path, out: Path) -> None:
        self.calls.append((start.name, out.name))
        if len(self.calls) == self.fails_at:
            raise RuntimeError("out of power")
        write_checkpoint(out, halfway(read_state(start)), config={})


@pytest.fixture
def bases(tmp_path: Path) -> list[Path]:
    return [write_folder(tmp_path / f"m{i}", scalar(value)) for i, value in enumerate(BASES, 1)]


@pytest.mark.parametrize("mode, wanted", [("iterative", [2.0, 3.5, 4.0]), ("direct", [2.0, 3.5, 3.5])])
def test_the_sheets_scalars(mode: str, wanted: list[float], bases: list[Path], tmp_path: Path) -> None:
    chain = recycle([scalar(value) for value in BASES], halfway, mode=mode)  # type: ignore[arg-type]
    assert [model["w"].item() for model in chain.tuned] == wanted
    on_disk = recycle(bases, Trainer(), mode=mode, out=tmp_path / "chain")  # type: ignore[arg-type]
    assert [read_state(path)["w"].item() for path in on_disk.tuned] == wanted
    for link, other in zip(chain.links, on_disk.links, strict=True):
        assert link.difference == other.difference
        start = other.start if isinstance(other.start, Path) else Path(other.start)
        assert read_state(start)["w"].item() == link.start["w"].item()


def test_differences_and_their_bases(bases: list[Path], tmp_path: Path) -> None:
    chain = recycle(bases, Trainer(), mode="direct", out=tmp_path / "chain")
    assert [link.difference for link in chain.links] == [None, (0, "M*_1 - M_1"), (1, "FT(M_2) - M_2")]
    chain = recycle(bases, Trainer(), out=tmp_path / "other")
    assert chain.links[2].difference == (1, "M*_2 - M_2")
    lineage = json.loads((tmp_path / "other" / "03-start" / LINEAGE).read_text())
    assert [model["name"] for model in lineage["models"]] == ["m2", "02-tuned", "m3"]
    said = json.loads((tmp_path / "other" / "chain.json").read_text())
    assert said["links"]["3"]["difference"] == "M*_2 - M_2" and said["mode"] == "iterative"


@pytest.mark.parametrize("mode", ["iterative", "direct"])
def test_a_stopped_chain_goes_on(mode: str, bases: list[Path], tmp_path: Path) -> None:
    trainer = Trainer(fails_at=2)
    with pytest.raises(RuntimeError):
        recycle(bases, trainer, mode=mode, out=tmp_path / "chain")  # type: ignore[arg-type]
    again = Trainer()
    chain = recycle(bases, again, mode=mode, out=tmp_path / "chain")  # type: ignore[arg-type]
    assert ("m1", "01-tuned") in trainer.calls and ("m1", "01-tuned") not in again.calls
    assert read_state(chain.tuned[-1])["w"].item() == (4.0 if mode == "iterative" else 3.5)
    silent = Trainer()
    assert recycle(bases, silent, mode=mode, out=tmp_path / "chain").tuned == chain.tuned  # type: ignore[arg-type]
    assert not silent.calls


def test_one_base() -> None:
    assert [model["w"].item() for model in recycle([scalar(0.0)], halfway).tuned] == [2.0]


def test_a_scale(tmp_path: Path) -> None:
    chain = recycle([scalar(value) for value in BASES[:2]], halfway, scale=0.5)
    assert chain.links[1].start["w"].item() == 2.0


def test_what_is_refused(bases: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one base"):
        recycle([], halfway)
    with pytest.raises(ValueError, match="'iterative' or 'direct'"):
        recycle([scalar(0.0)], halfway, mode="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="need out"):
        recycle(bases, Trainer())
    with pytest.raises(TypeError, match="all of one kind"):
        recycle([bases[0], scalar(0.0)], halfway)  # type: ignore[list-item]
    with pytest.raises(CheckpointError, match="has written nothing"):
        recycle(bases, lambda start, out: None, out=tmp_path / "none")
    recycle(bases, Trainer(), out=tmp_path / "chain")
    with pytest.raises(CheckpointError, match="other bases or settings") as caught:
        recycle(bases, Trainer(), mode="direct", out=tmp_path / "chain")
    assert "direct" in str(caught.value.wanted)
    (tmp_path / "chain" / "chain.json").write_text("[]")
    with pytest.raises(CheckpointError, match="other bases or settings"):
        recycle(bases, Trainer(), out=tmp_path / "chain")
