"""``graftwork adapt``: ``sparse`` and ``apply``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from graftwork.cli.options import Json, Quiet
from graftwork.cli.terminal import print_result, progress_bar
from graftwork.errors import BaseMismatch

adapt = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class SeveralWeights(TyperCommand):
    """Lets several numbers follow one ``--weights``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write ``--weights 1 0.5`` as ``--weights 1 --weights 0.5``."""
        spelled: list[str] = []
        following = False
        for argument in args:
            number = following and _is_number(argument)
            following = argument == "--weights" or number
            if number and spelled[-1] != "--weights":
                spelled.append("--weights")
            spelled.append(argument)
        return super().parse_args(ctx, spelled)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@adapt.callback()
def about() -> None:
    """Fine-tune a few weights of a model, keep them as a small delta, and put deltas on a model.

    \b
    [bold]Examples[/bold]
      graftwork adapt sparse task.yaml
      graftwork adapt apply base/ task.safetensors language.safetensors -o model/ --with-full
    """


@adapt.command()
def sparse(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="What to train, and how.", show_default=False)
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the state of a run that was interrupted.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sparse fine-tuning of a Hugging Face model on local texts (LT-SFT or SpIEL); the result is a delta.

    \b
    [bold]Examples[/bold]
      graftwork adapt sparse task.yaml
      graftwork adapt sparse task.yaml --resume --json

    \b
    [bold]A recipe[/bold] (YAML; paths from its own folder)
      model: models/bert
      data: reviews.jsonl        # {"text": "...", "label": "good"}, or .txt with blank lines between texts
      task: classification       # or masked_lm, causal_lm
      method: lottery            # or spiel
      out: reviews.safetensors
      density: 0.04
      steps: 1000

    [bold]docs/papers/sparse_finetuning.md[/bold] explains every key. Ctrl-C finishes the update and saves the state
    beside the delta; a second Ctrl-C ends at once. Needs transformers: pip install 'graftwork\\[hf]'.
    """
    from graftwork.adapt import train_sparse
    from graftwork.report.tables import train_table

    with progress_bar(quiet or as_json, steps=True) as progress:
        report = train_sparse(recipe, resume=resume, progress=progress)
    print_result(report.to_dict(), lambda: train_table(report), as_json=as_json, quiet=quiet)


@adapt.command(cls=SeveralWeights)
def apply(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The base model's folder.", show_default=False)
    ],
    deltas: Annotated[
        list[Path], typer.Argument(metavar="DELTA", help="Files of deltas.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to make.", show_default=False)
    ],
    weights: Annotated[
        list[float] | None,
        typer.Option("--weights", metavar="W...", help="A factor for each delta.", show_default="1"),
    ] = None,
    with_full: Annotated[
        bool, typer.Option("--with-full", help="Take over what the first delta holds in full, as its head.")
    ] = False,
    any_base: Annotated[
        bool,
        typer.Option("--any-base", help="Let the base be another one than the deltas were made against."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add deltas to a base, and write the model.

    \b
    [bold]Examples[/bold]
      graftwork adapt apply base/ task.safetensors -o model/ --with-full
      graftwork adapt apply base/ task.safetensors language.safetensors --weights 1.0 0.8 -o model/

    Files, shards and dtypes are the base's, and so is every byte that no delta changes.
    """
    from graftwork.adapt import apply_deltas
    from graftwork.report.tables import apply_table

    if weights and len(weights) != len(deltas):
        raise typer.BadParameter(f"{len(weights)} for {len(deltas)} deltas", param_hint="--weights")
    if weights and not all(map(math.isfinite, weights)):
        raise typer.BadParameter("wanted finite numbers", param_hint="--weights")
    try:
        report = apply_deltas(
            base, deltas, out, weights=weights or None, with_full=with_full, check_base=not any_base
        )
    except BaseMismatch as error:
        raise _on_the_command_line(error) from error
    print_result(report.to_dict(), lambda: apply_table(report), as_json=as_json, quiet=quiet)


def _on_the_command_line(error: BaseMismatch) -> BaseMismatch:
    """The same error, with the name that an option has here."""
    remedy = (error.remedy or "").replace("check_base=False", "--any-base")
    return BaseMismatch(
        error.what,
        file=error.file,
        tensor=error.tensor,
        got=error.got,
        wanted=error.wanted,
        remedy=remedy.replace("pass with_full=False", "leave --with-full out") or None,
    )
