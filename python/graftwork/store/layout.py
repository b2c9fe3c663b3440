"""An entry's files: their layout and bytes, apart from the tensors that some of them hold."""

from __future__ import annotations

from graftwork.checkpoint import Checkpoint
from graftwork.checkpoint.digest import bytes_digest
from graftwork.store.entry import StoredFile, content_digest
from graftwork.store.objects import ObjectFolder, file_digest


def store_files(objects: ObjectFolder, checkpoint: Checkpoint) -> tuple[StoredFile, ...]:
    """Store every file's bytes, of files with tensors their headers only; the layout, sorted by path."""
    stored = []
    for path, header in checkpoint.headers.items():
        stored.append(StoredFile(path, checkpoint.file_size(path), True, objects.put_blob_bytes(header.raw)))
    for path in checkpoint.other_files:
        blob = objects.put_blob(checkpoint.root / path)
        stored.append(StoredFile(path, checkpoint.file_size(path), False, blob))
    return tuple(sorted(stored, key=lambda file: file.path))


def checkpoint_content(checkpoint: Checkpoint, tensors_digest: str) -> str:
    """The content digest that the checkpoint's entry would have, without storing anything."""
    rows = []
    for path, header in checkpoint.headers.items():
        rows.append((path, checkpoint.file_size(path), True, bytes_digest(header.raw)))
    for path in checkpoint.other_files:
        digest, nbytes = file_digest(checkpoint.root / path)
        rows.append((path, nbytes, False, digest))
    return content_digest(sorted(rows), tensors_digest)
