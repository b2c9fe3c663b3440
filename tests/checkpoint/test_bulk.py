from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from graftwork.checkpoint.bulk import makes_many_objects


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


@makes_many_objects
def enabled(nested: bool = False) -> list[bool]:
    return [gc.isenabled(), *(enabled() if nested else []), gc.isenabled()]


@makes_many_objects
def fail() -> None:
    raise KeyError


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_off_inside_and_as_before_after(before: bool) -> None:
    if not before:
        gc.disable()
    assert enabled(nested=True) == [False] * 4
    assert gc.isenabled() is before
    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled() is before


def test_it_is_off_until_the_last_thread_is_done() -> None:
    begun, leave = threading.Event(), threading.Event()

    @makes_many_objects
    def wait() -> None:
        begun.set()
        leave.wait(10)

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(10)
    enabled()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
