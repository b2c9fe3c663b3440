"""Whatever fails while a payload is applied, the target is afterwards what it was before, bit for bit."""

from __future__ import annotations

import signal
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from graftwork.errors import DeltaError
from graftwork.store.sync import apply, apply_, encode
from graftwork.store.sync.inplace import LeafWork
from graftwork.store.sync.payload import Leaf
from graftwork.store.sync.shield import run_shielded
from tests.checkpoint.faults import Fault
from tests.generators.checkpoints import random_tensor
from tests.store.sync_cases import CHUNK, State, bits, cloned, stepped

When = str
MOMENTS = ("before", "midway", "after")


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, in a background job too, where a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def state() -> State:
    """Tensors of several chunks, of one and of few bytes, and one with strides."""
    return {
        "bf16": random_tensor((CHUNK + 70,), torch.bfloat16, 1),
        "fp32": random_tensor((33,), torch.float32, 2),
        "turned": random_tensor((700, 900), torch.float16, 3).mT.contiguous().mT,
        "int8": random_tensor((CHUNK + 999,), torch.int8, 4),
        "fp8": random_tensor((999,), torch.float8_e4m3fn, 5),
        "int64": random_tensor((40,), torch.int64, 6),
    }


@pytest.fixture(scope="module")
def world() -> tuple[State, State, bytes]:
    previous = state()
    current = stepped(previous)
    return previous, current, encode(previous, current)


def fail_at(
    monkeypatch: pytest.MonkeyPatch, count: int, when: When, act: Callable[[], object]
) -> list[tuple[str, int, bool]]:
    """Act at the ``count``-th change of a chunk on a copy of its words; what was called is in the list."""
    inner, lock = apply.apply_leaf, threading.Lock()
    calls: list[tuple[str, int, bool]] = []

    def apply_leaf(leaf: Leaf, chunk: memoryview, payload: memoryview, *, reverse: bool = False) -> None:
        with lock:
            calls.append((leaf.record.name, leaf.number, reverse))
            hit = not reverse and sum(not back for *_, back in calls) == count + 1
        if hit and when == "before":
            act()
        inner(leaf, chunk, payload, reverse=reverse)
        if hit and when == "midway":
            chunk[len(chunk) // 2 :] = bytes(len(chunk) - len(chunk) // 2)
        if hit and when != "before":
            act()

    monkeypatch.setattr(apply, "apply_leaf", apply_leaf)
    return calls


def raise_(error: BaseException) -> None:
    raise error


def number_of_changes(world: tuple[State, State, bytes], monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        calls = fail_at(patch, -1, "before", lambda: None)
        apply_(cloned(world[0]), world[2], threads=1)
    return len(calls)


DIRECT = 2  # chunks of `state` that are changed where they lie, before all others


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("when", MOMENTS)
@pytest.mark.parametrize("error", [Fault, KeyboardInterrupt, MemoryError, SystemExit])
def test_a_failure_at_any_chunk(
    world: tuple[State, State, bytes],
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    when: When,
    error: type[BaseException],
) -> None:
    previous, current, payload = world
    target = cloned(previous)
    changes = number_of_changes(world, monkeypatch)
    assert changes == 10 - DIRECT
    for count in range(changes):
        with monkeypatch.context() as patch:
            calls = fail_at(patch, count, when, lambda: raise_(error("injected")))
            with pytest.raises(error, match="injected"):
                apply_(target, payload, threads=threads)
        assert bits(target) == bits(previous)
        undone = sum(back for *_, back in calls)
        assert undone == DIRECT + len(calls) - undone - 1, (
            "every change but the one that failed is undone once"
        )
        assert threads > 1 or undone == DIRECT + count
    apply_(target, payload, threads=threads)
    assert bits(target) == bits(current)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 8 * CHUNK])
@pytest.mark.parametrize("count", range(DIRECT))
def test_a_failure_where_chunks_are_changed_where_they_lie(
    world: tuple[State, State, bytes], monkeypatch: pytest.MonkeyPatch, count: int, batch: int, threads: int
) -> None:
    """As when the payload is changed by somebody after it was checked: the chunks before the fault are taken back."""
    previous, _, payload = world
    target, inner, done = cloned(previous), apply.apply_sparse_leaves, [0]
    lock = threading.Lock()

    def apply_sparse_leaves(work: Sequence[LeafWork]) -> int:
        with lock:
            whole = inner(work[: max(0, count - done[0])])
            done[0] += whole
        assert whole == 0 or bits(target) != bits(previous)
        return whole

    monkeypatch.setattr(apply, "apply_sparse_leaves", apply_sparse_leaves)
    monkeypatch.setattr(apply, "_DIRECT_BYTES", batch)
    with pytest.raises(DeltaError, match="malformed"):
        apply_(target, payload, threads=threads)
    assert done == [count]
    assert bits(target) == bits(previous)


def test_a_failure_of_writing_back_a_strided_chunk(
    world: tuple[State, State, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftwork.delta.tensor_memory import TensorMemory

    previous, _, payload = world
    target, inner = cloned(previous), TensorMemory.write
    calls = iter(range(100))

    def write(self: TensorMemory, offset: int, data: memoryview) -> None:
        if next(calls) == 1:
            inner(self, offset, data[: len(data) // 2])
            raise Fault("injected")
        inner(self, offset, data)

    monkeypatch.setattr(TensorMemory, "write", write)
    with pytest.raises(Fault):
        apply_(target, payload, threads=1)
    assert bits(target) == bits(previous)


def interrupt_main(stop: threading.Event) -> None:
    """Ctrl-C, as the main thread gets it, and wait until it is noticed."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    assert stop.wait(30)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[threading.Event]:
    """The events by which running transactions are stopped."""
    events: list[threading.Event] = []

    def shielded(work: Callable[[], None], stop: threading.Event) -> None:
        events.append(stop)
        run_shielded(work, stop)

    monkeypatch.setattr(apply, "run_shielded", shielded)
    return events


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_from_the_keyboard(
    world: tuple[State, State, bytes],
    monkeypatch: pytest.MonkeyPatch,
    stops: list[threading.Event],
    threads: int,
) -> None:
    previous, _, payload = world
    target = cloned(previous)
    for count in range(number_of_changes(world, monkeypatch)):
        with monkeypatch.context() as patch:
            fail_at(patch, count, "after", lambda: interrupt_main(stops[-1]))
            with pytest.raises(KeyboardInterrupt):
                apply_(target, payload, threads=threads)
        assert bits(target) == bits(previous)


def test_an_interrupt_while_it_is_checked(
    world: tuple[State, State, bytes], monkeypatch: pytest.MonkeyPatch, stops: list[threading.Event]
) -> None:
    from graftwork.store.sync.check import LeafChecker

    previous, _, payload = world
    target, inner = cloned(previous), LeafChecker.restore

    def restore(self: LeafChecker, leaves: Sequence[tuple[str, Leaf]]) -> list[memoryview]:
        interrupt_main(stops[-1])
        return inner(self, leaves)

    monkeypatch.setattr(LeafChecker, "restore", restore)
    with pytest.raises(KeyboardInterrupt):
        apply_(target, payload, threads=2)
    assert bits(target) == bits(previous)


def test_an_interrupt_after_the_last_chunk(
    world: tuple[State, State, bytes], monkeypatch: pytest.MonkeyPatch, stops: list[threading.Event]
) -> None:
    previous, current, payload = world
    target, inner = cloned(previous), apply.Transaction._check_and_change

    def late(self: apply.Transaction) -> None:
        inner(self)
        assert bits(target) == bits(current)
        interrupt_main(stops[-1])

    monkeypatch.setattr(apply.Transaction, "_check_and_change", late)
    with pytest.raises(KeyboardInterrupt):
        apply_(target, payload)
    assert bits(target) == bits(previous)


def test_a_shielded_run_is_waited_for() -> None:
    stop, done = threading.Event(), []

    def work() -> None:
        interrupt_main(stop)
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        run_shielded(work, stop)
    assert done
    with pytest.raises(Fault):
        run_shielded(lambda: raise_(Fault()), threading.Event())


def test_what_cannot_be_undone_is_said(
    world: tuple[State, State, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    previous, _, payload = world
    target = cloned(previous)
    calls = fail_at(monkeypatch, 3, "before", lambda: raise_(Fault("injected")))
    inner = apply.apply_leaf

    def apply_leaf(leaf: Leaf, chunk: memoryview, payload: memoryview, *, reverse: bool = False) -> None:
        if reverse and leaf.record.name == "bf16" and leaf.number == 1:
            raise Fault("no way back")
        inner(leaf, chunk, payload, reverse=reverse)

    monkeypatch.setattr(apply, "apply_leaf", apply_leaf)
    with pytest.raises(DeltaError, match="could not be undone") as caught:
        apply_(target, payload, threads=1)
    assert caught.value.tensor == "bf16" and "1 of 10" in str(caught.value.got)
    assert len([back for *_, back in calls if back]) >= 2, "the others are undone all the same"
    now, before = bits(target), bits(previous)
    assert [name for name in now if now[name] != before[name]] == ["bf16"]
    assert now["bf16"][: 1 << 20] == before["bf16"][: 1 << 20]


def test_memory_does_not_grow_with_the_model() -> None:
    peaks = []
    for chunks in (4, 24):
        previous = {"w": torch.zeros(chunks * CHUNK // 2, dtype=torch.bfloat16)}
        payload = encode(previous, stepped(previous))
        tracemalloc.start()
        apply_(previous, payload, threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < CHUNK / 4
