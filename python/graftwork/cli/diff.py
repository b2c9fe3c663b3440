"""``graftwork diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graftwork.cli.options import Json, Quiet, Report, StoreBase, Threads
from graftwork.cli.terminal import print_result, progress_bar


def diff(
    base: Annotated[
        Path, typer.Argument(metavar="A", help="The base model: DIR, or STORE:NAME.", show_default=False)
    ],
    tuned: Annotated[
        Path, typer.Argument(metavar="B", help="The fine-tune: DIR, or STORE:NAME.", show_default=False)
    ],
    store_base: StoreBase = None,
    threads: Threads = None,
    report: Report = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a fine-tune changed, and whether saving it in bf16 or fp16 would lose that.

    Exits with 0 if all tensors and other files are equal, with 1 if any differ.

    \b
    [bold]Examples[/bold]
      graftwork diff base/ runs/chat
      graftwork diff base/ runs/chat --report chat.html
      graftwork diff a.safetensors b.safetensors --json
      graftwork diff store:chat store:chat-2 --base base/
    """
    from graftwork import store
    from graftwork.report.tables import diff_table

    with progress_bar(quiet or as_json) as progress:
        result = store.diff(base, tuned, store_base=store_base, threads=threads, progress=progress)
    if report is not None:
        from graftwork.report import write_report

        write_report(report, title=f"{base.name} and {tuned.name}", diffs={tuned.name: result})
    print_result(result.to_dict(), lambda: diff_table(result), as_json=as_json, quiet=quiet)
    raise typer.Exit(0 if result.identical else 1)
