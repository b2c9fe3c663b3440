"""The options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Store = Annotated[Path, typer.Argument(metavar="STORE", help="The store's folder.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The entry's name.", show_default=False)]
Base = Annotated[
    Path | None,
    typer.Option(
        "--base", metavar="DIR", help="The base model, unless the store holds it.", show_default=False
    ),
]
StoreBase = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="DIR",
        help="With STORE:NAME: the base of that store, unless it holds it.",
        show_default=False,
    ),
]
Codec = Annotated[
    Literal["auto", "fast", "small"] | None,
    typer.Option("--codec", help="How hard to try (default: auto).", show_default=False),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, metavar="N", help="Worker threads (default: all processors).", show_default=False
    ),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE.html", help="Also write an HTML report.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and no progress.")]
