"""``graftwork pack``."""

from __future__ import annotations

from dataclasses import fields
from dataclasses import replace as with_changes
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftwork.cli.options import Codec, Json, Quiet, Report, StoreBase, Threads
from graftwork.cli.terminal import Progress, print_result, progress_bar
from graftwork.errors import TargetExists

if TYPE_CHECKING:
    from graftwork.recipe import PackRecipe
    from graftwork.store.results import PackResult


BaseModel = Annotated[
    Path | None,
    typer.Argument(
        metavar="BASE", help="The base model: DIR, or STORE:NAME, an entry of a store.", show_default=False
    ),
]
FineTunes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FINETUNE",
        help="Fine-tunes of it: DIR, or NAME=DIR (DIR may also be a .safetensors file).",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="STORE", help="The store; made if missing.", show_default=False),
]
WithBase = Annotated[
    bool, typer.Option("--with-base", help="Hold the base too, so that checkout needs nothing else.")
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Let entries that are there already get new content.")
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe", metavar="FILE.yaml", help="Read the arguments from a recipe.", show_default=False
    ),
]
Lossy = Annotated[
    Path | None,
    typer.Option(
        "--lossy",
        metavar="PLAN.yaml",
        help="Make a skill pack by a plan: one file, smaller, with loss.",
        show_default=False,
    ),
]
BitsPerWeight = Annotated[
    float | None,
    typer.Option(
        "--bpw", metavar="BITS", help="Make a skill pack in so many bits a weight.", show_default=False
    ),
]


def pack(
    base: BaseModel = None,
    finetunes: FineTunes = None,
    out: Out = None,
    codec: Codec = None,
    with_base: WithBase = False,
    replace: Replace = False,
    store_base: StoreBase = None,
    threads: Threads = None,
    recipe: Recipe = None,
    lossy: Lossy = None,
    bpw: BitsPerWeight = None,
    report: Report = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack fine-tunes of one base into a store, as deltas.

    \b
    [bold]Examples[/bold]
      graftwork pack base/ runs/chat runs/code -o store/
      graftwork pack base/ chat=runs/2024-11-07 -o store/ --codec small
      graftwork pack base/ runs/chat -o store/ --with-base --report chat.html
      graftwork pack store:chat runs/chat-2 -o store --base base/
      graftwork pack --recipe pack.yaml
      graftwork pack base/ runs/chat -o chat.safetensors --bpw 1.0
      graftwork pack base/ runs/chat -o chat.safetensors --lossy plan.yaml

    \b
    [bold]A recipe[/bold] (YAML; paths from its own folder; what the command line says wins)
      base: models/base
      finetunes: {chat: runs/2024-11-07, code: runs/code}
      out: store
      codec: small

    An entry's name is its folder's name unless given. Packing the same content again changes nothing.
    Packed against an entry of the same store (STORE:NAME), a fine-tune is stored as what changed since that one,
    and needs it from then on; see [bold]graftwork squash[/bold].

    With --lossy or --bpw the fine-tune is not stored to be restored byte for byte: its changes are compressed with loss
    into one file, which graftwork.store.mount puts on the base. [bold]docs/papers/skill_packs.md[/bold] explains plans.
    """
    from graftwork import store
    from graftwork.report.tables import pack_table

    if lossy is not None or bpw is not None:
        others = {
            "--codec": codec,
            "--with-base": with_base,
            "--base": store_base,
            "--recipe": recipe,
            "--report": report,
        }
        _check_alone({option: value for option, value in others.items() if value})
        _pack_lossy(base, finetunes or [], out, lossy, bpw, replace, threads, as_json, quiet)
        return
    given = {
        "base": base,
        "finetunes": [_named(argument) for argument in finetunes or ()],
        "out": out,
        "codec": codec,
        "with_base": with_base,
        "replace": replace,
        "store_base": store_base,
        "threads": threads,
    }
    job = _job(recipe, {key: value for key, value in given.items() if value})
    with progress_bar(quiet or as_json) as progress:
        arguments = {f.name: getattr(job, f.name) for f in fields(job)}
        result = store.pack(**arguments, progress=progress)
        if report is not None:
            _write_report(report, job, result, progress)
    print_result(result.to_dict(), lambda: pack_table(result), as_json=as_json, quiet=quiet)


def _named(argument: str) -> Path | tuple[str, Path]:
    """``NAME=DIR`` or ``DIR``; a folder whose own name holds ``=`` is given as ``./DIR``."""
    name, equals, folder = argument.partition("=")
    return (name, Path(folder)) if equals and "/" not in name else Path(argument)


def _job(recipe: Path | None, given: dict[str, Any]) -> PackRecipe:
    from graftwork.recipe import PackRecipe, load_recipe

    if recipe is not None:
        return with_changes(load_recipe(recipe, PackRecipe), **given)
    for key, hint in (("base", "BASE"), ("finetunes", "FINETUNE"), ("out", "--out")):
        if key not in given:
            raise typer.BadParameter("missing; give it here, or in a --recipe", param_hint=hint)
    return PackRecipe(**given)


def _write_report(path: Path, job: PackRecipe, result: PackResult, progress: Progress | None) -> None:
    from graftwork import store
    from graftwork.report import write_report

    listed = job.finetunes.values() if isinstance(job.finetunes, dict) else job.finetunes
    sources = [source[1] if isinstance(source, tuple) else source for source in listed]
    diffs = {
        entry.name: store.diff(
            job.base, source, store_base=job.store_base, threads=job.threads, progress=progress
        )
        for entry, source in zip(result.entries[-len(sources) :], sources, strict=True)
    }
    write_report(path, title=f"Fine-tunes of {job.base.name}", pack=result, diffs=diffs)


def _check_alone(others: dict[str, object]) -> None:
    for option in others:
        raise typer.BadParameter("goes with a store, and not with --lossy or --bpw", param_hint=option)


def _pack_lossy(
    base: Path | None,
    finetunes: list[str],
    out: Path | None,
    lossy: Path | None,
    bpw: float | None,
    replace: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the file of a skill pack."""
    if lossy is not None and bpw is not None:
        raise typer.BadParameter(
            "the plan has its own bpw; give one of --lossy and --bpw", param_hint="--bpw"
        )
    if base is None or out is None:
        hint = "BASE" if base is None else "--out"
        raise typer.BadParameter("missing", param_hint=hint)
    if len(finetunes) != 1:
        raise typer.BadParameter(
            f"a skill pack is of one fine-tune, got {len(finetunes)}", param_hint="FINETUNE"
        )
    from graftwork.report.skill_pack_table import skill_pack_table
    from graftwork.store.skill_pack import SkillPack
    from graftwork.store.skill_pack.recipe import load_plan

    arguments = {"plan": "auto", "bpw": bpw} if lossy is None else load_plan(lossy).arguments()
    if not replace and out.exists():
        raise TargetExists(
            "the file exists already", file=out, remedy="choose another path, or pass --replace"
        )
    named = _named(finetunes[0])
    tuned = named[1] if isinstance(named, tuple) else named
    with progress_bar(quiet or as_json) as progress:
        built = SkillPack.build(tuned, base, threads=threads, progress=progress, **arguments)
    built.save(out, overwrite=replace)
    report = built.report()
    said = {"file": str(out), "file_bytes": out.stat().st_size, "digest": built.digest, **report.to_dict()}
    print_result(said, lambda: skill_pack_table(out, said, report), as_json=as_json, quiet=quiet)
