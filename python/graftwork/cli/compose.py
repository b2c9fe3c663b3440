"""``graftwork compose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graftwork.cli.options import Json, Quiet, StoreBase, Threads
from graftwork.cli.terminal import print_result, progress_bar


def compose(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.yaml", help="What to merge, and how.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="OUT", help="The folder to make.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all and say what it would take; write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on from an interrupted run of the same merge.")
    ] = True,
    shard_bytes: Annotated[
        int | None,
        typer.Option(
            "--shard-bytes",
            min=1,
            metavar="N",
            help="Size of a file of weights (default: 5 GB).",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(
            "--lora", metavar="DIR", help="Also write the change as an adapter.", show_default=False
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", min=1, metavar="R", help="The adapter's rank, with --lora.", show_default=False
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="STORE", help="Also pack it into a store.", show_default=False),
    ] = None,
    store_base: StoreBase = None,
    methods: Annotated[
        bool, typer.Option("--methods", help="List the methods and their parameters.")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge models by a recipe, as mergekit's recipes are.

    \b
    [bold]Examples[/bold]
      graftwork compose ties.yaml -o merged/
      graftwork compose ties.yaml -o merged/ --dry-run
      graftwork compose ties.yaml -o merged/ --lora merged-lora/ --rank 32
      graftwork compose --methods

    \b
    [bold]A recipe[/bold] (YAML; paths from its own folder)
      merge_method: ties
      base_model: models/base
      models:
        - {model: models/chat, parameters: {weight: 0.6, density: 0.5}}
        - {model: models/code, parameters: {weight: 0.4, density: [0.3, 0.7]}}
      dtype: bfloat16

    A model is a folder, a .safetensors file, STORE:NAME, or MODEL+ADAPTER. The output appears whole or not at all; an
    interrupted run is gone on from. [bold]docs/papers/merging.md[/bold] explains the methods and every key.
    """
    from graftwork.report.compose_tables import methods_table

    if methods:
        from graftwork.compose import METHODS

        listed = [method.to_dict() for method in METHODS.values()]
        print_result(
            {"methods": listed}, lambda: methods_table(METHODS.values()), as_json=as_json, quiet=quiet
        )
        return
    if recipe is None or out is None:
        raise typer.BadParameter("missing", param_hint="RECIPE.yaml" if recipe is None else "--out")
    if (lora is None) != (rank is None):
        raise typer.BadParameter("an adapter needs both --lora and --rank", param_hint="--lora")
    options: dict[str, Any] = {} if shard_bytes is None else {"max_shard_bytes": shard_bytes}
    options |= {"dry_run": dry_run, "resume": resume, "threads": threads, "store_base": store_base}
    _run(recipe, out, options, lora, rank, store, as_json, quiet)


def _run(
    recipe: Path,
    out: Path,
    options: dict[str, Any],
    lora: Path | None,
    rank: int | None,
    store: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from rich.console import Group

    from graftwork.compose import check_export, merge, read_recipe, to_lora, to_store
    from graftwork.report.compose_tables import compose_table, export_lines

    read = read_recipe(recipe)
    base = check_export(read, lora) if lora is not None or store is not None else None
    adapter = packed = None
    with progress_bar(quiet or as_json) as progress:
        report = merge(read, out, progress=progress, **options)
        if base is not None and not report.dry_run:
            if lora is not None:
                adapter = to_lora(base, out, lora, rank=rank)
            if store is not None:
                packed = to_store(out, store, base=base, threads=options["threads"], progress=progress)
    said = report.to_dict()
    if adapter is not None:
        said["lora"] = adapter.to_dict()
    if packed is not None:
        said["store"] = packed.to_dict()
    lines = export_lines(adapter, packed)
    print_result(said, lambda: Group(compose_table(report), *lines), as_json=as_json, quiet=quiet)
