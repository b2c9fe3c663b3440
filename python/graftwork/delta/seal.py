"""Sealed delta files: strict enough that no changed byte of one goes unnoticed.

A sealed file says in its header, beside the usual metadata, one text of its kind and a seal: the SHA-256 of a domain, the
text and the manifest. Its header has one spelling (`check_spelling`). So the seal covers the text and the manifest, the
spelling the header, the manifest's digests the chunk tables, and these the payloads.
"""

from __future__ import annotations

import hashlib

from graftwork.delta.container import MANIFEST, DeltaFile, file_metadata, header_text
from graftwork.delta.manifest import CHUNK_RECORD_BYTES
from graftwork.errors import ChecksumError, DeltaError

SEAL = "seal"


def seal_metadata(domain: bytes, kind: str, said: str, manifest: bytes) -> dict[str, str]:
    """What the header of a sealed file says beside the usual metadata: ``said`` under the name ``kind``, and the seal."""
    return {kind: said, SEAL: _seal(domain, said, manifest)}


def read_sealed(file: DeltaFile, domain: bytes, kind: str, *, what: str, remedies: tuple[str, str]) -> str:
    """The text of a sealed file, after checking it and the manifest against the seal.

    ``what`` names such a file in errors; ``remedies`` are those for a file of another kind and for a damaged one.
    """
    metadata = file.header.metadata
    if metadata.keys() != {*file_metadata(), kind, SEAL}:
        found = ", ".join(sorted(metadata))
        raise DeltaError(f"this is not {what}", file=file.path, got=found, remedy=remedies[0])
    if _seal(domain, metadata[kind], file.manifest()) != metadata[SEAL]:
        raise ChecksumError("the manifest differs from its seal", file=file.path, remedy=remedies[1])
    return metadata[kind]


def check_spelling(file: DeltaFile, kind: str, *, remedy: str) -> None:
    """Refuse a header that is not, byte for byte, what `container.DeltaWriter` writes for this file's manifest."""
    wanted = [part for name in file.records for part in (f"{name}::stream", f"{name}::chunks")]
    found = [info.name for info in file.header.tensors]
    if sorted(found) != sorted([*wanted, MANIFEST]):
        raise DeltaError(
            "the fields are not those of the manifest", file=file.path, got=found[:8], remedy=remedy
        )
    fields: list[tuple[str, list[int], int]] = []
    for info in file.header.tensors:
        rows = [info.nbytes // CHUNK_RECORD_BYTES, CHUNK_RECORD_BYTES]
        fields.append((info.name, rows if info.name.endswith("::chunks") else [info.nbytes], info.nbytes))
    usual = file_metadata(file.version)
    text = header_text(fields, usual | {key: file.header.metadata[key] for key in (kind, SEAL)})
    if text.ljust(file.header.data_start - 8) != file.header.raw[8:]:
        got = f"{len(file.header.raw)} bytes"
        raise DeltaError("the header is not in canonical form", file=file.path, got=got, remedy=remedy)


def _seal(domain: bytes, said: str, manifest: bytes) -> str:
    text = said.encode()
    return hashlib.sha256(domain + len(text).to_bytes(8, "little") + text + manifest).hexdigest()
