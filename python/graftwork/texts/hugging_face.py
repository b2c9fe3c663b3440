"""Models and tokenizers of Hugging Face folders: transformers, silent, with its errors as ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graftwork.errors import CheckpointError, MissingExtra
from graftwork.texts.corpus import Label


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder."""
    with transformers_module() as transformers, reading_folder(folder, "a tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def ordered_labels(folder: Path, labels: Sequence[Label]) -> list[Label]:
    """The labels in the order of the folder's model, if that is a model of these classes; else as they are."""
    try:
        table = json.loads((folder / "config.json").read_text("utf-8"))["id2label"]
        order = {str(name): int(number) for number, name in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return list(labels)
    known = order.keys() == {str(label) for label in labels}
    return sorted(labels, key=lambda label: order[str(label)]) if known else list(labels)


@contextmanager
def transformers_module() -> Iterator[Any]:
    """The transformers module, silent meanwhile."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra(
            "Hugging Face models are read by transformers, which is not installed",
            remedy="pip install 'graftwork[hf]'",
        ) from error
    log = transformers.utils.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()


@contextmanager
def reading_folder(folder: Path, what: str) -> Iterator[None]:
    """Turns what transformers raises at a folder that does not suit it into one kind of error."""
    if not folder.is_dir():
        raise CheckpointError("there is no such folder", file=folder, wanted="a Hugging Face model's folder")
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        raise CheckpointError(
            f"transformers finds no {what.removeprefix('a ')} in the folder that it can read",
            file=folder,
            got=" ".join(str(error).split())[:300],
            wanted=f"{what}, as save_pretrained writes it",
        ) from error
