"""``graftwork gc``."""

from __future__ import annotations

from graftwork.cli.options import Json, Quiet, Store
from graftwork.cli.terminal import print_result


def gc(store: Store, as_json: Json = False, quiet: Quiet = False) -> None:
    """Free the space of what no entry of a store refers to any more.

    \b
    [bold]Example[/bold]
      graftwork gc store/
    """
    from graftwork.report.tables import gc_table
    from graftwork.store import open_store

    with open_store(store) as opened:
        result = opened.gc()
    print_result(result.to_dict(), lambda: gc_table(result), as_json=as_json, quiet=quiet)
