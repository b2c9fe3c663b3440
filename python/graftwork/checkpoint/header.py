"""The header of a safetensors file, parsed strictly.

The file is an 8-byte little-endian length, that many bytes of JSON, and the payload. Every tensor's place
is checked against its shape, its dtype and the file's size, and the payload has no gap, overlap or trailing
byte. The parser reads one entry at a time and nests nothing, so a hostile header costs no more than its size
allows; it also refuses what JSON parsers let pass: duplicate names, leading blanks, floats for integers.

A tensor's name is data, never a path: any Unicode string is legal.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from graftwork.checkpoint.bulk import makes_many_objects
from graftwork.checkpoint.dtypes import DTYPES, tensor_bits
from graftwork.checkpoint.foreign import recognise
from graftwork.checkpoint.source import ReadableFile, SourceFile
from graftwork.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_ENTRY_CHARACTERS = 1 << 16
_MAX_INT = (1 << 63) - 1
_LENGTH_BYTES = 8
_USUAL_RANK = 16  # up to here the product of a shape costs nothing, whatever it says
_ENTRY = '{"dtype": ..., "shape": [...], "data_offsets": [begin, end]}'
_RESAVE = "save the file again with the safetensors library"
_FETCH = "copy or download the file again"


class TensorInfo(NamedTuple):
    """Where one tensor lies: ``[start, stop)`` are byte offsets in ``file`` (relative, with ``/``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size of the payload in bytes."""
        return self.stop - self.start

    @property
    def numel(self) -> int:
        """Number of elements (1 for a 0-d tensor)."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file: tensors in payload order, metadata, and the exact bytes before the payload."""

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    raw: bytes

    @property
    def data_start(self) -> int:
        """Byte offset of the payload in the file."""
        return len(self.raw)


def read_header(path: str | os.PathLike[str], file: str | None = None) -> Header:
    """Read and check the header of a file.

    Parameters
    ----------
    path : path
        The file.
    file : str, optional
        What the tensors' ``file`` shall say; the file's name by default.

    Raises
    ------
    CheckpointError
        If the file is not a regular file or breaks any rule of the format.
    """
    path = Path(path)
    with SourceFile(path) as source:
        return read_source_header(source, file or path.name)


def read_source_header(source: ReadableFile, file: str) -> Header:
    """Read and check the header of an open file; the tensors' ``file`` is ``file``."""
    size = source.size
    prefix = source.read(0, min(size, _LENGTH_BYTES))
    data = source.read(0, _LENGTH_BYTES + _header_length(prefix, source.path, size))
    return parse_header(data, source.path, size, relative=file)


@makes_many_objects
def parse_header(
    data: bytes, file: str | os.PathLike[str], file_size: int, *, relative: str | None = None
) -> Header:
    """Parse and check a header from the first bytes of a file.

    Parameters
    ----------
    data : bytes
        The file's beginning: at least the length and the header.
    file : path
        The file, for errors.
    file_size : int
        Size of the whole file in bytes.
    relative : str, optional
        What the tensors' ``file`` shall say; ``str(file)`` by default.

    Raises
    ------
    CheckpointError
        If the header breaks any rule of the format.
    """
    stop = _LENGTH_BYTES + _header_length(data[:_LENGTH_BYTES], file, file_size)
    raw = bytes(data[:stop])
    if len(raw) < stop:
        _refuse("the header is cut off", file, got=f"{len(raw)} bytes", wanted=f"{stop} bytes", remedy=_FETCH)
    try:
        text = raw[_LENGTH_BYTES:].decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(
            "the header is not UTF-8",
            file,
            got=f"{error.reason} at byte {error.start}",
            wanted="UTF-8",
            remedy=_RESAVE,
        )
    if not text.startswith("{"):
        _refuse_start(raw, text, file)
    parser = _Parser(text, file, file_size - stop, stop, relative or os.fspath(file))
    parser.parse()
    return Header(parser.ordered(), parser.metadata, raw)


def _header_length(prefix: bytes, file: str | os.PathLike[str], file_size: int) -> int:
    if file_size < _LENGTH_BYTES or len(prefix) < _LENGTH_BYTES:
        got = "an empty file" if file_size == 0 else f"{file_size} bytes"
        _refuse(
            "the file is too short for safetensors", file, got=got, wanted="8 bytes or more", remedy=_FETCH
        )
    length = int.from_bytes(prefix, "little")
    room = file_size - _LENGTH_BYTES
    if 0 < length <= min(room, MAX_HEADER_BYTES):
        return length
    _refuse_foreign(prefix, file)
    if length == 0:
        _refuse("the header is empty", file, got="length 0", wanted="a JSON object", remedy=_RESAVE)
    if length > MAX_HEADER_BYTES:
        limit = f"at most {MAX_HEADER_BYTES} bytes"
        _refuse(
            "the header is too long, or this is not a safetensors file",
            file,
            got=length,
            wanted=limit,
            remedy=_FETCH,
        )
    _refuse(
        "the header is longer than the file",
        file,
        got=f"{length} bytes",
        wanted=f"at most {room}",
        remedy=_FETCH,
    )


def _refuse(what: str, file: str | os.PathLike[str], **details: Any) -> NoReturn:
    raise CheckpointError(what, file=file, **details)


def _refuse_foreign(head: bytes, file: str | os.PathLike[str]) -> None:
    if known := recognise(head):
        _refuse("not a safetensors file", file, got=known[0], wanted="safetensors", remedy=known[1])


def _refuse_start(raw: bytes, text: str, file: str | os.PathLike[str]) -> NoReturn:
    _refuse_foreign(raw, file)
    got = "a byte order mark" if text.startswith("\ufeff") else repr(text[:16])
    _refuse(
        "the header does not start with '{'", file, got=got, wanted="'{' as the first byte", remedy=_RESAVE
    )


_BLANK = r"[ \t\n\r]*+"
_STRING = r'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"'
_COUNT = r"(?:0|[1-9][0-9]{0,17})"
_KEY = re.compile(f"{_BLANK}{_STRING}{_BLANK}:{_BLANK}")
_VALUE = re.compile(_STRING)
_NEXT = re.compile(f"{_BLANK}([,}}])")
_END = re.compile(f"{_BLANK}\\Z")
_EMPTY = re.compile(f"{_BLANK}}}")
_OBJECT = re.compile(rf"\{{[^{{}}]{{0,{MAX_ENTRY_CHARACTERS}}}+\}}")


def _spaced(*parts: str) -> str:
    return _BLANK.join(parts)


# What every known writer emits; other orders of the three keys take the slower way through `json`.
_USUAL = re.compile(
    _spaced(
        r"\{", '"dtype"', ":", '"([A-Z0-9_]++)"', ",",
        '"shape"', ":", rf"\[((?:{_BLANK}{_COUNT}(?:{_BLANK},{_BLANK}{_COUNT})*+)?+)", r"\]", ",",
        '"data_offsets"', ":", r"\[", f"({_COUNT})", ",", f"({_COUNT})", r"\]", r"\}",
    )
)  # fmt: skip


class _Parser:
    """Reads ``{"name": {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}, ...}``."""

    def __init__(
        self, text: str, file: str | os.PathLike[str], payload_bytes: int, data_start: int, relative: str
    ) -> None:
        self.text = text
        self.file = file
        self.payload_bytes = payload_bytes
        self.data_start = data_start
        self.relative = relative
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def refuse(self, what: str, tensor: str | None = None, **details: Any) -> NoReturn:
        details = {key: str(value)[:512] for key, value in details.items()}
        _refuse(what, self.file, tensor=tensor, **{"remedy": _RESAVE, **details})

    def parse(self) -> None:
        has_metadata = False
        empty = _EMPTY.match(self.text, 1)
        more, at = (False, empty.end()) if empty else (True, 1)
        while more:
            name, at = self.key(at)
            if name == "__metadata__":
                if has_metadata:
                    self.refuse("the header holds __metadata__ twice", got=self.excerpt(at), wanted="it once")
                has_metadata = True
                at = self.read_metadata(at)
            else:
                if name in self._tensors:
                    self.refuse(
                        "the header names a tensor twice", name, got=self.excerpt(at), wanted="it once"
                    )
                at = self.read_entry(name, at)
            more, at = self.next(at, name)
        if not _END.match(self.text, at):
            self.refuse("the header goes on after its object", got=self.excerpt(at), wanted="only blanks")

    def excerpt(self, at: int) -> str:
        return f"{self.text[at : at + 24]!r} at character {at}"

    def key(self, at: int) -> tuple[str, int]:
        match = _KEY.match(self.text, at)
        if match is None:
            self.refuse("the header is not valid JSON", got=self.excerpt(at), wanted='"name":')
        return self.unescape(match[1]), match.end()

    def next(self, at: int, tensor: str | None) -> tuple[bool, int]:
        match = _NEXT.match(self.text, at)
        if match is None:
            self.refuse("the header is not valid JSON", tensor, got=self.excerpt(at), wanted="',' or '}'")
        return match[1] == ",", match.end()

    def unescape(self, literal: str) -> str:
        if "\\" not in literal:
            return literal
        try:
            value: str = json.loads(f'"{literal}"')
            value.encode("utf-8")
        except ValueError:  # a bad escape, or half a surrogate pair
            self.refuse("the header holds a malformed string", got=repr(literal[:64]), wanted="a JSON string")
        return value

    def read_metadata(self, at: int) -> int:
        if not self.text.startswith("{", at):
            self.refuse("__metadata__ is not an object", got=self.excerpt(at), wanted="text to text")
        if empty := _EMPTY.match(self.text, at + 1):
            return empty.end()
        more, at = True, at + 1
        while more:
            name, at = self.key(at)
            match = _VALUE.match(self.text, at)
            if match is None:
                self.refuse(
                    f"__metadata__[{name[:64]!r}] is not a string",
                    got=self.excerpt(at),
                    wanted="text to text",
                )
            if name in self.metadata:
                self.refuse(
                    f"__metadata__ holds {name[:64]!r} twice", got=self.excerpt(at), wanted="each key once"
                )
            self.metadata[name] = self.unescape(match[1])
            more, at = self.next(match.end(), None)
        return at

    def read_entry(self, name: str, at: int) -> int:
        match = _USUAL.match(self.text, at)
        if match is None:
            return self.read_unusual_entry(name, at)
        code, dims, begin, end = match.groups()
        shape = self._shapes.get(dims)
        if shape is None:
            shape = self._shapes[dims] = tuple(map(int, dims.split(","))) if dims.strip() else ()
        self.add(name, code, shape, int(begin), int(end))
        return match.end()

    def read_unusual_entry(self, name: str, at: int) -> int:
        match = _OBJECT.match(self.text, at)
        if match is None:
            wanted = f"a flat object of at most {MAX_ENTRY_CHARACTERS} characters"
            self.refuse("the entry of a tensor is malformed", name, got=self.excerpt(at), wanted=wanted)
        try:
            pairs: list[tuple[str, Any]] = json.loads(match[0], object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            self.refuse("the entry of a tensor is not valid JSON", name, got=error, wanted=_ENTRY)
        entry = dict(pairs)
        if sorted(key for key, _ in pairs) != ["data_offsets", "dtype", "shape"]:
            keys = ", ".join(key for key, _ in pairs)
            self.refuse("the entry of a tensor is malformed", name, got=keys, wanted=_ENTRY)
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _are_counts(shape):
            self.refuse(
                "the shape is not a list of sizes", name, got=shape, wanted="integers from 0 to 2^63 - 1"
            )
        if not _are_counts(offsets) or len(offsets) != 2:
            self.refuse("data_offsets are not two offsets", name, got=offsets, wanted="[begin, end]")
        self.add(name, entry["dtype"], tuple(shape), *offsets)
        return match.end()

    def add(self, name: str, code: str, shape: tuple[int, ...], begin: int, end: int) -> None:
        dtype = DTYPES.get(code) if isinstance(code, str) else None
        if dtype is None:
            self.refuse("unknown dtype", name, got=code, wanted=", ".join(DTYPES))
        if begin > end:
            self.refuse("data_offsets are reversed", name, got=f"[{begin}, {end}]", wanted="begin <= end")
        if end > self.payload_bytes:
            self.refuse(
                "the tensor ends past the end of the file",
                name,
                got=f"byte {self.data_start + end}",
                wanted=f"at most {self.data_start + self.payload_bytes}",
                remedy=_FETCH,
            )
        if len(shape) > _USUAL_RANK or dtype.bits * prod(shape) != 8 * (end - begin) or begin == end:
            self.check_size(name, code, shape, end - begin)
        start = self.data_start
        self._tensors[name] = TensorInfo(name, code, shape, self.relative, start + begin, start + end)

    def check_size(self, name: str, code: str, shape: tuple[int, ...], nbytes: int) -> None:
        what = f"{code} of shape {list(shape)}"
        bits = tensor_bits(code, shape)
        if bits is None:
            self.refuse(
                "the tensor's size overflows 64 bits", name, got=what, wanted=f"at most {_MAX_INT} bytes"
            )
        if bits % 8:
            self.refuse("the tensor ends inside a byte", name, got=what, wanted="a multiple of 8 bits")
        if bits != 8 * nbytes:
            wanted = f"{bits // 8} bytes for {what}"
            self.refuse(
                "the tensor's size does not fit its shape", name, got=f"{nbytes} bytes", wanted=wanted
            )

    def ordered(self) -> tuple[TensorInfo, ...]:
        """The tensors in payload order, after checking that they fill the payload exactly."""
        tensors = sorted(self._tensors.values(), key=lambda info: (info.start, info.stop))
        stop, before = self.data_start, None
        for info in tensors:
            if info.start != stop:
                what = (
                    "two tensors overlap"
                    if info.start < stop
                    else "bytes before the tensor belong to no tensor"
                )
                got = f"it starts at byte {info.start}" + (f", {before!r} ends at {stop}" if before else "")
                self.refuse(what, info.name, got=got, wanted=f"a start at byte {stop}")
            stop, before = info.stop, info.name
        if stop != self.data_start + self.payload_bytes:
            got = f"{self.data_start + self.payload_bytes} bytes"
            self.refuse("the file goes on after its last tensor", before, got=got, wanted=f"{stop} bytes")
        return tuple(tensors)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_INT for item in value)
