"""Make a chunk's words from those that are there, and make sure that they are the right ones."""

from __future__ import annotations

from graftwork.checkpoint.digest import leaf_digest
from graftwork.delta.pipeline import Scratch
from graftwork.delta.source import TensorSource, read_piece
from graftwork.errors import BaseMismatch
from graftwork.store.sync.inplace import restore_leaf
from graftwork.store.sync.payload import Leaf, SyncPayload


class LeafChecker:
    """Restores chunks of a payload from a source of the weights before it; one instance serves all threads."""

    def __init__(self, source: TensorSource, payload: SyncPayload, where: str) -> None:
        self._source = source
        self._payload = payload
        self._where = where
        self._scratch = Scratch()

    def restore(self, held: str, leaf: Leaf) -> memoryview:
        """The chunk after the payload, checked; ``held`` is the tensor's name in the source.

        The view is valid until this thread's next call, and must not be written to.
        """
        before = read_piece(self._source, held, leaf.offset, self._scratch.buffer("before", leaf.length))
        payload = self._payload.delta.payload(leaf.record.name, leaf.number)
        after = before
        if leaf.changes:
            after = self._scratch.buffer("after", leaf.length)
        restore_leaf(leaf, before, payload, after)
        if leaf_digest(after) != leaf.chunk.leaf:
            self._refuse(held, leaf, before)
        return after

    def _refuse(self, held: str, leaf: Leaf, before: memoryview) -> None:
        applied = leaf.changes and leaf_digest(before) == leaf.chunk.leaf
        raise BaseMismatch(
            "the payload has been applied already"
            if applied
            else "the target is not what the payload was made against",
            file=self._where,
            tensor=held,
            got=f"chunk {leaf.number} " + ("is as it is after the payload" if applied else "has other words"),
            wanted=f"the version before {self._payload.version!r}"
            + ("" if self._payload.parent is None else f", which is {self._payload.parent!r}"),
            remedy="apply the payloads in order, each once; if one is lost, send the weights whole",
        )
