from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from graftwork.errors import BaseMismatch, CheckpointError
from graftwork.store import SkillPack, mount
from graftwork.store.skill_pack import SVD, CompressionPlan, Quantize, Raw
from graftwork.store.skill_pack.held import Held
from tests.store.skill_pack.cases import (
    EVERY,
    PLAN,
    SHAPES,
    State,
    base_state,
    copied,
    net,
    same,
    tuned_net,
    tuned_state,
    words,
)

QUANTIZED = CompressionPlan({"": Quantize(4, block=16)})
LOW_RANK = CompressionPlan({"@norm|bias": Raw(), "": SVD(rank=4)})


def packs_of(base: State, plans: list[CompressionPlan]) -> list[SkillPack]:
    return [SkillPack.build(tuned_state(base, seed=9 + at), base, plan) for at, plan in enumerate(plans)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", EVERY)
def test_mounting_adds_the_change_and_unmounting_leaves_the_base(kind: str, dtype: torch.dtype) -> None:
    base = base_state(dtype=dtype)
    plan = CompressionPlan({"": EVERY[kind], "@bias|norm": Raw()})
    pack = SkillPack.build(tuned_state(base, size=0.1), base, plan)
    before = copied(base)
    with mount(base, [(pack, 0.5)]) as mounted:
        assert mounted.is_mounted and mounted.packs == [(pack, 0.5)]
        for name in pack.tensors:
            wanted = before[name].double() + 0.5 * pack.delta(name).double()
            eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
            compute = (
                2**-8 if dtype == torch.bfloat16 else 2**-22
            )  # of factors, where the CPU multiplies bfloat16
            limit = eps * wanted.abs() + compute * pack.delta(name).abs().max() + 1e-12
            assert bool(((base[name].double() - wanted).abs() <= limit).all()), name
    assert same(before, base) and not mounted.is_mounted and mounted.packs == []


def test_one_rounding() -> None:
    """The sum of several changes is rounded once: each alone is below half a unit of the base."""
    base = {"w": torch.full((8, 256), 1.0, dtype=torch.bfloat16)}
    step = 2.0**-9  # a quarter of the spacing at 1
    tuned = {"w": torch.full((8, 256), 1.0 + step)}
    packs = [
        SkillPack.build(tuned, base, CompressionPlan({"": codec}))
        for codec in (Raw("fp32"), Quantize(1, block=0))
    ]
    with mount(base, packs[0]):
        assert bool((base["w"] == 1).all())
    with mount(base, [(packs[0], 2.0), (packs[1], 1.0)]):
        assert bool((base["w"].float() == 1 + 4 * step).all())


@pytest.mark.parametrize("plans", [[QUANTIZED] * 3, [LOW_RANK] * 3, [QUANTIZED, LOW_RANK, PLAN]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_order_nor_number_of_calls_matters(plans: list[CompressionPlan], dtype: torch.dtype) -> None:
    base = base_state(dtype=dtype)
    before, packs = copied(base), packs_of(base, plans)
    scaled = list(zip(packs, (1.0, 0.5, -0.25), strict=True))
    results = []
    for order in itertools.permutations(scaled):
        with mount(base, list(order)):
            results.append(copied(base))
        handles = [mount(base, pair) for pair in order]
        results.append(copied(base))
        handles[1].unmount()
        handles[0].unmount()
        handles[2].unmount()
        assert same(before, base)
    assert all(same(results[0], other) for other in results[1:])


def test_a_handle_that_goes_leaves_what_the_others_alone_make() -> None:
    base = base_state()
    first, second = packs_of(base, [QUANTIZED, LOW_RANK])
    with mount(base, second):
        wanted = copied(base)
    one, other = mount(base, first), mount(base, second)
    one.unmount()
    assert same(wanted, base)
    other.unmount()


def test_a_hundred_times_without_drift() -> None:
    base = base_state(dtype=torch.bfloat16)
    pack = SkillPack.build(tuned_state(base), base, PLAN)
    before = copied(base)
    for at in range(100):
        mount(base, [(pack, 0.1 * at)]).unmount()
    assert same(before, base)


def test_scale_zero_is_the_base_with_all_its_words() -> None:
    base = {"w": torch.tensor([[-0.0, 0.0, 1.0, -1.0]])}
    for codec in (Raw(), Quantize(1, block=0), SVD(rank=1), EVERY["prune"]):
        pack = SkillPack.build({"w": base["w"] + 1}, base, CompressionPlan({"": codec}))
        with mount(base, (pack, 0.0)):
            assert words(base["w"])[0, 0] == -(2**31)


def test_scales_are_changed_from_the_base() -> None:
    base = base_state(dtype=torch.bfloat16)
    first, second = packs_of(base, [QUANTIZED, LOW_RANK])
    before = copied(base)
    with mount(base, [(first, 0.3), (second, -1)]):
        wanted = copied(base)
    handle = mount(base, [first, second])
    handle.set_scales([5.0, 7.0])
    handle.set_scales([0.3, -1])
    assert same(wanted, base) and handle.packs == [(first, 0.3), (second, -1.0)]
    for bad in ([1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="scale"):
            handle.set_scales(bad)
    handle.unmount()
    assert same(before, base)
    for call in (handle.unmount, lambda: handle.set_scales([1, 1])):
        with pytest.raises(ValueError, match="not on the model"):
            call()


def test_only_the_words_of_changed_tensors_are_kept() -> None:
    base = base_state()
    tuned = {**copied(base), "model.norm.weight": base["model.norm.weight"] + 1}
    with mount(base, SkillPack.build(tuned, base, PLAN)) as mounted:
        assert mounted.saved_bytes == 33 * 4
    assert mounted.saved_bytes == 0


def test_modules() -> None:
    base = net()
    tuned = tuned_net(base)
    pack = SkillPack.build(tuned, base, CompressionPlan({"": Raw("fp32")}))
    given, before = torch.randn(4, 10), copied(base.state_dict())
    wanted = tuned(given)
    with mount(base, pack):
        assert torch.allclose(base(given), wanted, atol=1e-5)
    assert same(before, base.state_dict())
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_inference_tensors() -> None:
    with torch.inference_mode():
        base = {"w": torch.zeros(4, 4)}
        pack = SkillPack.build({"w": torch.ones(4, 4)}, base, CompressionPlan({"": Raw()}))
    with mount(base, pack):
        assert bool((base["w"] == 1).all())
    assert not base["w"].any()


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.head = nn.Linear(8, 9, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.arange(72).view(9, 8))
            self.head.weight.copy_(self.embed.weight)
        if tied:
            self.head.weight = self.embed.weight


def test_tied_weights_change_once() -> None:
    base, tuned = Tied(), Tied()
    with torch.no_grad():
        tuned.embed.weight.add_(1.0)
    pack = SkillPack.build(tuned, base, CompressionPlan({"": Raw()}))
    for model in (base, Tied(tied=False)):
        with mount(model, pack):
            assert torch.equal(model.embed.weight, tuned.embed.weight)
            assert torch.equal(model.head.weight, tuned.embed.weight)
    apart = Tied(tied=False)
    theirs = Tied(tied=False)
    with torch.no_grad():
        theirs.embed.weight.add_(1.0)
        theirs.head.weight.add_(2.0)
    split = SkillPack.build(theirs, apart, CompressionPlan({"": Raw()}))
    with pytest.raises(BaseMismatch, match="tied in the model are apart"):
        mount(base, split)


def test_another_base_is_refused_before_anything_is_written() -> None:
    base = base_state()
    pack = SkillPack.build(tuned_state(base), base, PLAN)
    other = copied(base)
    other["stem.conv.weight"][0, 0, 0, 0] += 1
    before = copied(other)
    with pytest.raises(BaseMismatch, match="is not the base's") as caught:
        mount(other, pack)
    assert caught.value.tensor == "stem.conv.weight" and same(before, other)
    with mount(other, pack, check_base=False):
        assert not same(before, other)
    assert same(before, other)


def test_the_base_is_looked_at_under_the_packs_on_it() -> None:
    base = base_state()
    first, second = packs_of(base, [QUANTIZED, LOW_RANK])
    with mount(base, first), mount(base, second):
        pass


def test_models_that_do_not_fit() -> None:
    base = base_state()
    pack = SkillPack.build(tuned_state(base), base, PLAN)
    cases = [
        ({n: t for n, t in base.items() if "norm" not in n}, "lacks a tensor"),
        ({**base, "model.norm.weight": torch.zeros(34)}, "not as the pack says"),
        ({**base, "model.norm.weight": torch.zeros(33).half()}, "not as the pack says"),
    ]
    for state, text in cases:
        with pytest.raises(BaseMismatch, match=text):
            mount(state, pack)
    with pytest.raises(CheckpointError, match="not contiguous"):
        mount(
            {
                **base,
                "stem.conv.weight": base["stem.conv.weight"].transpose(0, 1).contiguous().transpose(0, 1),
            },
            pack,
        )
    memory = torch.zeros(100)
    state = {"a": memory[:40], "b": memory[20:60]}
    both = SkillPack.build({n: t + 1 for n, t in state.items()}, copied(state), CompressionPlan({"": Raw()}))
    with pytest.raises(CheckpointError, match="share part of their memory"):
        mount(state, both)


def test_wrong_arguments() -> None:
    base = base_state()
    pack = SkillPack.build(tuned_state(base), base, PLAN)
    for scale in (math.inf, math.nan, "1"):
        with pytest.raises(ValueError, match="finite"):
            mount(base, [(pack, scale)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="given twice"):
        mount(base, [pack, (pack, 0.5)])
    with pytest.raises(TypeError, match="must be SkillPacks"):
        mount(base, ["pack"])  # type: ignore[list-item]


def test_a_weight_that_was_written_to_is_not_overwritten() -> None:
    base = base_state()
    pack = SkillPack.build(tuned_state(base), base, PLAN)
    before = copied(base)
    handle = mount(base, pack)
    base["model.norm.weight"].add_(1.0)
    for call in (
        handle.unmount,
        lambda: handle.set_scales([2.0]),
        lambda: mount(base, packs_of(before, [QUANTIZED])),
    ):
        with pytest.raises(BaseMismatch, match="written to while packs were on it"):
            call()
    handle.unmount(force=True)
    assert same(before, base)


def test_a_model_that_was_moved_is_noticed() -> None:
    base = net()
    pack = SkillPack.build(tuned_net(base), base, CompressionPlan({"": Raw()}))
    handle = mount(base, pack)
    base.to(torch.float64)
    with pytest.raises(BaseMismatch, match="moved or replaced"):
        handle.unmount()
    handle.unmount(force=True)


@pytest.mark.parametrize("calls", [1, 3, 6])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failure_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, calls: int, kind: type[BaseException]
) -> None:
    base = base_state()
    first, second = packs_of(base, [QUANTIZED, PLAN])
    handle = mount(base, first)
    before, become, left = copied(base), Held.become, calls

    def fail(self: Held, loads: list[object]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            self.tensor.zero_()
            raise kind("in the middle")
        become(self, loads)  # type: ignore[arg-type]

    monkeypatch.setattr(Held, "become", fail)
    for call in (lambda: mount(base, second), handle.unmount, lambda: handle.set_scales([3.0])):
        left = calls
        with pytest.raises(kind, match="in the middle"):
            call()
        assert same(before, base) and handle.is_mounted
    monkeypatch.undo()
    handle.unmount()


def test_a_pack_in_a_file_is_mounted_from_its_map(tmp_path: object) -> None:
    base = base_state()
    built = SkillPack.build(tuned_state(base), base, PLAN)
    built.save(f"{tmp_path}/skill.safetensors")
    with mount(base, built):
        wanted = copied(base)
    with SkillPack.open(f"{tmp_path}/skill.safetensors") as opened, mount(base, opened):
        assert same(wanted, base)


def test_a_copy_of_a_model_under_packs_is_another_model() -> None:
    base = net()
    pack = SkillPack.build(tuned_net(base), base, CompressionPlan({"": Raw("fp32")}))
    with mount(base, pack):
        other = copy.deepcopy(base)
        with pytest.raises(BaseMismatch, match="is not the base's"):
            mount(other, pack)
    assert SHAPES
