from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from graftwork.errors import CheckpointError, DataError
from graftwork.store import SkillPack, mount
from graftwork.store.skill_pack import SVD, CompressionPlan, Quantize, Raw
from graftwork.store.skill_pack.calibration import LinearInputs
from tests.store.skill_pack.cases import copied, inputs, net, same, tuned_net

MATRICES = r"\.weight$"
LAYERS = r"(first|left|right|out|head)\.weight"


def plan(codec: Quantize | SVD) -> CompressionPlan:
    return CompressionPlan({LAYERS: codec, "": Raw("fp32")})


def output_error(pack: SkillPack, base: nn.Module, tuned: nn.Module) -> float:
    with torch.no_grad(), mount(base, pack):
        return sum(
            float((base(batch) - tuned(batch)).double().square().sum()) for batch in inputs(8, seed=99)
        )


def test_layers_come_in_the_order_of_their_calls_and_those_of_one_input_together() -> None:
    base = net()
    found = LinearInputs(base, inputs(), dict(base.named_parameters()).keys())
    blocks = [
        group
        for at in range(3)
        for group in ([f"blocks.{at}.left.weight", f"blocks.{at}.right.weight"], [f"blocks.{at}.out.weight"])
    ]
    assert found.groups == [["first.weight"], *blocks, ["head.weight"]]


@pytest.mark.parametrize("apart", [False, True])
def test_second_moments_are_those_of_the_inputs(apart: bool) -> None:
    """Whether a chain of blocks is run block by block or the model from its start."""
    base = net(apart=apart)
    found = LinearInputs(base, inputs(), dict(base.named_parameters()).keys())
    assert found._blocks._prefix == ("" if apart else "blocks.")
    for group in found.groups:
        seen: list[Tensor] = []
        layer = base.get_submodule(group[0].removesuffix(".weight"))
        handle = layer.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].detach()))
        for batch in inputs():
            base(batch)
        handle.remove()
        rows = torch.cat(seen).double()
        wanted = 2 / len(rows) * rows.T @ rows
        hessian = found.hessian(group)
        assert hessian is not None
        diagonal = wanted.diagonal()
        diagonal.clamp_(min=1e-3 * float(diagonal.mean()))
        assert torch.allclose(hessian.double(), wanted, rtol=1e-4, atol=1e-5)


def test_later_layers_see_what_the_earlier_ones_became() -> None:
    base = net()
    found = LinearInputs(base, inputs(), dict(base.named_parameters()).keys())
    before = {group[0]: found.hessian(group) for group in found.groups}
    again = LinearInputs(base, inputs(), dict(base.named_parameters()).keys())
    for group in again.groups:
        now = again.hessian(group)
        assert now is not None and before[group[0]] is not None
        if group[0] in ("first.weight", "blocks.0.left.weight", "blocks.0.out.weight"):
            assert torch.equal(now, before[group[0]])
        else:
            assert not torch.allclose(now, before[group[0]], rtol=1e-2)
        if group[0] == "blocks.0.out.weight":
            with torch.no_grad():
                again.model.get_parameter(group[0]).mul_(3.0)
    assert torch.equal(base.blocks[0].out.weight, net().blocks[0].out.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("codec", [Quantize(2, block=16), Quantize(3, "asym", block=0), Quantize(1, block=0)])
def test_gptq_changes_outputs_less_than_rounding(codec: Quantize) -> None:
    base = net()
    tuned = tuned_net(base)
    nearest = SkillPack.build(tuned, base, plan(codec))
    careful = SkillPack.build(tuned, base, plan(codec), quantizer="gptq", calibration=inputs(8))
    assert careful.bits_per_weight == nearest.bits_per_weight
    assert output_error(careful, base, tuned) < 0.9 * output_error(nearest, base, tuned)


def test_gptq_of_singular_triples() -> None:
    base = net()
    tuned = tuned_net(base)
    codec = SVD(bits=((None, 2),))
    nearest = SkillPack.build(tuned, base, plan(codec))
    careful = SkillPack.build(tuned, base, plan(codec), quantizer="gptq", calibration=inputs(8))
    assert output_error(careful, base, tuned) < output_error(nearest, base, tuned)


def test_automatic_codecs_with_gptq() -> None:
    base = net()
    tuned = tuned_net(base)
    pack = SkillPack.build(tuned, base, bpw=3.0, quantizer="gptq", calibration=inputs())
    assert pack.bits_per_weight <= 3.0 and pack.recipe["quantizer"] == "gptq"


def test_models_are_not_changed_and_batches_of_any_form_do() -> None:
    base = net().train()
    tuned = tuned_net(base)
    before = copied(base.state_dict()), copied(tuned.state_dict())
    batches = inputs()
    forms = [batches, [(batch,) for batch in batches], [{"given": batch} for batch in batches]]
    packs = [
        SkillPack.build(tuned, base, plan(Quantize(2)), quantizer="gptq", calibration=form) for form in forms
    ]
    assert len({pack.digest for pack in packs}) == 1
    assert same(before[0], base.state_dict()) and same(before[1], tuned.state_dict()) and base.training
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_which_model_runs_does_not_matter() -> None:
    """Its weights are made the base's first."""
    base = net()
    tuned = tuned_net(base)
    settings = {"quantizer": "gptq", "calibration": inputs()}
    wanted = SkillPack.build(tuned, base, plan(Quantize(2)), **settings)  # type: ignore[arg-type]
    for state, model in ((base.state_dict(), None), (base.state_dict(), net(seed=8))):
        pack = SkillPack.build(tuned, state, plan(Quantize(2)), model=model, **settings)  # type: ignore[arg-type]
        assert pack.digest == wanted.digest


class Shared(nn.Module):
    """One layer that is called twice, one that is never called, and a matrix that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle = nn.Linear(10, 10), nn.Linear(10, 10)
        self.table = nn.Parameter(torch.randn(10, 10))

    def forward(self, given: Tensor) -> Tensor:
        return self.layer(self.layer(given) @ self.table)


def test_layers_that_are_called_often_or_never() -> None:
    base = Shared()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1)
    pack = SkillPack.build(
        tuned, base, CompressionPlan({"": Quantize(4)}), quantizer="gptq", calibration=inputs()
    )
    assert len(pack) == 5


def test_an_input_that_is_always_zero_does_not_cost_its_weights() -> None:
    base, tuned = nn.Linear(10, 6), nn.Linear(10, 6)
    batches = [batch.index_fill(1, torch.tensor([3]), 0.0) for batch in inputs()]
    pack = SkillPack.build(
        tuned, base, CompressionPlan({"": Quantize(8, block=0)}), quantizer="gptq", calibration=batches
    )
    wanted = (tuned.weight - base.weight).detach()
    assert torch.allclose(pack.delta("weight")[:, 3], wanted[:, 3], atol=0.02)


def test_what_cannot_be_calibrated_with() -> None:
    base = net()
    tuned = tuned_net(base)

    def build(batches: list[Tensor], model: nn.Module | None = None) -> SkillPack:
        return SkillPack.build(
            tuned, base, plan(Quantize(2)), quantizer="gptq", calibration=batches, model=model
        )

    with pytest.raises(DataError, match="no batches"):
        build([])
    with pytest.raises(DataError, match="not finite") as caught:
        build([torch.full((2, 10), torch.nan)])
    assert caught.value.tensor == "first.weight"
    other = copy.deepcopy(base)
    other.head = nn.Linear(24, 6)
    with pytest.raises(CheckpointError, match="another shape"):
        build(inputs(), other)
