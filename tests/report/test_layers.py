from __future__ import annotations

import pytest

from graftwork.report.layers import MAX_COLUMNS, OTHERS, Place, blocks, place
from tests.report.handmade import checkpoint_diff, lone_tensor, tensor_diff, transformer


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("encoder.layer.3.attention.self.query.weight", Place("encoder.layer", 3, "attention.self.query")),
        ("encoder.layer.3.attention.self.query.bias", Place("encoder.layer", 3, "attention.self.query.bias")),
        ("model.layers.12.mlp.experts.7.up.weight", Place("model.layers", 12, "mlp.experts.*.up")),
        ("h.0.ln_1.weight", Place("h", 0, "ln_1")),
        ("0.weight", Place("", 0, "weight")),
        ("model.embed_tokens.weight", Place("", None, "model.embed_tokens")),
        ("weight", Place("", None, "weight")),
        ("a.²", Place("", None, "a.²")),
        ("a.9999999999999999999.b", Place("", None, "a.9999999999999999999.b")),
        ("", Place("", None, "")),
    ],
)
def test_place(name: str, wanted: Place) -> None:
    assert place(name) == wanted


def test_stacks_are_blocks_and_the_rest_is_one() -> None:
    names = ["enc.0.a", "enc.10.a", "enc.2.b", "dec.0.a", "head.weight", "embed"]
    found = blocks(checkpoint_diff([tensor_diff(name) for name in names]))
    assert [(b.title, b.rows, b.columns) for b in found] == [
        ("enc", ("0", "2", "10"), ("a", "b")),
        ("dec", ("0",), ("a",)),
        ("outside layers", ("head", "embed"), ("",)),
    ]
    assert set(found[0].cells) == {("0", "a"), ("10", "a"), ("2", "b")}


def test_cells_add_stats_up() -> None:
    members = [tensor_diff("l.0.e.0.up", 0.1), tensor_diff("l.0.e.1.up", 0.2), lone_tensor("l.0.e.2.up")]
    (block,) = blocks(checkpoint_diff(members))
    cell = block.cells["0", "e.*.up"]
    assert cell.tensors == 3 and cell.stats.elements == 2000
    assert cell.fact == "changed, only in tuned"
    (lone,) = blocks(checkpoint_diff([lone_tensor("l.0.x")]))
    assert lone.cells["0", "x"].stats is None


def test_many_layers_become_bands() -> None:
    diff = transformer(layers=500)
    found = blocks(diff, max_cells=300)
    stack = found[0]
    assert len(stack.rows) * len(stack.columns) <= 300
    assert stack.rows[0].startswith("0 … ")
    assert sum(c.stats.elements for b in found for c in b.cells.values() if c.stats) == diff.total.elements


def test_many_modules_become_others() -> None:
    tensors = [tensor_diff(f"l.0.m{i}", elements=1000 + i) for i in range(100)]
    (block,) = blocks(checkpoint_diff(tensors))
    assert len(block.columns) == MAX_COLUMNS + 1 and block.columns[-1] == OTHERS
    assert "m99" in block.columns and "m0" not in block.columns
