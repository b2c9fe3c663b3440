"""Fine-tune a real model on real text, pack the fine-tunes, restore them bit for bit, and show that it is so.

``python -m demo.run`` from the repository's root; ``make demo`` installs what it needs first. Everything is
written to ``demo/output`` (afresh at every run) and ``demo/report.html``. The exit code is 1 if a restored file
or score differs from the original in anything.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench.corpora import docstring_code_pairs, docstring_packages
from bench.models import minilm
from bench.models.encoder import SentenceEncoder
from demo import tables
from demo.tasks import FineTune, PackageOf, Retrieval, Task
from graftwork.errors import MissingExtra
from graftwork.report import write_report
from graftwork.store import CheckpointDiff, PackResult, Store, diff, open_store, pack

HERE = Path(__file__).parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Story:
    """The console, the output folder, and the seconds that each stage took."""

    console: Console
    output: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Announce a stage, lend it progress bars, and note its time."""
        self.console.rule(f"[bold]{name}", align="left", style="dim")
        start = time.perf_counter()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bars:
            yield bars
        self.seconds[name] = time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if everything was restored exactly."""
    options = _options(arguments)
    story = Story(_console(), options.output)
    try:
        minilm()
    except MissingExtra as error:
        story.console.print(str(error), style="red", markup=False)
        return 2
    for folder in (*DTYPES, "store", "restored"):
        shutil.rmtree(options.output / folder, ignore_errors=True)

    tasks, encoder = _load(story, options)
    tunes = [tune for task in tasks for tune in _fine_tune(story, task, encoder, options.steps)]
    packed, store = _pack(story, encoder.base, tunes)
    differences, scores = _restore(story, store, encoder, tunes)
    with story.stage("Compare sizes") as bars:
        sizes = tables.sizes(tunes, packed, bars)
    with story.stage("What changed") as bars:
        diffs = _diff(tunes, bars)
    results = [
        tables.scores(tunes, scores, differences),
        sizes,
        tables.codecs(packed),
        tables.survival(tunes, diffs),
    ]
    with story.stage("Report"):
        write_report(
            options.report,
            title="graftwork: four fine-tunes of MiniLM",
            pack=packed,
            diffs=diffs,
            tables=results,
        )
    for table in [*results, tables.times(story.seconds)]:
        story.console.print(tables.render(table))
    return _verdict(story, options.report, tunes, scores, differences)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description="The main job on real input.")
    parser.add_argument("--steps", type=int, help="training steps per task (default 60)")
    parser.add_argument("--quick", action="store_true", help="a few steps on little text: only to see it run")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="folder for models and store")
    parser.add_argument("--report", type=Path, default=HERE / "report.html", help="the HTML report")
    options = parser.parse_args(arguments)
    if options.steps is None:
        options.steps = 2 if options.quick else 60
    options.held_out, options.files = (24, 12) if options.quick else (400, 240)
    return options


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 100))


def _load(story: Story, options: argparse.Namespace) -> tuple[list[Task], SentenceEncoder]:
    with story.stage("Load MiniLM and the text"):
        base = story.output / "float32" / "base"
        shutil.copytree(minilm(), base)
        encoder = SentenceEncoder(base)
        encoder.save(story.output / "bfloat16" / "base", torch.bfloat16, {})
        pairs = docstring_code_pairs(files_per_package=options.files)
        labelled = docstring_packages(files_per_package=options.files)
        tasks: list[Task] = [
            Retrieval(encoder, pairs, options.held_out),
            PackageOf(encoder, labelled, options.held_out),
        ]
    story.console.print(
        f"{len(pairs.train):,} docstrings with their code to train on, from installed libraries"
    )
    return tasks, encoder


def _fine_tune(story: Story, task: Task, encoder: SentenceEncoder, steps: int) -> list[FineTune]:
    """Fine-tune from the base, save in both precisions, and score the saved files."""
    with story.stage(f"Fine-tune: {task.name}") as bars:
        encoder.restore(encoder.base)
        head = task.pretrained_head()
        before = task.score(head)
        bar = bars.add_task("training", total=steps)
        task.fine_tune(head, steps, lambda loss: bars.update(bar, advance=1, description=f"loss {loss:.3f}"))
        trained = {name: tensor.detach() for name, tensor in head.items()}
        folders = {precision: story.output / precision / task.name for precision in DTYPES}
        for precision, folder in folders.items():
            encoder.save(folder, DTYPES[precision], trained)
        tunes = []
        for precision, folder in folders.items():
            score = task.score(encoder.restore(folder))
            tunes.append(FineTune(task, precision, folder, before, score))
    after = ", ".join(f"{tune.score:.4f} in {tune.precision}" for tune in tunes)
    story.console.print(f"{task.metric}: {before:.4f} ({task.before}) → {after}")
    return tunes


def _pack(story: Story, base: Path, tunes: Sequence[FineTune]) -> tuple[PackResult, Store]:
    with story.stage("Pack") as bars:
        packed = pack(
            base,
            {tune.name: tune.folder for tune in tunes},
            out=story.output / "store",
            progress=_bytes(bars),
        )
        store = open_store(story.output / "store", base=base)
    return packed, store


def _restore(
    story: Story, store: Store, encoder: SentenceEncoder, tunes: Sequence[FineTune]
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Check every fine-tune out; its files that differ from the originals, and its score again."""
    differences, scores = {}, {}
    with story.stage("Check out, compare every file's SHA-256, score again") as bars:
        for tune in tunes:
            restored = story.output / "restored" / tune.name
            store.checkout(tune.name, restored, progress=_bytes(bars))
            digests = _digests(tune.folder), _digests(restored)
            names = sorted({*digests[0], *digests[1]})
            differences[tune.name] = [name for name in names if digests[0].get(name) != digests[1].get(name)]
            scores[tune.name] = tune.task.score(encoder.restore(restored))
    return differences, scores


def _diff(tunes: Sequence[FineTune], bars: Progress) -> dict[str, CheckpointDiff]:
    return {tune.name: diff(tune.base, tune.folder, progress=_bytes(bars)) for tune in tunes}


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _bytes(bars: Progress) -> Callable[[str, int, int], None]:
    """A ``progress`` callback of the store that draws one bar a stage."""
    known: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in known:
            known[stage] = bars.add_task(stage, total=total)
        bars.update(known[stage], completed=done, total=total)

    return show


def _verdict(
    story: Story,
    report: Path,
    tunes: Sequence[FineTune],
    scores: dict[str, float],
    differences: dict[str, list[str]],
) -> int:
    wrong = [tune.name for tune in tunes if differences[tune.name] or scores[tune.name] != tune.score]
    if wrong:
        story.console.print(f"NOT RESTORED EXACTLY: {', '.join(wrong)}", style="bold red")
        return 1
    story.console.print(f"All {len(tunes)} fine-tunes came back bit for bit.", style="bold green")
    story.console.print(f"Report: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
