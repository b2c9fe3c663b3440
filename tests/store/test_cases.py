"""Every dtype and shape that checkpoints have, quantised ones too: what comes out is what went in, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from graftwork.checkpoint.dtypes import DTYPES, torch_form
from graftwork.delta.basis import words_of
from graftwork.errors import StoreError
from graftwork.store import PackResult, Store, open_store, pack
from tests.generators.checkpoints import file_hashes
from tests.generators.raw_tensors import RawTensor, moved, raw_tensor, with_rows, write_raw
from tests.store.second_reader import SecondReader

CODECS = ("fast", "auto", "small")
FLOATS = ("F16", "BF16", "F32")
Tensors = Mapping[str, RawTensor]


def roundtrip(folder: Path, base: Tensors, *, codec: str = "auto", **tuned: Tensors) -> PackResult:
    """Pack, and see that files and tensors come back; the result of packing."""
    write_raw(folder / "base", base)
    for name, tensors in tuned.items():
        write_raw(folder / name, tensors)
    result = pack(folder / "base", [folder / name for name in tuned], out=folder / "store", codec=codec)
    with open_store(folder / "store", base=folder / "base") as store:
        for name, tensors in tuned.items():
            store.checkout(name, folder / "out" / name)
            assert file_hashes(folder / "out" / name) == file_hashes(folder / name)
            for key, tensor in tensors.items():
                check_tensor(store, name, key, tensor)
        report = store.verify(deep=True)
        assert report.ok and report.restored == sum(map(len, tuned.values())), report.problems
    return result


def check_tensor(store: Store, name: str, key: str, wanted: RawTensor) -> None:
    """The store gives the tensor if torch has its kind."""
    form = torch_form(wanted.dtype, wanted.shape)
    if form is None:
        with pytest.raises(StoreError, match="use checkout"):
            store.tensor(name, key)
        return
    tensor = store.tensor(name, key)
    assert (tensor.dtype, tuple(tensor.shape)) == form
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    assert flat.numpy().tobytes() == wanted.data, (name, key)


# ---- dtypes

SHAPES = {"w": (24, 40), "experts": (3, 8, 16), "conv": (4, 2, 3, 3), "long": (1000,), "empty": (0, 8)}


def model_of(dtype: str, seed: int = 0) -> dict[str, RawTensor]:
    shapes = SHAPES if DTYPES[dtype].bits < 8 else {**SHAPES, "scalar": ()}
    return {name: raw_tensor(dtype, shape, seed + i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype(tmp_path: Path, dtype: str, codec: str) -> None:
    base = model_of(dtype)
    few = {name: moved(tensor, 0.001, 1) for name, tensor in base.items()}
    many = {name: moved(tensor, 1, 2, reach=20) for name, tensor in base.items()}
    other = model_of(dtype, seed=50)
    result = roundtrip(tmp_path, base, codec=codec, few=few, many=many, other=other, same=base)
    used = {entry.name: set(entry.codecs) for entry in result.entries}
    assert used["same"] == {"same"}
    may = {"same", "shared", "raw", "ordz"}
    if codec != "fast" and words_of(dtype).nbytes in (2, 4):
        may |= {"sparse", "mixed"} | ({"ordrans"} if words_of(dtype).exponent_bits else set())
    assert used["few"] | used["many"] | used["other"] <= may


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_specification_says_how_a_dtype_is_read(tmp_path: Path, dtype: str) -> None:
    """A reader that is written from it restores what the plainest codec stores."""
    base = model_of(dtype)
    tuned = {name: moved(tensor, 0.5, 3, reach=9) for name, tensor in base.items()}
    write_raw(tmp_path / "base", base)
    write_raw(tmp_path / "tuned", tuned)
    pack(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "store", codec="fast")
    reader = SecondReader(tmp_path / "store", lambda name: base[name].data)
    wanted = (tmp_path / "tuned" / "model.safetensors").read_bytes()
    assert reader.files("tuned") == {"model.safetensors": wanted}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["F4", "F6_E3M2", "I8", "F8_E5M2", "BF16", "F32", "I64", "C64"])
def test_tensors_that_end_around_a_chunk(tmp_path: Path, dtype: str, codec: str) -> None:
    """A chunk is 2^20 bytes; a word changes at either side of each of its ends."""
    base, tuned = {}, {}
    width = max(8, DTYPES[dtype].bits) // 8
    for step in (-1, 0, 1):
        count = (1 << 20) // (3 if DTYPES[dtype].bits == 6 else width) + step
        shape = {4: (count, 2), 6: (count, 4)}.get(DTYPES[dtype].bits, (count,))
        base[f"w{step}"] = raw_tensor(dtype, shape, 7 + step)
        data = bytearray(base[f"w{step}"].data)
        for at in (0, (1 << 20) - width, 1 << 20, len(data) - width):
            if 0 <= at < len(data):
                data[at] ^= 1
        tuned[f"w{step}"] = RawTensor(dtype, shape, bytes(data))
    result = roundtrip(tmp_path, base, codec=codec, tuned=tuned)
    assert result.entries[0].stored_bytes < 20_000


def test_a_bool_that_is_neither(tmp_path: Path) -> None:
    """What stands in a file is kept, though no library writes such bytes."""
    base = {"mask": RawTensor("BOOL", (256,), bytes(256))}
    roundtrip(tmp_path, base, odd={"mask": RawTensor("BOOL", (256,), bytes(range(256)))})


# ---- quantised checkpoints


def gptq(rows: int, columns: int, group: int, seed: int) -> dict[str, RawTensor]:
    """A linear layer as AutoGPTQ stores it: eight 4-bit weights an I32."""
    return {
        "q_proj.qweight": raw_tensor("I32", (rows // 8, columns), seed),
        "q_proj.qzeros": raw_tensor("I32", (rows // group, columns // 8), seed + 1),
        "q_proj.scales": raw_tensor("F16", (rows // group, columns), seed + 2),
        "q_proj.g_idx": raw_tensor("I32", (rows,), seed + 3),
        "norm.weight": raw_tensor("F16", (columns,), seed + 4),
    }


def awq(rows: int, columns: int, group: int, seed: int) -> dict[str, RawTensor]:
    """The same as AWQ stores it: eight 4-bit columns an I32."""
    return {
        "q_proj.qweight": raw_tensor("I32", (rows, columns // 8), seed),
        "q_proj.qzeros": raw_tensor("I32", (rows // group, columns // 8), seed + 1),
        "q_proj.scales": raw_tensor("F16", (rows // group, columns), seed + 2),
        "norm.weight": raw_tensor("BF16", (columns,), seed + 3),
    }


def block_fp8(rows: int, columns: int, seed: int) -> dict[str, RawTensor]:
    """Weights in fp8 with a scale a block, as DeepSeek-V3 (F32 scales) and MXFP8 models (E8M0) come."""
    return {
        "up.weight": raw_tensor("F8_E4M3", (rows, columns), seed),
        "up.weight_scale_inv": raw_tensor("F32", (rows // 16, columns // 16), seed + 1),
        "down.weight": raw_tensor("F8_E5M2", (rows, columns), seed + 2),
        "down.weight_scale": raw_tensor("F8_E8M0", (rows, columns // 32), seed + 3),
        "experts.blocks": raw_tensor("U8", (4, rows, columns // 2), seed + 4),
        "experts.packed": raw_tensor("F4", (4, rows, columns), seed + 5),
    }


def bitsandbytes(rows: int, columns: int, seed: int) -> dict[str, RawTensor]:
    """NF4 as bitsandbytes saves it: bytes in one column, and what describes them as bytes too."""
    return {
        "w.weight": raw_tensor("U8", (rows * columns // 2, 1), seed),
        "w.weight.absmax": raw_tensor("U8", (rows * columns // 64,), seed + 1),
        "w.weight.quant_map": raw_tensor("F32", (16,), seed + 2),
        "w.weight.quant_state.bitsandbytes__nf4": RawTensor("U8", (16,), b'{"blocksize":64}'),
    }


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "base",
    [gptq(256, 64, 32, 1), awq(128, 64, 32, 2), block_fp8(32, 64, 3), bitsandbytes(64, 64, 4)],
    ids=["gptq", "awq", "fp8", "bitsandbytes"],
)
def test_a_quantised_checkpoint(tmp_path: Path, base: Tensors, codec: str) -> None:
    few = {name: moved(tensor, 0.002, 5) for name, tensor in base.items()}
    again = {name: raw_tensor(t.dtype, t.shape, 90 + i) for i, (name, t) in enumerate(base.items())}
    result = roundtrip(tmp_path, base, codec=codec, few=few, again=again)
    assert not result.entries[0].facts
    assert result.entries[1].stored_bytes < 1.05 * sum(len(t.data) for t in base.values()) + 10_000


def test_quantising_a_base(tmp_path: Path) -> None:
    """The fine-tune is in types that have nothing in common with the base's."""
    base = {"a": raw_tensor("BF16", (32, 64), 1), "b": raw_tensor("F32", (9,), 2)}
    tuned = {"a": raw_tensor("F8_E4M3", (32, 64), 3), "b": raw_tensor("F64", (9,), 4)}
    result = roundtrip(tmp_path, base, tuned=tuned)
    assert [row.split(":")[0] for row in result.entries[0].facts["not comparable"]] == ["a", "b"]
    assert roundtrip(tmp_path / "back", tuned, tuned2=base).entries[0].facts.keys() == {"not comparable"}


# ---- shapes


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F8_E4M3", "I32", "F4"])
def test_experts_that_are_added_or_dropped(tmp_path: Path, dtype: str, codec: str) -> None:
    base = {name: raw_tensor(dtype, (4, 24, 32), i) for i, name in enumerate(("up", "down", "gate"))}
    more = {name: with_rows(moved(tensor, 0.01, 1), 6, 2) for name, tensor in base.items()}
    fewer = {name: with_rows(moved(tensor, 0.01, 3), 1, 4) for name, tensor in base.items()}
    wider = {name: raw_tensor(dtype, (4, 26, 32), 5) for name in base}
    flat = {name: tensor._replace(shape=(96, 32)) for name, tensor in base.items()}
    result = roundtrip(tmp_path, base, codec=codec, more=more, fewer=fewer, wider=wider, flat=flat)
    kinds = [set(entry.facts) for entry in result.entries]
    assert kinds == [{"rows differ"}, {"rows differ"}, {"not comparable"}, {"not comparable"}]
    added = 3 * len(raw_tensor(dtype, (2, 24, 32), 0).data)
    assert result.entries[0].stored_bytes < 1.1 * added + 10_000, "the experts that stayed cost little"


def test_shapes_of_nothing_and_of_one(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "scalar": (),
        "one": (1,),
        "ones": (1,) * 20,
        "nothing": (0,),
        "hole": (3, 0, 5),
        "huge": (0, 1 << 40),
    }
    base = {name: raw_tensor("F32", shape, i) for i, (name, shape) in enumerate(shapes.items())}
    tuned = {name: moved(tensor, 1, 3) for name, tensor in base.items()}
    tuned["nothing"] = raw_tensor("F32", (2,), 4)
    tuned["one"] = raw_tensor("F32", (0,), 5)
    roundtrip(tmp_path, base, tuned=tuned)
    roundtrip(tmp_path / "none", {}, tuned={})
    roundtrip(tmp_path / "nothing", {"a": raw_tensor("F32", (0,), 1)}, tuned={"a": raw_tensor("I8", (0,), 1)})


# ---- a base of another dtype


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("base_type", FLOATS)
@pytest.mark.parametrize("tuned_type", FLOATS)
def test_a_base_of_another_dtype(tmp_path: Path, base_type: str, tuned_type: str, codec: str) -> None:
    """Of values near the base's, of unrelated ones, and of every bit pattern, NaN, infinities and subnormals too."""
    patterns = torch.arange(1 << 16, dtype=torch.int32)
    every = {name: patterns << 16 if name == "F32" else patterns.short() for name in FLOATS}
    torch_types = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

    def model(dtype: str, seed: int) -> dict[str, RawTensor]:
        weights = torch.randn(640, 51, generator=torch.Generator().manual_seed(9)) * 0.02
        step = torch.randn(640, 51, generator=torch.Generator().manual_seed(seed)) * 2e-4
        near = (weights + step).to(torch_types[dtype])
        return {
            "near": RawTensor(dtype, (640, 51), near.view(torch.uint8).numpy().tobytes()),
            "far": raw_tensor(dtype, (33,), seed),
            "every": RawTensor(dtype, (1 << 16,), every[dtype].numpy().tobytes()),
            "grown": raw_tensor(dtype, (seed, 31), seed),
        }

    result = roundtrip(tmp_path, model(base_type, 3), codec=codec, tuned=model(tuned_type, 8))
    facts = result.entries[0].facts
    assert len(facts.get("base cast", ())) == (4 if base_type != tuned_type else 0)
    assert len(facts["rows differ"]) == 1


def test_a_quantised_entry_is_loaded_into_a_model(tmp_path: Path) -> None:
    """Numbers of four bits are two an element there."""
    base, tuned = block_fp8(32, 64, 1), block_fp8(32, 64, 2)
    roundtrip(tmp_path, base, tuned=tuned)
    model = nn.Module()
    for name, tensor in base.items():
        form = torch_form(tensor.dtype, tensor.shape)
        assert form is not None
        data = torch.zeros(len(tensor.data), dtype=torch.uint8).view(form[0]).view(form[1])
        where = model
        *parts, last = name.split(".")
        for part in parts:
            if not hasattr(where, part):
                where.add_module(part, nn.Module())
            where = getattr(where, part)
        where.register_buffer(last, data)
    with open_store(tmp_path / "store", base=tmp_path / "base") as store:
        store.load_into(model, "tuned")
    state = model.state_dict()
    assert {name: bytes(held.view(torch.uint8).flatten().tolist()) for name, held in state.items()} == {
        name: tensor.data for name, tensor in tuned.items()
    }
