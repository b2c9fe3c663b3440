"""Tensors as bytes, of every dtype that safetensors has, also those that torch lacks; and files of them in any order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from graftwork.checkpoint.dtypes import tensor_bits
from graftwork.delta.basis import words_of

#: How the numbers of a wide float are stored (a BF16 is the upper half of a F32).
WEIGHTS = {"F16": "<f2", "BF16": "<f4", "F32": "<f4", "F64": "<f8", "C64": "<f4"}


class RawTensor(NamedTuple):
    """A tensor as a safetensors file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def raw_tensor(dtype: str, shape: tuple[int, ...], seed: int) -> RawTensor:
    """Weights N(0, .02²) of a wide float, random bits of any other dtype (0 and 1 of BOOL)."""
    bits = tensor_bits(dtype, shape)
    assert bits is not None and bits % 8 == 0, "a tensor ends with a whole byte"
    random = np.random.default_rng(seed)
    if dtype not in WEIGHTS:
        high = 2 if dtype == "BOOL" else 256
        return RawTensor(dtype, shape, random.integers(0, high, bits // 8, np.uint8).tobytes())
    numbers = prod(shape) * (2 if dtype == "C64" else 1)
    weights = random.normal(0, 0.02, numbers).astype(WEIGHTS[dtype])
    words = weights.view("<u2")[1::2] if dtype == "BF16" else weights
    return RawTensor(dtype, shape, words.tobytes())


def moved(tensor: RawTensor, share: float, seed: int, reach: int = 1) -> RawTensor:
    """The tensor with a share of its words (at least one) moved by 1 to ``reach`` places; bools flip."""
    random = np.random.default_rng(seed)
    width = words_of(tensor.dtype).nbytes
    words = np.frombuffer(tensor.data, f"<u{width}").copy()
    if words.size:
        chosen = random.random(words.size) < share
        chosen[random.integers(words.size)] = True
        count = int(chosen.sum())
        if tensor.dtype == "BOOL":
            words[chosen] ^= 1
        else:
            steps = random.integers(1, reach + 1, count) * random.choice([-1, 1], count)
            words[chosen] += steps.astype(words.dtype)
    return tensor._replace(data=words.tobytes())


def with_rows(tensor: RawTensor, rows: int, seed: int) -> RawTensor:
    """The tensor with its first dimension cut or grown to ``rows``; new rows are random."""
    shape = (rows, *tensor.shape[1:])
    fresh = raw_tensor(tensor.dtype, shape, seed).data
    return RawTensor(tensor.dtype, shape, (tensor.data + fresh[len(tensor.data) :])[: len(fresh)])


def raw_header(
    fields: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The beginning of a safetensors file up to the first tensor, from ``(dtype, shape, bytes)`` in payload order."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape, nbytes) in fields.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def raw_file(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file that holds the tensors in the mapping's order."""
    fields = {name: (tensor.dtype, tensor.shape, len(tensor.data)) for name, tensor in tensors.items()}
    return raw_header(fields, metadata) + b"".join(tensor.data for tensor in tensors.values())


def write_raw(
    path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a file or, if ``path`` has no suffix, a folder with one file."""
    file = path if path.suffix else path / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw_file(tensors, metadata))
    return path
