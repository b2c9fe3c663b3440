from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graftwork.checkpoint import write_checkpoint
from graftwork.errors import BaseMismatch, CheckpointError, DataError
from graftwork.store import SkillPack
from graftwork.store.skill_pack import CompressionPlan, Raw, Selection, SkillRouter, SkillSet


def examples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features in the plane, and losses of three packs: each is best in its third of the directions."""
    features = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    angles = torch.atan2(features[:, 1], features[:, 0])
    centres = torch.tensor([-2.0, 0.0, 2.0])
    return features * 100 + 7, (1 - torch.cos(angles[:, None] - centres)) + 0.3


def test_it_learns_which_pack_loses_least() -> None:
    router = SkillRouter.fit(*examples(300, 0), names=["a", "b", "c"])
    features, losses = examples(500, 1)
    assert float((router.select(features) == losses.argmin(1)).double().mean()) > 0.93
    chances = router.probabilities(features)
    assert chances.shape == (500, 3) and torch.allclose(chances.sum(1), torch.ones(500))
    chosen = losses[torch.arange(500), router.select(features)].mean()
    assert float(chosen) < float(losses.mean(0).min()) - 0.2


def test_soft_targets_prefer_what_is_nearly_as_good() -> None:
    features, losses = examples(300, 0)
    soft = SkillRouter.fit(features, losses, temperature=1.0).probabilities(features)
    hard = SkillRouter.fit(features, losses).probabilities(features)
    assert float(soft.max(1).values.mean()) < float(hard.max(1).values.mean()) - 0.2


def test_the_same_again() -> None:
    features, losses = examples(50, 0)
    one, two, other = (SkillRouter.fit(features, losses, seed=seed, steps=20) for seed in (1, 1, 2))
    assert torch.equal(one.probabilities(features), two.probabilities(features))
    assert not torch.equal(one.probabilities(features), other.probabilities(features))


def test_a_constant_feature_and_a_single_example() -> None:
    router = SkillRouter.fit(torch.ones(1, 3), torch.tensor([[2.0, 1.0]]), steps=50)
    assert router.select(torch.ones(4, 3)).tolist() == [1, 1, 1, 1]


def test_it_is_kept_in_a_folder(tmp_path: Path) -> None:
    features, losses = examples(50, 0)
    router = SkillRouter.fit(features, losses, names=["x", "y", "z"], steps=20)
    router.save(tmp_path / "router")
    again = SkillRouter.load(tmp_path / "router")
    assert again.names == ("x", "y", "z")
    assert torch.equal(again.probabilities(features), router.probabilities(features))
    write_checkpoint(tmp_path / "other", {"w": torch.zeros(2)}, config={"names": ["x"]})
    with pytest.raises(CheckpointError, match="not a router's folder"):
        SkillRouter.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("features", "losses", "settings", "words"),
    [
        (torch.ones(3), torch.ones(3, 2), {}, "do not fit"),
        (torch.ones(3, 2), torch.ones(2, 2), {}, "do not fit"),
        (torch.ones(0, 2), torch.ones(0, 2), {}, "do not fit"),
        (torch.full((3, 2), torch.nan), torch.ones(3, 2), {}, "not finite"),
        (torch.ones(3, 2), torch.full((3, 2), torch.inf), {}, "not finite"),
        (torch.ones(3, 2), torch.ones(3, 2), {"names": ["a"]}, "names do not fit"),
        (torch.ones(3, 2), torch.ones(3, 2), {"names": ["a", "a"]}, "names do not fit"),
        (torch.ones(3, 2), torch.ones(3, 2), {"hidden": 0}, "out of range"),
        (torch.ones(3, 2), torch.ones(3, 2), {"temperature": -1.0}, "out of range"),
    ],
)
def test_wrong_examples(
    features: torch.Tensor, losses: torch.Tensor, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        SkillRouter.fit(features, losses, **settings)  # type: ignore[arg-type]


def test_wrong_features() -> None:
    router = SkillRouter.fit(*examples(10, 0), steps=1)
    for given in (torch.ones(2), torch.ones(2, 3)):
        with pytest.raises(DataError, match="do not fit the router"):
            router.select(given)


def packs() -> tuple[dict[str, torch.Tensor], dict[str, SkillPack]]:
    base = {"w": torch.zeros(4)}
    plan = CompressionPlan({"": Raw("fp32")})
    steps = {"one": 1.0, "ten": 10.0, "hundred": 100.0}
    return base, {
        name: SkillPack.build({"w": torch.full((4,), step)}, base, plan) for name, step in steps.items()
    }


def test_every_way_to_choose() -> None:
    base, made = packs()
    router = SkillRouter.fit(*examples(300, 0), names=["one", "ten", "hundred"])
    skills = SkillSet(made, tasks={"first": ["one"], "second": ["one", "ten"]}, router=router)
    angle = torch.tensor(2.0)
    features = torch.stack([angle.cos(), angle.sin()])[None] * 100 + 7
    cases = [
        (skills.all(), Selection("sum", ("one", "ten", "hundred"), (1.0, 1.0, 1.0)), 111.0),
        (skills.all(0.5), Selection("sum", ("one", "ten", "hundred"), (0.5, 0.5, 0.5)), 55.5),
        (skills.for_task("second"), Selection("task", ("one", "ten"), (1.0, 1.0)), 11.0),
        (skills.choose(["ten"]), Selection("manual", ("ten",), (1.0,)), 10.0),
        (skills.choose({"ten": 2.0, "one": -1.0}), Selection("manual", ("ten", "one"), (2.0, -1.0)), 19.0),
        (skills.route(features), Selection("route", ("hundred",), (1.0,)), 100.0),
    ]
    for found, wanted, value in cases:
        assert found == wanted
        with skills.mount(base, found):
            assert base["w"].tolist() == [value] * 4
        assert base["w"].tolist() == [0.0] * 4


def test_sets_that_do_not_fit() -> None:
    base, made = packs()
    with pytest.raises(DataError, match="no such packs"):
        SkillSet(made, tasks={"first": ["two"]})
    with pytest.raises(DataError, match="no such packs"):
        SkillSet(made, router=SkillRouter.fit(*examples(10, 0), names=["one", "ten", "two"], steps=1))
    with pytest.raises(DataError, match="no router"):
        SkillSet(made).route(torch.ones(1, 2))
    with pytest.raises(DataError, match="no such task"):
        SkillSet(made).for_task("first")
    with pytest.raises(DataError, match="no such packs"):
        SkillSet(made).mount(base, Selection("manual", ("two",), (1.0,)))
    other = SkillPack.build({"w": torch.ones(5)}, {"w": torch.zeros(5)}, CompressionPlan({"": Raw()}))
    with pytest.raises(BaseMismatch, match="different bases"):
        SkillSet({**made, "other": other})
