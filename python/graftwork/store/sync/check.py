"""Make a chunk's words from those that are there, and make sure that they are the right ones."""

from __future__ import annotations

from collections.abc import Sequence

from graftwork.checkpoint.digest import leaf_digest
from graftwork.delta.pipeline import Scratch
from graftwork.delta.source import TensorSource, read_piece
from graftwork.errors import BaseMismatch
from graftwork.store.sync.inplace import LeafWork, restore_leaves
from graftwork.store.sync.payload import Leaf, SyncPayload


class LeafChecker:
    """Restores chunks of a payload from a source of the weights before it; one instance serves all threads."""

    def __init__(self, source: TensorSource, payload: SyncPayload, where: str) -> None:
        self._source = source
        self._payload = payload
        self._where = where
        self._scratch = Scratch()

    def restore(self, leaves: Sequence[tuple[str, Leaf]]) -> list[memoryview]:
        """The chunks after the payload, checked; each with the name of its tensor in the source.

        The views are valid until this thread's next call, and must not be written to.
        """
        from graftwork.ops.digest import sha256

        lengths, buffers = [leaf.length for _, leaf in leaves], self._scratch.buffers
        befores, afters = buffers("before", lengths), buffers("after", lengths)
        payloads = buffers("payload", [leaf.chunk.length for _, leaf in leaves])
        work = []
        for (held, leaf), before, payload, after in zip(leaves, befores, payloads, afters, strict=True):
            there = read_piece(self._source, held, leaf.offset, before)
            made = after if leaf.changes else there
            work.append(LeafWork(leaf, there, self._payload.read(leaf, payload), made))
        restore_leaves(work)
        digests = sha256([one.after for one in work])
        for (held, leaf), one, digest in zip(leaves, work, digests, strict=True):
            if digest != leaf.chunk.leaf:
                self._refuse(held, leaf, one.before)
        return [one.after for one in work]

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
