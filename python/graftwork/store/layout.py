"""An entry's files: their layout and bytes, apart from the tensors that some of them hold."""

from __future__ import annotations

from graftwork.checkpoint import Checkpoint
from graftwork.checkpoint.digest import bytes_digest
from graftwork.store.entry import StoredFile, content_digest
from graftwork.store.objects import ObjectFolder, file_digest


def store_files(objects: ObjectFolder, checkpoint: Checkpoint) -> tuple[tuple[StoredFile, ...], int]:
    """Store every file's bytes, of files with tensors their headers only; ``(layout, bytes added)``."""
    stored, total = [], 0
    for path, header in checkpoint.headers.items():
        nbytes = header.data_start + sum(tensor.nbytes for tensor in header.tensors)
        blob, added = objects.put_blob_bytes(header.raw)
        stored.append(StoredFile(path, nbytes, True, blob))
        total += added
    for path in checkpoint.other_files:
        blob, added = objects.put_blob(checkpoint.root / path)
        stored.append(StoredFile(path, int(str(blob["nbytes"])), False, blob))
        total += added
    return tuple(sorted(stored, key=lambda file: file.path)), total


def checkpoint_content(checkpoint: Checkpoint, tensors_digest: str) -> str:
    """The content digest that the checkpoint's entry would have, without storing anything."""
    rows = []
    for path, header in checkpoint.headers.items():
        nbytes = header.data_start + sum(tensor.nbytes for tensor in header.tensors)
        rows.append((path, nbytes, True, bytes_digest(header.raw)))
    for path in checkpoint.other_files:
        digest, nbytes = file_digest(checkpoint.root / path)
        rows.append((path, nbytes, False, digest))
    return content_digest(sorted(rows), tensors_digest)
