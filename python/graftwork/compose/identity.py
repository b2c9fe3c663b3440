"""What a tensor is, by its bytes: the order of donors and the random numbers of a merge follow from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graftwork.checkpoint.digest import LEAF_BYTES, tree_digest
from graftwork.delta.pipeline import for_each
from graftwork.delta.survival import keyed
from graftwork.ops.digest import sha256

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["content_digest", "donor_key"]

_DOMAIN = b"graftwork-compose-donor-1"
_LEAVES = 8  # hashed by one call: the native code takes two at a time


def content_digest(tensor: Tensor, threads: int = 1) -> str:
    """The digest of a contiguous CPU tensor's bytes, as a store and a checkpoint's description have it."""
    import torch

    flat = tensor.detach().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
    starts = range(0, len(data), _LEAVES * LEAF_BYTES)
    leaves: list[Sequence[bytes]] = [()] * len(starts)

    def hash_batch(number: int) -> None:
        end = min(len(data), starts[number] + _LEAVES * LEAF_BYTES)
        pieces = range(starts[number], end, LEAF_BYTES)
        leaves[number] = sha256([data[at : min(at + LEAF_BYTES, end)] for at in pieces])

    for_each(hash_batch, len(starts), threads=threads)
    return tree_digest(len(data), [leaf for batch in leaves for leaf in batch])


def donor_key(seed: int, name: str, digest: str, number: int) -> tuple[int, int]:
    """The Philox key of a donor's tensor: from the seed, the tensor's name and the donor's content.

    ``number`` tells donors of equal content apart.
    """
    return keyed(_DOMAIN, seed, name.encode(), bytes.fromhex(digest), number.to_bytes(4, "little"))
