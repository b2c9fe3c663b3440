from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.store import SkillPack, mount
from graftwork.store.skill_pack import CompressionPlan, Quantize, Raw, distill_scales
from tests.store.skill_pack.cases import copied, inputs, net, same, tuned_net

PLAN = CompressionPlan({r"(first|left|right|out|head)\.weight": Quantize(1, block=-1), "": Raw("fp32")})


def loss(pack: SkillPack, base: nn.Module, tuned: nn.Module) -> float:
    with torch.no_grad(), mount(base, pack):
        return sum(float((base(batch) - tuned(batch)).square().mean()) for batch in inputs()) / len(inputs())


def test_distilled_scales_bring_the_outputs_nearer(tmp_path: object) -> None:
    base = net().train()
    tuned = tuned_net(base)
    pack = SkillPack.build(tuned, base, PLAN)
    before = copied(base.state_dict())
    better, report = distill_scales(pack, base, inputs(), teacher=tuned, steps=100, lr=1e-3)
    assert report.after < 0.8 * report.before
    assert report.before == pytest.approx(loss(pack, base, tuned), rel=1e-4)
    assert report.after == pytest.approx(loss(better, base, tuned), rel=1e-4)
    assert same(before, base.state_dict()) and base.training and better.nbytes == pack.nbytes
    assert all(parameter.grad is None for parameter in base.parameters())
    assert pack.tensors["head.weight"].scale == 1.0 and better.digest != pack.digest
    better.save(f"{tmp_path}/better.safetensors")
    with SkillPack.open(f"{tmp_path}/better.safetensors") as opened:
        assert loss(opened, base, tuned) == pytest.approx(report.after, rel=1e-4)


def test_the_error_of_a_scaled_change_is_known() -> None:
    base = net()
    tuned = tuned_net(base)
    pack = SkillPack.build(tuned, base, PLAN)
    better, report = distill_scales(pack, base, inputs(), teacher=tuned, steps=20, lr=1e-2)
    assert set(report.factors) == {name for name, row in pack.tensors.items() if row.codec == "quantize"}
    for name, factor in report.factors.items():
        assert factor != 1.0 and better.tensors[name].scale == pytest.approx(factor)
        difference = better.delta(name) - (tuned.get_parameter(name) - base.get_parameter(name)).detach()
        error = better.tensors[name].error
        assert error.squared == pytest.approx(float(difference.double().square().sum()), rel=1e-3)
        assert float(difference.abs().max()) <= error.max_abs * 1.001


def test_a_pack_that_would_get_worse_stays_as_it_is() -> None:
    base = net()
    tuned = tuned_net(base)
    pack = SkillPack.build(tuned, base, PLAN)
    same_pack, report = distill_scales(pack, base, inputs(), teacher=tuned, steps=3, lr=10.0)
    assert same_pack is pack and report.after == report.before and set(report.factors.values()) == {1.0}


def test_a_pack_without_scales_stays_as_it_is() -> None:
    base = net()
    pack = SkillPack.build(tuned_net(base), base, CompressionPlan({"": Raw("fp32")}))
    found, report = distill_scales(pack, base, inputs(), teacher=tuned_net(base))
    assert found is pack and report.factors == {} and report.before == report.after < 1e-6


class Output(NamedTuple):
    hidden: Tensor
    logits: Tensor


class Wrapped(nn.Module):
    """What libraries return: an object with logits, a tuple, or something else."""

    def __init__(self, model: nn.Module, form: str) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, given: Tensor) -> object:
        found = self.model(given)
        return {"logits": Output(found * 0, found), "tuple": (found, 3), "other": "text"}[self.form]


@pytest.mark.parametrize("form", ["logits", "tuple", "other"])
def test_outputs_of_any_form(form: str) -> None:
    base = Wrapped(net(), form)
    tuned = Wrapped(tuned_net(base.model), form)  # type: ignore[arg-type]
    pack = SkillPack.build(tuned, base, PLAN)
    if form == "other":
        with pytest.raises(DataError, match="no tensor to compare"):
            distill_scales(pack, base, inputs(), teacher=tuned, steps=1)
        return
    _, report = distill_scales(pack, base, inputs(), teacher=tuned, steps=30, lr=1e-3)
    assert report.after < report.before
    found = distill_scales(pack, base, inputs(), teacher=tuned, steps=1, outputs=lambda found: found[0])[1]
    assert (found.before == 0) == (form == "logits")


def test_tied_weights_share_a_factor() -> None:
    base = net()
    base.blocks[1].out.weight = base.blocks[0].out.weight  # type: ignore[union-attr, assignment]
    tuned = tuned_net(base)
    tuned.blocks[1].out.weight = tuned.blocks[0].out.weight  # type: ignore[union-attr, assignment]
    pack = SkillPack.build(tuned, base, PLAN)
    better, report = distill_scales(pack, base, inputs(), teacher=tuned, steps=50, lr=1e-3)
    assert "blocks.1.out.weight" not in report.factors
    assert loss(better, base, tuned) == pytest.approx(report.after, rel=1e-4) and report.after < report.before


def test_what_cannot_be_distilled_with() -> None:
    base = net()
    tuned = tuned_net(base)
    pack = SkillPack.build(tuned, base, PLAN)
    with pytest.raises(DataError, match="no batches"):
        distill_scales(pack, base, [], teacher=tuned)
    with pytest.raises(DataError, match="not finite"):
        distill_scales(pack, base, [torch.full((2, 10), torch.nan)], teacher=tuned)
    with pytest.raises(DataError, match="lacks a tensor"):
        distill_scales(pack, nn.Linear(10, 5), inputs(), teacher=tuned)
