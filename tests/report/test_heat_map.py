from __future__ import annotations

import re

import pytest

from graftwork.report.diff_section import CHANGED, SURVIVAL, UPDATE
from graftwork.report.heat_map import STEPS, Scale, fit_scale, heat_map, legend
from graftwork.report.layers import blocks
from tests.report.handmade import checkpoint_diff, lone_tensor, tensor_diff


def test_scale_goes_from_faint_to_strong() -> None:
    linear = Scale(0.0, 1.0)
    assert [linear.step(x) for x in (-1.0, 0.0, 0.5, 1.0, 9.0)] == [0, 0, STEPS // 2, STEPS - 1, STEPS - 1]
    turned = Scale(1.0, 0.0)
    assert [turned.step(x) for x in (1.0, 0.0)] == [0, STEPS - 1]
    logarithmic = Scale(1e-4, 1.0, logarithmic=True)
    assert logarithmic.step(0.0) == 0 and logarithmic.step(1.0) == STEPS - 1
    assert logarithmic.step(1e-2) == STEPS // 2
    assert logarithmic.at(0.5) == pytest.approx(1e-2, rel=1e-12)
    assert Scale(2.0, 2.0).step(2.0) == STEPS // 2


def test_scale_fits_the_values_within_three_decades() -> None:
    tensors = [tensor_diff("l.0.a", 1e-9), tensor_diff("l.0.b", 0.5), tensor_diff("l.0.c", 0.0)]
    scale = fit_scale(blocks(checkpoint_diff(tensors)), UPDATE)
    assert scale.high == pytest.approx(0.5) and scale.low == pytest.approx(0.0005)


@pytest.mark.parametrize("measure", [UPDATE, CHANGED, SURVIVAL])
def test_every_cell_has_a_colour_and_says_its_value(measure) -> None:
    diff = checkpoint_diff([tensor_diff("l.0.a"), tensor_diff("l.1.a<b>"), lone_tensor("l.1.c")])
    (block,) = blocks(diff)
    drawn = heat_map(block, measure, Scale(0.0, 1.0))
    assert drawn.count("<rect") == 3 and drawn.count("<title>") == 3
    assert drawn.count('class="void"') == 1 and "1 c: only in tuned" in drawn
    assert "a&lt;b&gt;" in drawn and "a<b>" not in drawn
    steps = re.findall(rf'class="{measure.palette}\d"', legend(measure, Scale(0.0, 1.0)))
    assert len(steps) == STEPS
