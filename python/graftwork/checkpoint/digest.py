"""Digests of byte ranges that several threads can compute, and check, piece by piece.

A *leaf* is the SHA-256 of up to ``LEAF_BYTES`` (1 MiB) of a range; the range's digest is the SHA-256 of
``b"graftwork-tree-1"``, the range's length as eight little-endian bytes, and its leaves in order. Leaves are
independent, so a large tensor is hashed on every core and a part of it can be checked alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

LEAF_BYTES = 1 << 20
_DOMAIN = b"graftwork-tree-1"


def leaf_digest(data: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 (32 bytes) of one leaf: at most ``LEAF_BYTES`` of contiguous data."""
    return hashlib.sha256(data).digest()


def tree_digest(nbytes: int, leaves: Iterable[bytes]) -> str:
    """Digest (64 hex characters) of a range of ``nbytes`` bytes from the digests of its leaves, in order."""
    root = hashlib.sha256(_DOMAIN + nbytes.to_bytes(8, "little"))
    for leaf in leaves:
        root.update(leaf)
    return root.hexdigest()


def bytes_digest(data: bytes | bytearray | memoryview) -> str:
    """Digest (64 hex characters) of a byte range that is in memory."""
    view = memoryview(data).cast("B")
    leaves = (leaf_digest(view[start : start + LEAF_BYTES]) for start in range(0, len(view), LEAF_BYTES))
    return tree_digest(len(view), leaves)
