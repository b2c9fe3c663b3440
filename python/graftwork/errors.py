"""The exception types of graftwork: each says what is wrong, where, what was found, what was wanted, and the remedy."""

from __future__ import annotations

from os import PathLike
from typing import Self


class GraftworkError(Exception):
    """Base of all errors that graftwork raises on purpose about files and their contents.

    Parameters
    ----------
    what : str
        One sentence: what is wrong.
    file, tensor : optional
        Where: the file or folder, and the tensor's name.
    got, wanted : optional
        What was found and what should have been there.
    remedy : str, optional
        What the user can do about it.

    All five are kept as attributes; ``str(error)`` shows them, one a line.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | PathLike[str] | None = None,
        tensor: str | None = None,
        got: object = None,
        wanted: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.got = got
        self.wanted = wanted
        self.remedy = remedy
        rows = {"file": self.file, "tensor": tensor, "got": got, "wanted": wanted, "remedy": remedy}
        super().__init__("\n".join([what, *(f"  {k}: {v}" for k, v in rows.items() if v is not None)]))

    def placed(
        self, *, file: str | PathLike[str] | None = None, tensor: str | None = None, before: str = ""
    ) -> Self:
        """The same error where more is known of the place; ``before`` comes before what is wrong."""
        return type(self)(
            before + self.what,
            file=self.file if file is None else file,
            tensor=self.tensor if tensor is None else tensor,
            got=self.got,
            wanted=self.wanted,
            remedy=self.remedy,
        )


class CheckpointError(GraftworkError, ValueError):
    """A checkpoint (a safetensors file or a folder of them) is malformed, unsafe, or not what the call needs."""


class VocabularyMismatch(CheckpointError):
    """Tokenizers give their ids to other strings, or a vocabulary is not to be had from the files that are there."""


class AdapterError(CheckpointError):
    """An adapter is malformed, of a kind that cannot be added to weights, or not made for the model."""


class TargetExists(GraftworkError, FileExistsError):
    """The place to write to is taken, and graftwork never overwrites silently."""


class SourceChanged(GraftworkError):
    """A file changed while it was being read."""


class DeltaError(GraftworkError, ValueError):
    """A delta file is malformed."""


class ChecksumError(DeltaError):
    """Bytes differ from the digest or checksum recorded for them."""


class UnknownCodec(DeltaError):
    """A delta file names a codec that this version does not have."""


class VersionTooNew(DeltaError):
    """A file's ``min_reader`` is above the format version that this graftwork reads."""


class StoreError(GraftworkError, ValueError):
    """A store is malformed, or the request does not fit what it holds."""


class BaseRequired(StoreError):
    """The store refers to its base by digest and no folder with that base was given."""


class BaseMismatch(StoreError):
    """The weights given are not those that a store's entries, a payload or a delta were made against."""


class RecipeError(GraftworkError, ValueError):
    """A recipe has an unknown key, a missing one, or a value of the wrong kind."""


class DataError(GraftworkError, ValueError):
    """Data for training are malformed, or do not suit the task."""


class MissingExtra(GraftworkError, ImportError):
    """An optional dependency is not installed; the remedy names the extra that brings it."""
