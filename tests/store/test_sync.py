"""A payload turns one version of a model's weights into the next, bit for bit, wherever both are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from graftwork.checkpoint import open_checkpoint
from graftwork.delta.basis import BasisReader
from graftwork.delta.container import DeltaFile
from graftwork.delta.source import CheckpointSource, leaf_ranges
from graftwork.errors import BaseMismatch, CheckpointError, StoreError
from graftwork.store.sync import SyncReport, apply_, encode, inspect
from tests.generators.checkpoints import FLOATS, INTEGERS, base_tensors, random_tensor, write_folder
from tests.generators.weights import special_pair, word_pairs
from tests.store.sync_cases import CHUNK, State, bits, chunked_state, cloned, stepped

SHAPES = ((0,), (), (1,), (31,), (33,), (1000,), (600_000,), (3, 0, 2), (5, 7, 11))


def roundtrip(
    previous: State, current: State, target: State | None = None, *, threads: int = 1
) -> SyncReport:
    """Encode, apply to a copy (or to ``target``, which holds the same) and compare."""
    payload = encode(previous, current, threads=threads)
    target = cloned(previous) if target is None else target
    memory = {name: tensor.untyped_storage()._cdata for name, tensor in target.items()}
    report = apply_(target, payload, threads=threads)
    assert bits(target) == bits(current)
    assert memory == {name: tensor.untyped_storage()._cdata for name, tensor in target.items()}
    return report


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.complex64], ids=str)
def test_every_dtype_and_shape(dtype: torch.dtype) -> None:
    previous = {str(shape): random_tensor(shape, dtype, seed) for seed, shape in enumerate(SHAPES)}
    roundtrip(previous, stepped(previous))
    roundtrip(previous, cloned(previous))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_pair_of_special_words(dtype: torch.dtype) -> None:
    previous, current = special_pair(dtype)
    roundtrip({"w": previous}, {"w": current})
    roundtrip({"w": current}, {"w": previous})


def test_words_that_have_nothing_in_common() -> None:
    previous, current = ({"w": torch.randint(0, 256, (3_000_001,), dtype=torch.uint8)} for _ in "ab")
    roundtrip(previous, current, threads=2)


@given(st.lists(word_pairs(), max_size=4), st.booleans(), st.integers(1, 3))
@settings(max_examples=40)
def test_any_words(pairs: list[tuple[torch.Tensor, torch.Tensor]], turned: bool, threads: int) -> None:
    previous = {f"t{i}": pair[0] for i, pair in enumerate(pairs)}
    current = {f"t{i}": pair[1] for i, pair in enumerate(pairs)}
    target = cloned(previous)
    if turned:  # the same elements in memory of another order
        target = {
            name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in target.items()
        }
    roundtrip(previous, current, target, threads=threads)


def test_the_payload_does_not_depend_on_threads_or_layout() -> None:
    previous = {"w": random_tensor((900, 2000), torch.bfloat16, 1), **base_tensors()}
    current = stepped(previous)
    payload = encode(previous, current, threads=1)
    assert encode(previous, current, threads=3) == payload
    turned = {
        name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in current.items()
    }
    assert encode(previous, turned) == payload


@pytest.mark.parametrize("shape", [(1200, 1100), (7, 400, 500), (1_300_001, 2)])
def test_transposed_and_strided_targets(shape: tuple[int, ...]) -> None:
    previous = {"w": random_tensor(shape, torch.bfloat16, 1)}
    current = stepped(previous)
    turned = previous["w"].mT.contiguous().mT
    spread = torch.zeros(*shape[:-1], 2 * shape[-1], dtype=torch.bfloat16)[..., ::2]
    spread.copy_(previous["w"])
    for target in (turned, spread):
        assert not target.is_contiguous()
        roundtrip(previous, current, {"w": target}, threads=2)
    assert not spread.as_strided((spread.numel(),), (2,), 1).any(), "what lies between stays as it is"


def test_any_device(device: str) -> None:
    previous = {name: tensor.to(device) for name, tensor in chunked_state().items()}
    current = stepped(previous)
    roundtrip(previous, current, threads=2)
    roundtrip(cloned(current), {name: tensor.cpu() for name, tensor in previous.items()})
    assert encode(previous, current) == encode({name: t.cpu() for name, t in previous.items()}, current)


def test_interleaved_columns_are_apart() -> None:
    whole = random_tensor((40, 30), torch.float32, 1)
    previous = {"even": whole[:, ::2], "odd": whole[:, 1::2]}
    roundtrip(cloned(previous), stepped(previous), previous)


def test_an_unaligned_target() -> None:
    memory = bytearray(4 * 1000 + 1)
    target = torch.frombuffer(memory, dtype=torch.float32, offset=1, count=1000)
    previous = {"w": target.clone()}
    roundtrip(previous, stepped(previous), {"w": target})


class Net(nn.Module):
    """A parameter that is tied to another, buffers, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 60, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("cache", torch.ones(5), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(tokens)))


def trained(net: Net) -> None:
    """One step of training."""
    net(torch.arange(60)).square().sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()


def test_a_module_with_buffers_and_tied_weights() -> None:
    trainer, sampler = Net(), Net()
    sampler.load_state_dict(trainer.state_dict())
    previous = cloned(trainer.state_dict())
    previous["head.weight"] = previous["embed.weight"]
    trained(trainer)
    payload = encode(previous, trainer)
    report = apply_(sampler, payload)
    assert bits(sampler.state_dict()) == bits(trainer.state_dict())
    assert report.tensors == len(previous) - 1, "the tied weight is sent once"
    assert sampler.head.weight is sampler.embed.weight
    assert sampler.norm.num_batches_tracked.item() == 1


def test_autograd_notices_the_change() -> None:
    net = Net().eval()
    previous = cloned(net.state_dict())
    previous["head.weight"] = previous["embed.weight"]
    loss = net(torch.arange(60)).square().sum()
    apply_(net, encode(previous, {**stepped(previous), "head.weight": stepped(previous)["embed.weight"]}))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_module_whose_state_dict_is_a_copy_is_refused() -> None:
    net = Net()
    net.register_state_dict_post_hook(
        lambda module, state, prefix, metadata: state.update({k: v.clone() for k, v in state.items()})
    )
    payload = encode(base_tensors(), base_tensors())
    with pytest.raises(CheckpointError, match="copy") as caught:
        apply_(net, payload)
    assert caught.value.tensor == "scale"


def tie(state: State, name: str, other: str) -> State:
    return {**state, other: state[name]}


def test_tied_tensors_on_each_side() -> None:
    apart = {"a": random_tensor((50,), torch.float32, 1), "c": random_tensor((5,), torch.float32, 2)}
    apart["b"] = apart["a"].clone()
    tied = tie(apart, "a", "b")
    after = stepped(apart)
    after_apart, after_tied = {**after, "b": after["a"].clone()}, tie(after, "a", "b")
    for previous in (apart, tied):
        for current in (after_apart, after_tied):
            payload = encode(previous, current)
            assert inspect(payload).tensors == (2 if previous is tied and current is after_tied else 3)
            for target in (cloned(apart), tie(cloned(apart), "a", "b")):
                apply_(target, payload)
                assert bits(target) == bits(current)


def test_a_tie_that_comes_apart_does_not_fit_a_tied_target() -> None:
    previous = tie({"a": torch.ones(50)}, "a", "b")
    payload = encode(previous, {"a": torch.ones(50), "b": torch.zeros(50)})
    target = tie({"a": torch.ones(50)}, "a", "b")
    with pytest.raises(BaseMismatch, match="tied"):
        apply_(target, payload)
    assert bits(target) == bits(previous)


def test_a_tied_name_may_be_missing() -> None:
    previous = {"embed": torch.ones(50), "head": torch.ones(50)}
    previous = tie(previous, "embed", "head")
    current = tie(stepped(previous), "embed", "head")
    short = {"embed": torch.ones(50)}
    for before, after in ((previous, {"embed": current["embed"]}), (short, current)):
        payload = encode(before, after)
        for target in (cloned(short), tie(cloned(short), "embed", "head")):
            apply_(target, payload)
            assert bits(target)["embed"] == bits(current)["embed"]


def test_checkpoints_and_mixtures(tmp_path: Path) -> None:
    previous, current = base_tensors(), stepped(base_tensors())
    write_folder(tmp_path / "previous", previous)
    write_folder(tmp_path / "current", current, shards=3)
    payload = encode(previous, current)
    assert encode(tmp_path / "previous", tmp_path / "current") == encode(tmp_path / "previous", current)
    with open_checkpoint(tmp_path / "current") as opened:
        for made in (encode(tmp_path / "previous", tmp_path / "current"), encode(previous, opened), payload):
            target = cloned(previous)
            assert apply_(target, made).digest == inspect(payload).digest
            assert bits(target) == bits(current)


def test_the_digest_is_the_one_that_a_store_knows_the_weights_by(tmp_path: Path) -> None:
    from graftwork.delta.source import describe

    previous, current = base_tensors(), stepped(base_tensors())
    write_folder(tmp_path / "current", current)
    with open_checkpoint(tmp_path / "current") as opened:
        wanted = describe(CheckpointSource(opened), threads=1).digest
    assert inspect(encode(previous, current)).digest == wanted


def test_a_report_says_what_changed() -> None:
    previous = chunked_state()
    current = cloned(previous)
    current["w"][CHUNK] += 1  # an element of the third chunk: two bytes each
    payload = encode(previous, current, version="8", parent="7")
    report = apply_(previous, payload)
    assert report == inspect(payload)
    last = previous["w"].nbytes - 2 * CHUNK
    assert report == SyncReport(
        "8", "7", report.digest, 2, previous["w"].nbytes + 132, 4, 1, last, len(payload)
    )


def test_a_payload_is_a_safetensors_file_and_a_delta_file(tmp_path: Path) -> None:
    previous, current = base_tensors(), stepped(base_tensors())
    (tmp_path / "p").write_bytes(encode(previous, current, version="1", parent="0"))
    with safe_open(tmp_path / "p", "pt") as file:
        metadata = file.metadata()
        assert (metadata["format"], json.loads(metadata["sync"])["version"]) == ("graftwork-delta", "1")
        assert "embed.weight::stream" in file.keys()  # noqa: SIM118 - it is no mapping
    write_folder(tmp_path / "previous", previous)
    with DeltaFile(tmp_path / "p") as delta, open_checkpoint(tmp_path / "previous") as base:
        record = delta.records["embed.weight"]
        out = bytearray(record.nbytes)
        for index, (offset, length) in enumerate(leaf_ranges(record.nbytes)):
            basis = BasisReader(CheckpointSource(base))
            delta.read_chunk(record.name, index, basis, memoryview(out)[offset : offset + length])
        assert out == bits(current)["embed.weight"]
    target = cloned(previous)
    apply_(target, tmp_path / "p")
    assert bits(target) == bits(current)


def test_names_are_data() -> None:
    name = 'we"ird::stream/../\\ä\n'
    previous = {name: torch.ones(5), "": torch.ones(2), "x::chunks": torch.ones(3), "x": torch.ones(3)}
    roundtrip(previous, stepped(previous))


def test_nothing_to_send() -> None:
    assert roundtrip({}, {}).tensors == 0
    assert roundtrip(base_tensors(), base_tensors()).changed_chunks == 0


@pytest.mark.parametrize(
    ("current", "name", "message"),
    [
        ({"a": torch.ones(4)}, "b", "same tensors"),
        ({"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(1)}, "c", "same tensors"),
        ({"a": torch.ones(4), "b": torch.ones(2, 2)}, "b", "shape"),
        ({"a": torch.ones(4), "b": torch.ones(4).bfloat16()}, "b", "dtype"),
    ],
)
def test_versions_of_other_tensors_are_refused(current: State, name: str, message: str) -> None:
    previous = {"a": torch.ones(4), "b": torch.ones(4)}
    with pytest.raises(StoreError, match=message) as caught:
        encode(previous, current)
    assert caught.value.tensor == name
    payload = encode(current, current)
    with pytest.raises(BaseMismatch) as caught:
        apply_(previous, payload)
    assert caught.value.tensor == name


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 2).to_sparse(), "dense"),
        (torch.ones(2, device="meta"), "dense"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (torch.ones(2, dtype=torch.complex64).conj(), "conjugate"),
        (torch.ones(1).expand(5), "overlap"),
        (torch.ones(9).as_strided((4, 3), (2, 1)), "overlap"),
    ],
)
def test_tensors_that_cannot_be_synchronised(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        encode({"w": tensor}, {"w": tensor})
    assert caught.value.tensor == "w"


def test_what_is_no_weights_at_all() -> None:
    payload = encode({}, {})
    for wrong in ([("w", torch.ones(2))], {"w": 3}, {1: torch.ones(2)}):
        with pytest.raises(TypeError, match="previous"):
            encode(wrong, {})
        with pytest.raises(TypeError, match="target"):
            apply_(wrong, payload)
    with pytest.raises(ValueError, match="check"):
        apply_({}, payload, check="some")


@pytest.mark.parametrize(
    "views",
    [
        lambda w: (w[:20], w[10:30]),
        lambda w: (w.view(30, 10)[:, :6], w.view(30, 10)[:, 5:]),
        lambda w: (w, w.view(20, 15).mT),
        lambda w: (w[:20], w.view(torch.int16)[30:60]),
    ],
)
def test_a_target_whose_tensors_overlap_is_refused(views) -> None:
    target = dict(zip("ab", views(torch.zeros(300)), strict=True))
    payload = encode(cloned(target), stepped(target))
    with pytest.raises(CheckpointError, match="share part"):
        apply_(target, payload)
    assert not any(map(any, bits(target).values()))


def test_importing_it_does_not_load_torch() -> None:
    code = "import sys, graftwork.store.sync; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
