"""How verbs talk: results on standard output, errors and progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["print_error", "print_result", "print_warning", "progress_bar"]

Progress = Callable[[str, int, int], None]
MIN_WIDTH = 100


def print_error(error: Exception | str) -> None:
    """Print an error as people read it, without a traceback."""
    from rich.console import Console
    from rich.text import Text

    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a Python warning as a note of one line; takes the place of ``warnings.showwarning``."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("note: ", "bold"), str(message)))


def print_result(
    result: dict[str, Any], table: Callable[[], RenderableType], *, as_json: bool = False, quiet: bool = False
) -> None:
    """Print ``result`` as JSON, or else its ``table``, or nothing."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    elif not quiet:
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=max(console.width, MIN_WIDTH))
        console.print(table())


@contextmanager
def progress_bar(quiet: bool, *, steps: bool = False) -> Iterator[Progress | None]:
    """A callback that draws one bar a stage (bytes and rate, or steps; time left); None if no one is watching."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    counts = (
        (MofNCompleteColumn(), TimeElapsedColumn()) if steps else (DownloadColumn(), TransferSpeedColumn())
    )
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show
