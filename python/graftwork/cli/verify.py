"""``graftwork verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from graftwork.cli.options import Base, Json, Quiet, Store
from graftwork.cli.terminal import print_result, progress_bar


def verify(
    store: Store,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte, and restore every tensor whose base is at hand.")
    ] = False,
    base: Base = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a store is whole and that its bytes are what they were.

    Exits with 0 if it is intact, with 1 if anything differs.

    \b
    [bold]Examples[/bold]
      graftwork verify store/
      graftwork verify store/ --deep --base base/
    """
    from graftwork.report.tables import verify_table
    from graftwork.store import open_store

    with open_store(store, base=base) as opened, progress_bar(quiet or as_json) as progress:
        result = opened.verify(deep, progress=progress)
    print_result(result.to_dict(), lambda: verify_table(result), as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if result.ok else 1)
