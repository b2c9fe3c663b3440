"""``graftwork list``."""

from __future__ import annotations

from graftwork.cli.options import Json, Quiet, Store
from graftwork.cli.terminal import print_result


def list_(store: Store, as_json: Json = False, quiet: Quiet = False) -> None:
    """List what a store holds, with sizes and digests.

    \b
    [bold]Examples[/bold]
      graftwork list store/
      graftwork list store/ --json
    """
    from graftwork.report.tables import list_table
    from graftwork.store import open_store

    with open_store(store) as opened:
        entries = opened.entries()
        result = {
            "base_digest": opened.base_digest,
            "holds_base": opened.holds_base,
            "entries": [entry.to_dict() for entry in entries],
        }
        table = list_table(entries, opened.base_digest, opened.holds_base)
    print_result(result, lambda: table, as_json=as_json, quiet=quiet)
