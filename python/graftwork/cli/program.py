"""The program: its verbs, and what happens when one of them fails."""

from __future__ import annotations

import os
import signal
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from graftwork import __version__
from graftwork.cli.adapt import adapt
from graftwork.cli.checkout import checkout
from graftwork.cli.compose import compose
from graftwork.cli.diff import diff
from graftwork.cli.gc import gc
from graftwork.cli.info import info
from graftwork.cli.list import list_
from graftwork.cli.pack import pack
from graftwork.cli.rebase import rebase
from graftwork.cli.remove import remove
from graftwork.cli.squash import squash
from graftwork.cli.terminal import print_error, print_warning
from graftwork.cli.verify import verify
from graftwork.errors import GraftworkError

__all__ = ["app", "main"]

FAILED = 2
INTERRUPTED = 130


class Program(TyperGroup):
    """Turns errors that a user can act on into a clean message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb. ``GRAFTWORK_TRACEBACK=1`` lets errors through with their traceback."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # a reader such as `head` has gone; typer ends quietly
        except (GraftworkError, OSError) as error:
            if os.environ.get("GRAFTWORK_TRACEBACK") == "1":
                raise
            print_error(error)
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as interrupt:
            kept = "finished entries are kept, and nothing half-written stands in their place"
            print_error(str(interrupt) or f"interrupted; {kept}")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Program,
    name="graftwork",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (pack, list_, diff, verify, checkout, compose, rebase, squash, remove, gc, info):
    app.command(verb.__name__.rstrip("_"))(verb)
app.add_typer(adapt, name="adapt")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graftwork {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Store the fine-tunes of one base model as small deltas, and restore them bit for bit.

    \b
    [bold]Examples[/bold]
      graftwork pack base/ runs/chat runs/code -o store/
      graftwork list store/
      graftwork checkout store/ chat -o chat/ --base base/
      graftwork diff base/ runs/chat --report chat.html

    A checkpoint is a folder as Hugging Face writes it, or one .safetensors file.
    [bold]graftwork VERB --help[/bold] tells more about a verb.
    """


def main() -> None:
    """Run the program with the process's arguments; does not return."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = print_warning
    app()
