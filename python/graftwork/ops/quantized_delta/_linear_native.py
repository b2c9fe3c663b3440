"""The products of :mod:`graftwork.ops.quantized_delta.linear` as the native code takes them, and their registration."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple, cast

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
    """A matrix as the native code reads it: the numbers of a DeltaMatrix, and what is asked of them here."""

    fields: tuple[int, ...]
    rows: int
    columns: int
    bits: int
    blocks: int
    power: float


class _Work(NamedTuple):
    """A matrix for some rows of x: which, where in the result, times what; where the result, or the input, starts."""

    matrix: _Matrix
    tokens: list[int]
    places: list[int]
    factors: list[float]
    address: int
    weights: int = 0  # of a combination: S
    goes_on: bool = False


class _Packs(NamedTuple):
    """What the operation is given of the packs."""

    codes: Sequence[Tensor]
    scales: Sequence[Tensor]
    zeros: Sequence[Tensor]
    numbers: Sequence[int]
    parts: Sequence[int]
    values: Sequence[Tensor]


class _Plan:
    """The work of a call: products with plain packs and right factors, then combinations of left factors."""

    def __init__(self, packs: _Packs, total: Tensor) -> None:
        self._packs = packs
        self._total = _native.addresses((total,))[0]
        self._held: list[Tensor] = []  # what the addresses in the work are of
        self.products: list[_Work] = []
        self.combinations: list[_Work] = []

    def add(self, first: int, count: int, group: int, tokens: list[int], factors: list[float]) -> None:
        """Add the rows of a pack of `count` matrices from the number `first` on, S of whose groups begin at `group`."""
        matrices = [self._matrix(number) for number in range(first, first + count)]
        for start in range(0, len(tokens), _MOST_TOKENS):
            some, scaled = tokens[start : start + _MOST_TOKENS], factors[start : start + _MOST_TOKENS]
            if count == 1:
                power = [matrices[0].power * factor for factor in scaled]
                self.products.append(_Work(matrices[0], some, some, power, self._total))
                continue
            for number in range(0, count, 2):
                values = self._packs.values[group + number // 2]
                self._add_factors(matrices[number], matrices[number + 1], values, some, scaled, number > 0)

    def _add_factors(
        self,
        right: _Matrix,
        left: _Matrix,
        values: Tensor,
        tokens: list[int],
        factors: list[float],
        goes_on: bool,
    ) -> None:
        inner, values = torch.zeros(len(tokens), right.rows), _native.packed(values)
        self._held += [inner, values]
        here, weights = _native.addresses((inner, values))
        places = list(range(len(tokens)))
        self.products.append(_Work(right, tokens, places, [right.power] * len(tokens), here))
        power = [left.power * factor for factor in factors]
        self.combinations.append(_Work(left, tokens, tokens, power, here, weights, goes_on))

    def _matrix(self, number: int) -> _Matrix:
        given = self._packs
        bits, scheme, block, exponent, columns = given.numbers[5 * number : 5 * number + 5]
        codes, scales, zeros = (
            _native.packed(tensors[number]) for tensors in (given.codes, given.scales, given.zeros)
        )
        if bits == _RAW:
            scales, block = _one(), -1
        levels = _levels(bits, scheme)
        self._held += [codes, scales, zeros]
        at = _native.addresses((codes, levels, scales, zeros))
        rows, width = codes.shape
        stride = 0 if block == -1 else scales.shape[1]
        fields = (
            *(at[0], rows, columns, width * codes.itemsize, bits, at[1], at[2]),
            *(SCALE_DTYPES.index(scales.dtype), stride, max(block, 0)),
            *((at[3], 2 ** (bits - 1)) if scheme == ASYM else (0, 0)),
        )
        return _Matrix(fields, rows, columns, bits, stride or 1, 2.0**exponent)


def _run(name: str, works: list[_Work], arguments: tuple[object, ...], columns: int) -> None:
    """Call delta_linear or delta_combine for pieces of work, as many at a time as a workspace has room for."""
    sizes = [_bytes(name, work) for work in works]
    start, room = 0, 0
    for number, (work, size) in enumerate(zip(works, sizes, strict=True)):
        if room + size > _ROOM and room and not work.goes_on:
            _call(name, works[start:number], sizes[start:number], arguments, columns)
            start, room = number, 0
        room += size
    if works:
        _call(name, works[start:], sizes[start:], arguments, columns)


def _bytes(name: str, work: _Work) -> int:
    core, matrix = _native.load("_core"), work.matrix
    if name == "delta_linear":
        return len(work.tokens) * core.delta_linear_token_bytes(matrix.columns, matrix.bits)
    return core.delta_combine_bytes(len(work.tokens), matrix.rows, matrix.blocks)


def _call(
    name: str, works: list[_Work], sizes: list[int], arguments: tuple[object, ...], columns: int
) -> None:
    table: list[int] = []
    tokens: list[int] = []
    places: list[int] = []
    factors: list[float] = []
    at, products = 0, 0
    for work, size in zip(works, sizes, strict=True):
        matrix, count = work.matrix, len(work.tokens)
        if name == "delta_linear":
            table += (*matrix.fields, work.address, len(places), count, at)
        else:
            table += (*matrix.fields, work.address, work.weights, len(places), count, at, work.goes_on)
        tokens += work.tokens
        places += work.places
        factors += work.factors
        at += size
        products += count * matrix.rows * matrix.columns
    space = _native.buffer("workspace", at + 64)
    start = -_native.addresses((space,))[0] % 64
    lists: list[array[int] | array[float]] = [array("q", tokens)] if name == "delta_linear" else []
    lists += [array("q", places), array("f", factors)]
    given = *arguments, array("q", table), *lists, space[start:], len(works), columns
    _native.call(name, *given, like=space, threads=_native.threads_for(products, _GRAIN))


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
    rows_of = _rows_of(ids.tolist(), scaled, parts)
    if not rows_of and weight is not None and (bias is None or (bias.dtype == x.dtype and bias.dim() == 1)):
        return torch.nn.functional.linear(x, weight, bias)
    total, x = torch.zeros(x.shape[0], rows), _native.packed(x)
    plan = _Plan(_Packs(codes, scales, zeros, numbers, parts, values), total)
    first, group = 0, 0
    for pack, count in enumerate(parts):
        if mine := rows_of.get(pack):
            plan.add(first, count, group, mine, [scaled[row] for row in mine])
        first += count
        group += count // 2
    _run("delta_linear", plan.products, (x, DTYPES.index(x.dtype)), x.shape[1])
    _run("delta_combine", plan.combinations, (total,), rows)
    return reference.rounded(total, x, weight, bias)


def _fake(x: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape[0], cast(int, rest[-1]))


_native.register(
    "delta_linear",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor ids, Tensor factors, Tensor[] codes, Tensor[] scales, "
    "Tensor[] zeros, int[] numbers, int[] parts, Tensor[] values, SymInt rows) -> Tensor",
    reference=reference.delta_linear,
    fake=_fake,
    cpu=_native.Route("_core", DTYPES, _delta_linear),
    cuda=_native.Route("_core", DTYPES, _arena.on_host_copies(_delta_linear)),
)
