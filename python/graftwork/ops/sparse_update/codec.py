"""Sorted indices as bytes, for files: four codes, of which the shortest is chosen.

GPU: both directions run on copies on the host, where files are read and written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.ops import _checks, _native
from graftwork.ops.sparse_update.support import INDEX_DTYPES
from graftwork.reference.entropy_delta import refuse_if
from graftwork.reference.sparse_update import codec as reference
from graftwork.reference.sparse_update.codec import CODECS as CODECS

MAX_NUMEL = 1 << 50
_GRAIN = 1 << 15  # indices a thread
_SEGMENT_LOG2 = 20  # of "rans"


def encode_indices(indices: Tensor, numel: int, codec: str = "auto") -> tuple[str, Tensor]:
    """Code the sorted indices of a tensor's tuned weights.

    - ``"raw"``: int32, or int64 from 2^31 elements on; little-endian, as all of them.
    - ``"bitmap"``: a bit for each element, the lowest first: ``numel / 8`` bytes.
    - ``"varint"``: LEB128 of the number of elements between an index and the one before: a byte up to 127.
    - ``"rans"``: the gaps' bit lengths by rANS, the bits below the leading one as they are, in segments of 2^20
      elements: the code of :func:`graftwork.ops.entropy_delta.encode_sparse_delta` without differences. Near the
      entropy H(ρ)/ρ of random indices: 8.1 bits for each at a density of 1 %, 6.1 bits at 4 %.

    Parameters
    ----------
    indices : Tensor
        int32 or int64, one-dimensional; sorted, unique, in [0, numel).
    numel : int
        Elements of the tensor, at most 2^50.
    codec : str
        One of these, or ``"auto"``: the shortest, the first of them where several are.

    Returns
    -------
    tuple of (str, Tensor)
        The code, and the bytes: uint8, one-dimensional.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.

    Notes
    -----
    Deterministic: the bytes do not depend on the dtype of the indices, ISA level or threads.

    Examples
    --------
    >>> codec, data = encode_indices(torch.tensor([3, 10, 500]), 1000)
    >>> codec, data.tolist()
    ('varint', [3, 6, 233, 3])
    """
    _checks.check_tensor("encode_indices", "indices", indices)
    _checks.check_dtype("encode_indices", "indices", indices, INDEX_DTYPES, "convert them")
    _check_vector("encode_indices", "indices", indices)
    _check_numel("encode_indices", numel)
    if codec != "auto":
        return codec, _encode(indices, numel, _number("encode_indices", codec))
    varint = _encode(indices, numel, CODECS.index("varint"))
    found = {"raw": indices.numel() * _raw_bytes(numel), "bitmap": (numel + 7) // 8, "varint": len(varint)}
    best = min(found, key=lambda name: found[name])
    if 4 + 12 * _segments(numel) < found[best]:
        rans = _encode(indices, numel, CODECS.index("rans"))
        if len(rans) < found[best]:
            return "rans", rans
    return best, varint if best == "varint" else _encode(indices, numel, CODECS.index(best))


def decode_indices(
    codec: str, data: Tensor, numel: int, count: int, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Restore the indices that :func:`encode_indices` coded, and check all of them.

    Parameters
    ----------
    codec : str
        The code that it returned.
    data : Tensor
        The bytes: uint8, one-dimensional.
    numel : int
        Elements of the tensor, at most 2^50.
    count : int
        Indices, in [0, numel]. Memory for them is taken when the data is known to have as many.
    dtype : torch.dtype
        Of the result: int64, or int32 for less than 2^31 elements.

    Returns
    -------
    Tensor
        ``[count]``, on the device of `data`; sorted, unique, in [0, numel).

    Raises
    ------
    TypeError, ValueError
        An argument is not as above, or the data is malformed.

    Notes
    -----
    Deterministic. Whatever the bytes are, the result is as above or an error, and no other memory is touched. Damage
    that gives other valid indices is not noticed: check a digest of the data.

    Examples
    --------
    >>> decode_indices("bitmap", torch.tensor([0b1001], dtype=torch.uint8), 8, 2).tolist()
    [0, 3]
    """
    number = _number("decode_indices", codec)
    _checks.check_tensor("decode_indices", "data", data)
    _checks.check_dtype("decode_indices", "data", data, (torch.uint8,), "a code is bytes")
    _check_vector("decode_indices", "data", data)
    _check_numel("decode_indices", numel)
    if not 0 <= count <= numel:
        raise ValueError(f"decode_indices: count must be in [0, {numel}], got {count}")
    if dtype not in INDEX_DTYPES or (dtype == torch.int32 and numel >= 1 << 31):
        raise TypeError(
            f"decode_indices: dtype must be int64, or int32 for less than 2^31 elements, got {dtype} for {numel}"
        )
    return torch.ops.graftwork.decode_indices(data, number, numel, count, dtype)


def _check_vector(operation: str, name: str, value: Tensor) -> None:
    if value.dim() != 1:
        raise ValueError(f"{operation}: {name} must have one dimension, got shape {tuple(value.shape)}")


def _check_numel(operation: str, numel: int) -> None:
    if not 0 <= numel <= MAX_NUMEL:
        raise ValueError(f"{operation}: numel must be in [0, 2^50], got {numel}")


def _number(operation: str, codec: str) -> int:
    if codec not in CODECS:
        also = ", or 'auto'" if operation == "encode_indices" else ""
        raise ValueError(
            f"{operation}: codec must be one of {', '.join(map(repr, CODECS))}{also}, got {codec!r}"
        )
    return CODECS.index(codec)


def _encode(indices: Tensor, numel: int, codec: int) -> Tensor:
    return torch.ops.graftwork.encode_indices(indices, numel, codec)


def _raw_bytes(numel: int) -> int:
    return 4 if numel < 1 << 31 else 8


def _segments(numel: int) -> int:
    return -(-numel // (1 << _SEGMENT_LOG2))


def _encode_native(indices: Tensor, numel: int, codec: int) -> Tensor:
    indices, count = _native.packed(indices), indices.numel()
    bound = _native.load("_core").index_code_bound(numel, count, codec)
    data, nbytes = _native.buffer("payload", bound), torch.empty(1, dtype=torch.int64)
    arguments = indices, data, nbytes, numel, count, indices.itemsize, codec
    _native.call("encode_indices", *arguments, like=indices, threads=_native.threads_for(count, _GRAIN))
    reference.refuse_unsorted(int(nbytes) < 0, numel)
    return data[: int(nbytes)].clone()


def _decode_native(data: Tensor, codec: int, numel: int, count: int, dtype: torch.dtype) -> Tensor:
    data, number = data.contiguous(), torch.empty(1, dtype=torch.int64)
    threads = _native.threads_for(count, _GRAIN)
    _native.call("count_indices", data, data.numel(), number, numel, codec, like=data, threads=threads)
    refuse_if("decode_indices", int(number) != count)
    indices = torch.empty(count, dtype=dtype)
    arguments = data, data.numel(), indices, number, numel, count, indices.itemsize, codec
    _native.call("decode_indices", *arguments, like=data, threads=threads)
    refuse_if("decode_indices", bool(number))
    return indices


_native.register(
    "encode_indices",
    "(Tensor indices, int numel, int codec) -> Tensor",
    reference=reference.encode_indices,
    fake=lambda indices, numel, codec: indices.new_empty(
        torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8
    ),
    cpu=_native.Route("_core", INDEX_DTYPES, _encode_native),
    cuda=_native.Route("_core", INDEX_DTYPES, _native.on_the_host(_encode_native)),
)
_native.register(
    "decode_indices",
    "(Tensor data, int codec, int numel, int count, ScalarType dtype) -> Tensor",
    reference=reference.decode_indices,
    fake=lambda data, codec, numel, count, dtype: data.new_empty(count, dtype=dtype),
    cpu=_native.Route("_core", (torch.uint8,), _decode_native),
    cuda=_native.Route("_core", (torch.uint8,), _native.on_the_host(_decode_native)),
)
