"""Apply a payload to weights in memory: all of it, or nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from graftwork.delta.pipeline import Scratch, copy_bytes, default_threads, for_each, in_batches
from graftwork.delta.tensor_memory import check_apart
from graftwork.delta.weights import StateSource, StateWeights, state_weights
from graftwork.errors import DeltaError
from graftwork.store.sync.check import LeafChecker
from graftwork.store.sync.inplace import LeafWork, apply_leaf, apply_sparse_leaves, is_sparse, refuse_from
from graftwork.store.sync.match import match_target
from graftwork.store.sync.payload import Leaf, Payload, SyncPayload, SyncReport
from graftwork.store.sync.shield import run_shielded

if TYPE_CHECKING:
    from torch import Tensor, nn

Check = Literal["all", "changed"]

T = TypeVar("T")

# Bytes of chunks that a thread takes at a time, since each time that it comes back it waits for the interpreter's lock:
_CHECKED_BYTES = 2 << 20
_DIRECT_BYTES = 8 << 20


def apply_(
    target: Mapping[str, Tensor] | nn.Module | str | os.PathLike[str],
    payload: Payload,
    *,
    expect_parent: str | None = None,
    check: Check = "all",
    threads: int | None = None,
) -> SyncReport:
    """Turn the weights that a payload was made against into those that it was made from, in place.

    First everything is checked and nothing is touched: the payload, the names, dtypes and shapes of the target,
    and the SHA-256 of every chunk that the payload makes of the target's words. Then the words are changed. If
    that fails or is interrupted, what was changed is changed back, exactly: the target is what it was. Extra
    memory is a few MiB a thread.

    Parameters
    ----------
    target : mapping of str to Tensor, Module or path
        What to change: a state dict, a module, or a checkpoint (a folder or a ``.safetensors`` file; the new
        files take their place when they are complete). Tensors may be on any device and in any layout, and
        stay the same objects. Nobody else may write to them meanwhile.
    payload : bytes-like or path
        What `encode` made, or a file that holds it.
    expect_parent : str, optional
        The version that the target has; a payload that says it follows another is refused.
    check : {"all", "changed"}
        Whether the chunks that the payload leaves as they are must have their digest too. "changed" does not
        read them, and so does not notice that they are not what the payload was made against.
    threads : int, optional
        Threads to use; all processors by default.

    Returns
    -------
    SyncReport
        What changed. ``digest`` identifies the weights that the target holds now (with ``check="all"``).

    Raises
    ------
    BaseMismatch
        The target is not what the payload was made against, or holds what it leads to already.
    DeltaError
        The payload is malformed; `ChecksumError` if it is damaged.
    CheckpointError, TypeError, ValueError
        The target cannot be written to, or an argument is not as above.

    Examples
    --------
    >>> import torch
    >>> from graftwork.store.sync import apply_, encode
    >>> sampler = {"w": torch.ones(1000, dtype=torch.bfloat16)}
    >>> trainer = {"w": torch.ones(1000, dtype=torch.bfloat16)}
    >>> trainer["w"][7] = 1.5
    >>> payload = encode(sampler, trainer, version="1", parent="0")
    >>> apply_(sampler, payload, expect_parent="0").version
    '1'
    >>> torch.equal(sampler["w"], trainer["w"])
    True
    """
    if check not in ("all", "changed"):
        raise ValueError(f"check must be 'all' or 'changed', got {check!r}")
    threads = threads or default_threads()
    with SyncPayload(payload) as opened:
        opened.check_parent(expect_parent)
        if isinstance(target, str | os.PathLike):
            from graftwork.store.sync.folder import apply_to_checkpoint

            apply_to_checkpoint(target, opened, check=check, threads=threads)
        else:
            _apply_to_state(state_weights(target, "target"), opened, check=check, threads=threads)
        return opened.report()


def _apply_to_state(weights: StateWeights, payload: SyncPayload, *, check: Check, threads: int) -> None:
    import torch

    source = weights.source
    remedy = "give a mapping that names such memory once"
    check_apart(list(source.tensors.items()), weights.what, remedy=remedy)
    places = [
        Place(held, leaf, writes)
        for record, held, writes in match_target(weights, payload)
        for leaf in payload.leaves(record)
        if leaf.changes or check == "all"
    ]
    Transaction(source, places, payload, threads).run()
    changed = {place.held for place in places if place.leaf.changes}
    torch.autograd.graph.increment_version([source.tensors[name] for name in changed])


class Place(NamedTuple):
    """A chunk, and the tensor that it belongs to; ``writes`` is as in `Target`."""

    held: str
    leaf: Leaf
    writes: bool


def _length(place: Place) -> int:
    return place.leaf.length


class Transaction:
    """Checks all places, then changes their words; after a failure it changes back what it changed."""

    def __init__(
        self, source: StateSource, places: Sequence[Place], payload: SyncPayload, threads: int
    ) -> None:
        self._memories = source.memories
        self._checker = LeafChecker(source, payload, "target")
        self._places = places
        changing = [place for place in places if place.writes and place.leaf.changes]
        where = [self._direct_view(place) is not None for place in changing]
        self._direct = sum(where)
        self._changing = [*compress(changing, where), *compress(changing, map(not_, where))]
        self._changed = bytearray(len(changing))
        self._payload = payload
        self._threads = threads
        self._scratch = Scratch()
        self._stop = threading.Event()

    def run(self) -> None:
        """Do it. Whatever is raised, the target is as it was."""
        try:
            run_shielded(self._check_and_change, self._stop)
        except BaseException:
            if any(self._changed):  # the interrupt came when all was done
                run_shielded(self._change_back, threading.Event())
            raise

    def _check_and_change(self) -> None:
        numbers = range(len(self._changing))
        try:
            self._each(self._check, list(in_batches(self._places, _length, _CHECKED_BYTES)))
            direct = in_batches(numbers[: self._direct], self._length_of, _DIRECT_BYTES)
            self._each(self._change_directly, list(direct))
            self._each(self._change, numbers[self._direct :])
        except BaseException:
            self._change_back()
            raise

    def _each(self, function: Callable[[T], None], items: Sequence[T]) -> None:
        """Call ``function`` with every item, on all threads, until one fails."""

        def run(number: int) -> None:
            if self._stop.is_set():
                raise InterruptedError("the caller was interrupted")
            function(items[number])

        for_each(run, len(items), threads=self._threads)

    def _length_of(self, number: int) -> int:
        return self._changing[number].leaf.length

    def _direct_view(self, place: Place) -> memoryview | None:
        """A chunk's words, if they can be changed where they lie without a copy: all at once, or not at all."""
        if not is_sparse(place.leaf):
            return None
        return self._memories[place.held].view(place.leaf.offset, place.leaf.length)

    def _check(self, places: Sequence[Place]) -> None:
        self._checker.restore([(place.held, place.leaf) for place in places])

    def _change_directly(self, numbers: Sequence[int]) -> None:
        leaves = [self._changing[number].leaf for number in numbers]
        payloads = self._scratch.buffers("payload", [leaf.chunk.length for leaf in leaves])
        work = [
            LeafWork(leaf, words, self._payload.read(leaf, payload), words)
            for number, leaf, payload in zip(numbers, leaves, payloads, strict=True)
            if (words := self._direct_view(self._changing[number])) is not None
        ]
        whole = apply_sparse_leaves(work)
        self._changed[numbers[0] : numbers[0] + whole] = b"\1" * whole
        refuse_from(work, whole)

    def _change(self, number: int) -> None:
        held, leaf, _ = self._changing[number]
        memory = self._memories[held]
        payload = self._payload.read(leaf, self._scratch.buffer("payload", leaf.chunk.length))
        before, after = self._scratch.buffers("before, after", [leaf.length, leaf.length])
        memory.read_into(leaf.offset, before)
        copy_bytes(before, after)
        apply_leaf(leaf, after, payload)
        try:
            memory.write(leaf.offset, after)
            self._changed[number] = 1
        except BaseException:
            memory.write(leaf.offset, before)
            raise

    def _change_back(self) -> None:
        """Undo all changes that were made whole: the words before follow from the words after and the payload."""
        lost = []
        for number in [number for number, changed in enumerate(self._changed) if changed]:
            held, leaf, _ = self._changing[number]
            words = self._scratch.buffer("before", leaf.length)
            self._memories[held].read_into(leaf.offset, words)
            try:
                payload = self._payload.read(leaf, self._scratch.buffer("payload", leaf.chunk.length))
                apply_leaf(leaf, words, payload, reverse=True)
                self._memories[held].write(leaf.offset, words)
                self._changed[number] = 0
            except Exception as error:  # noqa: BLE001 - the others are undone all the same
                lost.append((held, error))
        if lost:
            raise DeltaError(
                "a failed sync could not be undone: the target is neither the old version nor the new one",
                file="target",
                tensor=lost[0][0],
                got=f"{len(lost)} of {len(self._changing)} chunks; {lost[0][1]!r}",
                remedy="load the weights whole",
            ) from lost[0][1]
