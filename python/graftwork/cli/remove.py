"""``graftwork remove``."""

from __future__ import annotations

from graftwork.cli.options import Json, Name, Quiet, Store
from graftwork.cli.terminal import print_result


def remove(store: Store, name: Name, as_json: Json = False, quiet: Quiet = False) -> None:
    """Take an entry out of a store; [bold]graftwork gc[/bold] then frees its space.

    An entry that others were packed against stays until they are squashed or removed.

    \b
    [bold]Example[/bold]
      graftwork remove store/ chat
    """
    from graftwork.report.tables import remove_table
    from graftwork.store import open_store

    with open_store(store) as opened:
        opened.remove(name)
    print_result({"removed": name}, lambda: remove_table(name), as_json=as_json, quiet=quiet)
