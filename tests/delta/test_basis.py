from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from graftwork.checkpoint import TensorInfo
from graftwork.checkpoint.dtypes import code_of
from graftwork.delta.basis import Basis, BasisReader, check_basis, find_basis
from graftwork.delta.source import DescribedTensor
from graftwork.errors import DeltaError

DIGEST = "0" * 64


class MemorySource:
    """Tensors in memory as a source; like those of a checkpoint they do not know their digest."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self._data = {
            k: v.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for k, v in tensors.items()
        }
        self.metas: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, code_of(tensor.dtype), tuple(tensor.shape), "", 0, tensor.nbytes)
            for name, tensor in tensors.items()
        }

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[name][offset : offset + len(buffer)]


def meta(dtype: str, *shape: int) -> DescribedTensor:
    width = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I32": 4}[dtype]
    return DescribedTensor("w", dtype, shape, int(np.prod(shape)) * width, DIGEST)


def test_equal_tensors_are_their_own_basis() -> None:
    basis = find_basis(meta("BF16", 4, 3), meta("BF16", 4, 3), DIGEST)
    assert basis is not None and (basis.dtype, basis.nbytes) == ("BF16", 24)


@pytest.mark.parametrize(
    ("tuned", "base", "nbytes"), [((6, 3), (4, 3), 24), ((4, 3), (6, 3), 24), ((5,), (2,), 4)]
)
def test_rows_may_grow_and_shrink(tuned: tuple[int, ...], base: tuple[int, ...], nbytes: int) -> None:
    basis = find_basis(meta("BF16", *tuned), meta("BF16", *base), DIGEST)
    assert basis is not None and basis.nbytes == nbytes


@pytest.mark.parametrize(
    ("tuned", "base"),
    [
        (meta("BF16", 4, 3), None),
        (meta("BF16", 4, 3), meta("BF16", 4, 4)),
        (meta("BF16", 4, 3), meta("BF16", 12)),
        (meta("BF16", 4, 3), meta("I32", 4, 3)),
        (meta("F64", 4, 3), meta("F32", 4, 3)),
    ],
)
def test_no_basis_where_tensors_do_not_correspond(
    tuned: DescribedTensor, base: DescribedTensor | None
) -> None:
    assert find_basis(tuned, base, DIGEST) is None


def test_rows_without_a_counterpart_are_zero_words() -> None:
    base = torch.arange(1, 7, dtype=torch.bfloat16)
    basis = find_basis(meta("BF16", 5, 3), meta("BF16", 2, 3), DIGEST)
    words = BasisReader(MemorySource(w=base)).read(basis, "BF16", 0, 30)
    assert torch.equal(
        torch.frombuffer(words, dtype=torch.bfloat16), torch.cat([base, torch.zeros(9)]).bfloat16()
    )


def test_a_read_past_the_basis_is_zero_and_scratch_does_not_leak_into_it() -> None:
    reader = BasisReader(MemorySource(w=torch.full((8,), 3.0)))
    basis = find_basis(meta("F32", 16), meta("F32", 8), DIGEST)
    reader.read(basis, "F32", 0, 32)
    assert bytes(reader.read(basis, "F32", 32, 32)) == bytes(32)


@pytest.mark.parametrize(
    ("source", "target"),
    [("F32", "BF16"), ("F32", "F16"), ("BF16", "F32"), ("F16", "F32"), ("BF16", "F16"), ("F16", "BF16")],
)
def test_casts_round_once_to_nearest_even_and_drop_nans(source: str, target: str) -> None:
    types = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    values = torch.tensor(
        [
            0.0,
            -0.0,
            1.0,
            1 + 2**-9,
            1 + 2**-8,
            1 + 3 * 2**-9,
            6e-8,
            1e-40,
            70000.0,
            float("inf"),
            float("nan"),
        ]
    )
    base = values.to(types[source])
    basis = find_basis(meta(target, 11), meta(source, 11), DIGEST)
    width = types[target].itemsize
    words = BasisReader(MemorySource(w=base)).read(basis, target, 3 * width, 8 * width)
    got = torch.frombuffer(words, dtype=types[target])
    wide = base.float()[3:].numpy()
    wanted = np.where(np.isnan(wide), np.float32(0), wide)
    if target == "BF16":
        bits = wanted.view(np.uint32)
        finite = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        assert got.view(torch.int16).numpy().view(np.uint16).tolist() == finite.tolist()
    else:
        with np.errstate(over="ignore"):
            assert (
                got.numpy().tobytes()
                == wanted.astype(np.float16 if target == "F16" else np.float32).tobytes()
            )


def test_a_basis_without_a_source_is_an_error_that_names_the_tensor() -> None:
    basis = find_basis(meta("BF16", 4), meta("BF16", 4), DIGEST)
    with pytest.raises(DeltaError, match="base") as caught:
        BasisReader(None).read(basis, "BF16", 0, 8)
    assert caught.value.tensor == "w"


def test_no_basis_reads_as_zero_words() -> None:
    assert bytes(BasisReader(None).read(None, "BF16", 0, 6)) == bytes(6)


def test_a_base_without_the_tensor_is_an_error() -> None:
    basis = find_basis(meta("BF16", 4), meta("BF16", 4), DIGEST)
    for source in (MemorySource(), MemorySource(w=torch.zeros(4))):
        with pytest.raises(DeltaError, match="lacks"):
            BasisReader(source).read(basis, "BF16", 0, 8)


def test_a_source_that_knows_its_digests_is_held_to_them() -> None:
    held = {"w": meta("BF16", 4, 3)}
    for digest in (DIGEST, None, ""):
        check_basis(Basis("w", digest, "BF16", 24), held)
    for basis in (
        Basis("w", "1" * 64, "BF16", 24),
        Basis("w", DIGEST, "F16", 24),
        Basis("v", DIGEST, "BF16", 24),
    ):
        with pytest.raises(DeltaError, match="lacks a tensor"):
            check_basis(basis, held)
    check_basis(Basis("w", "1" * 64, "BF16", 24), MemorySource(w=torch.zeros(4, 3).bfloat16()).metas)
