"""``graftwork squash``."""

from __future__ import annotations

from graftwork.cli.options import Base, Codec, Json, Name, Quiet, Store, Threads
from graftwork.cli.terminal import print_result, progress_bar


def squash(
    store: Store,
    name: Name,
    base: Base = None,
    codec: Codec = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an entry that was packed against another one a difference to the store's base itself.

    It restores the same files as before, and the entry below it may then be removed. Other entries do not
    change; [bold]graftwork gc[/bold] frees what is not needed any more.

    \b
    [bold]Examples[/bold]
      graftwork squash store/ chat-2 --base base/
      graftwork squash store/ chat-2                          # a store that holds its base
    """
    from graftwork.report.tables import squash_table
    from graftwork.store import open_store

    with open_store(store) as opened, progress_bar(quiet or as_json) as progress:
        result = opened.squash(name, base, codec=codec or "auto", threads=threads, progress=progress)
    print_result(result.to_dict(), lambda: squash_table(result), as_json=as_json, quiet=quiet)
