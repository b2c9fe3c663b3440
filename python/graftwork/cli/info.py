"""``graftwork info``."""

from __future__ import annotations

from graftwork.cli.options import Json, Quiet
from graftwork.cli.terminal import print_result


def info(as_json: Json = False, quiet: Quiet = False) -> None:
    """Print versions, the processor's level, GPUs, and which extras are installed.

    \b
    [bold]Examples[/bold]
      graftwork info
      graftwork info --json
    """
    from graftwork.report.environment import environment
    from graftwork.report.tables import environment_table

    facts = environment()
    print_result(facts, lambda: environment_table(facts), as_json=as_json, quiet=quiet)
