"""Payloads go out as indices and values and come back in, bit for bit; what is malformed does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from graftwork.checkpoint.dtypes import torch_dtype
from graftwork.errors import BaseMismatch, CheckpointError, DeltaError
from graftwork.store.sync import apply_, encode, export_sparse, import_sparse, sparse_form
from tests.generators.checkpoints import FLOATS, INTEGERS, random_tensor, write_folder
from tests.generators.weights import word_pairs
from tests.store.sync_cases import State, bits, chunked_state, cloned, stepped


def load(update: bytes) -> State:
    """The tensors of a safetensors file; the stock reader lacks some dtypes."""
    start = 8 + int.from_bytes(update[:8], "little")
    header = json.loads(update[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, row in header.items():
        begin, end = row["data_offsets"]
        data = torch.frombuffer(bytearray(update[start + begin : start + end]), dtype=torch.uint8)
        tensors[name] = data.view(torch_dtype(row["dtype"])).reshape(row["shape"])
    return tensors


def scattered(update: bytes, previous: State) -> State:
    """What a plain reader of the sparse form makes of an update."""
    tensors, result = load(update), cloned(previous)
    for name in result:
        if name + ".indices" in tensors:
            flat = result[name].reshape(-1)
            flat.view(torch.uint8).reshape(len(flat), -1)[tensors[name + ".indices"].long()] = (
                tensors[name + ".values"].view(torch.uint8).reshape(-1, flat.itemsize)
            )
    return result


def both_ways(previous: State, current: State) -> bytes:
    """Out, in again, and compared; the update."""
    payload = encode(previous, current, version="11", parent="10")
    update = export_sparse(payload, previous)
    assert export_sparse(payload, current) == update, "the weights after it say the same"
    assert bits(scattered(update, previous)) == bits(current)
    assert import_sparse(update, previous, parent="10") == payload
    return update


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.complex64], ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    previous = {str(n): random_tensor((n,), dtype, n) for n in (0, 1, 33, 300_000)}
    both_ways(previous, stepped(previous, share=0.01))


@given(st.lists(word_pairs(), max_size=3))
@settings(max_examples=25)
def test_any_words(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    both_ways(
        {f"t{i}": pair[0] for i, pair in enumerate(pairs)}, {f"t{i}": pair[1] for i, pair in enumerate(pairs)}
    )


def test_what_an_update_says() -> None:
    previous = chunked_state()
    current = cloned(previous)
    current["w"][[5, 700_000]] += 1
    update = both_ways(previous, current)
    tensors = load(update)
    assert tensors.keys() == {"w.indices", "w.values"}
    assert tensors["w.indices"].dtype is torch.int32 and tensors["w.indices"].tolist() == [5, 700_000]
    assert torch.equal(tensors["w.values"], current["w"][[5, 700_000]])
    metadata = json.loads(update[8 : 8 + int.from_bytes(update[:8], "little")])["__metadata__"]
    total = previous["w"].numel() + 33
    assert metadata == {
        "sparse": "True",
        "model_version": "11",
        "sparsity": f"{1 - 2 / total:.6f}",
        "changed_params": '["w"]',
    }


def test_an_empty_update() -> None:
    previous = chunked_state(1)
    update = both_ways(previous, previous)
    assert not load(update)


def test_files_checkpoints_and_modules(tmp_path: Path) -> None:
    previous = {"weight": random_tensor((4, 5), torch.float32, 1), "bias": torch.ones(4)}
    current = stepped(previous)
    write_folder(tmp_path / "previous", previous)
    payload = encode(previous, current, version="1")
    (tmp_path / "update").write_bytes(export_sparse(payload, tmp_path / "previous"))
    module = torch.nn.Linear(5, 4)
    module.load_state_dict(previous)
    assert import_sparse(tmp_path / "update", module) == payload
    apply_(module, import_sparse(tmp_path / "update", tmp_path / "previous"))
    assert bits(module.state_dict()) == bits(current)


def test_tied_tensors() -> None:
    shared = random_tensor((50,), torch.bfloat16, 1)
    previous = {"a": shared, "b": shared}
    moved = stepped({"a": shared})["a"]
    payload = encode(previous, {"a": moved, "b": moved})
    update = export_sparse(payload, previous)
    assert load(update).keys() == {"a.indices", "a.values"}
    assert import_sparse(update, previous) == payload
    a = load(update)
    twice = {**a, **{name.replace("a.", "b."): tensor.clone() for name, tensor in a.items()}}
    assert import_sparse(save(twice, {"sparse": "True"}), previous) == payload
    twice["b.values"][0] += 1
    with pytest.raises(DeltaError, match="tied"):
        import_sparse(save(twice, {"sparse": "True"}), previous)


def test_other_weights_cannot_be_exported() -> None:
    previous = chunked_state()
    payload = encode(previous, stepped(previous))
    other = cloned(previous)
    other["w"][-1] += 3
    with pytest.raises(BaseMismatch, match="neither") as caught:
        export_sparse(payload, other)
    assert caught.value.tensor == "w"
    with pytest.raises(BaseMismatch, match="lacks"):
        export_sparse(payload, {"w": previous["w"]})


def update_of(**changes: Any) -> bytes:
    """An update of ``w``, eight zeros; ``indices``, ``values``, ``metadata`` and further tensors as given."""
    tensors = {
        "w.indices": changes.pop("indices", torch.tensor([1, 3], dtype=torch.int32)),
        "w.values": changes.pop("values", torch.ones(2)),
    }
    metadata = {"sparse": "True", "changed_params": '["w"]'} | changes.pop("metadata", {})
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_a_well_formed_update() -> None:
    previous = {"w": torch.zeros(8)}
    for update in (
        update_of(),
        update_of(metadata={"sparse": "true"}),
        update_of(indices=torch.tensor([1, 3])),
    ):
        target = cloned(previous)
        apply_(target, import_sparse(update, previous))
        assert target["w"].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
    with pytest.raises(CheckpointError):
        import_sparse(update_of()[:-1], previous)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": int32(1, 8)}, "out of range"),
        ({"indices": int32(-1, 3)}, "out of range"),
        ({"indices": torch.tensor([1, 1 << 40])}, "out of range"),
        ({"indices": int32(3, 1)}, "ascending"),
        ({"indices": int32(3, 3)}, "ascending"),
        ({"indices": int32(1, 9, 2), "values": torch.ones(3)}, "ascending"),
        ({"indices": int32(1)}, "number"),
        ({"indices": int32(1, 2).view(1, 2), "values": torch.ones(1, 2)}, "number"),
        ({"indices": torch.tensor([1, 3], dtype=torch.int16)}, "wrong type"),
        ({"indices": torch.tensor([1.0, 3.0])}, "wrong type"),
        ({"values": torch.ones(2, dtype=torch.bfloat16)}, "dtype"),
        ({"values": None}, "pairs"),
        ({"indices": None}, "pairs"),
        ({"w": torch.zeros(8)}, "pairs"),
        (
            {
                "v__indices": int32(0),
                "v__values": torch.ones(1),
                "metadata": {"changed_params": '["v", "w"]'},
            },
            "not there",
        ),
        ({"metadata": {"sparse": "False"}}, "sparse form"),
        ({"metadata": {"changed_params": "[]"}}, "changed_params"),
        ({"metadata": {"changed_params": "2"}}, "changed_params"),
        ({"metadata": {"changed_params": "["}}, "changed_params"),
        ({"metadata": {"changed_params": '["w", 1]'}}, "changed_params"),
    ],
)
def test_malformed_updates(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DeltaError, match=message):
        import_sparse(update_of(**changes), {"w": torch.zeros(8)})


def test_many_elements_need_wide_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow indices of so many elements may have wrapped around; a small limit stands in for 2^31."""
    previous = {"w": torch.zeros(8)}
    payload = encode(previous, {"w": torch.ones(8)})
    assert load(export_sparse(payload, previous))["w.indices"].dtype is torch.int32
    monkeypatch.setattr(sparse_form, "_INT32_ELEMENTS", 7)
    update = export_sparse(payload, previous)
    assert load(update)["w.indices"].dtype is torch.int64
    assert import_sparse(update, previous) == payload
    with pytest.raises(DeltaError, match="wrong type"):
        import_sparse(update_of(), previous)


def test_the_versions_that_are_given_win() -> None:
    previous = {"w": torch.zeros(8)}
    update = update_of(metadata={"model_version": "7"})
    assert apply_(cloned(previous), import_sparse(update, previous)).version == "7"
    assert apply_(cloned(previous), import_sparse(update, previous, version="8")).version == "8"


def test_elements_of_less_than_a_byte_have_no_place_in_it() -> None:
    previous = {"w": torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    current = {"w": torch.ones(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    payload = encode(previous, current)
    with pytest.raises(DeltaError, match="less than a byte"):
        export_sparse(payload, previous)
