"""Which tensor of the result comes from what: names, shapes, vocabularies, ties, and what cannot be subtracted.

No architecture is known here. The bases must agree with each other; what the fine-tune alone has it brings, what it
alone lacks it has dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from graftwork.checkpoint.dtypes import DTYPES
from graftwork.delta.source import TensorMeta
from graftwork.errors import CheckpointError
from graftwork.rebase.sides import Side
from graftwork.rebase.tokens import row_map

__all__ = ["Action", "Carried", "Pairing", "Problem", "Renaming", "ResizeVocab", "pair"]

Action = Literal["difference", "tuned", "new"]
ResizeVocab = Literal["zero", "refuse"]
Kind = Literal["names", "shape", "ties", "vocabulary", "quantised", "dtype"]

ARITHMETIC = ("F16", "BF16", "F32", "F64")
_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|cos_cached|sin_cached|masked_bias|attn\.bias|running_mean|running_var"
    r"|position_ids|num_batches_tracked)$"
)
_VOCABULARY = re.compile(
    r"(emb|wte|wpe|tok|shared|vocab|lm_head|decoder\.(weight|bias)$|predictions|output)", re.I
)
_QUANTISED = re.compile(r"(^|\.)(qweight|qzeros|weight_packed|weight)$")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """What stands against a transfer. ``fatal``: no setting lets it pass."""

    kind: Kind
    tensor: str
    what: str
    got: str
    wanted: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.tensor} ({self.got}; wanted {self.wanted})"


@dataclass(frozen=True, slots=True)
class Carried:
    """One tensor of the result.

    ``action`` is ``difference`` (new + scale · (tuned − old)), ``tuned`` (as in the fine-tune) or ``new`` (as in the new
    base). The names are those of each side; ``old_rows`` and ``new_rows`` map the result's rows to theirs (−1: none,
    which counts as zeros; None: the same places, zeros beyond the end).
    """

    name: str
    action: Action
    shape: tuple[int, ...]
    old: str | None = None
    tuned: str | None = None
    new: str | None = None
    note: str = ""
    old_rows: list[int] | None = None
    new_rows: list[int] | None = None


@dataclass
class Pairing:
    """The plan of a transfer: the result's tensors in the order of its frame, problems, and what is left behind.

    ``frame`` says whose tensors, files, configuration and tokenizer the result has: the fine-tune's, or, where the
    fine-tune's do not fit the new base, the new base's.
    """

    frame: Literal["tuned", "new"] = "tuned"
    rows: list[Carried] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    not_carried: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def differences(self) -> list[Carried]:
        """The tensors that get a difference."""
        return [row for row in self.rows if row.action == "difference"]

    def check(self, *, skip: bool, file: str) -> None:
        """Raise CheckpointError at the first problem that may not pass; the error names more of its kind."""
        for problem in self.problems:
            if problem.fatal or not skip:
                alike = [p.tensor for p in self.problems if p.kind == problem.kind]
                more = f" (and {len(alike) - 1} more: {_some(alike[1:])})" if len(alike) > 1 else ""
                raise CheckpointError(
                    problem.what,
                    file=file,
                    tensor=problem.tensor,
                    got=problem.got + more,
                    wanted=problem.wanted,
                    remedy=_REMEDIES["quantised" if problem.fatal else problem.kind],
                )


_REMEDIES = {
    "names": 'check that old is the base of tuned; on_mismatch="skip" carries over what fits into the new base',
    "shape": 'on_mismatch="skip" carries over the tensors that fit, into the new base',
    "ties": 'save the models with one tie setting; on_mismatch="skip" gives each of the two its own difference',
    "vocabulary": 'resize_vocab="zero" counts missing rows as zeros',
    "dtype": 'on_mismatch="skip" leaves the tensor as it is in the new base',
    "quantised": "give the unquantised weights",
}


def pair(old: Side, tuned: Side, new: Side, resize_vocab: ResizeVocab = "zero") -> Pairing:
    """Plan a transfer; nothing is read but headers, configurations and tokenizers, and nothing is raised."""
    pairing = Pairing()
    matcher = _Matcher(old, tuned, new, resize_vocab, pairing)
    rows = [matcher.row(meta) for meta in tuned.metas.values()]
    matcher.find_leftovers()
    structural = [p for p in pairing.problems if p.kind in ("names", "shape", "dtype")]
    unties = any(name in tuned.tied and name not in new.tied for name in new.metas)
    if structural or unties:
        pairing.frame = "new"
        rows = matcher.rows_of_new(rows)
    pairing.rows = rows
    _note_vocabulary(pairing, old, tuned, new)
    return pairing


class _Matcher:
    def __init__(self, old: Side, tuned: Side, new: Side, resize: ResizeVocab, pairing: Pairing) -> None:
        self.old, self.tuned, self.new = old, tuned, new
        self.resize, self.pairing = resize, pairing
        names = _names(tuned)
        self.to_old, self.to_new = Renaming(names, _names(old)), Renaming(names, _names(new))
        for role, renaming in (("old base", self.to_old), ("new base", self.to_new)):
            if renaming.says:
                pairing.notes.append(f"names: {renaming.says} in the {role}")
        self._check_ties()

    def _problem(
        self, kind: Kind, tensor: str, what: str, got: str, wanted: str, fatal: bool = False
    ) -> None:
        self.pairing.problems.append(Problem(kind, tensor, what, got, wanted, fatal))

    def _check_ties(self) -> None:
        settings = {side.role: set(side.tied) for side in (self.old, self.tuned, self.new)}
        both = settings["tuned"] ^ settings["new"] or settings["tuned"] ^ settings["old"]
        for name in sorted(both):
            held = [role for role, tied in settings.items() if name in tied]
            present = [s.role for s in (self.old, self.tuned, self.new) if name in s.metas]
            if present:
                self._problem(
                    "ties",
                    name,
                    "a tensor is tied in one model and has weights of its own in another",
                    f"tied in {', '.join(held)}; its own in {', '.join(present)}",
                    "one tie setting in all three models",
                )

    def row(self, meta: TensorMeta) -> Carried:
        """What becomes of a tensor of the fine-tune."""
        name, shape = meta.name, tuple(meta.shape)
        a, c = self.to_old(name), self.to_new(name)
        old, new = self.old.meta(a), self.new.meta(c)
        fault = _unsubtractable(meta, self.tuned)
        if fault == "quantised":
            self._problem("quantised", name, "a tensor is quantised", _form(meta), "float weights", True)
        if fault:
            return Carried(name, "tuned", shape, a, name, c, f"{fault}: not subtracted")
        if old is None and new is None:
            return Carried(name, "tuned", shape, None, name, None, "only the fine-tune has it")
        if old is None or new is None:
            lacking = "old" if old is None else "new"
            self._problem(
                "names", name, "the bases do not have the same tensors", f"none in {lacking}", "one in both"
            )
            return Carried(
                name, "tuned", shape, a if old else None, name, c if new else None, "in one base only"
            )
        for side, other in ((self.old, old), (self.new, new)):
            if other.dtype not in ARITHMETIC:
                fatal = _unsubtractable(other, side) == "quantised"
                what = "a tensor is quantised" if fatal else "a tensor is of integers in one model"
                self._problem("dtype", name, what, f"{_form(other)} in {side.role}", _form(meta), fatal)
                return Carried(name, "tuned", shape, a, name, c, "of another kind in a base")
        row = Carried(name, "difference", shape, a, name, c)
        if tuple(old.shape) == shape == tuple(new.shape) and not self._reordered(name, meta):
            return row
        return self._resized(row, meta, old, new)

    def _is_vocabulary(self, name: str, *metas: TensorMeta) -> bool:
        if len({tuple(meta.shape[1:]) for meta in metas}) > 1 or any(
            len(meta.shape) not in (1, 2) for meta in metas
        ):
            return False
        sides = (self.tuned, self.old, self.new)
        said = [side.vocab_size for side in sides]
        by_config = all(size == meta.shape[0] for size, meta in zip(said, metas, strict=True))
        return by_config or _VOCABULARY.search(name) is not None

    def _reordered(self, name: str, meta: TensorMeta) -> bool:
        """Whether tokens stand in other rows although the shapes are equal."""
        if len(meta.shape) not in (1, 2) or not _VOCABULARY.search(name) or self.tuned.tokens is None:
            return False
        rows = meta.shape[0]
        if rows != (self.tuned.vocab_size or rows) or rows <= max(self.tuned.tokens.values(), default=0):
            return False
        return any(row_map(self.tuned.tokens, rows, side.tokens, rows) for side in (self.old, self.new))

    def _resized(self, row: Carried, meta: TensorMeta, old: TensorMeta, new: TensorMeta) -> Carried:
        if not self._is_vocabulary(row.name, meta, old, new):
            shapes = f"{list(old.shape)} in old, {list(meta.shape)} in tuned, {list(new.shape)} in new"
            self._problem("shape", row.name, "the shapes differ", shapes, "one shape")
            return Carried(row.name, "tuned", row.shape, row.old, row.tuned, row.new, "shapes differ")
        counts = {"old": old.shape[0], "tuned": meta.shape[0], "new": new.shape[0]}
        if self.resize == "refuse":
            got = ", ".join(f"{count} rows in {role}" for role, count in counts.items())
            self._problem("vocabulary", row.name, "the vocabularies differ", got, "one vocabulary")
        rows = meta.shape[0]
        maps = [
            row_map(self.tuned.tokens, rows, side.tokens, held.shape[0])
            for side, held in ((self.old, old), (self.new, new))
        ]
        sizes = ", ".join(f"{role} {count}" for role, count in counts.items())
        moved = "; rows follow their tokens" if any(maps) else ""
        note = f"vocabulary rows: {sizes}; missing rows count as zeros{moved}"
        return Carried(row.name, "difference", row.shape, row.old, row.tuned, row.new, note, *maps)

    def find_leftovers(self) -> None:
        """Tensors of a base that no tensor of the fine-tune stands for."""
        seen_old = {self.old.weights.first_name(n) for n in map(self.to_old, _names(self.tuned)) if n}
        seen_new = {self.new.weights.first_name(n) for n in map(self.to_new, _names(self.tuned)) if n}
        left_old = {name for name in self.old.metas if name not in seen_old}
        left_new = {name for name in self.new.metas if name not in seen_new}
        for name in sorted(left_old ^ left_new):
            role, other = ("old", self.new) if name in left_old else ("new", self.old)
            if _BUFFERS.search(name) or other.meta(name) is not None:
                continue
            self._problem(
                "names", name, "the bases do not have the same tensors", f"only in {role}", "one in both"
            )
        dropped = sorted(left_old & left_new)
        if dropped:
            self.pairing.notes.append(
                f"the fine-tune has dropped {len(dropped)} tensors of its base: {_some(dropped)}"
            )

    def rows_of_new(self, rows: Iterable[Carried]) -> list[Carried]:
        """The plan in the frame of the new base: a difference where one fits, all else as it is there."""
        found: dict[str | None, Carried] = {}
        for row in rows:
            if row.action == "difference" and row.new is not None:
                new = self.new.meta(row.new)
                if new is not None and tuple(new.shape) == row.shape:
                    found[row.new] = row
        result = []
        for meta in self.new.metas.values():
            fitting = found.get(meta.name) or self._tied_row(meta)
            if fitting is None:
                result.append(
                    Carried(meta.name, "new", tuple(meta.shape), new=meta.name, note="no difference fits")
                )
            else:
                result.append(
                    Carried(
                        meta.name, "difference", tuple(meta.shape), fitting.old, fitting.tuned, meta.name,
                        fitting.note, fitting.old_rows, fitting.new_rows,
                    )
                )  # fmt: skip
        used = {row.tuned for row in result if row.tuned}
        self.pairing.not_carried += [name for name in self.tuned.metas if name not in used]
        return result

    def _tied_row(self, meta: TensorMeta) -> Carried | None:
        """A tensor of the new base that is tied in the others: their shared tensor's difference."""
        old, tuned = self.old.meta(meta.name), self.tuned.meta(meta.name)
        if meta.name not in self.tuned.tied or old is None or tuned is None:
            return None
        fits = tuple(old.shape) == tuple(tuned.shape) == tuple(meta.shape) and meta.dtype in ARITHMETIC
        return (
            Carried(meta.name, "difference", tuple(meta.shape), old.name, tuned.name, meta.name)
            if fits
            else None
        )


class Renaming:
    """Names of the fine-tune as a base has them: a body may have been saved without its prefix, or with one."""

    def __init__(self, names: set[str], held: set[str]) -> None:
        self._held = held
        self._add = self._cut = ""
        shared = len(names & held)
        if 2 * shared >= min(len(names), len(held)):
            self.says = ""
            return
        best = shared
        for prefix in sorted({name.split(".")[0] + "." for name in names if "." in name}):
            hits = sum(name.removeprefix(prefix) in held for name in names if name.startswith(prefix))
            if hits > best:
                best, self._cut, self._add = hits, prefix, ""
        for prefix in sorted({name.split(".")[0] + "." for name in held if "." in name}):
            hits = sum(prefix + name in held for name in names)
            if hits > best:
                best, self._cut, self._add = hits, "", prefix
        self.says = (
            f"{self._cut!r} is left out before names" if self._cut else f"{self._add!r} stands before names"
            if self._add else ""
        )  # fmt: skip

    def __call__(self, name: str) -> str | None:
        forms = (self._add + name.removeprefix(self._cut), name)
        return next((form for form in forms if form in self._held), None)


def _names(side: Side) -> set[str]:
    return {*side.metas, *side.tied}


def _unsubtractable(meta: TensorMeta, side: Side) -> str:
    """Why a tensor takes no difference: ``quantised``, ``buffer``, ``integers``; empty if it does."""
    dtype = DTYPES[meta.dtype]
    if _BUFFERS.search(meta.name):
        return "buffer"
    if meta.dtype in ARITHMETIC:
        return ""
    whole = dtype.kind == "integer" and meta.dtype[0] in "IUB"
    told = "quantization_config" in side.config and len(meta.shape) > 1
    packed = len(meta.shape) > 1 and _QUANTISED.search(meta.name) is not None
    return "integers" if whole and not told and not packed else "quantised"


def _form(meta: TensorMeta) -> str:
    return f"{meta.dtype} {list(meta.shape)}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _lost_tokens(tuned: Side, new: Side) -> Iterator[str]:
    for token, row in (new.tokens or {}).items():
        if token not in (tuned.tokens or {}) and (new.vocab_size is None or row < new.vocab_size):
            yield token


def _note_vocabulary(pairing: Pairing, old: Side, tuned: Side, new: Side) -> None:
    sides = (old, tuned, new)
    if all(side.tokens is not None for side in sides) and pairing.frame == "tuned":
        lost = list(_lost_tokens(tuned, new))
        if lost:
            pairing.not_carried.append(f"{len(lost)} tokens that only the new base has: {_some(lost)}")
    elif any(row.note.startswith("vocabulary") for row in pairing.rows):
        lacking = [side.role for side in sides if side.tokens is None]
        pairing.notes.append(f"no tokenizer can be read beside {', '.join(lacking)}: rows keep their places")
