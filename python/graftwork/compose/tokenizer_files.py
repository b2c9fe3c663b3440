"""The vocabulary of a tokenizer, read out of its files as data, and those files with more tokens in them.

Read are ``tokenizer.json`` (tokenizers), ``vocab.txt`` (WordPiece), ``vocab.json`` (byte-pair) and SentencePiece models
(``tokenizer.model``, ``spiece.model``). Nothing is imported or run, whatever a configuration asks for.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from graftwork.checkpoint.folder import MAX_JSON_BYTES
from graftwork.checkpoint.paths import resolve_inside
from graftwork.checkpoint.source import SourceFile
from graftwork.errors import VocabularyMismatch

__all__ = ["TOKENIZER_FILES", "NewToken", "Vocabulary", "extended_files", "folder_file", "read_vocabulary"]

FAST = "tokenizer.json"
_CONFIG, _ADDED = "tokenizer_config.json", "added_tokens.json"
_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SLOW = ("vocab.txt", "vocab.json", "merges.txt", *_PIECES, _ADDED)
TOKENIZER_FILES = (FAST, _CONFIG, "special_tokens_map.json", "chat_template.jinja", *_SLOW)
"""Files of a model's folder that are its tokenizer's."""

_UNREADABLE = ("tekken.json", "tiktoken.model", "qwen.tiktoken")
_SHIFTED = (
    "XLMRoberta",
    "Camembert",
    "MBart",
    "NLLB",
    "Nllb",
    "M2M",
    "XLMProphet",
    "Barthez",
    "Pegasus",
    "BigBird",
)
"""Tokenizer classes whose ids are not the places of their SentencePiece model's pieces."""
_RESAVE = "save it anew with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER), which writes tokenizer.json"


def folder_file(folder: Path, name: str) -> bytes | None:
    """A file of a folder, or None if there is none; a link that leads out of the folder is refused."""
    if not os.path.lexists(folder / name):
        return None
    with closing(SourceFile(resolve_inside(folder, name))) as file:
        return file.read(0, file.size)


ReadFile = Callable[[str], bytes | None]
"""A file of a folder by its name; None if there is none."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes
    ----------
    where : str
        The model, for errors.
    tokens : mapping of str to int
        Every token's id.
    added : mapping of str to mapping
        The settings of tokens that are matched in the text itself (``special``, ``lstrip``, ...), where known.
    kind : str
        What read the text into tokens: "BPE", "WordPiece", "Unigram", "WordLevel", or the file's name.
    files : mapping of str to bytes
        The tokenizer's files.
    """

    where: str
    tokens: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    kind: str
    files: Mapping[str, bytes] = field(repr=False, default_factory=dict)

    @property
    def special(self) -> frozenset[str]:
        """Tokens that are no text, as the end of a sequence."""
        return frozenset(token for token, row in self.added.items() if row.get("special"))

    @property
    def end(self) -> int:
        """One more than the highest id."""
        return max(self.tokens.values(), default=-1) + 1

    def strings(self) -> dict[int, str]:
        """Ids to tokens."""
        return {number: token for token, number in self.tokens.items()}


def read_vocabulary(read: ReadFile, where: str) -> Vocabulary | None:
    """The vocabulary that a model's files hold; None if they hold no tokenizer.

    Raises
    ------
    VocabularyMismatch
        A file is malformed, or the tokenizer is of a kind that is not read.
    """
    files = {name: data for name in TOKENIZER_FILES if (data := read(name)) is not None}
    reader = _Reader(where, files)
    if FAST in files:
        return reader.fast()
    if "vocab.txt" in files:
        lines = reader.text("vocab.txt").removesuffix("\n").split("\n")
        return reader.slow([line.rstrip("\r") for line in lines], "WordPiece")
    if "vocab.json" in files:
        return reader.slow(reader.json("vocab.json"), "BPE")
    for name in _PIECES:
        if name in files:
            return reader.pieces(name)
    for name in _UNREADABLE:
        if read(name) is not None:
            reader.refuse("a tokenizer of this kind is not read", name, remedy=_RESAVE)
    return None


class _Reader:
    def __init__(self, where: str, files: Mapping[str, bytes]) -> None:
        self._where = where
        self._files = files

    def refuse(self, what: str, file: str, **details: Any) -> NoReturn:
        raise VocabularyMismatch(what, file=f"{self._where}/{file}", **details)

    def text(self, file: str) -> str:
        data = self._files[file]
        if len(data) > MAX_JSON_BYTES:
            self.refuse("the file is too large for a vocabulary", file, got=len(data), wanted=MAX_JSON_BYTES)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.refuse("the file is not UTF-8", file, got=error)

    def json(self, file: str) -> dict[str, Any]:
        try:
            content = json.loads(self.text(file))
        except (ValueError, RecursionError) as error:
            self.refuse("the file is not valid JSON", file, got=error)
        if not isinstance(content, dict):
            self.refuse("the file is no JSON object", file, got=type(content).__name__)
        return content

    def fast(self) -> Vocabulary:
        content = self.json(FAST)
        model = content.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(vocabulary, dict | list):
            self.refuse("the tokenizer has no vocabulary", FAST, got=f"model: {str(model)[:60]}")
        pieces: object = vocabulary
        if isinstance(vocabulary, list):  # Unigram: [piece, score] each
            pieces = [row[0] if isinstance(row, list) and row else row for row in vocabulary]
        added: dict[str, dict[str, Any]] = {}
        numbers: dict[str, Any] = {}
        for row in content.get("added_tokens") or ():
            if not isinstance(row, dict) or not isinstance(row.get("content"), str):
                self.refuse("an added token is malformed", FAST, got=f"{row!r:.80}")
            numbers[row["content"]] = row.get("id")
            added[row["content"]] = {key: value for key, value in row.items() if key != "id"}
        tokens = self._tokens(pieces, FAST) | self._tokens(numbers, FAST)
        return self._vocabulary(tokens, added, str(model.get("type")), FAST)

    def slow(self, vocabulary: object, kind: str) -> Vocabulary:
        file = "vocab.txt" if kind == "WordPiece" else "vocab.json"
        return self._with_added(self._tokens(vocabulary, file), kind, file)

    def pieces(self, file: str) -> Vocabulary:
        config = self.json(_CONFIG) if _CONFIG in self._files else {}
        name = str(config.get("tokenizer_class"))
        if name.startswith(_SHIFTED):
            self.refuse("this tokenizer's ids are not its pieces' places", file, got=name, remedy=_RESAVE)
        try:
            found = list(_sentence_pieces(self._files[file]))
        except (ValueError, IndexError) as error:
            self.refuse("the SentencePiece model is malformed", file, got=error)
        return self._with_added(self._tokens(found, file), "SentencePiece", file)

    def _with_added(self, tokens: dict[str, int], kind: str, file: str) -> Vocabulary:
        added: dict[str, Any] = {}
        if _ADDED in self._files:
            tokens |= (more := self._tokens(self.json(_ADDED), _ADDED))
            added |= {token: {"content": token} for token in more}
        config = self.json(_CONFIG) if _CONFIG in self._files else {}
        for number, row in (config.get("added_tokens_decoder") or {}).items():
            if (
                not isinstance(row, dict)
                or not isinstance(row.get("content"), str)
                or not str(number).isdecimal()
            ):
                self.refuse("an added token is malformed", _CONFIG, got=f"{number}: {row!r:.80}")
            tokens[row["content"]] = int(number)
            added[row["content"]] = {key: value for key, value in row.items() if key != "__type"}
        return self._vocabulary(tokens, added, kind, file)

    def _tokens(self, rows: object, file: str) -> dict[str, int]:
        """Strings to ids, from such a mapping or from strings in the order of their ids."""
        pairs: list[tuple[Any, Any]] = []
        if isinstance(rows, dict | list):
            pairs = list(rows.items()) if isinstance(rows, dict) else [(row, i) for i, row in enumerate(rows)]
        for token, number in pairs:
            if not isinstance(token, str) or type(number) is not int or not 0 <= number < 1 << 31:
                self.refuse("a token or its id is malformed", file, got=f"{token!r:.60}: {number!r:.40}")
        return dict(pairs)

    def _vocabulary(
        self, tokens: dict[str, int], added: Mapping[str, Any], kind: str, file: str
    ) -> Vocabulary:
        found = Vocabulary(self._where, tokens, added, kind, self._files)
        strings = found.strings()
        if len(strings) < len(tokens):
            token = next(token for token, number in tokens.items() if strings[number] != token)
            got = f"id {tokens[token]} is {token!r} and {strings[tokens[token]]!r}"
            self.refuse("two tokens have one id", file, got=got, wanted="an id for each")
        return found


def _sentence_pieces(data: bytes) -> Iterator[str]:
    """The pieces of a SentencePiece model: field 1 of the protobuf, each with its text in field 1."""
    for number, value in _protobuf(data):
        if number == 1 and isinstance(value, bytes):
            yield next(
                (text.decode() for key, text in _protobuf(value) if key == 1 and isinstance(text, bytes)), ""
            )


def _protobuf(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, value = key & 7, 0
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(f"wire type {kind} at byte {at}")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"a number without an end at byte {at}")


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that is added: its string, id, and settings (None: an ordinary one, which texts are cut into)."""

    token: str
    number: int
    settings: Mapping[str, Any] | None = None


def extended_files(vocabulary: Vocabulary, tokens: Sequence[NewToken]) -> dict[str, bytes | None]:
    """The files of a tokenizer with more tokens; None for a file that would contradict them and is left out.

    Tokens with settings join the added ones. Ordinary ones join the vocabulary: WordPiece and WordLevel find them in
    texts; byte-pair encoding only decodes them, since its merges stay those of the vocabulary, and so does Unigram.

    Raises
    ------
    VocabularyMismatch
        The tokenizer has no ``tokenizer.json``.
    """
    if not tokens:
        return dict(vocabulary.files)
    if FAST not in vocabulary.files:
        raise VocabularyMismatch(
            "tokens can be added to a tokenizer.json only",
            file=vocabulary.where,
            got=", ".join(sorted(vocabulary.files)),
            wanted=FAST,
            remedy=_RESAVE,
        )
    content = copy.deepcopy(json.loads(vocabulary.files[FAST].decode("utf-8-sig")))
    entries = content.setdefault("added_tokens", [])
    inside = content["model"]["vocab"]
    for row in tokens:
        if row.settings is None and isinstance(inside, dict):
            inside[row.token] = row.number
        else:
            entries.append({"id": row.number, **_settings(row)})
    entries.sort(key=lambda row: row["id"])
    files: dict[str, bytes | None] = {**vocabulary.files, FAST: _json(content)} | dict.fromkeys(
        name for name in _SLOW if name in vocabulary.files
    )
    if _CONFIG in vocabulary.files:
        config = json.loads(vocabulary.files[_CONFIG].decode("utf-8-sig"))
        decoder = config.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            decoder |= {str(row.number): _settings(row) for row in tokens if row.settings is not None}
            files[_CONFIG] = _json(config)
    return files


def _settings(row: NewToken) -> dict[str, Any]:
    usual = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": row.token, **usual, **(row.settings or {})}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
