"""An entry's files: their layout and bytes, apart from the tensors that some of them hold."""

from __future__ import annotations

from graftwork.checkpoint.digest import bytes_digest, leaf_digest, tree_digest
from graftwork.store.entry import StoredFile, content_digest
from graftwork.store.objects import ObjectFolder
from graftwork.store.stored import Readable, StoredCheckpoint


def store_files(objects: ObjectFolder, checkpoint: Readable) -> tuple[StoredFile, ...]:
    """Store every file's bytes, of files with tensors their headers only; the layout, sorted by path."""
    if isinstance(checkpoint, StoredCheckpoint):
        for file in checkpoint.entry.files:
            objects.copy(checkpoint.store.objects, str(file.blob["object"]), "zst")
        return checkpoint.entry.files
    stored = []
    for path, header in checkpoint.headers.items():
        stored.append(StoredFile(path, checkpoint.file_size(path), True, objects.put_blob_bytes(header.raw)))
    for path in checkpoint.other_files:
        nbytes = checkpoint.file_size(path)
        blob = objects.put_blob(checkpoint.file_pieces(path), nbytes)
        stored.append(StoredFile(path, nbytes, False, blob))
    return tuple(sorted(stored, key=lambda file: file.path))


def checkpoint_content(checkpoint: Readable, tensors_digest: str) -> str:
    """The content digest that the checkpoint's entry would have, without storing anything."""
    if isinstance(checkpoint, StoredCheckpoint):
        return checkpoint.entry.content
    rows = []
    for path, header in checkpoint.headers.items():
        rows.append((path, checkpoint.file_size(path), True, bytes_digest(header.raw)))
    for path in checkpoint.other_files:
        nbytes = checkpoint.file_size(path)
        digest = tree_digest(nbytes, map(leaf_digest, checkpoint.file_pieces(path)))
        rows.append((path, nbytes, False, digest))
    return content_digest(sorted(rows), tensors_digest)
