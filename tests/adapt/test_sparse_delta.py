"""Sparse deltas: made from models and from changes, as vectors, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapt import SparseDelta, TunedTensor, compose
from graftwork.checkpoint import open_checkpoint
from graftwork.delta.source import CheckpointSource, describe
from graftwork.errors import BaseMismatch, DeltaError
from graftwork.ops.sparse_update import Support
from tests.adapt.deltas import (
    State,
    Tied,
    base_state,
    bits,
    cloned,
    expected,
    mixed_state,
    random_delta,
    with_head,
)
from tests.generators.checkpoints import updated, write_folder


def tuned_state(base: State, seed: int = 100) -> State:
    return {name: updated(tensor, 0.01, seed + i) for i, (name, tensor) in enumerate(base.items())}


def all_changes(delta: SparseDelta) -> dict[tuple[str, int], float]:
    found = {}
    for tensor in delta.tensors:
        indices, values = delta.changes(tensor.name)
        found |= {(tensor.name, i): v for i, v in zip(indices.tolist(), values.tolist(), strict=True)}
    return found


@pytest.mark.parametrize("k", [0, 1, 31, 1000, 10**9])
def test_the_k_largest_of_all_tensors(k: int) -> None:
    base = mixed_state()
    tuned = tuned_state(base)
    floats = sorted(name for name in base if base[name].is_floating_point())
    rows = [
        (-abs(change), name, index, change)
        for name in floats
        for index, change in enumerate((tuned[name].float() - base[name].float()).view(-1).tolist())
    ]
    k = min(k, len(rows))
    delta = SparseDelta.from_models(base, tuned, k=k, threads=1)
    wanted = {(name, index): change for score, name, index, change in sorted(rows)[:k] if score}
    assert all_changes(delta) == wanted
    assert delta.numel == len(rows) and delta.density() == len(wanted) / len(rows)
    assert [tensor.name for tensor in delta.tensors] == floats


def test_density_and_eps() -> None:
    base = base_state()
    tuned = tuned_state(base)
    half = SparseDelta.from_models(base, tuned, density=0.5, threads=1)
    assert half.entries == half.numel // 2
    above = SparseDelta.from_models(base, tuned, eps=0.01, threads=1)
    assert all(abs(value) > 0.01 for value in all_changes(above).values())
    everything = SparseDelta.from_models(base, tuned, threads=1)
    assert above.entries == sum(abs(value) > 0.01 for value in all_changes(everything).values())
    model = cloned(base)
    everything.apply_(model)
    for name in base:
        torch.testing.assert_close(model[name], tuned[name], rtol=2e-7, atol=2e-9)


def test_equal_magnitudes_are_taken_in_order() -> None:
    """The sheet's worked example: the authors' threshold selects five of these."""
    base = {"w": torch.zeros(6)}
    tuned = {"w": torch.tensor([0.3, 0.1, -0.1, 0.1, 0.0, 0.5])}
    delta = SparseDelta.from_models(base, tuned, k=3, threads=1)
    assert delta.changes("w")[0].tolist() == [0, 1, 5]
    assert SparseDelta.from_models(base, tuned, k=6, threads=1).entries == 5, "weights that did not change"


def test_digests_are_those_of_a_store(tmp_path: Any) -> None:
    base = base_state(torch.bfloat16)
    write_folder(tmp_path / "base", base, shards=2)
    with open_checkpoint(tmp_path / "base") as checkpoint:
        description = describe(CheckpointSource(checkpoint), threads=1)
    tuned = tuned_state(base)
    write_folder(tmp_path / "tuned", tuned)
    delta = SparseDelta.from_models(tmp_path / "base", tmp_path / "tuned", k=50)
    assert delta.base_digest == description.digest
    assert {t.name: t.digest for t in delta.tensors} == {
        name: held.digest for name, held in description.tensors.items()
    }
    again = SparseDelta.from_models(base, tuned, k=50)
    assert all_changes(again) == all_changes(delta) and again.base_digest == delta.base_digest
    assert again.tensors == delta.tensors


def test_patterns() -> None:
    base = base_state()
    tuned = {**tuned_state(base), "head.weight": torch.ones(3, 4), "head.count": torch.arange(2)}
    delta = SparseDelta.from_models(
        base, tuned, include=["embed.*", "layers.*"], exclude=["*.1.*"], keep_full=["head.*"], threads=1
    )
    assert [tensor.name for tensor in delta.tensors] == ["embed.weight", "layers.0.weight"]
    assert bits(delta.full) == bits({"head.count": torch.arange(2), "head.weight": torch.ones(3, 4)})
    assert delta.without_full().full == {}
    with pytest.raises(ValueError, match="exclude: 'bert"):
        SparseDelta.from_models(base, base, exclude=["bert.*"])


def test_a_tensor_in_full_is_a_copy() -> None:
    base = base_state()
    tuned = tuned_state(base)
    delta = SparseDelta.from_models(base, tuned, keep_full=["scalar"], threads=1)
    before = tuned["scalar"].clone()
    tuned["scalar"].zero_()
    assert torch.equal(delta.full["scalar"], before)
    assert "scalar" not in [tensor.name for tensor in delta.tensors]


def test_tied_weights_stand_once() -> None:
    model = Tied()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tied_base = {**base, "head.weight": base["embed.weight"]}
    with torch.no_grad():
        model.embed.weight[3] += 1
    delta = SparseDelta.from_models(tied_base, model, threads=1)
    assert [t.name for t in delta.tensors] == ["body.bias", "body.weight", "embed.weight"]
    assert delta.tied == {"head.weight": "embed.weight"} and delta.entries == 8
    assert delta.changes("head.weight")[0].tolist() == delta.changes("embed.weight")[0].tolist()
    full = SparseDelta.from_models(model, model, keep_full=["body.*"], threads=1)
    assert [t.name for t in full.tensors] == ["embed.weight"] and list(full.full) == [
        "body.bias",
        "body.weight",
    ]
    with pytest.raises(ValueError, match="first name"):
        SparseDelta.from_models(model, model, keep_full=["head.*"], threads=1)
    apart = SparseDelta.from_models(base, model, threads=1)
    assert apart.entries == 16 and not apart.tied


REFUSED: list[tuple[State, State, dict[str, Any], type[Exception], str]] = [
    ({"w": torch.ones(3)}, {"w": torch.ones(4)}, {}, DeltaError, "resize"),
    ({"w": torch.ones(3)}, {"w": torch.ones(3).half()}, {}, DeltaError, "dtype"),
    ({"w": torch.ones(3)}, {"v": torch.ones(3)}, {}, DeltaError, "keep_full"),
    ({"w": torch.ones(3)}, {}, {"keep_full": ["w"]}, DeltaError, "lacks"),
    ({"w": torch.arange(3)}, {"w": torch.arange(1, 4)}, {}, DeltaError, "cannot be tuned"),
    ({"w": torch.ones(3)}, {"w": torch.tensor([1.0, 1.0, torch.nan])}, {}, DeltaError, "index 2"),
    ({"w": torch.ones(3)}, {"w": torch.tensor([1.0, 1.0, torch.nan])}, {"k": 1}, DeltaError, "index 2"),
    ({"w": torch.ones(3)}, {"w": torch.tensor([1.0, 1.0, torch.inf])}, {}, DeltaError, "not finite"),
    ({"w": torch.ones(3)}, {"w": torch.ones(3)}, {"k": 4}, ValueError, "k must be"),
    ({"w": torch.ones(3)}, {"w": torch.ones(3)}, {"k": 1, "eps": 0.1}, ValueError, "one of"),
    ({"w": torch.ones(3)}, {"w": torch.ones(3)}, {"density": 1.5}, ValueError, "density"),
    ({"w": torch.ones(3)}, {"w": torch.ones(3)}, {"eps": -1.0}, ValueError, "eps"),
]


@pytest.mark.parametrize(("base", "tuned", "how", "error", "message"), REFUSED)
def test_models_that_make_no_delta(
    base: State, tuned: State, how: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        SparseDelta.from_models(base, tuned, threads=1, **how)
    if isinstance(caught.value, DeltaError):
        assert caught.value.tensor in ("w", "v")


def test_models_that_are_equal_or_empty() -> None:
    base = mixed_state()
    delta = SparseDelta.from_models(base, base, threads=1)
    assert delta.entries == 0 and len(delta.tensors) == 5
    with delta.applied(base):
        pass
    assert SparseDelta.from_models({}, {}, include=()).density() == 0.0
    assert compose([SparseDelta.from_models({}, {}, include=())] * 2).entries == 0


def tensors(**shapes: tuple[int, ...]) -> list[TunedTensor]:
    return [TunedTensor(name, shape, torch.float32) for name, shape in shapes.items()]


def test_the_constructor_sorts() -> None:
    support = Support([torch.tensor([5]), torch.tensor([0, 2])], [6, 3])
    delta = SparseDelta(tensors(z=(6,), a=(3,)), support, torch.tensor([1.0, 2.0, 3.0]))
    assert all_changes(delta) == {("a", 0): 2.0, ("a", 2): 3.0, ("z", 5): 1.0}
    assert [t.name for t in delta.tensors] == ["a", "z"] and delta.support.indices.dtype == torch.int32
    assert repr(delta) == "SparseDelta(3 of 9 weights in 2 of 2 tensors)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": tensors(a=(7,), b=(3,))}, "support"),
        ({"tensors": tensors(a=(6,))}, "support"),
        ({"tensors": [*tensors(a=(6,)), TunedTensor("b", (3,), torch.float64)]}, "cannot be tuned"),
        ({"values": torch.tensor([1.0, torch.inf])}, "finite"),
        ({"full": {"a": torch.ones(2)}}, "one name"),
        ({"full": {"": torch.ones(2)}}, "one name"),
        ({"full": {"h": torch.ones(2, 3).mT}}, "contiguous"),
        ({"full": {"h": torch.ones(2, dtype=torch.complex128)}}, "dense"),
        ({"tied": {"b": "a"}}, "one name"),
        ({"tied": {"c": "d"}}, "lacks"),
    ],
)
def test_parts_that_make_no_delta(change: dict[str, Any], message: str) -> None:
    support = Support([torch.tensor([5]), torch.tensor([0])], [6, 3])
    parts = {"tensors": tensors(a=(6,), b=(3,)), "support": support, "values": torch.ones(2)}
    SparseDelta(**parts)
    with pytest.raises(DeltaError, match=message):
        SparseDelta(**(parts | change))


def test_values_go_with_the_support() -> None:
    support = Support([torch.tensor([5])], [6])
    with pytest.raises(ValueError, match="values"):
        SparseDelta(tensors(a=(6,)), support, torch.ones(2))
    with pytest.raises(TypeError, match="values"):
        SparseDelta(tensors(a=(6,)), support, torch.ones(1).double())


def test_changes_that_are_wrong() -> None:
    base = {"w": torch.zeros(4)}
    with pytest.raises(BaseMismatch, match="lacks"):
        SparseDelta.from_changes({"v": (torch.tensor([0]), torch.ones(1))}, base)
    with pytest.raises(ValueError, match="a value for each"):
        SparseDelta.from_changes({"w": (torch.tensor([0, 1]), torch.ones(1))}, base)
    with pytest.raises(ValueError, match="sorted"):
        SparseDelta.from_changes({"w": (torch.tensor([1, 0]), torch.ones(2))}, base)
    with pytest.raises(ValueError, match=r"in \[0, 4\)"):
        SparseDelta.from_changes({"w": (torch.tensor([4]), torch.ones(1))}, base)
    delta = SparseDelta.from_changes({}, base)
    assert delta.entries == 0 and delta.numel == 0
    with pytest.raises(DeltaError, match="no such tensor"):
        delta.changes("w")


@given(seeds=st.lists(st.integers(0, 9), min_size=1, max_size=4), scales=st.randoms(use_true_random=False))
def test_a_composition_is_the_sum(seeds: list[int], scales: Any) -> None:
    base = base_state()
    deltas = [random_delta(base, seed) for seed in seeds]
    weights = [scales.choice([1.0, -1.0, 0.5, 0.3]) for _ in deltas]
    merged = compose(deltas, weights)
    for name in base:
        total = torch.zeros(base[name].numel())
        there = torch.zeros(base[name].numel(), dtype=torch.bool)
        for delta, weight in zip(deltas, weights, strict=True):
            indices, values = delta.changes(name)
            total[indices.long()] += values * weight
            there[indices.long()] = True
        indices, values = merged.changes(name)
        assert indices.tolist() == there.nonzero().view(-1).tolist()
        assert torch.equal(values, total[there])
    assert merged.base_digest == deltas[0].base_digest and merged.tensors == deltas[0].tensors


def test_arithmetic() -> None:
    base = base_state()
    one, other = random_delta(base, 1), random_delta(base, 2)
    assert all_changes(one + other) == all_changes(other + one)
    assert all_changes(one - other) == all_changes(compose([one, other], [1.0, -1.0]))
    assert all_changes(2 * one) == all_changes(one * 2.0) == all_changes(one + one)
    assert all_changes(-one) == {place: -value for place, value in all_changes(one).items()}
    assert set(all_changes(one - one).values()) == {0.0}
    with pytest.raises(TypeError, match="SparseDelta"):
        _ = one + 3  # type: ignore[operator]
    with pytest.raises(ValueError, match="finite"):
        _ = one * float("nan")
    with pytest.raises(ValueError, match="at least one"):
        compose([])
    with pytest.raises(ValueError, match="weight for each"):
        compose([one], [1.0, 2.0])


def test_compositions_of_other_tensors() -> None:
    base = base_state()
    left = random_delta({name: base[name] for name in ("embed.weight", "scalar")}, 1)
    right = random_delta({name: base[name] for name in ("layers.0.weight",)}, 2)
    both = left + right
    assert [t.name for t in both.tensors] == ["embed.weight", "layers.0.weight", "scalar"]
    assert all_changes(both) == all_changes(left) | all_changes(right)
    assert both.base_digest is None


def test_compositions_over_other_bases() -> None:
    """A task's delta, trained on top of a language's, is for other weights than the language's."""
    base = base_state()
    language = random_delta(base, 1)
    adapted = expected(base, {language: 1.0})
    task = random_delta(adapted, 2)
    with pytest.raises(BaseMismatch, match="for_base") as caught:
        compose([task, language])
    assert caught.value.tensor == "embed.weight"
    with pytest.raises(BaseMismatch):
        task.apply_(base)
    anyhow = compose([task, language], check_base=False)
    assert anyhow.base_digest is None and all(t.digest is None for t in anyhow.tensors if t.numel)
    three = compose([task, language, language], check_base=False)
    assert all(t.digest is None for t in three.tensors if t.numel), "a digest is not remembered by its number"
    meant = compose([task.for_base(base), language])
    assert all_changes(meant) == all_changes(anyhow) and meant.base_digest == language.base_digest
    with meant.applied(base):
        pass


def test_full_tensors_in_compositions() -> None:
    base = base_state()
    one, other = random_delta(base, 1), random_delta(base, 2)

    def with_head(delta: SparseDelta, **full: torch.Tensor) -> SparseDelta:
        return SparseDelta(
            delta.tensors, delta.support, delta.values, full=full, base_digest=delta.base_digest
        )

    head = torch.ones(2)
    assert set((with_head(one, a=head) + with_head(other, a=head.clone(), b=head)).full) == {"a", "b"}
    assert set((with_head(one, a=head) - with_head(other, b=head)).full) == {"a"}
    assert torch.equal((with_head(one, a=head) * 3).full["a"], head)
    with pytest.raises(DeltaError, match="without_full"):
        _ = with_head(one, a=head) + with_head(other, a=2 * head)


def test_names_and_ties_in_compositions() -> None:
    base = {"embed": torch.zeros(4, 2), "body": torch.zeros(3)}
    one = SparseDelta.from_changes({"embed": (torch.tensor([1]), torch.ones(1))}, base)
    tied = SparseDelta(one.tensors, one.support, one.values, tied={"head": "embed"})
    head = one.renamed({"embed": "head"}.__getitem__)
    assert all_changes(compose([tied, head])) == {("embed", 1): 2.0}
    assert all_changes(compose([head, tied])) == {("embed", 1): 2.0}
    assert compose([head, tied]).tied == {"head": "embed"}
    both = SparseDelta.from_changes(
        {name: (torch.tensor([1]), torch.ones(1)) for name in ("embed", "head")},
        {**base, "head": torch.zeros(4, 2)},
    )
    with pytest.raises(DeltaError, match="apart"):
        compose([tied, both])
    with pytest.raises(DeltaError, match="shape"):
        compose(
            [
                one,
                SparseDelta.from_changes(
                    {"embed": (torch.tensor([1]), torch.ones(1))}, {"embed": base["body"]}
                ),
            ]
        )
    with pytest.raises(DeltaError, match="one name"):
        both.renamed(lambda name: "x")


def test_overlap() -> None:
    base = {"a": torch.zeros(10), "b": torch.zeros(5)}
    one = SparseDelta.from_changes(
        {
            "a": (torch.tensor([1, 2, 3]), torch.tensor([1.0, -2.0, 3.0])),
            "b": (torch.tensor([0]), torch.ones(1)),
        },
        base,
    )
    other = SparseDelta.from_changes({"a": (torch.tensor([2, 3, 9]), torch.tensor([-1.0, -1.0, 4.0]))}, base)
    found = one.overlap(other)
    assert (found.total.shared, found.total.union, found.total.agreeing) == (2, 5, 1)
    assert found.total.dot == -1.0 and found.total.jaccard == 0.4 and found.total.agreement == 0.5
    assert found.tensors["a"].union == 4 and found.tensors["b"].shared == 0
    assert found.tensors["b"].cosine == 0.0 == found.tensors["b"].agreement
    assert found.tensors["a"].cosine == pytest.approx(-1.0 / (14 * 18) ** 0.5)
    assert one.overlap(one).total.cosine == pytest.approx(1.0)
    nothing = SparseDelta.from_changes({}, base)
    assert nothing.overlap(nothing).total.jaccard == 0.0


def test_for_base() -> None:
    base, other = base_state(), base_state(torch.bfloat16, seed=50)
    delta = random_delta(base, 1)
    meant = delta.for_base(other)
    assert all(t.dtype == torch.bfloat16 for t in meant.tensors if t.numel)
    model = cloned(other)
    with meant.applied(model):
        assert bits(model) == bits(expected(other, {delta: 1.0}))
    assert bits(model) == bits(other)
    with pytest.raises(BaseMismatch, match="lack"):
        delta.for_base({"embed.weight": base["embed.weight"]})
    with pytest.raises(BaseMismatch, match="shape"):
        delta.for_base({**base, "embed.weight": torch.zeros(65, 32)})


def test_copies_and_pickles(device: str) -> None:
    delta = with_head(base_state(), head=torch.ones(2))
    for other in (copy.deepcopy(delta), pickle.loads(pickle.dumps(delta))):
        assert other is not delta and other.tensors == delta.tensors and bits(other.full) == bits(delta.full)
        assert all_changes(other) == all_changes(delta)
    there = SparseDelta(delta.tensors, delta.support.to(device), delta.values.to(device))
    assert all_changes(there + delta) == all_changes(2 * delta)
    assert (there + delta).values.device.type == device
