"""The file of a skill pack: a safetensors file of typed fields, with a seal, of which no changed byte goes unnoticed.

Each tensor's fields are named ``<parameter>::<field>``, so that any safetensors reader lists and reads them. The header has
one spelling, which follows from the manifest: that of `header_bytes`. So the seal covers the manifest, the spelling the
header, and the manifest's digests the fields. ``docs/papers/skill_packs.md`` specifies it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork.checkpoint import open_checkpoint
from graftwork.checkpoint.closing import Closing
from graftwork.checkpoint.digest import bytes_digest
from graftwork.checkpoint.dtypes import DTYPES, code_of
from graftwork.checkpoint.files import AtomicFile
from graftwork.checkpoint.header import MAX_HEADER_BYTES
from graftwork.delta.seal import SEAL, seal_metadata
from graftwork.errors import ChecksumError, DeltaError

FORMAT = "graftwork-skill-pack"
VERSION = (1, 0)
MANIFEST = "delta.manifest"
PAD = "__pad__."
_DOMAIN = b"graftwork-skill-pack-1"
_ALIGN = 256
_LARGE = 4096
"""Fields from this size on start at a multiple of 256 bytes; smaller ones stand one after another, behind them."""
REMEDY = "the file is damaged: restore it from a copy, or build the pack again"


class Form(NamedTuple):
    """Dtype code and shape of a field."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return DTYPES[self.dtype].bits // 8 * math.prod(self.shape)


class _Place(NamedTuple):
    name: str
    form: Form
    start: int


def form_of(field: Tensor) -> Form:
    """The form of a tensor."""
    code = code_of(field.dtype)
    if code is None:
        raise TypeError(f"no file can hold a field of {field.dtype}")
    return Form(code, tuple(field.shape))


def field_bytes(field: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU."""
    flat = field.detach().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data


def fields_digest(fields: Mapping[str, Tensor]) -> str:
    """Digest of a tensor's fields: SHA-256 of their names and digests, in the order of the names."""
    rows = (f"{name}:{bytes_digest(field_bytes(fields[name].cpu()))}\n" for name in sorted(fields))
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def _layout(forms: Mapping[str, Form]) -> list[_Place]:
    """Where each field goes, in the order of the payload, and the pads between them."""

    def order(name: str) -> tuple[int, str]:
        form = forms[name]
        return (0 if form.nbytes >= _LARGE else 9 - DTYPES[form.dtype].bits // 8), name

    places: list[_Place] = []
    at, pads = 0, 0
    for name in sorted(forms, key=order):
        form = forms[name]
        align = _ALIGN if form.nbytes >= _LARGE else DTYPES[form.dtype].bits // 8
        gap = -at % align
        if gap:
            places.append(_Place(f"{PAD}{pads}", Form("U8", (gap,)), at))
            pads, at = pads + 1, at + gap
        places.append(_Place(name, form, at))
        at += form.nbytes
    return places


def _header_bytes(manifest: str, version: str, places: list[_Place]) -> bytes:
    """The file's bytes before the payload."""
    said = {"format": FORMAT, "version": version}
    said |= seal_metadata(_DOMAIN, MANIFEST, manifest, b"")
    rows = ['"__metadata__":' + json.dumps(said, separators=(",", ":"))]
    for name, form, start in places:
        shape = ",".join(map(str, form.shape))
        offsets = f"[{start},{start + form.nbytes}]"
        rows.append(f'{quoted(name)}:{{"dtype":"{form.dtype}","shape":[{shape}],"data_offsets":{offsets}}}')
    text = f"{{{','.join(rows)}}}".encode()
    room = -(-(8 + len(text)) // _ALIGN) * _ALIGN - 8
    return room.to_bytes(8, "little") + text.ljust(room)


def write_pack(
    path: str | os.PathLike[str], manifest: str, fields: Mapping[str, Tensor], *, overwrite: bool
) -> None:
    """Write a pack's file in one pass; it takes its place when it is whole.

    ``fields`` are contiguous tensors on the CPU, by their names in the file.
    """
    places = _layout({name: form_of(field) for name, field in fields.items()})
    header = _header_bytes(manifest, ".".join(map(str, VERSION)), places)
    if len(header) > MAX_HEADER_BYTES:
        raise DeltaError(
            "a skill pack's header has no room for so many tensors",
            file=path,
            got=f"{len(header)} bytes",
            wanted=f"at most {MAX_HEADER_BYTES}",
            remedy="make a pack of a part of the tensors",
        )
    with AtomicFile(path, replace=overwrite) as file:
        file.write(header)
        for name, form, _ in places:
            file.write(bytes(form.nbytes) if name.startswith(PAD) else field_bytes(fields[name]))


class PackFile(Closing):
    """A pack's file, open for reading. Its header and seal are checked; fields are memory-mapped and checked when read.

    ``manifest`` is the manifest's text, ``version`` what the header says beside it, ``forms`` the fields' dtypes and shapes
    by name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = open_checkpoint(self.path)
        try:
            if len(self._file.headers) != 1:
                raise DeltaError("a skill pack is one file", file=self.path, got="a folder")
            (self._header,) = self._file.headers.values()
            self.manifest = self._read_manifest()
            self.version = self._header.metadata["version"]
            self.forms = {
                info.name: Form(info.dtype, info.shape)
                for info in self._header.tensors
                if not info.name.startswith(PAD)
            }
            self._check_spelling()
            self._check_pads()
        except BaseException:
            self.close()
            raise

    def _read_manifest(self) -> str:
        said = self._header.metadata
        if said.keys() != {"format", "version", MANIFEST, SEAL} or said["format"] != FORMAT:
            raise DeltaError(
                "this is not the file of a skill pack",
                file=self.path,
                got=", ".join(sorted(said)) or "no metadata",
                wanted=f"a file of format {FORMAT}",
                remedy="pack it with SkillPack.save or 'graftwork pack --bpw'",
            )
        if seal_metadata(_DOMAIN, MANIFEST, said[MANIFEST], b"")[SEAL] != said[SEAL]:
            raise ChecksumError("the manifest differs from its seal", file=self.path, remedy=REMEDY)
        return said[MANIFEST]

    def _check_spelling(self) -> None:
        if _header_bytes(self.manifest, self.version, _layout(self.forms)) != self._header.raw:
            raise DeltaError("the header is not in canonical form", file=self.path, remedy=REMEDY)

    def _check_pads(self) -> None:
        for info in self._header.tensors:
            if info.name.startswith(PAD):
                pad = bytearray(info.nbytes)  # below 256: so says the header's one spelling
                self._file.read_into(info, 0, memoryview(pad))
                if any(pad):
                    raise ChecksumError(
                        "bytes between two fields are not zero", file=self.path, remedy=REMEDY
                    )

    def fields(self, tensor: str, names: Collection[str], digest: str) -> dict[str, Tensor]:
        """A tensor's fields, memory-mapped, after checking them against their digest."""
        fields = {name: self._file.tensor(f"{tensor}::{name}") for name in names}
        if fields_digest(fields) != digest:
            raise ChecksumError(
                "a tensor's fields differ from their digest", file=self.path, tensor=tensor, remedy=REMEDY
            )
        return fields

    def close(self) -> None:
        """Close the file; fields that were given out stay valid."""
        self._file.close()
