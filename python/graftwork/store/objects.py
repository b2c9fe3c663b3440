"""The store's content: files that are named by the digest of their bytes and never change.

``objects/ab/abcd….SUFFIX``: ``safetensors`` for delta files, ``json`` for manifests and descriptions, ``zst``
for all other files, each one zstd frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import zstandard

from graftwork.checkpoint import files
from graftwork.checkpoint.digest import LEAF_BYTES, bytes_digest, leaf_digest, tree_digest
from graftwork.checkpoint.source import SourceFile
from graftwork.delta.pipeline import Scratch, ordered_map
from graftwork.delta.source import leaf_ranges
from graftwork.errors import ChecksumError, StoreError

SUFFIXES = ("safetensors", "json", "zst")
_INCOMING = "incoming"
_LARGE_BLOB = 64 << 20  # an optimizer's state, say: not worth a slow level


class ObjectFolder:
    """The folder of content-addressed files of one store."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path
        self._threads = threads

    def locate(self, digest: str, suffix: str) -> Path:
        """Where the object with ``digest`` lies, or would lie."""
        return self.path / digest[:2] / f"{digest}.{suffix}"

    def find(self, digest: str, suffix: str) -> Path:
        """Where the object lies; StoreError if it is not there."""
        path = self.locate(digest, suffix)
        if not path.is_file():
            raise StoreError(
                "an object of the store is missing",
                file=path,
                remedy="if another process has just changed the store, open it again; else restore the file from a "
                "copy of the store, or pack the fine-tune again",
            )
        return path

    def read(self, digest: str, suffix: str) -> bytes:
        """The object's bytes, checked against its digest."""
        path = self.find(digest, suffix)
        data = path.read_bytes()
        if bytes_digest(data) != digest:
            raise ChecksumError(
                "an object differs from its digest", file=path, remedy="restore it from a copy"
            )
        return data

    def put(self, data: bytes, suffix: str) -> str:
        """Store ``data``; its digest."""
        digest = bytes_digest(data)
        path = self.locate(digest, suffix)
        if not path.exists():
            files.make_folder(path.parent)
            files.write_file(path, data)
        return digest

    def put_file(self, write: Callable[[files.AtomicFile], None], suffix: str) -> str:
        """Store what ``write`` writes; its digest."""
        files.make_folder(self.path)
        incoming = self.path / f"{_INCOMING}.{suffix}"
        with files.AtomicFile(incoming) as file:
            write(file)
        digest, _ = file_digest(incoming, self._threads)
        path = self.locate(digest, suffix)
        if path.exists():
            files.remove_file(incoming)
        else:
            files.make_folder(path.parent)
            files.move_file(incoming, path)
        return digest

    def copy(self, other: ObjectFolder, digest: str, suffix: str) -> None:
        """Take an object over from another folder; ChecksumError if its bytes are not what they were."""
        source = other.find(digest, suffix)
        if self.locate(digest, suffix).exists():
            return

        def write(file: files.AtomicFile) -> None:
            with source.open("rb") as stream:
                while piece := stream.read(LEAF_BYTES):
                    file.write(piece)

        if self.put_file(write, suffix) != digest:
            raise ChecksumError(
                "an object differs from its digest", file=source, remedy="restore it from a copy"
            )

    def put_blob(self, leaves: Iterable[memoryview], nbytes: int) -> dict[str, object]:
        """Store ``nbytes`` bytes, which come leaf by leaf, compressed; the reference to them for a manifest."""
        digests = []

        def compress(file: files.AtomicFile) -> None:
            compressor = _compressor(nbytes).chunker(size=nbytes, chunk_size=LEAF_BYTES)
            for leaf in leaves:
                digests.append(leaf_digest(leaf))
                for part in compressor.compress(leaf):
                    file.write(part)
            for part in compressor.finish():
                file.write(part)

        stored = self.put_file(compress, "zst")
        return {"object": stored, "digest": tree_digest(nbytes, digests), "nbytes": nbytes}

    def put_blob_bytes(self, data: bytes) -> dict[str, object]:
        """Store bytes compressed, as ``put_blob`` does those of a file."""
        stored = self.put(_compressor(len(data)).compress(data), "zst")
        return {"object": stored, "digest": bytes_digest(data), "nbytes": len(data)}

    def blob_pieces(self, reference: dict[str, object]) -> Iterator[bytes]:
        """The pieces of a blob's original bytes; ChecksumError at the end if they are not what was stored."""
        path = self.find(str(reference["object"]), "zst")
        wanted = int(str(reference["nbytes"]))
        leaves, held, total = [], bytearray(), 0
        try:
            with path.open("rb") as stream:
                for piece in zstandard.ZstdDecompressor(max_window_size=1 << 27).read_to_iter(stream):
                    total += len(piece)
                    if total > wanted:
                        break
                    held += piece
                    while len(held) >= LEAF_BYTES:
                        leaves.append(leaf_digest(held[:LEAF_BYTES]))
                        del held[:LEAF_BYTES]
                    yield piece
        except zstandard.ZstdError as error:
            raise ChecksumError(f"a stored file is not valid zstd: {error}", file=path) from error
        if held:
            leaves.append(leaf_digest(held))
        if total != wanted or tree_digest(total, leaves) != reference["digest"]:
            raise ChecksumError(
                "a stored file differs from its digest",
                file=path,
                got=f"{total} bytes",
                wanted=f"{wanted} bytes",
            )

    def blob(self, reference: dict[str, object], limit: int) -> bytes:
        """A blob's original bytes; StoreError, before they are read, if there are more than ``limit``."""
        if (nbytes := int(str(reference["nbytes"]))) > limit:
            path = self.locate(str(reference["object"]), "zst")
            raise StoreError(
                "a stored file is too large to be read whole",
                file=path,
                got=nbytes,
                wanted=f"at most {limit}",
            )
        return b"".join(self.blob_pieces(reference))

    def files(self) -> list[Path]:
        """Every file below the folder, sorted."""
        return (
            sorted(path for path in self.path.rglob("*") if not path.is_dir()) if self.path.is_dir() else []
        )


def _compressor(nbytes: int) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=9 if nbytes < _LARGE_BLOB else 3)


def file_digest(path: Path, threads: int = 1) -> tuple[str, int]:
    """``(tree digest, size)`` of a file, read piece by piece."""
    scratch = Scratch()
    with SourceFile(path) as file:

        def digest_leaf(piece: tuple[int, int]) -> bytes:
            offset, length = piece
            buffer = scratch.buffer("leaf", length)
            file.read_into(offset, buffer)
            return leaf_digest(buffer)

        leaves = ordered_map(digest_leaf, leaf_ranges(file.size), threads=threads)
        return tree_digest(file.size, leaves), file.size
