"""Finish what must not be left half done, although the caller is interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable

_NOTICE_SECONDS = 0.1  # a signal that comes just before a thread goes to sleep does not wake it


def run_shielded(work: Callable[[], None], stop: threading.Event) -> None:
    """Run ``work`` to its end in a thread of its own, where no signal handler raises.

    An exception that reaches the caller meanwhile, such as ``KeyboardInterrupt``, sets ``stop`` and is raised
    when ``work`` has ended, and not before. Otherwise what ``work`` raises is raised here.
    """
    faults: list[BaseException] = []
    begin, ended = threading.Event(), threading.Event()

    def run() -> None:
        begin.wait()
        try:
            if not stop.is_set():
                work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            faults.append(error)
        finally:
            ended.set()

    interrupt: BaseException | None = None
    thread = threading.Thread(target=run, name="graftwork-sync", daemon=True)
    try:
        thread.start()
    except BaseException:  # perhaps it did start: it must not begin
        stop.set()
        begin.set()
        raise
    while not ended.is_set():
        try:
            begin.set()
            ended.wait(_NOTICE_SECONDS)
        except BaseException as error:  # noqa: BLE001 - kept until the work has ended
            stop.set()
            interrupt = error
    if interrupt is not None:
        raise interrupt
    if faults:
        try:
            raise faults[0]
        finally:
            faults.clear()  # which would keep its own frames, and with them the weights, alive
