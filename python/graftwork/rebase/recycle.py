"""Recycling then fine-tuning along a chain of base versions, iteratively or directly, with lineage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftwork.checkpoint import open_checkpoint
from graftwork.checkpoint.files import make_folder, write_file
from graftwork.delta.pipeline import default_threads
from graftwork.errors import CheckpointError
from graftwork.rebase.job import transfer, transfer_state
from graftwork.rebase.lineage import digest_of
from graftwork.rebase.sides import open_side

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Chain", "Link", "recycle"]

Mode = Literal["iterative", "direct"]
State = Mapping[str, "Tensor"]
FOLDER = "chain.json"


@dataclass(frozen=True)
class Link:
    """One version of the base.

    Attributes
    ----------
    base : path or mapping
        M_i, as it was given.
    start : path or mapping
        What was fine-tuned: M_i itself for the first, else M_i with the difference of the version before.
    tuned : path or mapping
        FT(start).
    difference : (int, str) or None
        Whose difference was added: the number of the version, and what was subtracted from what.
    verdict : str or None
        Of the pre-flight; None for the first version and in memory.
    """

    base: Any
    start: Any
    tuned: Any
    difference: tuple[int, str] | None = None
    verdict: str | None = None


@dataclass
class Chain:
    """All versions, in their order."""

    mode: Mode
    links: list[Link] = field(default_factory=list)

    @property
    def tuned(self) -> list[Any]:
        """The fine-tunes M*_1 … M*_n."""
        return [link.tuned for link in self.links]


def recycle(
    bases: Sequence[str | os.PathLike[str]] | Sequence[State],
    finetune: Callable[..., Any],
    *,
    mode: Mode = "iterative",
    out: str | os.PathLike[str] | None = None,
    scale: float = 1.0,
    method: str = "diff",
) -> Chain:
    """Fine-tune every version of a base, each from what the fine-tune of the version before has learnt.

        iterative:  M*_1 = FT(M_1),  M*_i = FT(M_i + λ (M*_{i−1} − M_{i−1}))
        direct:     M*_1 = FT(M_1),  M*_i = FT(M_i + λ (FT(M_{i−1}) − M_{i−1}))

    Parameters
    ----------
    bases : sequence of path, or of mapping of str to Tensor
        M_1 … M_n, at least one: checkpoints, or tensors in memory.
    finetune : callable
        For paths ``finetune(start, out)``, which trains the checkpoint ``start`` and writes the checkpoint ``out``. For
        mappings ``finetune(start)``, which returns the trained tensors and leaves those given as they are.
    mode : {"iterative", "direct"}
        Whether differences accumulate. "direct" also fine-tunes every version but the last on its own.
    out : path, optional
        The folder for everything, needed for paths. What a call before has left there complete is not made again.
    scale : float
        λ.
    method : {"diff", "auto"}
        With "auto" a version for which the pre-flight says dont is fine-tuned from its base alone.

    Returns
    -------
    Chain
        Starts, fine-tunes, and whose difference each start has.

    Raises
    ------
    CheckpointError
        Versions do not fit each other; ``out`` holds the chain of other bases or settings; ``finetune`` wrote nothing.

    Notes
    -----
    Algorithm 1 of Lin et al. 2025 (arXiv 2503.20110), and the variant that it is compared with.

    Examples
    --------
    >>> import torch
    >>> train = lambda model: {"w": model["w"] + (4 - model["w"]) / 2}
    >>> bases = [{"w": torch.tensor([value])} for value in (0.0, 1.0, 1.5)]
    >>> [model["w"].item() for model in recycle(bases, train).tuned]
    [2.0, 3.5, 4.0]
    """
    if mode not in ("iterative", "direct"):
        raise ValueError(f"recycle: mode must be 'iterative' or 'direct', got {mode!r}")
    if not bases:
        raise ValueError("recycle: give at least one base")
    if all(isinstance(base, Mapping) for base in bases):
        return _in_memory([base for base in bases if isinstance(base, Mapping)], finetune, mode, scale)
    if not all(isinstance(base, str | os.PathLike) for base in bases):
        raise TypeError("recycle: bases must be paths, or mappings of names to tensors, all of one kind")
    if out is None:
        raise ValueError("recycle: checkpoints need out, the folder for the chain")
    paths = [Path(base) for base in bases if isinstance(base, str | os.PathLike)]
    return _OnDisk(paths, finetune, mode, Path(out), scale, method).run()


def _in_memory(bases: list[State], finetune: Callable[[State], State], mode: Mode, scale: float) -> Chain:
    chain = Chain(mode)
    for number, base in enumerate(bases):
        start, origin = base, None
        if number:
            before = bases[number - 1]
            source = chain.links[-1].tuned
            if mode == "direct" and number > 1:
                source = finetune(before)
            start = transfer_state(before, source, base, scale=scale)
            origin = (number - 1, _said(mode, number - 1))
        chain.links.append(Link(base, start, finetune(start), origin))
    return chain


def _said(mode: Mode, number: int) -> str:
    tuned = f"M*_{number + 1}" if mode == "iterative" or number == 0 else f"FT(M_{number + 1})"
    return f"{tuned} - M_{number + 1}"


class _OnDisk:
    """``out/NN-start``, ``NN-tuned`` and, for direct recycling, ``NN-alone``; each appears when it is complete."""

    def __init__(
        self,
        bases: list[Path],
        finetune: Callable[[Path, Path], Any],
        mode: Mode,
        out: Path,
        scale: float,
        method: str,
    ) -> None:
        self._bases, self._finetune, self._mode = bases, finetune, mode
        self._out, self._scale, self._method = out, scale, method
        self._said: dict[str, Any] = {}

    def run(self) -> Chain:
        make_folder(self._out)
        self._begin()
        chain = Chain(self._mode)
        for number, base in enumerate(self._bases):
            start, origin, verdict = base, None, None
            if number:
                before = self._bases[number - 1]
                source = Path(chain.links[-1].tuned)
                if self._mode == "direct" and number > 1:
                    source = self._train(before, self._out / f"{number:02d}-alone")
                start, verdict = self._start(before, source, base, number + 1)
                origin = (number - 1, _said(self._mode, number - 1)) if start != base else None
            tuned = self._train(start, self._out / f"{number + 1:02d}-tuned")
            chain.links.append(Link(base, start, tuned, origin, verdict))
            self._note(number + 1, origin, verdict)
        return chain

    def _begin(self) -> None:
        """Settings and bases are those of the chain that lies there, if one does."""
        settings: dict[str, Any] = {
            "mode": self._mode,
            "scale": self._scale,
            "method": self._method,
            "bases": [],
        }
        for base in self._bases:
            with open_side(base, "base") as side:
                settings["bases"].append({"name": side.name, "digest": digest_of(side, default_threads())})
        file = self._out / FOLDER
        if file.exists():
            try:
                self._said = json.loads(file.read_text("utf-8"))
                held = {key: self._said[key] for key in settings}
                self._said["links"].keys()
            except (ValueError, KeyError, TypeError, AttributeError):
                held = {}
            if held != settings:
                raise CheckpointError(
                    "the folder holds a chain of other bases or settings",
                    file=file,
                    got={key: value for key, value in held.items() if value != settings[key]}
                    or "something else",
                    wanted={key: settings[key] for key in settings if held.get(key) != settings[key]},
                    remedy="choose another folder",
                )
        else:
            self._said = settings | {"links": {}}
            self._save()

    def _note(self, number: int, origin: tuple[int, str] | None, verdict: str | None) -> None:
        said = origin and origin[1]
        self._said["links"][str(number)] = {"difference": said, "verdict": verdict}
        self._save()

    def _save(self) -> None:
        text = json.dumps(self._said, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        write_file(self._out / FOLDER, text.encode())

    def _start(self, old: Path, tuned: Path, new: Path, number: int) -> tuple[Path, str | None]:
        target = self._out / f"{number:02d}-start"
        if target.exists():
            known = self._said["links"].get(str(number)) or {}
            return target, known.get("verdict")
        report = transfer(old, tuned, new, target, scale=self._scale, method=self._method)
        return (target if report.out else new), report.verdict

    def _train(self, start: Path, target: Path) -> Path:
        if not target.exists():
            self._finetune(start, target)
        if not target.exists():
            raise CheckpointError("finetune has written nothing", file=target, wanted="a checkpoint")
        with open_checkpoint(target):
            return target
