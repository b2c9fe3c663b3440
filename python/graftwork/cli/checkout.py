"""``graftwork checkout``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graftwork.cli.options import Base, Json, Name, Quiet, Store, Threads
from graftwork.cli.terminal import print_result, progress_bar


def checkout(
    store: Store,
    name: Name,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to make.", show_default=False)
    ],
    base: Base = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Restore a fine-tune: every file of its folder, byte for byte.

    \b
    [bold]Examples[/bold]
      graftwork checkout store/ chat -o chat/ --base base/
      graftwork checkout store/ chat -o chat/                 # a store that holds its base
    """
    from graftwork.report.tables import checkout_table
    from graftwork.store import open_store

    with open_store(store) as opened, progress_bar(quiet or as_json) as progress:
        result = opened.checkout(name, out, base=base, threads=threads, progress=progress)
    print_result(result.to_dict(), lambda: checkout_table(result), as_json=as_json, quiet=quiet)
