from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from graftwork.checkpoint.dtypes import DTYPES, torch_dtype
from graftwork.checkpoint.files import observe, partial_path, remove_tree
from graftwork.checkpoint.reader import open_checkpoint
from graftwork.checkpoint.writer import make_header, write_checkpoint
from graftwork.errors import CheckpointError, TargetExists
from tests.checkpoint.faults import killed, observers, raise_no_space, steps_of
from tests.checkpoint.handmade import snapshot

TORCH_CODES = [code for code in DTYPES if torch_dtype(code) is not None]


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bytes_of(a) == bytes_of(b)


def tensor_of(code: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor of random bits (of a legal kind, for bool)."""
    dtype = torch_dtype(code)
    count = torch.Size(shape).numel() * dtype.itemsize
    high = 2 if code == "BOOL" else 256
    data = torch.randint(0, high, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return data.view(dtype).reshape(shape)


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)


@st.composite
def tensor_dicts(draw):
    tensors = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=6)):
        code, shape = draw(st.sampled_from(TORCH_CODES)), draw(SHAPES)
        if DTYPES[code].packed > 1 and not shape:
            shape = (1,)
        tensors[name] = tensor_of(code, shape, draw(st.integers(0, 9)))
    return tensors


RELAXED = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40
)


@RELAXED
@given(tensors=tensor_dicts())
def test_we_write_the_bytes_that_the_stock_library_writes(tmp_path, tensors):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    ours.unlink(missing_ok=True)
    write_checkpoint(ours, tensors)
    save_file(tensors, theirs, metadata={"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()


@RELAXED
@given(tensors=tensor_dicts(), metadata=st.dictionaries(NAMES, NAMES, max_size=3))
def test_the_stock_library_reads_ours_and_we_read_theirs(tmp_path, tensors, metadata):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    ours.unlink(missing_ok=True)
    write_checkpoint(ours, tensors, metadata=metadata)
    save_file(tensors, theirs, metadata=metadata or None)
    loaded = load_file(ours)
    assert loaded.keys() == tensors.keys() and all(same(loaded[name], tensors[name]) for name in tensors)
    with safe_open(ours, "pt") as stock:
        assert (stock.metadata() or {}) == metadata
    for path in (ours, theirs):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.tensors.keys() == tensors.keys()
            assert checkpoint.headers[path.name].metadata == metadata
            assert all(same(checkpoint.tensor(name), tensors[name]) for name in tensors)


def model() -> dict[str, torch.Tensor]:
    return {
        "embed": torch.arange(12, dtype=torch.bfloat16).reshape(4, 3),
        "norm": torch.tensor([float("nan"), -0.0, float("inf")]),
        "head": torch.arange(6, dtype=torch.int8),
        "step": torch.tensor(3),
    }


def test_a_folder_with_shards(tmp_path):
    tensors = model()
    write_checkpoint(
        tmp_path / "out",
        tensors,
        config={"name": "é", "layers": 2},
        max_shard_bytes=24,
        other_files={"tokenizer/merges.txt": b"a b\n"},
    )
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert list(checkpoint.headers) == shards
        assert checkpoint.other_files == (
            "config.json",
            "model.safetensors.index.json",
            "tokenizer/merges.txt",
        )
        assert checkpoint.config == {"name": "é", "layers": 2}
        assert all(same(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
        assert all(header.metadata == {"format": "pt"} for header in checkpoint.headers.values())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 50}
    assert index["weight_map"] == {
        "embed": shards[0],
        "norm": shards[1],
        "head": shards[1],
        "step": shards[2],
    }


@pytest.mark.parametrize("limit", [None, 50, 10**9])
def test_what_fits_is_one_file_without_an_index(tmp_path, limit):
    write_checkpoint(tmp_path / "out", model(), max_shard_bytes=limit)
    assert list(snapshot(tmp_path / "out")) == ["model.safetensors"]


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path):
    write_checkpoint(tmp_path / "out", model(), max_shard_bytes=1)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert [len(header.tensors) for header in checkpoint.headers.values()] == [1, 1, 1, 1]


def test_no_tensors(tmp_path):
    write_checkpoint(tmp_path / "out", {})
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert not checkpoint.tensors and checkpoint.nbytes == 0


def test_views_gradients_conjugates_and_shared_memory(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    shared = torch.ones(3)
    tensors = {
        "transposed": base.t(),
        "sliced": base[1:, ::2],
        "expanded": torch.ones(1, 3).expand(2, 3),
        "parameter": torch.nn.Parameter(base),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj(),
        "negative": torch.tensor([1 + 2j], dtype=torch.complex64).conj().imag,
        "tied": shared,
        "tied too": shared,
    }
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    loaded = load_file(tmp_path / "m.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.detach().resolve_conj().resolve_neg()), name


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "no such dtype"),
        ({"a": torch.empty(2, device="meta")}, "not dense"),
        ({"a": torch.eye(2).to_sparse()}, "not dense"),
        ({"__metadata__": torch.zeros(2)}, "no tensor of this name"),
        ({"\ud800": torch.zeros(2)}, "no tensor of this name"),
    ],
)
def test_a_tensor_that_cannot_be_stored(tmp_path, tensors, what):
    with pytest.raises(CheckpointError, match=what) as caught:
        write_checkpoint(tmp_path / "out", {"good": torch.ones(1)} | tensors)
    assert caught.value.tensor in ("a", "__metadata__", "\\ud800")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tensors": {1: torch.ones(1)}}, TypeError),
        ({"tensors": {"a": [1.0]}}, TypeError),
        ({"metadata": {"a": 1}}, TypeError),
        ({"metadata": {"a": "\ud800"}}, CheckpointError),
        ({"max_shard_bytes": 0}, ValueError),
        ({"other_files": {"../x": b""}}, CheckpointError),
        ({"other_files": {"model.safetensors": b""}}, CheckpointError),
        ({"other_files": {"config.json": b""}, "config": {}}, CheckpointError),
        ({"other_files": {"Config.json": b""}, "config": {}}, CheckpointError),
        ({"config": {"x": object()}}, TypeError),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, arguments, error):
    with pytest.raises(error):
        write_checkpoint(tmp_path / "out", **({"tensors": model()} | arguments))
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("extra", [{"config": {}}, {"max_shard_bytes": 10}, {"other_files": {}}])
def test_a_single_file_takes_nothing_else(tmp_path, extra):
    with pytest.raises(ValueError, match="need a folder"):
        write_checkpoint(tmp_path / "m.safetensors", model(), **extra)


@pytest.mark.parametrize("name", ["m.safetensors", "folder"])
def test_what_stands_there_is_kept(tmp_path, name):
    write_checkpoint(tmp_path / name, model())
    before = snapshot(tmp_path)
    with pytest.raises(TargetExists):
        write_checkpoint(tmp_path / name, {})
    assert snapshot(tmp_path) == before


def write_model(target):
    write_checkpoint(target, model(), config={"a": 1}, max_shard_bytes=40)


def test_a_fault_at_any_step_leaves_nothing_or_the_whole_model(tmp_path):
    total = len(steps_of(lambda: write_model(tmp_path / "dry")))
    whole = snapshot(tmp_path / "dry")
    remove_tree(tmp_path / "dry")
    target = tmp_path / "out"
    for count in range(total):
        for _, observer in observers(count, raise_no_space):
            with pytest.raises(OSError, match="No space"), observe(**observer):
                write_model(target)
            assert not target.exists() or snapshot(target) == whole
            if target.exists():
                remove_tree(target)
    write_model(target)
    assert snapshot(target) == whole and not partial_path(target).exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_leaves_nothing_or_the_whole_model(tmp_path, when):
    target, count = tmp_path / "out", 0
    while killed(count, when, lambda: write_model(target)):
        if target.exists():
            with open_checkpoint(target) as checkpoint:
                assert checkpoint.tensors.keys() == model().keys()
            remove_tree(target)
        count += 1
    assert count > 20
    with open_checkpoint(target) as checkpoint:
        assert checkpoint.tensors.keys() == model().keys() and checkpoint.config == {"a": 1}
    assert not partial_path(target).exists()


def test_a_header_for_tensors_that_are_written_one_by_one(tmp_path):
    tensors = {"b": torch.ones(3, dtype=torch.bfloat16), "a": torch.ones(2, 2), "c": torch.ones(())}
    write_checkpoint(tmp_path / "whole.safetensors", tensors, metadata={"format": "pt"})
    layout = {"b": ("BF16", (3,)), "a": ("F32", (2, 2)), "c": ("F32", ())}
    order, begin = make_header(layout, {"format": "pt"})
    data = b"".join(tensors[name].view(-1).view(torch.uint8).numpy().tobytes() for name in order)
    assert begin + data == (tmp_path / "whole.safetensors").read_bytes()
