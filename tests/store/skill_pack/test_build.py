from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from graftwork.checkpoint import write_checkpoint
from graftwork.errors import CheckpointError, DataError, RecipeError
from graftwork.store import SkillPack, mount
from graftwork.store.skill_pack import SVD, CompressionPlan, Drop, Prune, Quantize, Raw, Sparse
from graftwork.store.skill_pack.low_rank import LowRank
from tests.store.skill_pack.cases import EVERY, PLAN, SHAPES, base_state, copied, same, tuned_state


def relative(pack: SkillPack, tuned: dict[str, Tensor], base: dict[str, Tensor], name: str) -> float:
    delta = tuned[name].double() - base[name].double()
    return float((pack.delta(name).double() - delta).norm() / delta.norm())


def one(delta: Tensor, codec: object, **settings: object) -> SkillPack:
    """A pack of one matrix whose base is zero."""
    return SkillPack.build(
        {"w": delta}, {"w": torch.zeros_like(delta)}, CompressionPlan({"": codec}), **settings
    )  # type: ignore[arg-type, dict-item]


def test_all_energy_and_halves_are_nearly_exact() -> None:
    delta = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    pack = one(delta, SVD(energy=1.0, bits=((None, 16),)))
    assert pack.tensors["w"].error.rel_l2 < 1e-3
    assert float((pack.delta("w") - delta).norm() / delta.norm()) < 1e-3


def test_keeping_all_is_the_identity_and_rank_zero_is_the_base() -> None:
    delta = torch.arange(-30, 30).float().view(6, 10) / 64
    assert torch.equal(one(delta, Prune(1.0)).delta("w"), delta)
    assert not one(delta, SVD(rank=0)).delta("w").any()
    assert not one(delta, Drop()).delta("w").any()


@pytest.mark.parametrize(("energy", "rank"), [(0.7, 1), (0.9, 2), (0.95, 3)])
def test_the_energy_rule(energy: float, rank: int) -> None:
    """σ = 4, 2, 1, 1: 16 of 22 is .727, 20 is .909, 21 is .9545."""
    left = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(1))).Q
    right = torch.linalg.qr(torch.randn(7, 4, generator=torch.Generator().manual_seed(2))).Q
    delta = left * torch.tensor([4.0, 2.0, 1.0, 1.0]) @ right.T
    piece = one(delta, SVD(energy=energy, bits=((None, 16),))).piece("w")
    assert isinstance(piece, LowRank) and piece.packs[0].rank == rank


def test_the_report_says_what_is_so() -> None:
    base = base_state()
    tuned = tuned_state(base)
    pack = SkillPack.build(tuned, base, PLAN)
    report = pack.report()
    assert [row.name for row in report.tensors] == sorted(SHAPES)
    for row in report.tensors:
        assert row.relative_error == pytest.approx(relative(pack, tuned, base, row.name), rel=1e-5, abs=1e-9)
        difference = pack.delta(row.name).double() - (tuned[row.name].double() - base[row.name].double())
        assert row.max_abs_error == pytest.approx(float(difference.abs().max()), rel=1e-4, abs=1e-8)
        assert row.nbytes == sum(field.nbytes for field in pack.piece(row.name).fields().values())
        assert row.bits_per_weight == pytest.approx(8 * row.nbytes / math.prod(row.shape))
    assert report.weights == sum(map(math.prod, SHAPES.values())) and report.nbytes == pack.nbytes
    assert report.relative_error == pytest.approx(math.sqrt(report.squared_error / report.energy))
    assert report.to_dict()["bits_per_weight"] == pack.bits_per_weight
    spectrum = next(row.spectrum for row in report.tensors if "q_proj" in row.name)
    assert spectrum is not None and list(spectrum) == [1, 2, 4, 8] and 0 < spectrum[1] < spectrum[8] <= 1.01


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (33, 1), (31, 33), (3, 5, 7), (2, 3, 4, 5)])
def test_every_codec_takes_every_shape(kind: str, shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    pack = one(delta, EVERY[kind])
    assert pack.delta("w").shape == shape and bool(torch.isfinite(pack.delta("w")).all())
    if kind in ("raw", "halves"):
        assert torch.allclose(pack.delta("w"), delta, rtol=1e-3, atol=1e-5)


def test_experts_are_compressed_one_by_one_and_convolutions_as_one_matrix() -> None:
    generator = torch.Generator().manual_seed(3)
    rank_one = torch.randn(3, 8, 1, generator=generator) @ torch.randn(3, 1, 6, generator=generator)
    outer = torch.randn(4, 1, generator=generator) * torch.randn(18, generator=generator)
    base = {"experts.w": torch.zeros(3, 8, 6), "conv.w": torch.zeros(4, 3, 3, 2)}
    tuned = {"experts.w": rank_one, "conv.w": outer.view(4, 3, 3, 2)}
    pack = SkillPack.build(tuned, base, CompressionPlan({"": SVD(rank=1, bits=((None, 16),))}))
    for name in base:
        assert torch.allclose(pack.delta(name), tuned[name], rtol=5e-3, atol=5e-3)
    assert {"e0.s.0", "e1.u.0", "e2.v.0"} <= pack.piece("experts.w").fields().keys()
    assert set(pack.piece("conv.w").fields()) == {"u.0", "v.0", "s.0"}


def test_vectors_and_scalars() -> None:
    base = {"scale": torch.tensor(1.0), "norm.weight": torch.ones(33)}
    tuned = {"scale": torch.tensor(1.5), "norm.weight": torch.ones(33) * 1.25}
    for codec in (Raw(), Quantize(8, block=0), Prune(1.0)):
        pack = SkillPack.build(tuned, base, CompressionPlan({"": codec}))
        assert pack.delta("scale").shape == () and float(pack.delta("scale")) == pytest.approx(0.5, rel=1e-2)
        assert torch.allclose(pack.delta("norm.weight"), torch.full((33,), 0.25), rtol=1e-2)


def test_tiny_changes_keep_their_digits_in_halves() -> None:
    """A half below 6e-8 would be zero; so small are changes of a late checkpoint."""
    delta = torch.tensor([[1e-9, -3e-9, 2e-10, 7e-11]])
    assert torch.allclose(one(delta, Raw("fp16")).delta("w"), delta, rtol=1e-3, atol=0)
    assert one(delta, Quantize(8, block=0)).tensors["w"].error.rel_l2 < 0.01
    huge = torch.tensor([[1e30, -2e30, 5e29, 1e28]])
    assert torch.allclose(one(huge, Raw("fp16")).delta("w"), huge, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    base = base_state(dtype=dtype)
    tuned = tuned_state(base, size=0.5)
    pack = SkillPack.build(tuned, base, CompressionPlan({"": Raw("fp32")}))
    before = copied(base)
    with mount(base, pack):
        for name in SHAPES:
            assert torch.allclose(base[name].double(), tuned[name].double(), rtol=1e-6, atol=1e-6)
    assert same(before, base)


def test_a_fine_tune_of_another_dtype_than_its_base() -> None:
    base = base_state(dtype=torch.bfloat16)
    tuned = {
        name: tensor.float() + 0.25 if tensor.is_floating_point() else tensor for name, tensor in base.items()
    }
    pack = SkillPack.build(tuned, base, CompressionPlan({"": Raw("fp32")}))
    assert all(torch.equal(pack.delta(name), torch.full(shape, 0.25)) for name, shape in SHAPES.items())
    assert pack.tensors["model.norm.weight"].dtype == "BF16"


def test_modules_paths_and_state_dicts_give_one_pack(tmp_path: object) -> None:
    base, tuned = nn.Linear(5, 7), nn.Linear(5, 7)
    plan = CompressionPlan({"": Quantize(4, block=0)})
    packs = [SkillPack.build(tuned, base, plan), SkillPack.build(tuned.state_dict(), base.state_dict(), plan)]
    for name, module in (("base", base), ("tuned", tuned)):
        write_checkpoint(f"{tmp_path}/{name}", {k: v.detach() for k, v in module.state_dict().items()})
    packs.append(SkillPack.build(f"{tmp_path}/tuned", f"{tmp_path}/base", plan))
    assert len({pack.digest for pack in packs}) == 1


def test_nothing_of_the_inputs_changes() -> None:
    base = base_state()
    tuned = tuned_state(base)
    before = copied(base), copied(tuned)
    SkillPack.build(tuned, base, PLAN)
    assert same(before[0], base) and same(before[1], tuned)


def test_building_twice_gives_one_digest() -> None:
    base = base_state()
    tuned = tuned_state(base)
    assert SkillPack.build(tuned, base, PLAN).digest == SkillPack.build(tuned, base, PLAN).digest


def test_dare_draws_by_seed_and_name() -> None:
    delta = torch.ones(40, 50)
    first, again, other = (one(delta, Sparse("dare", keep=0.25, seed=seed)).delta("w") for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert set(first.unique().tolist()) == {0.0, 4.0}
    assert 0.2 < float((first != 0).double().mean()) < 0.3
    rare = one(torch.ones(40, 500), Sparse("dare", keep=1e-4, seed=3))
    assert rare.piece("w").facts()["index"] != "drawn" and set(rare.delta("w").unique().tolist()) <= {
        0.0,
        1e4,
    }
    assert not one(delta, Sparse("dare", keep=0.0)).delta("w").any()
    plan = CompressionPlan({"": Sparse("dare", keep=0.25, seed=1)})
    twin = SkillPack.build({"v": delta}, {"v": torch.zeros_like(delta)}, plan)
    assert not torch.equal(first, twin.delta("v"))


def test_two_of_four() -> None:
    delta = torch.tensor([[4.0, -1, 2, -3, 1, 1, 1, 1]])
    assert one(delta, Sparse("2:4")).delta("w").tolist() == [[4, 0, 0, -3, 1, 1, 0, 0]]


def test_unchanged_tensors_are_named_and_not_stored() -> None:
    base = base_state()
    tuned = {**copied(base), "model.norm.weight": base["model.norm.weight"] + 1}
    pack = SkillPack.build(tuned, base, PLAN)
    assert list(pack.tensors) == ["model.norm.weight"] and "steps" in pack.unchanged
    assert len(pack.unchanged) == len(SHAPES)


def test_integers_that_changed_are_left_out_and_said_so() -> None:
    base = base_state()
    tuned = {**tuned_state(base), "steps": torch.arange(3) + 1}
    with pytest.warns(UserWarning, match="cannot be added to in parts"):
        pack = SkillPack.build(tuned, base, PLAN)
    assert list(pack.left_out) == ["steps"] and "int64" in pack.left_out["steps"]
    assert pack.report().left_out == dict(pack.left_out)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_stored_once() -> None:
    base, tuned = Tied(), Tied()
    pack = SkillPack.build(tuned, base, CompressionPlan({"": Raw("fp32")}))
    assert list(pack.tensors) == ["embed.weight"] and pack.tensors["embed.weight"].tied == ("head.weight",)
    with mount(base, pack):
        assert torch.allclose(base.head.weight, tuned.head.weight, atol=1e-6)


def test_an_untied_fine_tune_of_a_tied_base() -> None:
    base, tuned = Tied(), Tied()
    tuned.head.weight = nn.Parameter(tuned.embed.weight.detach().clone())
    pack = SkillPack.build(tuned, base, CompressionPlan({"": Raw()}))
    assert list(pack.tensors) == ["embed.weight"]
    with torch.no_grad():
        tuned.head.weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="tied in the base differ"):
        SkillPack.build(tuned, base, CompressionPlan({"": Raw()}))


def test_a_tied_fine_tune_of_an_untied_base() -> None:
    base, tuned = Tied(), Tied()
    base.head.weight = nn.Parameter(torch.randn(9, 8))
    pack = SkillPack.build(tuned, base, CompressionPlan({"": Raw("fp32")}))
    assert sorted(pack.tensors) == ["embed.weight", "head.weight"]
    with mount(base, pack):
        assert torch.allclose(base.head.weight, base.embed.weight, atol=1e-6)


def test_only_some_tensors() -> None:
    base = base_state()
    tuned = {"model.norm.weight": base["model.norm.weight"] + 1}
    pack = SkillPack.build(tuned, base, PLAN, only=["model.norm.weight"])
    assert list(pack.tensors) == ["model.norm.weight"]
    with pytest.raises(CheckpointError, match="no such tensors"):
        SkillPack.build(tuned, base, PLAN, only=["model.norm.wieght"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["tuned", "base"])
def test_what_is_not_finite_is_refused_with_its_place(bad: float, side: str) -> None:
    base = base_state()
    tuned = tuned_state(base)
    state = tuned if side == "tuned" else base
    state["model.layers.0.mlp.up_proj.weight"][2, 3] = bad
    with pytest.raises(CheckpointError, match="not finite") as caught:
        SkillPack.build(tuned, base, PLAN)
    assert caught.value.tensor == "model.layers.0.mlp.up_proj.weight" and "flat index 69" in str(caught.value)


def test_other_names_and_shapes_are_refused() -> None:
    base = base_state()
    tuned = tuned_state(base)
    renamed = {f"x.{name}" if "norm" in name else name: tensor for name, tensor in tuned.items()}
    with pytest.raises(CheckpointError, match="have other tensors") as caught:
        SkillPack.build(renamed, base, PLAN)
    assert "model.norm.weight" in str(caught.value) and "x.model.norm.weight" in str(caught.value)
    grown = {**tuned, "model.embed_tokens.weight": torch.zeros(52, 33)}
    with pytest.raises(CheckpointError, match="another shape") as caught:
        SkillPack.build(grown, base, PLAN)
    assert caught.value.tensor == "model.embed_tokens.weight" and "[52, 33]" in str(caught.value)


def test_wrong_arguments() -> None:
    base = base_state()
    tuned = tuned_state(base)
    with pytest.raises(RecipeError, match="the plan is none"):
        SkillPack.build(tuned, base, "automatic")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="budget of an automatic plan"):
        SkillPack.build(tuned, base, PLAN, bpw=1.0)
    with pytest.raises(RecipeError, match="no such quantizer"):
        SkillPack.build(tuned, base, PLAN, quantizer="best")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batches to calibrate with"):
        SkillPack.build(tuned, base, PLAN, quantizer="gptq")
    with pytest.raises(DataError, match="batches to calibrate with"):
        SkillPack.build(tuned, base, PLAN, calibration=[torch.ones(1)])
    with pytest.raises(DataError, match="needs a model"):
        SkillPack.build(tuned, base, PLAN, quantizer="gptq", calibration=[torch.ones(1)])
    with pytest.raises(RecipeError, match="no rule of the plan"):
        SkillPack.build(tuned, base, CompressionPlan({"@norm": Raw()}))


def test_equal_models_make_an_empty_pack() -> None:
    base = base_state()
    pack = SkillPack.build(copied(base), base)
    assert not len(pack) and pack.bits_per_weight == 0 and pack.report().relative_error == 0
    with mount(base, pack) as mounted:
        assert mounted.is_mounted
