"""The products of :mod:`graftwork.ops.quantized_delta.linear` as the native code takes them, and their registration."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.ops import _native
from graftwork.ops.quantized_delta.formats import SCALE_DTYPES, PackedDelta
from graftwork.ops.quantized_delta.lowrank import LowRankPack
from graftwork.ops.sparse_update import _arena
from graftwork.reference.quantized_delta import linear as reference
from graftwork.reference.quantized_delta.levels import ASYM, MIDRISE, NF4, NF4_LEVELS, SIGN

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # in the order of the native code's numbers
_GRAIN = 1 << 22  # products a thread
_MOST_TOKENS = 16  # kMaxTokens of delta_linear.h
_ROOM = 16 << 20  # bytes of a workspace, unless one piece of work needs more
_ENTRIES = 16
_RAW = 16  # bits of float16 factors

Flat = tuple[list[Tensor], list[Tensor], list[Tensor], list[int], list[int], list[Tensor]]


def devices_of(pack: PackedDelta | LowRankPack) -> Iterator[tuple[str, torch.device]]:
    """The name and the device of every part of a pack."""
    if isinstance(pack, PackedDelta):
        yield "codes", pack.device
        return
    for number, group in enumerate(pack.groups):
        for name, part in (("values", group.values), ("left", group.left), ("right", group.right)):
            yield f"groups[{number}].{name}", part.device


def flatten(packs: Sequence[PackedDelta | LowRankPack | None], device: torch.device) -> Flat:
    """Packs as the operation takes them: codes, scales, zeros and numbers of matrices; matrices of each pack; S."""
    nothing = torch.empty(0, device=device)
    flat: Flat = [], [], [], [], [], []
    codes, scales, zeros, numbers, parts, values = flat

    def add(matrix: PackedDelta | Tensor) -> None:
        if isinstance(matrix, Tensor):
            codes.append(matrix)
            scales.append(nothing)
            zeros.append(nothing)
            numbers.extend((_RAW, -1, 0, 0, matrix.shape[1]))
            return
        codes.append(matrix.codes)
        scales.append(matrix.scales)
        zeros.append(nothing if matrix.zeros is None else matrix.zeros)
        made = matrix.format
        numbers.extend((made.bits, made.scheme_number, made.block, matrix.scale_exp, matrix.shape[1]))

    for pack in packs:
        before = len(codes)
        if isinstance(pack, PackedDelta):
            add(pack)
        elif pack is not None:
            for group in pack.groups:
                add(group.right)
                add(group.left)
                values.append(group.values)
        parts.append(len(codes) - before)
    return flat


@cache
def _levels(bits: int, scheme: int) -> Tensor:
    """DeltaMatrix.values of delta_matrix.h."""
    if scheme == NF4:
        return torch.tensor(NF4_LEVELS)
    if scheme == SIGN:
        return torch.tensor([-1.0, 1.0]).repeat(_ENTRIES // 2)
    offset = (0.5 if scheme == MIDRISE else 0.0) - 2 ** (bits - 1)
    if bits == 8:
        return torch.tensor([offset])
    low = torch.arange(2 ** (2 if bits == 3 else bits)).float() + offset
    planes = [low.repeat(_ENTRIES // len(low))]
    if bits == 3:
        planes.append(torch.tensor([0.0, 4.0]).repeat(_ENTRIES // 2))
    return torch.cat(planes)


@cache
def _one() -> Tensor:
    """The scale of a float16 factor."""
    return torch.ones(1)


class _Matrix(NamedTuple):
    """A matrix, and its DeltaMatrix."""

    tensors: tuple[Tensor, Tensor, Tensor]  # which must live
    fields: tuple[int, ...]
    rows: int
    bits: int
    blocks: int
    power: float


def _matrix(codes: Tensor, scales: Tensor, zeros: Tensor, numbers: Sequence[int]) -> _Matrix:
    bits, scheme, block, exponent, columns = numbers
    codes, scales, zeros = _native.packed(codes), _native.packed(scales), _native.packed(zeros)
    if bits == _RAW:
        scales, block = _one(), -1
    levels = _levels(bits, scheme)
    at = _native.addresses((codes, levels, scales, zeros))
    stride = 0 if block == -1 else scales.shape[1]
    fields = (
        *(at[0], codes.shape[0], columns, codes.shape[1] * codes.itemsize, bits, at[1], at[2]),
        *(SCALE_DTYPES.index(scales.dtype), stride, max(block, 0)),
        *((at[3], 2 ** (bits - 1)) if scheme == ASYM else (0, 0)),
    )
    return _Matrix((codes, scales, zeros), fields, codes.shape[0], bits, stride or 1, 2.0**exponent)


class _Work(NamedTuple):
    """A matrix for some rows of x: of x, of the result, their factors; where the result, or the input, starts."""

    matrix: _Matrix
    tokens: list[int]
    places: list[int]
    factors: list[float]
    address: int
    weights: int = 0  # of a combination: S
    goes_on: bool = False


def _run(name: str, works: list[_Work], arguments: tuple[object, ...], columns: int) -> None:
    """Call delta_linear or delta_combine for pieces of work, as many at a time as a workspace has room for."""
    while works:
        count, room, held = 0, 0, 0
        while count < len(works):
            room += held
            held = _bytes(name, works[count], columns)
            if room + held > _ROOM and count and not works[count].goes_on:
                break
            count += 1
        else:
            room += held
        _call(name, works[:count], arguments, columns, room)
        works = works[count:]


def _bytes(name: str, work: _Work, columns: int) -> int:
    core = _native.load("_core")
    if name == "delta_linear":
        return len(work.tokens) * core.delta_linear_token_bytes(columns, work.matrix.bits)
    return core.delta_combine_bytes(len(work.tokens), work.matrix.rows, work.matrix.blocks)


def _call(name: str, works: list[_Work], arguments: tuple[object, ...], columns: int, room: int) -> None:
    table, tokens, places, factors = array("q"), array("q"), array("q"), array("f")
    at, products = 0, 0
    for work in works:
        table.extend(work.matrix.fields)
        ends = (work.address, work.weights) if name == "delta_combine" else (work.address,)
        table.extend((*ends, len(places), len(work.places), at))
        if name == "delta_combine":
            table.append(work.goes_on)
        tokens.extend(work.tokens)
        places.extend(work.places)
        factors.extend(work.factors)
        at += _bytes(name, work, columns)
        products += len(work.tokens) * work.matrix.rows * work.matrix.fields[2]
    lists = (tokens, places, factors) if name == "delta_linear" else (places, factors)
    space = _native.buffer("workspace", room + 64)
    start = -_native.addresses((space,))[0] % 64
    sizes = len(works), columns
    threads = _native.threads_for(products, _GRAIN)
    _native.call(name, *arguments, table, *lists, space[start:], *sizes, like=space, threads=threads)


def _rows_of(ids: list[int], factors: list[float], parts: Sequence[int]) -> dict[int, list[int]]:
    """The rows of every pack that is not empty, for which it counts."""
    rows: dict[int, list[int]] = {}
    for row, pack in enumerate(ids):
        if not -1 <= pack < len(parts):
            reference.refuse_ids(pack, len(parts))
        if pack >= 0 and parts[pack] and factors[row] != 0:
            rows.setdefault(pack, []).append(row)
    return rows


@torch.no_grad()
def _delta_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    ids: Tensor,
    factors: Tensor,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    zeros: Sequence[Tensor],
    numbers: Sequence[int],
    parts: Sequence[int],
    values: Sequence[Tensor],
    rows: int,
) -> Tensor:
    scaled = factors.tolist()
    mine = _rows_of(ids.tolist(), scaled, parts)
    if not mine and weight is not None and (bias is None or (bias.dtype == x.dtype and bias.dim() == 1)):
        return torch.nn.functional.linear(x, weight, bias)
    total = torch.zeros(x.shape[0], rows)
    x = _native.packed(x)
    first, group = 0, 0
    products: list[_Work] = []
    combinations: list[_Work] = []
    inner: list[Tensor] = []
    at_total, columns = _native.addresses((total,))[0], x.shape[1]
    for pack, count in enumerate(parts):
        found = (
            [
                _matrix(codes[n], scales[n], zeros[n], numbers[5 * n : 5 * n + 5])
                for n in range(first, first + count)
            ]
            if pack in mine
            else []
        )
        singular = [_native.packed(value) for value in values[group : group + count // 2]]
        for start in range(0, len(mine.get(pack, ())), _MOST_TOKENS):
            tokens = mine[pack][start : start + _MOST_TOKENS]
            factor = [scaled[token] for token in tokens]
            if count == 1:
                power = [found[0].power * one for one in factor]
                products.append(_Work(found[0], tokens, tokens, power, at_total))
                continue
            for right, left, weights in zip(found[::2], found[1::2], singular, strict=True):
                between = torch.zeros(len(tokens), right.rows)
                inner += [between, weights]
                here, of_values = _native.addresses((between, weights))
                products.append(
                    _Work(right, tokens, list(range(len(tokens))), [right.power] * len(tokens), here)
                )
                power = [left.power * one for one in factor]
                combinations.append(_Work(left, tokens, tokens, power, here, of_values, left is not found[1]))
        first += count
        group += count // 2
    _run("delta_linear", products, (x, DTYPES.index(x.dtype)), columns)
    _run("delta_combine", combinations, (total,), rows)
    return reference.rounded(total, x, weight, bias)


def _fake(x: Tensor, *rest: object) -> Tensor:
    rows = rest[-1]
    assert isinstance(rows, int | torch.SymInt)
    return x.new_empty(x.shape[0], rows)


_native.register(
    "delta_linear",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor ids, Tensor factors, Tensor[] codes, Tensor[] scales, "
    "Tensor[] zeros, int[] numbers, int[] parts, Tensor[] values, SymInt rows) -> Tensor",
    reference=reference.delta_linear,
    fake=_fake,
    cpu=_native.Route("_core", DTYPES, _delta_linear),
    cuda=_native.Route("_core", DTYPES, _arena.on_host_copies(_delta_linear)),
)
