"""``graftwork rebase``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from graftwork.cli.options import Json, Quiet, Threads
from graftwork.cli.terminal import print_result, progress_bar


def rebase(
    old: Annotated[Path, typer.Option("--old", metavar="DIR", help="The old base.", show_default=False)],
    tuned: Annotated[
        Path, typer.Option("--tuned", metavar="DIR", help="The fine-tune of it.", show_default=False)
    ],
    new: Annotated[Path, typer.Option("--new", metavar="DIR", help="The new base.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="The folder (or .safetensors file) to make.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples",
            metavar="FILE",
            help="Texts to try the models out on: .txt or .jsonl.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        Literal["auto", "diff"],
        typer.Option("--method", help="auto writes nothing if the verdict is don't; diff always writes."),
    ] = "auto",
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            metavar="X",
            help="Factor of the difference (default: 1; with examples the best of a few).",
            show_default=False,
        ),
    ] = None,
    on_mismatch: Annotated[
        Literal["error", "skip"],
        typer.Option("--on-mismatch", help="skip: carry over what fits where names or shapes differ."),
    ] = "error",
    resize_vocab: Annotated[
        Literal["zero", "refuse"],
        typer.Option("--resize-vocab", help="zero: missing rows of a vocabulary count as zeros."),
    ] = "zero",
    preserve: Annotated[
        Literal["none", "stochastic", "residual"],
        typer.Option("--preserve", help="How small updates outlive the rounding to 16 bits."),
    ] = "none",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of stochastic rounding.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge only; write nothing.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Also write an HTML page.", show_default=False),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Carry a fine-tune over to another version of its base: new + scale · (tuned − old).

    First the models are compared, which ends in a verdict: go, risky or don't. Exits with 1 if it is don't and nothing
    was written for that.

    \b
    [bold]Examples[/bold]
      graftwork rebase --old base-v1/ --tuned mine/ --new base-v2/ -o mine-v2/
      graftwork rebase --old base-v1/ --tuned mine/ --new base-v2/ --dry-run --html verdict.html
      graftwork rebase --old base-v1/ --tuned mine/ --new base-v2/ -o mine-v2/ --examples dev.jsonl

    With [bold]--examples[/bold] Hugging Face's model of the fine-tune is patched in memory: half of the texts choose the
    scale and give the verdict, the other half says what was retained. docs/papers/finetuning_transfer.md tells more.
    """
    from graftwork.rebase import transfer
    from graftwork.report.rebase_tables import rebase_table

    if out is None and not dry_run:
        raise typer.BadParameter("missing; or pass --dry-run", param_hint="--out")
    with progress_bar(quiet or as_json) as progress:
        report = transfer(
            old,
            tuned,
            new,
            None if dry_run else out,
            scale=scale,
            method=method,
            on_mismatch=on_mismatch,
            resize_vocab=resize_vocab,
            examples=examples,
            preserve=preserve,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    if html is not None:
        from graftwork.report.rebase_page import write_rebase_page

        write_rebase_page(html, report)
    print_result(report.to_dict(), lambda: rebase_table(report), as_json=as_json, quiet=quiet)
    if report.out is None and not dry_run:
        raise typer.Exit(1)
