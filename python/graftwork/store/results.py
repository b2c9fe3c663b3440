"""What the store's calls return: plain records that also turn into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class _Record:
    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-able values."""
        return {key: _plain(value) for key, value in asdict(self).items()}  # type: ignore[call-overload]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class CodecUse(_Record):
    """How many tensors of an entry a codec stores, their own bytes, and the bytes that they take."""

    tensors: int
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class EntryReport(_Record):
    """One entry after ``pack`` (``status`` is ``added``, ``replaced`` or ``unchanged``) or ``squash`` (``squashed``
    or ``unchanged``).

    ``file_bytes`` are the bytes of all its files; ``stored_bytes`` those that it added to the store.
    ``facts`` says which tensors are not plain differences: cast, grown, cut, on one side only, tied.
    """

    name: str
    digest: str
    status: str
    file_bytes: int
    stored_bytes: int
    tensors: int
    codecs: dict[str, CodecUse]
    facts: dict[str, list[str]]


@dataclass(frozen=True)
class PackResult(_Record):
    """The outcome of ``pack``."""

    store: Path
    base_digest: str
    entries: tuple[EntryReport, ...]


@dataclass(frozen=True)
class EntryInfo(_Record):
    """One entry of a store, as ``list`` shows it. ``base_digest`` is None for an entry that needs no base.

    ``parent`` is the entry that it is a difference to; None if that is the store's base, or nothing.
    """

    name: str
    digest: str
    base_digest: str | None
    tensors: int
    file_bytes: int
    stored_bytes: int
    parent: str | None = None


@dataclass(frozen=True)
class CheckoutResult(_Record):
    """The outcome of ``checkout``: every file is equal, byte for byte, to the one that was packed."""

    name: str
    path: Path
    file_bytes: int
    files: int


@dataclass(frozen=True)
class VerifyReport(_Record):
    """The outcome of ``verify``. ``restored`` counts the tensors that were restored and compared (deep only)."""

    ok: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    files: int
    bytes: int
    restored: int


@dataclass(frozen=True)
class GcReport(_Record):
    """The outcome of ``gc``: what was removed."""

    files: int
    bytes: int
