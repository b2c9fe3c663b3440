"""The models of a merge, opened: a folder, a safetensors file, an entry of a store, or a model with an adapter on it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graftwork.checkpoint import Checkpoint
from graftwork.checkpoint.dtypes import torch_form
from graftwork.checkpoint.foreign import CONVERT_PICKLE
from graftwork.checkpoint.ties import find_tied_copies
from graftwork.compose.recipe import ComposeRecipe
from graftwork.compose.tokenizer_files import TOKENIZER_FILES
from graftwork.delta.pipeline import Progress, for_each
from graftwork.delta.source import CheckpointSource, TensorMeta, TensorSource, leaf_ranges
from graftwork.delta.weights import Weights
from graftwork.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from graftwork.store import Readable

__all__ = ["Donor", "open_donors"]

_SMALL_FILE = 32 << 20


@dataclass
class Donor:
    """A model of a merge.

    Attributes
    ----------
    name : str
        As the recipe writes it.
    weights : Weights
        Its tensors, and which of them are tied.
    model : Checkpoint or an entry of a store
        What its other files are from.
    signature : tuple
        What tells one state of its files from another without reading them.
    vocabulary : Path or None
        The folder with its tokenizer, if it stands in one.
    adapter : Checkpoint or None
        The file of the adapter that is on it.
    copies : mapping of str to str
        Tensors that are there a second time, under the name of a tied weight: that name to the first.
    """

    name: str
    weights: Weights
    model: Readable
    signature: tuple[Any, ...]
    vocabulary: Path | None = None
    copies: Mapping[str, str] = field(default_factory=dict)
    adapter: Checkpoint | None = None

    @property
    def metas(self) -> Mapping[str, TensorMeta]:
        """Name, dtype, shape and size of each of its tensors."""
        return self.weights.source.metas

    @property
    def config(self) -> dict[str, Any] | None:
        """The content of its ``config.json``."""
        return self.model.config

    @property
    def names(self) -> list[str]:
        """All names of its tensors, those of tied ones too."""
        return self.weights.names

    @property
    def tied(self) -> dict[str, str]:
        """Names that are a tensor of another name."""
        return {**self.weights.tied, **self.copies}

    @property
    def card(self) -> str:
        """A digest of its other small files: by it a model is chosen whose configuration the output takes."""
        found = hashlib.sha256()
        for file in self.model.other_files:
            if self.model.file_size(file) <= _SMALL_FILE:
                found.update(json.dumps([file, self.model.file_size(file)]).encode())
                for piece in self.model.file_pieces(file):
                    found.update(piece)
        return found.hexdigest()

    def read_small(self, file: str) -> bytes | None:
        """One of the files beside the weights; None if there is none. An adapter's tokenizer goes before its model's."""
        if self.vocabulary is not None and self.vocabulary != self.model.path:
            own = self.vocabulary / file
            return own.read_bytes() if own.is_file() else None
        if file not in self.model.other_files:
            return None
        return b"".join(bytes(piece) for piece in self.model.file_pieces(file))

    @cached_property
    def tokenizer_bytes(self) -> dict[str, bytes]:
        """The tokenizer's files."""
        return {file: data for file in TOKENIZER_FILES if (data := self.read_small(file)) is not None}

    def held(self, name: str) -> str | None:
        """The name under which it holds the tensor called ``name``; None if it has none."""
        return self.copies.get(name) or self.weights.first_name(name)

    def file(self, name: str) -> str:
        """The file that holds a tensor, for errors."""
        info = self.model.tensors.get(name)
        return str(
            self.model.path
            if info is None or not isinstance(self.model, Checkpoint)
            else self.model.root / info.file
        )

    def tensor(self, name: str, threads: int = 1) -> Tensor:
        """A tensor on the CPU, to be read: mapped where it lies in a file, else in memory."""
        if hasattr(self.weights.source, "tensor"):
            return self.weights.tensor(name).contiguous()
        return _restored(self.weights.source, self.metas[name], threads)

    def check_unchanged(self) -> None:
        """Raise `SourceChanged` if a file has changed since it was opened."""
        self.model.check_unchanged()
        if self.adapter is not None:
            self.adapter.check_unchanged()


def _restored(source: TensorSource, meta: TensorMeta, threads: int) -> Tensor:
    import torch

    form = torch_form(meta.dtype, meta.shape)
    if form is None:
        raise CheckpointError("torch has no tensor of this type", tensor=meta.name, got=meta.dtype)
    data = torch.empty(meta.nbytes, dtype=torch.uint8)
    whole, pieces = data.numpy().data, list(leaf_ranges(meta.nbytes))

    def restore(number: int) -> None:
        offset, length = pieces[number]
        source.read_into(meta.name, offset, whole[offset : offset + length])

    for_each(restore, len(pieces), threads=threads)
    return data.view(form[0]).view(form[1]) if meta.nbytes else torch.empty(form[1], dtype=form[0])


@contextmanager
def open_donors(
    recipe: ComposeRecipe,
    *,
    store_base: str | os.PathLike[str] | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Iterator[dict[str, Donor]]:
    """Every model of the recipe, by its place (`ComposeRecipe.place`); each is opened once.

    Raises
    ------
    CheckpointError, StoreError, AdapterError
        A model is not there, malformed, or does not go with its adapter.
    """
    with ExitStack() as stack:
        donors = {}
        for name in recipe.models:
            place = recipe.place(name)
            donors[place] = _open(stack, name, place, store_base, threads, progress)
        yield donors


def _open(
    stack: ExitStack,
    name: str,
    place: str,
    store_base: str | os.PathLike[str] | None,
    threads: int,
    progress: Progress | None,
) -> Donor:
    path, lora = _split(place)
    _check_there(name, path)
    readable = stack.enter_context(_readable(path, store_base, threads, progress))
    if lora is None:
        return _plain(name, readable, threads)
    from graftwork.compose.lora import open_donor

    if not isinstance(readable, Checkpoint):
        raise CheckpointError(
            "an adapter stands on a folder or a file, not on an entry of a store",
            file=place,
            remedy="check the entry out first: graftwork checkout STORE NAME -o FOLDER",
        )
    donor = stack.enter_context(open_donor(readable, lora))
    weights = Weights(place, cast(TensorSource, donor), donor.tied)
    signature = (
        _signature(readable),
        _signature(donor.adapter.file),
        Path(lora, "adapter_config.json").read_bytes().hex(),
    )
    return Donor(name, weights, readable, signature, donor.vocabulary_folder, adapter=donor.adapter.file)


def _copies(readable: Readable, donor: Donor, threads: int) -> dict[str, str]:
    """Heads that are the embedding by the configuration and by their bytes, and stand in the files all the same."""
    import torch

    found = {}
    for head, first in find_tied_copies(donor.metas, readable.config).items():
        one, other = donor.metas[head], donor.metas[first]
        if (one.dtype, tuple(one.shape)) == (other.dtype, tuple(other.shape)):
            words = [donor.tensor(name, threads).reshape(-1).view(torch.uint8) for name in (head, first)]
            if torch.equal(*words):
                found[head] = first
    return found


def _split(place: str) -> tuple[str, str | None]:
    """A model and its adapter; a path that is there is a path, whatever signs are in its name."""
    if Path(place).exists() or "+" not in place:
        return place, None
    for at in (at for at, mark in enumerate(place) if mark == "+"):
        if Path(place[:at]).exists():
            return place[:at], place[at + 1 :]
    path, _, lora = place.partition("+")
    return path, lora


def _check_there(name: str, path: str) -> None:
    from graftwork.store import find_entry

    if Path(path).exists() or find_entry(path) is not None:
        return
    pickled = Path(path).with_suffix(".bin").exists()
    raise CheckpointError(
        "there is no such model",
        file=path,
        got=name,
        wanted="a folder, a .safetensors file, STORE:NAME, or one of these + an adapter's folder",
        remedy=CONVERT_PICKLE
        if pickled
        else "models are read from disk alone: download it first, and give its folder; "
        "relative paths start at the recipe's folder",
    )


def _readable(
    path: str, store_base: str | os.PathLike[str] | None, threads: int, progress: Progress | None
) -> Any:
    from graftwork.store import open_readable

    return open_readable(path, store_base, threads=threads, progress=progress)


def _plain(name: str, readable: Readable, threads: int) -> Donor:
    source: TensorSource
    if isinstance(readable, Checkpoint):
        source = CheckpointSource(readable)
        signature: tuple[Any, ...] = (_signature(readable),)
        folder = readable.path if readable.path == readable.root else None
    else:
        source, folder = readable.source, None
        signature = (readable.entry.content,)
    tied = {other: first for other, first in readable.tied.items() if first in source.metas}
    donor = Donor(name, Weights(str(readable.path), source, tied), readable, signature, folder)
    donor.copies = _copies(readable, donor, threads)
    return donor


def _signature(checkpoint: Checkpoint) -> tuple[Any, ...]:
    return tuple((file, *checkpoint.signature(file)) for file in sorted(checkpoint.headers))
