"""Texts from local files, read and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.checkpoint.digest import bytes_digest
from graftwork.errors import DataError

Label = str | int
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and its class if there are classes."""

    text: str
    label: Label | None = None


@dataclass(frozen=True)
class Corpus:
    """All documents, the classes in their order, and a digest of the files that they were read from."""

    documents: list[Document]
    labels: list[Label]
    digest: str


def read_corpus(files: Sequence[Path], *, labelled: bool) -> Corpus:
    """Read files of text.

    Parameters
    ----------
    files : sequence of path
        ``.txt``: documents with blank lines between them. ``.jsonl``: on each line an object with ``text``.
    labelled : bool
        Whether each document needs a ``label``: text, or a whole number. ``.txt`` has none.

    Returns
    -------
    Corpus
        Documents in the order of the files. Other keys of an object are left alone.

    Raises
    ------
    DataError
        A line is not as above, a text is blank, a file has another name or no documents; or there is one class only.
    OSError
        A file cannot be read.
    """
    documents: list[Document] = []
    digests = []
    for file in files:
        data = file.read_bytes()
        digests.append(bytes_digest(data))
        found = _READERS.get(file.suffix)
        if found is None or (labelled and file.suffix == ".txt"):
            raise DataError(
                "the file's name does not tell what it holds",
                file=file,
                got=f"{file.suffix or 'no ending'!r}",
                wanted=".jsonl with text and label" if labelled else ".txt or .jsonl",
                remedy="rename or convert it",
            )
        before = len(documents)
        documents += found(file, _decoded(file, data), labelled)
        if len(documents) == before:
            raise DataError("the file holds no text", file=file, remedy="leave it out")
    labels = _labels(files[0], documents) if labelled else []
    return Corpus(documents, labels, bytes_digest("".join(digests).encode()))


def _decoded(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"line {line} is not UTF-8",
            file=file,
            got=data[error.start : error.end],
            remedy="convert the file",
        ) from None


def _read_text(file: Path, text: str, labelled: bool) -> Iterator[Document]:
    for part in _BLANK_LINES.split(text.replace("\r\n", "\n")):
        if part := part.strip():
            yield Document(part)


def _read_lines(file: Path, text: str, labelled: bool) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _document(file, number, line, labelled)


_READERS = {".txt": _read_text, ".jsonl": _read_lines}


def _document(file: Path, number: int, line: str, labelled: bool) -> Document:
    def refuse(what: str, got: object, wanted: str) -> DataError:
        return DataError(f"line {number}: {what}", file=file, got=f"{got!r:.200}", wanted=wanted)

    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise refuse("not JSON", line, 'an object such as {"text": "..."}') from None
    if not isinstance(row, dict):
        raise refuse("not an object", row, 'an object such as {"text": "..."}')
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise refuse("the key 'text' has no text" if "text" in row else "no key 'text'", row, "text")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise refuse("the text has half of a surrogate pair", text, "text")
    if not labelled:
        return Document(text)
    label = row.get("label")
    if type(label) not in (str, int) or label == "":
        raise refuse(
            "the key 'label' has no label" if "label" in row else "no key 'label'",
            row,
            "text or a whole number",
        )
    return Document(text, label)


def _labels(file: Path, documents: Sequence[Document]) -> list[Label]:
    """The classes, sorted."""
    found = {document.label for document in documents}
    if len({type(label) for label in found}) > 1:
        kinds = [next(label for label in found if type(label) is kind) for kind in (int, str)]
        raise DataError("some labels are numbers and some are text", file=file, got=kinds, wanted="one kind")
    if len(found) < 2:
        raise DataError("there is one class only", file=file, got=[*found], wanted="at least two labels")
    return sorted(found)  # type: ignore[arg-type]
